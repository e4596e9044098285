"""What a part of the benchmark measures: named things, each a function that gives figures."""

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
    """What all parts may use.

    Attributes:
        run: folder of the run whose files are measured.
        data: folder with held-out data of real networks, or None.
    """

    run: Path
    data: Path | None


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
        part, name: what it is called.
        measure: gives its figures.
        made_of: what they depend on, as plain data.
        uses_run: whether they depend on the run.
    """

    part: str
    name: str
    measure: Callable[[Context], Figures]
    made_of: Mapping[str, Any] = field(default_factory=dict)
    uses_run: bool = False

    def depends_on(self, context: Context) -> dict[str, Any]:
        """Return what its figures depend on."""
        if not self.uses_run:
            return dict(self.made_of)
        content = (context.run / PRUNED).read_bytes()
        return {**self.made_of, "run": hashlib.sha256(content).hexdigest()}


def run_at(place: Path, config: Mapping[str, Any]) -> Path:
    """Return a run folder: one that is kept, one that goes on, or one that the product makes now.

    Args:
        place: the folder.
        config: keys as in `config.toml`, for a run that is not there yet.
    """
    if (place / RECORD).is_file():
        return place
    with Monitor() as monitor:
        if (place / CONFIG).is_file():
            resume(place, observer=monitor)
            return place
        job = make_job(config)
        with open_run(place) as run_directory:
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
    return place
