"""The profiler: every moment belongs to one part, and the parts add up to the whole."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaprune.profiling import (
    OTHER,
    Profile,
    Profiler,
    Timing,
    Timings,
    active_profiler,
    profiled,
    run_profiler,
)

Tree = tuple[str, list[Any]]
NAMES = st.sampled_from(["decode", "mask", "forward"])
TREES: st.SearchStrategy[Tree] = st.recursive(
    st.tuples(NAMES, st.just([])), lambda t: st.tuples(NAMES, st.lists(t))
)


def open_parts(tree: Tree) -> None:
    """Open nested parts."""
    name, children = tree
    with profiled(name):
        for child in children:
            open_parts(child)


def calls_of(tree: Tree, outer: str = OTHER) -> list[str]:
    """Return the name of every part that is not directly inside one of the same name."""
    name, children = tree
    calls = [] if name == outer else [name]
    return calls + [call for child in children for call in calls_of(child, name)]


@settings(max_examples=30)
@given(st.lists(TREES, max_size=4))
def test_parts_add_up_to_the_nanosecond(trees: list[Tree]) -> None:
    """However they are nested; and each is counted as often as it began."""
    before = time.perf_counter_ns()
    with run_profiler() as profiler:
        after = time.perf_counter_ns()
        for tree in trees:
            open_parts(tree)
        assert profiler is not None
        until = time.perf_counter_ns()
        timings = profiler.profile.driver
    assert until - after <= timings.total.nanoseconds <= time.perf_counter_ns() - before
    names = [name for tree in trees for name in calls_of(tree)]
    calls = {part: timing.calls for part, timing in timings.items() if part != OTHER}
    assert calls == {name: names.count(name) for name in set(names)}
    assert all(timing.nanoseconds >= 0 for timing in timings.values())


def test_a_nested_part_counts_once() -> None:
    """The outer part gets the rest: no moment is in two rows."""
    with run_profiler() as profiler:
        assert profiler is not None
        with profiled("forward"):
            time.sleep(0.02)
            with profiled("mask"):
                time.sleep(0.08)
        time.sleep(0.04)
        timings = profiler.profile.driver
    assert timings["mask"].seconds >= 0.08
    assert 0.02 <= timings["forward"].seconds < timings["mask"].seconds
    assert timings[OTHER].seconds >= 0.04


def test_without_a_profiler_parts_cost_nothing() -> None:
    """All parts share one empty block; an outer profiler stays active."""
    assert active_profiler() is None
    assert profiled("forward") is profiled("mask")
    with run_profiler(enabled=False) as profiler, profiled("forward"):
        assert profiler is None is active_profiler()
    with run_profiler() as outer, run_profiler(enabled=False), profiled("forward"):
        assert active_profiler() is outer


def test_errors_and_interrupts_close_parts() -> None:
    """Also a part that an interrupt left open inside another one."""
    profiler = Profiler()
    with profiler.part("select"):
        profiler.part("forward").__enter__()
    with suppress(ValueError), profiler.part("vary"):
        raise ValueError
    time.sleep(0.02)
    assert profiler.profile.driver[OTHER].seconds >= 0.02


def test_a_profiler_is_active_in_its_own_thread() -> None:
    """Parts of another thread would overlap with those of this one."""
    seen: list[Profiler | None] = []
    with run_profiler() as profiler:
        other = threading.Thread(target=lambda: seen.append(active_profiler()))
        other.start()
        other.join()
        assert active_profiler() is profiler
    assert seen == [None]
    assert active_profiler() is None


def test_a_device_is_synchronized_at_both_ends_of_a_part() -> None:
    """Else its remaining work would count for the next part; without a profiler it is not."""
    waits: list[int] = []
    with profiled("forward"):
        assert not waits
    with run_profiler(synchronize=lambda: waits.append(1)):
        with profiled("forward"):
            assert len(waits) == 1
        assert len(waits) == 2


def test_the_record_is_plain_data_slowest_first() -> None:
    """`other` comes last, whatever it took; `workers` is null without Ray workers."""
    driver = Timings(other=Timing(9, 0), mask=Timing(2_000_000_000, 4), forward=Timing(3, 1))
    record = Profile(driver).record()
    assert record["workers"] is None
    assert record["driver"]["seconds"] == pytest.approx(2.000000012, abs=1e-12)
    assert list(record["driver"]["parts"]) == ["mask", "forward", "other"]
    assert record["driver"]["parts"]["mask"] == {"seconds": 2.0, "calls": 4}
