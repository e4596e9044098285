"""Operator rates: probabilities that follow success, within bounds."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_cases import seeded

from gaprune.evolution.variation import MIN_RATE, OperatorRates

START = {"a": 0.5, "b": 0.3, "c": 0.2}
successes = st.lists(st.tuples(st.sampled_from([*START, "unknown"]), st.booleans()), max_size=60)


@settings(max_examples=50)
@given(successes)
def test_probabilities_add_up_and_no_operator_dies_out(history: list[tuple[str, bool]]) -> None:
    """Whatever happens, they sum to 1 and none falls below the floor."""
    rates = OperatorRates(START, adaptive=True)
    for name, improved in history:
        rates.credit(name, improved=improved)
    assert sum(rates.probabilities.values()) == pytest.approx(1.0)
    assert min(rates.probabilities.values()) >= MIN_RATE
    assert list(rates.probabilities) == list(START)


@settings(max_examples=50)
@given(successes)
def test_fixed_rates_stay_as_they_were_given(history: list[tuple[str, bool]]) -> None:
    """Without adaptation success changes nothing, and what is reported is what is drawn."""
    rates = OperatorRates(START, adaptive=False)
    for name, improved in history:
        rates.credit(name, improved=improved)
    assert rates.probabilities == START


def test_success_makes_an_operator_more_frequent() -> None:
    """Better children raise the rate of what made them, worse ones lower it."""
    rates = OperatorRates(START, adaptive=True)
    before = rates.probabilities
    for _ in range(10):
        rates.credit("c", improved=True)
        rates.credit("a", improved=False)
    assert rates.probabilities["c"] > before["c"]
    assert rates.probabilities["a"] < before["a"]
    for _ in range(40):
        rates.credit("c", improved=False)
    assert rates.probabilities["c"] < before["c"]


@pytest.mark.parametrize("adaptive", [False, True])
def test_operators_are_drawn_by_their_probability(adaptive: bool) -> None:
    """Three thousand draws show the probabilities, within five standard deviations."""
    rates, generator = OperatorRates(START, adaptive=adaptive), seeded()
    drawn = Counter(rates.draw(generator) for _ in range(3000))
    for name, probability in rates.probabilities.items():
        deviation = (3000 * probability * (1 - probability)) ** 0.5
        assert abs(drawn[name] - 3000 * probability) < 5 * deviation


def test_the_generator_decides_what_is_drawn() -> None:
    """Same seed, same operators; another seed, others."""

    def draws(seed: int) -> list[str]:
        rates, generator = OperatorRates(START, adaptive=True), seeded(seed)
        return [rates.draw(generator) for _ in range(30)]

    assert draws(1) == draws(1) != draws(2)
