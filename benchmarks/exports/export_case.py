"""Cases of `benchmarks.files`, and the run whose files they measure."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gaprune.cli.console import Monitor
from gaprune.io.run_files import CONFIG, PRUNED, RECORD
from gaprune.runs.job import make_job
from gaprune.runs.open_directory import open_run
from gaprune.runs.prune import prepare_run
from gaprune.runs.resume import resume

Figures = Mapping[str, float]


@dataclass(frozen=True)
class Context:
    """Inputs of all cases.

    Attributes:
        run: run directory whose files are measured.
        data: folder with test data of real networks, or None.
    """

    run: Path
    data: Path | None


@dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes:
        part, name: identity of its row.
        measure: returns the figures.
        made_of: options of the measurement, as plain data; a change repeats it.
        uses_run: whether the figures also depend on the run.
    """

    part: str
    name: str
    measure: Callable[[Context], Figures]
    made_of: Mapping[str, Any] = field(default_factory=dict)
    uses_run: bool = False

    def depends_on(self, context: Context) -> dict[str, Any]:
        """Return the inputs of the figures; a stored row with other inputs is not reused."""
        if not self.uses_run:
            return dict(self.made_of)
        content = (context.run / PRUNED).read_bytes()
        return {**self.made_of, "run": hashlib.sha256(content).hexdigest()}


def run_at(folder: Path, config: Mapping[str, Any]) -> Path:
    """Return a run directory with a result; prune or resume where there is none yet.

    Args:
        folder: the run directory.
        config: keys of `config.toml` for a new run.
    """
    if (folder / RECORD).is_file():
        return folder
    with Monitor() as monitor:
        if (folder / CONFIG).is_file():
            resume(folder, observer=monitor)
            return folder
        job = make_job(config)
        with open_run(folder) as run_directory:
            target, test = job.load()
            run = prepare_run(
                target,
                job.checked,
                test=test,
                observer=monitor,
                run_directory=run_directory,
                job=job,
            )
            run_directory.save(run.run(), job)
    return folder
