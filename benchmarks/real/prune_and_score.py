"""One row of the benchmark: open a network, prune it, and score it on test data."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.isolated_process import peak_mb
from benchmarks.networks.real_network import RealNetwork
from benchmarks.real.methods import METHODS, usable_settings
from benchmarks.real.rows import Key, Row
from benchmarks.real.settings import UNLABELLED
from gaprune.calibration.inversion.synthesis import INVERTING
from gaprune.cli.console import Monitor
from gaprune.config import make_settings
from gaprune.errors import GapruneError
from gaprune.runs.prune import prune_target
from gaprune.runs.result import Result

PROXIES = "proxies"  # folder of proxy inputs, beside the rows
CALIBRATION = "calibration"  # phase of a run that makes the calibration inputs
INVERTED = "inverted from BatchNorm"  # in the provenance; inverted inputs are cached on disk


@dataclass(frozen=True)
class Case:
    """A network of the benchmark.

    Attributes:
        open: loads it with its test data from the data folder.
        sparsities: default sparsities.
        settings: settings of the search.
        proxy: makes unrelated real inputs from the data folder, as `--calibration proxy:` takes.
        overrides: method → settings that replace `settings`.
    """

    open: Callable[[Path | None], RealNetwork]
    sparsities: tuple[float, ...]
    settings: Mapping[str, Any]
    proxy: Callable[[Path | None], Tensor]
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


class Listener(Monitor):
    """Prints the progress of a run and records what a row needs."""

    def __init__(self) -> None:
        super().__init__()
        self.warnings: list[str] = []
        self.inverts = False
        self.calibration_seconds = 0.0
        self._since: float | None = None

    def phase(self, name: str, detail: str) -> None:
        """Time the calibration phase."""
        now = time.monotonic()
        if self._since is not None:
            self.calibration_seconds += now - self._since
        self._since = now if name == CALIBRATION else None
        super().phase(name, detail)

    def progress(self, what: str, done: float, total: float | None) -> None:
        """Record whether inputs are inverted now, instead of read from the cache."""
        self.inverts = self.inverts or what == INVERTING
        super().progress(what, done, total)

    def warning(self, text: str) -> None:
        """Record a warning."""
        self.warnings.append(text)
        super().warning(text)


def settings_of(case: Case, key: Key) -> dict[str, Any]:
    """Return the settings of a row; a proxy file is named relative to the folder of rows."""
    method = METHODS[key.method]
    stated = {**case.settings, **case.overrides.get(key.method, {})}
    settings = usable_settings(stated, searches=method.searches)
    if (level := _file_level(case, key)) is not None:
        settings["calibration"] = [f"{level}:{PROXIES}/{key.network}.safetensors"]
    return {
        **settings,
        **method.settings,
        "method": method.method,
        "sparsity": key.sparsity,
        "seed": key.seed,
    }


def make_row(case: Case, key: Key, data: Path | None, folder: Path) -> Row:
    """Prune and score a network; a row that cannot be made says why in its note.

    Args:
        case: the network.
        key: identity of the row.
        data: folder with test data.
        folder: folder of the rows, where proxy inputs are written.
    """
    settings = settings_of(case, key)
    row = Row(*key, settings=settings)
    try:
        network = case.open(data)
        row = replace(row, measure=network.measure, test_count=network.test_count)
        if (level := _file_level(case, key)) is not None:
            path = _write_proxy(case, key, data, folder)
            settings = {**settings, "calibration": [f"{level}:{path}"]}
        return _measured(network, row, settings)
    except GapruneError as error:
        return replace(row, note=str(error))


def _file_level(case: Case, key: Key) -> str | None:
    """Return the data level of the file of `case.proxy` if the row uses it."""
    if UNLABELLED in case.settings.get("calibration", ()):
        return UNLABELLED
    return "proxy" if METHODS[key.method].proxied else None


def _write_proxy(case: Case, key: Key, data: Path | None, folder: Path) -> Path:
    path = folder / PROXIES / f"{key.network}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"x": case.proxy(data).contiguous()}, path)
    return path


def _measured(network: RealNetwork, row: Row, settings: Mapping[str, Any]) -> Row:
    chosen = make_settings(settings)
    target = network.load()
    with Listener() as listener:
        result = prune_target(target, chosen, observer=listener)
    peak = peak_mb()
    dense = network.outputs(target.model)
    outputs = network.outputs(_pruned(result))
    score, agreement = network.grade(outputs), network.agreement(outputs, dense)
    if not math.isfinite(score):
        raise GapruneError("the pruned network's score is not a finite number")
    inverted = any(INVERTED in source for source in result.provenance.sources)
    return replace(
        row,
        score=score,
        dense=network.grade(dense),
        agreement=agreement if math.isfinite(agreement) else None,
        seconds=round(result.seconds, 3),
        calibration_seconds=round(listener.calibration_seconds, 3),
        cached=inverted and not listener.inverts,
        peak_mb=round(peak, 1),
        needs=result.provenance.level if METHODS[row.method].looks else "none",
        provenance=asdict(result.provenance),
        validation=result.validation_agreement,
        removed=result.actual_sparsity,
        warnings=tuple(listener.warnings),
    )


def _pruned(result: Result) -> nn.Module:
    repaired = result.repaired_model()
    return result.pruned_model() if repaired is None else repaired
