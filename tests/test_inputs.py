"""What an input specification accepts, and what it says about the rest."""

from __future__ import annotations

import math
from typing import Any

import pytest

from gaprune.errors import InputError
from gaprune.models.input_spec import KINDS, InputSpec

ACCEPTED: dict[str, dict[str, Any]] = {
    "image": {"shape": (3, 8, 8), "kind": "image", "mean": (0.5, 0.4, 0.3), "std": (0.2,)},
    "signal": {"shape": (2, 16), "kind": "signal", "low": -1.0, "std": (1.0, 2.0)},
    "bare signal": {"shape": (16,), "kind": "signal"},
    "vector": {"shape": (7,), "kind": "vector", "low": -3.0, "high": -2.0},
    "tokens": {"shape": (5,), "kind": "tokens", "vocabulary": 2},
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_what_a_network_may_take(case: str) -> None:
    """One value serves all channels, or there is one for each; the values stay as given."""
    spec = InputSpec(**ACCEPTED[case])
    assert {name: getattr(spec, name) for name in ACCEPTED[case]} == ACCEPTED[case]


def test_every_kind_is_among_the_accepted_ones() -> None:
    """A new kind comes with a case above."""
    assert {case["kind"] for case in ACCEPTED.values()} == set(KINDS)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no axis": ({"shape": ()}, r"input shape: .*got \(\)"),
    "size 0": ({"shape": (1, 0, 4)}, r"input shape: .*got \(1, 0, 4\)"),
    "negative size": ({"shape": (-1, 28, 28)}, r"input shape: .*got \(-1, 28, 28\)"),
    "unknown kind": ({"kind": "picture"}, "input kind: unknown name 'picture'.*image, signal"),
    "empty range": ({"low": 1.0}, "range: the low end must be below the high end, got 1.0 to 1.0"),
    "turned range": ({"low": 2.0, "high": 1.0}, "range: .* got 2.0 to 1.0"),
    "NaN range": ({"low": math.nan}, r"range: must be finite numbers, got \(nan, 1\.0\)"),
    "infinite range": ({"high": math.inf}, r"range: must be finite numbers, got \(0\.0, inf\)"),
    "two means, three channels": (
        {"mean": (0.1, 0.2)},
        r"mean: must have 1 value or one per channel \(3\), got 2",
    ),
    "no std": ({"std": ()}, r"std: must have 1 value or one per channel \(3\), got 0"),
    "NaN mean": ({"mean": (math.nan,)}, r"mean: must be finite numbers, got \(nan,\)"),
    "std 0": ({"std": (0.0,)}, r"std: must be above 0, got \(0\.0,\)"),
    "one negative std": ({"std": (1.0, -1.0, 1.0)}, "std: must be above 0"),
    "NaN std": ({"std": (1.0, math.nan, 1.0)}, "std: must be finite numbers, got"),
    "means of a vector": (
        {"kind": "vector", "shape": (3,), "mean": (0.1, 0.2, 0.3)},
        r"mean: must have 1 value or one per channel \(1\), got 3",
    ),
    "no vocabulary": (
        {"kind": "tokens", "shape": (4,)},
        "vocabulary: token inputs need at least 2 ids, got 0",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_breaks_a_rule_is_refused(case: str) -> None:
    """The message names the rule and what came."""
    changes, message = REFUSED[case]
    with pytest.raises(InputError, match=f"^{message}"):
        InputSpec(**{"shape": (3, 8, 8), "kind": "image", **changes})
