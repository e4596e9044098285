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
from gaprune.profiling import OTHER, PARTS, Clock, Ledger, Profile, Spent, measuring, running, spent
from gaprune.workers.time_accounting import TimeAccounting

Tree = tuple[str, list[Any]]
NAMES = st.sampled_from(["express", "mask", "forward"])
TREES: st.SearchStrategy[Tree] = st.recursive(
    st.tuples(NAMES, st.just([])), lambda t: st.tuples(NAMES, st.lists(t))
)


def walk(tree: Tree) -> None:
    """Open parts inside each other as a tree says."""
    name, inside = tree
    with spent(name):
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
    with measuring() as clock:
        after = time.perf_counter_ns()
        for tree in trees:
            walk(tree)
        assert clock is not None
        until = time.perf_counter_ns()
        here = clock.here
    assert until - after <= here.total.nanoseconds <= time.perf_counter_ns() - before
    names = [name for tree in trees for name in begun(tree)]
    calls = {part: one.calls for part, one in here.items() if part != OTHER}
    assert calls == {name: names.count(name) for name in set(names)}
    assert all(one.nanoseconds >= 0 for one in here.values())


def test_a_part_inside_another_counts_once() -> None:
    """The outer one has what is left: no moment is in two rows."""
    with measuring() as clock:
        assert clock is not None
        with spent("forward"):
            time.sleep(0.02)
            with spent("mask"):
                time.sleep(0.08)
        time.sleep(0.04)
        here = clock.here
    assert here["mask"].seconds >= 0.08
    assert 0.02 <= here["forward"].seconds < here["mask"].seconds
    assert here[OTHER].seconds >= 0.04


def test_without_a_clock_nothing_is_made() -> None:
    """The same empty block comes for every part, so that parts cost nothing worth a name."""
    assert running() is None
    assert spent("forward") is spent("mask")
    with measuring(False) as clock, spent("forward"):
        assert clock is None is running()


def test_what_is_not_wanted_inside_leaves_the_clock_outside_running() -> None:
    """A run that is not asked for its profile may be a part of what somebody measures."""
    with measuring() as clock:
        assert clock is not None
        with measuring(False), spent("forward"):
            pass
        assert clock.here["forward"].calls == 1


def test_a_part_that_was_left_open_ends_with_the_one_around_it() -> None:
    """As after an interrupt between its beginning and its block."""
    clock = Clock()
    clock.begin("select")
    clock.begin("forward")
    clock.end("select")
    time.sleep(0.02)
    assert clock.here[OTHER].seconds >= 0.02
    with measuring() as other:
        assert other is not None
        with suppress(ValueError), spent("select"), spent("forward"):
            raise ValueError
        time.sleep(0.02)
        assert other.here[OTHER].seconds >= 0.02


def test_a_clock_runs_in_its_own_thread() -> None:
    """Another thread's parts are not its own, whose order they would upset."""
    seen: list[Clock | None] = []
    with measuring() as clock:
        other = threading.Thread(target=lambda: seen.append(running()))
        other.start()
        other.join()
        assert running() is clock
    assert seen == [None]
    assert running() is None


def test_a_device_that_is_behind_is_waited_for_at_both_ends_of_a_part() -> None:
    """Else what it still does would be booked on the part after; without a clock it is not."""
    waits: list[int] = []
    with module.waiting_for(lambda: waits.append(1)), spent("forward"):
        assert not waits
    with measuring():
        with module.waiting_for(lambda: waits.append(1)):
            with spent("forward"):
                assert len(waits) == 1
            assert len(waits) == 2
        with spent("forward"):
            pass
    assert len(waits) == 2


def test_every_part_has_its_words_and_is_measured_somewhere() -> None:
    """A part of another name would have no words in the table; words without a part, no row."""
    folder = Path(gaprune.__file__).parent
    constants = {name: value for name, value in vars(module).items() if name.isupper()}
    named: set[str] = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "spent":
                (part,) = node.args
                known = isinstance(part, ast.Constant)
                named.add(ast.literal_eval(part) if known else constants[ast.unparse(part)])
    assert named | {module.LOST} == set(PARTS)


def test_the_hours_of_workers_add_up_to_places_times_time() -> None:
    """Work as they measured it, the rest of a task's time away as transport, then waiting."""
    with measuring() as clock:
        assert clock is not None
        opened = time.monotonic()
        hours = TimeAccounting(3)
        time.sleep(0.05)
        hours.answered(time.monotonic() - 0.04, Ledger(forward=Spent(30_000_000, 2)))
        hours.lost(time.monotonic() - 0.02)
        hours.close(0.01, 3)
        closed = time.monotonic()
    workers = clock.profile().workers
    assert clock.count == 3
    assert workers["forward"] == Spent(30_000_000, 2)
    assert workers["start"] == Spent(10_000_000, 3)
    assert workers["transport"].seconds == pytest.approx(0.01, abs=0.01)
    assert workers["lost"].seconds == pytest.approx(0.02, abs=0.01)
    assert 0.15 <= workers.total.seconds <= 3 * (closed - opened)
    assert workers["waiting"].seconds >= 0.15 - 0.07 - 0.02


def test_hours_cost_nothing_without_a_clock() -> None:
    """Workers are told not to measure, and nothing is booked."""
    hours = TimeAccounting(2)
    hours.answered(0.0, None)
    hours.lost(0.0)
    hours.close(1.0, 1)
    assert not hours.wanted
    assert running() is None


def test_the_record_of_a_profile_is_plain_and_dearest_first() -> None:
    """`other` comes last, whatever it took; without workers elsewhere there is no such part."""
    here = Ledger(other=Spent(9, 0), mask=Spent(2_000_000_000, 4), forward=Spent(3, 1))
    record = Profile(here, Ledger()).record()
    assert record["workers"] is None
    assert record["here"]["seconds"] == pytest.approx(2.000000012, abs=1e-12)
    assert list(record["here"]["parts"]) == ["mask", "forward", "other"]
    assert record["here"]["parts"]["mask"] == {"seconds": 2.0, "calls": 4}
