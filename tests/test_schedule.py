"""Schedules: their definitions, the goals they must hold, and how they are written."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaprune.comparison.methods.schedule import (
    CUBIC_STEPS,
    SCHEDULES,
    PruningStep,
    check_steps,
    make_schedule,
    parse_schedule,
)
from gaprune.errors import InputError

GOALS = st.lists(st.floats(0.001, 0.999), min_size=1, max_size=5)


def pairs(steps: list[PruningStep]) -> list[tuple[float, float]]:
    """Return steps as plain numbers."""
    return [(step.sparsity, step.epochs) for step in steps]


@given(name=st.sampled_from(sorted(SCHEDULES)), goals=GOALS, epochs=st.floats(0, 10))
def test_every_goal_is_a_step_and_none_goes_beyond(
    name: str, goals: list[float], epochs: float
) -> None:
    """Sparsities grow strictly, hold each goal exactly and end at the largest."""
    steps = make_schedule(name, goals, epochs)
    found = [step.sparsity for step in steps]
    assert all(before < after for before, after in pairwise(found))
    assert set(goals) <= set(found)
    assert found[-1] == max(goals)
    assert {step.epochs for step in steps} <= {epochs, 2 * epochs, 3 * epochs}


def test_linear_goes_in_tenths() -> None:
    """Goals between the tenths are steps too."""
    assert pairs(make_schedule("linear", [0.45, 0.25], 1)) == [
        (0.1, 1),
        (0.2, 1),
        (0.25, 1),
        (0.3, 1),
        (0.4, 1),
        (0.45, 1),
    ]


def test_long_takes_more_time_and_finer_steps_at_the_end() -> None:
    """Twice the epochs to 0.9, three times after."""
    steps = pairs(make_schedule("long", [0.99, 0.5], 0.5))
    assert steps[:9] == [(tenth / 10, 1.0) for tenth in range(1, 10)]
    tail = [0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.985, 0.99]
    assert steps[9:] == [(sparsity, 1.5) for sparsity in tail]


def test_cubic_follows_its_equation() -> None:
    """s_t = s_f + (0 − s_f)(1 − t/n)³ with the smaller goal between."""
    found = [step.sparsity for step in make_schedule("cubic", [0.9, 0.5], 1)]
    n = CUBIC_STEPS
    expected = sorted([0.5, *(0.9 + (0 - 0.9) * (1 - t / n) ** 3 for t in range(1, n + 1))])
    assert found == pytest.approx(expected)


def test_direct_has_one_step_a_goal() -> None:
    """Doubled goals count once."""
    assert pairs(make_schedule("direct", [0.9, 0.5, 0.9], 2.5)) == [(0.5, 2.5), (0.9, 2.5)]


def test_a_goal_replaces_a_point_that_differs_by_rounding() -> None:
    """0.1 + 0.2 is not a step beside 0.3."""
    found = [step.sparsity for step in make_schedule("linear", [0.1 + 0.2], 1)]
    assert found == [0.1, 0.2, 0.1 + 0.2]


def test_schedules_are_read_as_they_are_written() -> None:
    """Spaces are allowed, epochs may be fractions or none."""
    assert pairs(parse_schedule("0.5:1, 0.9:3.5,0.99:0")) == [(0.5, 1), (0.9, 3.5), (0.99, 0)]


@given(
    st.lists(st.floats(0.001, 0.999), min_size=1, max_size=6, unique=True),
    st.lists(st.floats(0, 100), min_size=6, max_size=6),
)
def test_what_is_written_is_read(sparsities: list[float], epochs: list[float]) -> None:
    """Numbers survive the text."""
    steps = [PruningStep(s, e) for s, e in zip(sorted(sparsities), epochs, strict=False)]
    text = ",".join(f"{step.sparsity!r}:{step.epochs!r}" for step in steps)
    assert parse_schedule(text) == steps


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be SPARSITY:EPOCHS.*got ''"),
        ("0.5", "must be SPARSITY:EPOCHS.*got '0.5'"),
        ("0.5:1,", "got ''"),
        ("0.5:1:2", "must be SPARSITY:EPOCHS"),
        ("half:1", "must be SPARSITY:EPOCHS"),
        ("1:1", "step '1:1': sparsity: must lie strictly between 0 and 1"),
        ("nan:1", "step 'nan:1': sparsity"),
        ("0.5:-1", "step '0.5:-1': epochs: must be 0 or more"),
        ("0.5:inf", "epochs: must be 0 or more and finite"),
        ("0.5:nan", "epochs: must be 0 or more and finite"),
        ("0.5:1,0.5:1", "must grow.*0.5 after 0.5"),
        ("0.9:1,0.5:1", "must grow.*0.5 after 0.9"),
    ],
)
def test_bad_schedules_are_refused(text: str, message: str) -> None:
    """The message shows the part, the rule and how it is written."""
    with pytest.raises(InputError, match=message):
        parse_schedule(text)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(
    ("goals", "epochs", "message"),
    [
        ([], 1, "at least one sparsity"),
        ([0.5, 1.0], 1, "strictly between 0 and 1"),
        ([0.5], -1, "epochs: must be 0 or more"),
        ([0.5], math.nan, "epochs: must be 0 or more"),
    ],
)
def test_bad_goals_are_refused(name: str, goals: list[float], epochs: float, message: str) -> None:
    """No schedule is made of what cannot be a goal."""
    with pytest.raises(InputError, match=message):
        make_schedule(name, goals, epochs)


def test_an_unknown_schedule_is_named() -> None:
    """With the nearest name."""
    with pytest.raises(InputError, match="did you mean 'linear'"):
        make_schedule("liner", [0.5], 1)


def test_steps_that_do_not_grow_are_refused() -> None:
    """Also where no text was parsed."""
    with pytest.raises(InputError, match="at least one step"):
        check_steps([])
    with pytest.raises(InputError, match="must grow"):
        check_steps([PruningStep(0.9, 1), PruningStep(0.8, 1)])
