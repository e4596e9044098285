"""A budget in latency: the multiply-adds that are fast enough, and the latency of the result.

Latency is measured, so two measurements may differ. The multiply-adds that the first one gives
are a setting of the run (`budget_macs`): the search, and resuming it, is deterministic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median, quantiles
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
from gaprune.models.patterns import channel_groups, searched_layout, silent_channels
from gaprune.models.target import Target
from gaprune.pattern_names import LATENCY
from gaprune.runs.setup import CheckedSettings, ResolvedSettings
from gaprune.workers.serial import torch_threads

FRACTIONS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8)  # of the dense network's MACs, timed
NUM_REFINEMENTS = 2  # times that the network at the estimated budget is timed as well


def find_budget_macs(
    target: Target, checked: CheckedSettings, observer: Observer
) -> CheckedSettings:
    """Return settings with the multiply-adds that take the asked fraction of the latency.

    Networks of the same width everywhere are timed at several budgets, in turn with the dense one;
    a rising curve is fitted to their latencies. Without a latency budget nothing is done.

    Raises:
        InputError: an unknown runtime, or no network is fast enough.
        GapruneError: the runtime cannot run the network.
    """
    settings = checked.settings
    if settings.budget != LATENCY or settings.budget_macs is not None:
        return checked
    names = [name for name in RUNTIMES if name != CSR]
    if settings.latency_runtime not in names:
        raise unknown_name("latency_runtime", settings.latency_runtime, names)
    observer.phase("latency", f"timing compact networks {_conditions(settings)}")
    curve = _LatencyCurve(target, settings)
    for fraction in FRACTIONS:
        curve.add(int(fraction * curve.dense_macs))
    curve.measure()
    for _ in range(NUM_REFINEMENTS):
        curve.add(curve.budget(1 - settings.sparsity))
        curve.measure()
    macs = curve.budget(1 - settings.sparsity)
    predicted = 1 - float(np.interp(macs, *curve.points()))
    observer.phase(
        "latency", f"{macs:,} multiply-adds, {macs / curve.dense_macs:.1%} of all, are fast enough"
    )
    settings = settings.replace(budget_macs=macs)
    return replace(checked, settings=settings, predicted_speedup=predicted)


def measure_latency(
    target: Target, masks: Mapping[str, Tensor], resolved: ResolvedSettings
) -> dict[str, Any]:
    """Time the compact network of masks in turn with the dense one.

    Returns:
        `asked`, `predicted` and `measured` are fractions of the dense network's latency that are
        removed. `predicted` is that of networks of the same width everywhere at this budget, and
        None if the multiply-adds were stated or the run was resumed. `measured` is the median of
        paired passes, and None if no channel was removed. `speed_up` are quartiles of how many
        times as fast the compact network is. `dense_ms` and `compact_ms` are median milliseconds
        of one pass.

    Raises:
        GapruneError: the runtime cannot run one of them.
    """
    settings, predicted = resolved.settings, resolved.predicted_speedup
    removed = silent_channels(target, masks)
    compact = target.model
    if removed:
        compact = remove_channels(target.masked_copy(masks), target.example(), removed)
    runtime, batch = settings.latency_runtime, settings.latency_batch
    threads = settings.threads_per_worker
    times = time_models(target, [target.model, compact], runtime, batch, threads)
    ratios = [dense / this for dense, this in zip(*times, strict=True)]
    return {
        "asked": settings.sparsity,
        "predicted": None if predicted is None else round(predicted, 4),
        "measured": round(1 - paired_ratio(times, 1), 4) if removed else None,
        "speed_up": [round(ratio, 3) for ratio in quantiles(ratios)] if removed else None,
        "dense_ms": round(median(times[0]), 4),
        "compact_ms": round(median(times[1]), 4),
        "runtime": runtime,
        "batch": batch,
        "threads": threads,
        "budget_macs": settings.budget_macs or 0,
    }


class _LatencyCurve:
    """Latencies of networks of the same width everywhere, as fractions of the dense one's."""

    def __init__(self, target: Target, settings: Settings) -> None:
        self._target, self._settings = target, settings
        layout = searched_layout(target, settings)
        assert layout.mac_cost is not None, "a latency budget counts multiply-adds"
        self._layout, self._cost = layout, layout.mac_cost
        self.dense_macs = layout.dense_cost
        self._networks: dict[int, nn.Module] = {}
        self._fractions: dict[int, float] = {}

    def add(self, macs: int) -> None:
        """Make the network of a budget, if it exists and has not been timed."""
        if macs < self._layout.min_cost:
            return
        cost = replace(self._cost, limit=macs)
        counts = uniform_counts(replace(self._layout, mac_cost=cost), self._settings.sparsity)
        used = cost.macs(counts)
        if used in self._fractions or used in self._networks or used >= self.dense_macs:
            return
        groups = channel_groups(self._target, alike=True)
        channels = [channel for group in groups for channel in group.channels]
        removed: dict[str, list[int]] = {}
        start = 0
        for size, count in zip(self._layout.sizes, counts, strict=True):
            for channel in channels[start + count : start + size]:
                output = channel.outputs[0]
                removed.setdefault(output.layer, []).append(output.channel)
            start += size
        target = self._target
        self._networks[used] = remove_channels(target.model, target.example(), removed)

    def measure(self) -> None:
        """Time the new networks, in turn with the dense one."""
        if not self._networks:
            return
        models, settings = [self._target.model, *self._networks.values()], self._settings
        runtime, batch = settings.latency_runtime, settings.latency_batch
        times = time_models(self._target, models, runtime, batch, settings.threads_per_worker)
        for index, macs in enumerate(self._networks, 1):
            self._fractions[macs] = paired_ratio(times, index)
        self._networks.clear()

    def points(self) -> tuple[list[int], list[float]]:
        """Return multiply-adds and latencies, both rising (isotonic, Ayer et al. 1955)."""
        macs = [*sorted(self._fractions), self.dense_macs]
        pools: list[tuple[float, int]] = []
        for cost in macs:
            pools.append((1.0 if cost == self.dense_macs else self._fractions[cost], 1))
            while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
                (after, m), (before, n) = pools.pop(), pools.pop()
                pools.append(((before * n + after * m) / (m + n), m + n))
        return macs, [fraction for fraction, size in pools for _ in range(size)]

    def budget(self, fraction: float) -> int:
        """Return the most multiply-adds that take at most a fraction of the dense latency.

        Raises:
            InputError: none do.
        """
        macs, fractions = self.points()
        settings = self._settings
        if fractions[0] > fraction:
            raise InputError(
                f"sparsity: {settings.sparsity:g} of the latency {_conditions(settings)} cannot be "
                f"removed: with {macs[0] / self.dense_macs:.1%} of the multiply-adds a compact "
                f"network still takes {fractions[0]:.1%} of the dense one's time; ask for at most "
                f"{max(0.0, 1 - fractions[0]):.2f}, a larger --latency-batch or another "
                "--latency-runtime, or use --budget=macs"
            )
        last = max(index for index, value in enumerate(fractions) if value <= fraction)
        if last + 1 == len(macs):
            return macs[last]
        (low, high), (fast, slow) = macs[last : last + 2], fractions[last : last + 2]
        return int(low + (high - low) * (fraction - fast) / (slow - fast))


def time_models(
    target: Target, models: Sequence[nn.Module], runtime: str, batch: int, threads: int = 1
) -> list[list[float]]:
    """Return the milliseconds of the passes of each network, which are timed in turn.

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


def paired_ratio(times: Sequence[Sequence[float]], index: int) -> float:
    """Return the median ratio of paired passes of one network and the first."""
    return median(this / dense for this, dense in zip(times[index], times[0], strict=True))


def _conditions(settings: Settings) -> str:
    threads = settings.threads_per_worker
    return (
        f"in {settings.latency_runtime} at batch {settings.latency_batch}, "
        f"{threads} thread{'s' if threads > 1 else ''}"
    )
