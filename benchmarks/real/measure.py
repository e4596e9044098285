"""One row: a network opened, pruned through the product, and scored on what it never saw."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.networks.record import RealNetwork
from benchmarks.real.methods import METHODS, SEARCH_ONLY
from benchmarks.real.process import peak_mb
from benchmarks.real.rows import Key, Row
from gaprune.calibration.inversion.synthesis import INVERTING
from gaprune.cli.console import Monitor
from gaprune.config import make_settings
from gaprune.errors import GapruneError
from gaprune.records import as_json
from gaprune.runs.prune import prune_target
from gaprune.runs.result import Result

PROXIES = "proxies"  # folder of the inputs of `proxy`, beside the rows
CALIBRATION = "calibration"  # the phase of a run that makes them
INVERTED = "inverted from BatchNorm"  # in a source of the provenance: these are kept on disk


@dataclass(frozen=True)
class Case:
    """A network of the benchmark.

    Attributes:
        open: gives it with its held-out data, of the data folder.
        sparsities: at which it is pruned.
        settings: of the search.
        proxy: makes unrelated real inputs for it, of the data folder, as `--calibration` takes them.
        own: method → settings that it takes instead.
    """

    open: Callable[[Path | None], RealNetwork]
    sparsities: tuple[float, ...]
    settings: Mapping[str, Any]
    proxy: Callable[[Path | None], Tensor]
    own: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


class Listener(Monitor):
    """Shows a run on stderr and remembers what a row says about it."""

    def __init__(self) -> None:
        super().__init__()
        self.warnings: list[str] = []
        self.inverts = False
        self.calibration_seconds = 0.0
        self._since: float | None = None

    def phase(self, name: str, detail: str) -> None:
        """Take the time that calibration inputs need."""
        now = time.monotonic()
        if self._since is not None:
            self.calibration_seconds += now - self._since
        self._since = now if name == CALIBRATION else None
        super().phase(name, detail)

    def progress(self, what: str, done: float, total: float | None) -> None:
        """Notice that inputs are being inverted."""
        self.inverts = self.inverts or what == INVERTING
        super().progress(what, done, total)

    def warning(self, text: str) -> None:
        """Remember it."""
        self.warnings.append(text)
        super().warning(text)


def settings_of(case: Case, key: Key) -> dict[str, Any]:
    """Return the settings of a row; the file of a proxy is named inside the folder of rows."""
    method = METHODS[key.method]
    own = {
        name: value
        for name, value in {**case.settings, **case.own.get(key.method, {})}.items()
        if method.searches or name not in SEARCH_ONLY
    }
    if method.proxied:
        own["calibration"] = [f"proxy:{PROXIES}/{key.network}.safetensors"]
    return {
        **own,
        **method.settings,
        "method": method.method,
        "sparsity": key.sparsity,
        "seed": key.seed,
    }


def make_row(case: Case, key: Key, data: Path | None, folder: Path) -> Row:
    """Prune and score, or say in the row's note why that cannot be done.

    Args:
        case: the network.
        key: what is asked.
        data: the folder with held-out data.
        folder: of the rows, where the inputs of a proxy are put.
    """
    settings = settings_of(case, key)
    row = Row(*key, settings=settings)
    try:
        network = case.open(data)
        row = replace(row, measure=network.measure, held_out=network.held_out)
        if METHODS[key.method].proxied:
            settings = {**settings, "calibration": [_write_proxy(case, key, data, folder)]}
        return _measured(network, row, settings)
    except GapruneError as error:
        return replace(row, note=str(error))


def _write_proxy(case: Case, key: Key, data: Path | None, folder: Path) -> str:
    place = folder / PROXIES
    place.mkdir(parents=True, exist_ok=True)
    path = place / f"{key.network}.safetensors"
    save_file({"x": case.proxy(data).contiguous()}, path)
    return f"proxy:{path}"


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
        provenance=as_json(result.provenance),
        validation=result.validation_agreement,
        removed=result.actual_sparsity,
        warnings=tuple(listener.warnings),
    )


def _pruned(result: Result) -> nn.Module:
    repaired = result.repaired_model()
    return result.pruned_model() if repaired is None else repaired
