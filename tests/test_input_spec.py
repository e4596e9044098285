"""What an input specification accepts, and what is inferred from network and options."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gaprune.errors import InputError
from gaprune.models.input_spec import KINDS, InputOptions, InputSpec, resolve_inputs, sample_inputs
from gaprune.models.zoo import ZOO

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


INFERRED: dict[str, tuple[nn.Module, InputOptions, tuple[str, tuple[int, ...], int]]] = {
    "linear": (nn.Linear(7, 2), InputOptions(), ("vector", (7,), 0)),
    "linear on an image": (
        nn.Linear(784, 2),
        InputOptions(shape=(1, 28, 28)),
        ("image", (1, 28, 28), 0),
    ),
    "linear on a sequence": (nn.Linear(7, 2), InputOptions(shape=(5, 7)), ("signal", (5, 7), 0)),
    "2-D convolution": (
        nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.Linear(9, 9)),
        InputOptions(shape=(3, 8, 9)),
        ("image", (3, 8, 9), 0),
    ),
    "1-D convolution": (
        nn.Conv1d(2, 4, 3),
        InputOptions(shape=(2, 64)),
        ("signal", (2, 64), 0),
    ),
    "embedding": (nn.Embedding(50, 4), InputOptions(shape=(12,)), ("tokens", (12,), 50)),
    "embedding, fewer ids": (
        nn.Embedding(50, 4),
        InputOptions(shape=(12,), vocabulary=20),
        ("tokens", (12,), 20),
    ),
    "stated kind": (
        nn.Conv2d(1, 1, 1),
        InputOptions(shape=(1, 4, 4), kind="vector"),
        ("vector", (1, 4, 4), 0),
    ),
    "vocabulary implies tokens": (
        nn.Linear(4, 4),
        InputOptions(shape=(4,), vocabulary=9),
        ("tokens", (4,), 9),
    ),
    "recurrent": (nn.LSTM(5, 4), InputOptions(shape=(8, 5)), ("signal", (8, 5), 0)),
    "unknown layers": (nn.Bilinear(2, 2, 2), InputOptions(shape=(2,)), ("vector", (2,), 0)),
}


@pytest.mark.parametrize("case", INFERRED)
def test_kind_and_shape_are_inferred(case: str) -> None:
    """The first layer, the shape and what is stated decide the kind of input."""
    model, options, expected = INFERRED[case]
    spec = resolve_inputs(model, options)
    assert (spec.kind, spec.shape, spec.vocabulary) == expected


@pytest.mark.parametrize(
    ("model", "example"),
    [
        (nn.Conv2d(3, 4, 3), "3,224,224"),
        (nn.Conv1d(2, 4, 3), "2,1024"),
        (nn.Conv3d(5, 4, 3), "5,16,64,64"),
        (nn.Embedding(9, 4), "128"),
        (nn.GRU(6, 4), "128,6"),
        (nn.MultiheadAttention(8, 2), "128,8"),
        (nn.ReLU(), "1,28,28"),
    ],
)
def test_shapes_that_cannot_be_inferred(model: nn.Module, example: str) -> None:
    """Where the first layer leaves the size open, the message asks for it with an example."""
    with pytest.raises(InputError, match=f"--input-shape {example}$"):
        resolve_inputs(model, InputOptions())


def test_the_range_is_assumed_where_nothing_is_stated() -> None:
    """0 to 1 is taken and marked as assumed; a stated range or normalisation is not."""
    model = nn.Linear(3, 2)
    assert resolve_inputs(model, InputOptions()) == InputSpec((3,), "vector", assumed=True)
    stated = resolve_inputs(model, InputOptions(range=(-1.0, 2.0)))
    assert stated == InputSpec((3,), "vector", low=-1.0, high=2.0)
    normal = resolve_inputs(model, InputOptions(mean=(0.5,), std=(0.25,)))
    assert normal == InputSpec((3,), "vector", mean=(0.5,), std=(0.25,))
    assert resolve_inputs(model, InputOptions(mean=(0.5,))).std == (1.0,)


def test_options_come_before_the_default() -> None:
    """What is stated replaces the zoo's own description, the rest of which stays."""
    default, model = ZOO["mnist-mlp"].inputs, ZOO["mnist-mlp"].factory()
    assert resolve_inputs(model, InputOptions(), default) == default
    flat = resolve_inputs(model, InputOptions(shape=(784,), kind="vector"), default)
    assert (flat.shape, flat.kind, flat.assumed) == ((784,), "vector", False)
    assert resolve_inputs(model, InputOptions(range=(-1.0, 1.0)), default).low == -1.0


WRONG: dict[str, tuple[InputOptions, str]] = {
    "both": (InputOptions(range=(0.0, 1.0), mean=(0.5,)), "range: cannot be combined"),
    "range of three": (InputOptions(range=(0.0, 1.0, 2.0)), "two numbers"),  # type: ignore[arg-type]
    "kind": (InputOptions(kind="imge"), "unknown name 'imge'.*did you mean 'image'"),
    "empty shape": (InputOptions(shape=()), "input shape: .*got"),
    "fraction": (InputOptions(shape=(1, 2.5, 3)), "input shape: .*got"),  # type: ignore[arg-type]
    "batch axis": (InputOptions(shape=(1, 3, 8, 8)), "kind 'image' is float.*got 1,3,8,8"),
    "no channel axis": (
        InputOptions(shape=(8, 8)),
        r"kind 'image' is .*\[channels, height, width\]",
    ),
    "vocabulary": (InputOptions(shape=(8,), vocabulary=1), "vocabulary: .*got 1"),
    "vocabulary of an image": (
        InputOptions(shape=(3, 8, 8), kind="image", vocabulary=9),
        "vocabulary: is for token inputs only",
    ),
    "tokens without vocabulary": (InputOptions(shape=(8,), kind="tokens"), "at least 2 ids, got 0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_options(case: str) -> None:
    """Options that break a rule are refused with the rule and what came."""
    options, message = WRONG[case]
    shaped = (
        options
        if options.shape is not None
        else InputOptions(**{**vars(options), "shape": (3, 8, 8)})
    )
    with pytest.raises(InputError, match=message):
        resolve_inputs(nn.Conv2d(3, 4, 3), shaped)


def test_a_kind_that_cannot_be_inferred() -> None:
    """Four axes fit no kind by themselves."""
    with pytest.raises(InputError, match=r"input kind: .*1,4,4,4"):
        resolve_inputs(nn.Conv3d(1, 1, 1), InputOptions(shape=(1, 4, 4, 4)))


@given(low=st.floats(-100, 100), width=st.floats(0.01, 100), mean=st.floats(-5, 5))
def test_samples_lie_in_the_normalised_range(low: float, width: float, mean: float) -> None:
    """Uniform samples undone from their normalisation lie in the raw range, channel by channel."""
    spec = InputSpec((2, 3, 4), "image", low, low + width, (mean, mean + 1), (0.5, 2.0))
    batch = sample_inputs(spec, 5, torch.float64, seed=3)
    raw = batch * torch.tensor([0.5, 2.0]).view(2, 1, 1) + torch.tensor([mean, mean + 1]).view(
        2, 1, 1
    )
    slack = 1e-4 * (1 + abs(low) + width + abs(mean))
    assert batch.shape == (5, 2, 3, 4)
    assert raw.min() >= low - slack
    assert raw.max() <= low + width + slack
    assert torch.equal(batch, sample_inputs(spec, 5, torch.float64, seed=3))
