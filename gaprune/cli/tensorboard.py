"""TensorBoard events of a run: one point per generation, written during the search."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from gaprune.callbacks import Observer
from gaprune.errors import GapruneError, InputError
from gaprune.records import BaselineScore, Generation


class Events(Observer):
    """An observer that writes events; use it in a `with` block.

    Scalars by generation: `validation/agreement`, `fitness/best`, `fitness/mean`,
    `search/evaluations`, `search/seconds`, and the probability of every operator under `rates/`;
    the agreement of every one-shot mask at step 0 under `baselines/`. Phases and warnings are
    texts. The folder is created if it is missing.

    Raises:
        InputError: the folder cannot be written.
        GapruneError: tensorboard is missing.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise GapruneError(
                "tensorboard: needs the package tensorboard; "
                "pip install 'gaprune[tensorboard]', or leave --tensorboard out"
            ) from error
        try:
            self._writer: Any = SummaryWriter(str(Path(folder).expanduser()))
        except OSError as error:
            raise InputError(
                f"tensorboard: cannot write to {folder} ({error.strerror or error}); name a folder "
                "that you may write to"
            ) from error
        self._step = 0

    def phase(self, name: str, detail: str) -> None:
        """Write it as text."""
        self._writer.add_text("phase", f"{name}: {detail}", self._step)

    def baseline(self, name: str, score: BaselineScore) -> None:
        """Write its agreement."""
        self._writer.add_scalar(f"baselines/{name}", score.agreement, 0)

    def generation(self, record: Generation, total: int | None) -> None:
        """Write its scores and flush, so that TensorBoard shows them at once."""
        del total
        self._step = record.generation
        figures = {
            "validation/agreement": record.validation,
            "fitness/best": record.best,
            "fitness/mean": record.mean,
            "search/evaluations": record.evaluations,
            "search/seconds": record.seconds,
        }
        for kind, rates in record.operator_rates.items():
            figures |= {f"rates/{kind}/{name}": rate for name, rate in rates.items()}
        # generations, not seconds, are the steps: runs of different machines stay comparable
        for name, value in figures.items():
            self._writer.add_scalar(name, value, record.generation)
        self._writer.flush()

    def warning(self, text: str) -> None:
        """Write it as text."""
        self._writer.add_text("warning", text, self._step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()
