"""A budget in measured time: which multiply-adds are fast enough, and how fast what came is.

Time is what a clock says: two calibrations may differ. The multiply-adds that one found are a
setting of the run (`budget_macs`), so that the search itself, and resuming it, is bit-identical.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

import numpy as np
from torch import Tensor, nn

from gaprune.callbacks import Observer
from gaprune.config import Settings
from gaprune.errors import GapruneError, InputError, unknown_name
from gaprune.evaluation.latency import time_in_turn
from gaprune.evaluation.runtimes import CSR, RUNTIMES, RuntimeSubject, UnavailableError
from gaprune.masks.budget import uniform_counts
from gaprune.models.channel_removal import remove_channels
from gaprune.models.input_spec import sample_inputs
from gaprune.models.patterns import (
    channel_groups,
    check_pattern,
    searched_layout,
    silent_channels,
)
from gaprune.models.target import Target
from gaprune.pattern_names import LATENCY
from gaprune.workers.serial import torch_threads

TRIED = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8)  # of the dense network's multiply-adds
REFINED = 2  # times that the network of the budget found so far is measured too


@dataclass(frozen=True)
class Latency:
    """What a compact network's time was to be, and is; parts are of the dense network's.

    Attributes:
        asked: the part to be removed.
        predicted: the part that was predicted, by networks that are equally narrow everywhere;
            None where the multiply-adds were stated, or are those of the run that goes on.
        measured: the part that the network that was found has less, median of paired passes; None
            where no channel went.
        dense_ms, compact_ms: medians of one pass.
        runtime, batch, threads: where.
        budget_macs: the multiply-adds that were allowed.
    """

    asked: float
    predicted: float | None
    measured: float | None
    dense_ms: float
    compact_ms: float
    runtime: str
    batch: int
    threads: int
    budget_macs: int

    def record(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Calibrated:
    """Settings with a budget in multiply-adds, and the part of time that it was predicted to save.

    `predicted` is None where nothing was measured.
    """

    settings: Settings
    predicted: float | None = None


def calibrate(target: Target, settings: Settings, observer: Observer) -> Calibrated:
    """Return settings that state the multiply-adds which take the asked part of time.

    Networks that are equally narrow everywhere are timed at several budgets in turn with the dense
    one, and a rising curve is fitted through what they take.

    Raises:
        InputError: settings that exclude each other, an unknown runtime, or no network is fast
            enough.
        GapruneError: the runtime cannot run the network.
    """
    check_pattern(settings)
    if settings.budget != LATENCY or settings.budget_macs is not None:
        return Calibrated(settings)
    names = [name for name in RUNTIMES if name != CSR]
    if settings.latency_runtime not in names:
        raise unknown_name("latency_runtime", settings.latency_runtime, names)
    observer.phase("latency", f"timing compact networks {_where(settings)}")
    trial = _Trials(target, settings)
    for part in TRIED:
        trial.add(int(part * trial.dense))
    trial.measure()
    for _ in range(REFINED):
        trial.add(trial.budget(1 - settings.sparsity))
        trial.measure()
    keep = trial.budget(1 - settings.sparsity)
    predicted = 1 - float(np.interp(keep, *trial.curve()))
    observer.phase(
        "latency", f"{keep:,} multiply-adds, {keep / trial.dense:.1%} of them, are fast enough"
    )
    return Calibrated(settings.replace(budget_macs=keep), predicted)


def measure_latency(target: Target, masks: Mapping[str, Tensor], given: Calibrated) -> Latency:
    """Time the compact network of masks in turn with the dense one.

    Raises:
        GapruneError: the runtime cannot run one of them.
    """
    settings = given.settings
    assert settings.budget_macs is not None, "calibrate fills it"
    gone = silent_channels(target, masks)
    dense = target.model
    compact = remove_channels(target.masked_copy(masks), target.example(), gone) if gone else dense
    taken = _timed(target, settings, [dense, compact])
    return Latency(
        asked=settings.sparsity,
        predicted=None if given.predicted is None else round(given.predicted, 4),
        measured=round(1 - part_of_first(taken, 1), 4) if gone else None,
        dense_ms=round(median(taken[0]), 4),
        compact_ms=round(median(taken[1]), 4),
        runtime=settings.latency_runtime,
        batch=settings.latency_batch,
        threads=settings.threads_per_worker,
        budget_macs=settings.budget_macs,
    )


class _Trials:
    """Networks that are equally narrow everywhere, and what part of the dense one's time they take.

    Attributes:
        dense: multiply-adds of the dense network.
    """

    def __init__(self, target: Target, settings: Settings) -> None:
        self._target, self._settings = target, settings
        layout = searched_layout(target, settings)
        assert layout.mac_cost is not None, "latency has a price"
        self._layout, self._price = layout, layout.mac_cost
        self.dense, self._least = layout.dense_cost, layout.min_cost
        self._networks: dict[int, nn.Module] = {}
        self._parts: dict[int, float] = {}

    def add(self, macs: int) -> None:
        """Make the network of a budget, if there is one."""
        if macs < self._least:
            return
        budget = replace(self._price, limit=macs)
        counts = uniform_counts(replace(self._layout, mac_cost=budget), self._settings.sparsity)
        cost = budget.macs(counts)
        if cost in self._parts or cost in self._networks or cost >= self.dense:
            return
        gone: dict[str, list[int]] = {}
        groups = channel_groups(self._target, alike=True)
        channels = [one for group in groups for one in group.channels]
        for one in _dropped(channels, self._layout.sizes, counts):
            gone.setdefault(one.layer, []).append(one.channel)
        self._networks[cost] = remove_channels(self._target.model, self._target.example(), gone)

    def measure(self) -> None:
        """Time all that are new, in turn with the dense network."""
        if not self._networks:
            return
        costs = list(self._networks)
        taken = _timed(self._target, self._settings, [self._target.model, *self._networks.values()])
        for place, cost in enumerate(costs, 1):
            self._parts[cost] = part_of_first(taken, place)
        self._networks.clear()

    def curve(self) -> tuple[list[int], list[float]]:
        """Return multiply-adds and the part of time, both rising (Ayer et al. 1955)."""
        places = [*sorted(self._parts), self.dense]
        pools: list[tuple[float, int]] = []
        for cost in places:
            pools.append((1.0 if cost == self.dense else self._parts[cost], 1))
            while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
                (after, m), (before, n) = pools.pop(), pools.pop()
                pools.append(((before * n + after * m) / (m + n), m + n))
        return places, [part for part, number in pools for _ in range(number)]

    def budget(self, part: float) -> int:
        """Return the most multiply-adds that take at most a part of the dense network's time.

        Raises:
            InputError: none do.
        """
        places, parts = self.curve()
        settings = self._settings
        if parts[0] > part:
            raise InputError(
                f"sparsity: {settings.sparsity:g} of the latency {_where(settings)} cannot be "
                f"removed: with {places[0] / self.dense:.1%} of the multiply-adds a compact "
                f"network still takes {parts[0]:.1%} of the dense one's time; ask for "
                f"{max(0.0, 1 - parts[0]):.2f} at most, a larger --latency-batch or another "
                "--latency-runtime, or use --budget macs"
            )
        last = max(place for place, one in enumerate(parts) if one <= part)
        if last + 1 == len(places):
            return places[last]
        (low, high), (fast, slow) = places[last : last + 2], parts[last : last + 2]
        return int(low + (high - low) * (part - fast) / (slow - fast))


def _dropped(channels: Sequence[Any], sizes: Sequence[int], counts: Sequence[int]) -> list[Any]:
    """Return the places of all channels but the first so many of every layer."""
    found, start = [], 0
    for size, count in zip(sizes, counts, strict=True):
        found += [one.outputs[0] for one in channels[start + count : start + size]]
        start += size
    return found


def in_turn(
    target: Target, models: Sequence[nn.Module], runtime: str, batch: int, threads: int = 1
) -> list[list[float]]:
    """Return the milliseconds of passes of each network; they take turns, so share the noise.

    Raises:
        GapruneError: the runtime cannot run one.
    """
    inputs = sample_inputs(target.inputs, batch, target.dtype).to(target.device)
    subjects = [(runtime, RuntimeSubject(model, target)) for model in models]
    try:
        with torch_threads(threads):
            return time_in_turn(subjects, inputs)
    except UnavailableError as error:
        raise GapruneError(
            f"latency_runtime: {runtime} cannot run the network ({error}); use another"
        ) from error


def _timed(target: Target, settings: Settings, models: Sequence[nn.Module]) -> list[list[float]]:
    runtime, batch = settings.latency_runtime, settings.latency_batch
    return in_turn(target, models, runtime, batch, settings.threads_per_worker)


def part_of_first(taken: Sequence[Sequence[float]], place: int) -> float:
    """Return the median of paired ratios of one network's passes to the first one's."""
    return median(own / dense for own, dense in zip(taken[place], taken[0], strict=True))


def _where(settings: Settings) -> str:
    threads = settings.threads_per_worker
    plural = "s" if threads > 1 else ""
    return (
        f"in {settings.latency_runtime} at batch {settings.latency_batch}, {threads} thread{plural}"
    )
