"""Where time goes: every moment belongs to one part, and the parts add up to the whole."""

from __future__ import annotations

import ast
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gaprune
from gaprune import profiling as module
from gaprune.profiling import (
    OTHER,
    PARTS,
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


def walk(tree: Tree) -> None:
    """Open parts inside each other as a tree says."""
    name, inside = tree
    with profiled(name):
        for one in inside:
            walk(one)


def begun(tree: Tree, outer: str = OTHER) -> list[str]:
    """Return the name of every part that is not directly inside one of the same name."""
    name, inside = tree
    found = [] if name == outer else [name]
    return found + [one for child in inside for one in begun(child, name)]


@settings(max_examples=30)
@given(st.lists(TREES, max_size=4))
def test_parts_add_up_to_the_nanosecond(trees: list[Tree]) -> None:
    """However they lie in each other; and each is counted as often as it began."""
    before = time.perf_counter_ns()
    with run_profiler() as profiler:
        after = time.perf_counter_ns()
        for tree in trees:
            walk(tree)
        assert profiler is not None
        until = time.perf_counter_ns()
        here = profiler.profile.driver
    assert until - after <= here.total.nanoseconds <= time.perf_counter_ns() - before
    names = [name for tree in trees for name in begun(tree)]
    calls = {part: one.calls for part, one in here.items() if part != OTHER}
    assert calls == {name: names.count(name) for name in set(names)}
    assert all(one.nanoseconds >= 0 for one in here.values())


def test_a_part_inside_another_counts_once() -> None:
    """The outer one has what is left: no moment is in two rows."""
    with run_profiler() as profiler:
        assert profiler is not None
        with profiled("forward"):
            time.sleep(0.02)
            with profiled("mask"):
                time.sleep(0.08)
        time.sleep(0.04)
        here = profiler.profile.driver
    assert here["mask"].seconds >= 0.08
    assert 0.02 <= here["forward"].seconds < here["mask"].seconds
    assert here[OTHER].seconds >= 0.04


def test_without_a_clock_nothing_is_made() -> None:
    """The same empty block comes for every part, so that parts cost nothing worth a name."""
    assert active_profiler() is None
    assert profiled("forward") is profiled("mask")
    with run_profiler(enabled=False) as profiler, profiled("forward"):
        assert profiler is None is active_profiler()


def test_what_is_not_wanted_inside_leaves_the_clock_outside_running() -> None:
    """A run that is not asked for its profile may be a part of what somebody measures."""
    with run_profiler() as profiler:
        assert profiler is not None
        with run_profiler(enabled=False), profiled("forward"):
            pass
        assert profiler.profile.driver["forward"].calls == 1


def test_a_part_that_was_left_open_ends_with_the_one_around_it() -> None:
    """As after an interrupt between its beginning and its block."""
    profiler = Profiler()
    with profiler.part("select"):
        profiler.part("forward").__enter__()
    time.sleep(0.02)
    assert profiler.profile.driver[OTHER].seconds >= 0.02
    with run_profiler() as other:
        assert other is not None
        with suppress(ValueError), profiled("select"), profiled("forward"):
            raise ValueError
        time.sleep(0.02)
        assert other.profile.driver[OTHER].seconds >= 0.02


def test_a_clock_runs_in_its_own_thread() -> None:
    """Another thread's parts are not its own, whose order they would upset."""
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
    with profiled("forward"):
        pass
    assert len(waits) == 2


def test_every_part_has_its_words_and_is_measured_somewhere() -> None:
    """A part of another name would have no words in the table; words without a part, no row."""
    folder = Path(gaprune.__file__).parent
    constants = {name: value for name, value in vars(module).items() if name.isupper()}
    named: set[str] = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "profiled":
                (part,) = node.args
                known = isinstance(part, ast.Constant)
                named.add(ast.literal_eval(part) if known else constants[ast.unparse(part)])
    assert named | {module.LOST} == set(PARTS)


def test_the_record_of_a_profile_is_plain_and_dearest_first() -> None:
    """`other` comes last, whatever it took; without workers elsewhere there is no such part."""
    here = Timings(other=Timing(9, 0), mask=Timing(2_000_000_000, 4), forward=Timing(3, 1))
    record = Profile(here, Timings()).record()
    assert record["workers"] is None
    assert record["driver"]["seconds"] == pytest.approx(2.000000012, abs=1e-12)
    assert list(record["driver"]["parts"]) == ["mask", "forward", "other"]
    assert record["driver"]["parts"]["mask"] == {"seconds": 2.0, "calls": 4}
