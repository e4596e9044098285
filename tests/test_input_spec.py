"""Input specifications: validation, and inference from network and options."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gaprune.errors import InputError
from gaprune.models.input_spec import InputOptions, InputSpec, resolve_inputs, sample_inputs
from gaprune.models.zoo import ZOO

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no axis": ({"shape": ()}, r"input shape: .*\(\)"),
    "size 0": ({"shape": (1, 0, 4)}, r"input shape: .*\(1, 0, 4\)"),
    "negative size": ({"shape": (-1, 28, 28)}, r"input shape: .*\(-1, 28, 28\)"),
    "unknown kind": ({"kind": "picture"}, "input kind: .*'picture'.*image, signal"),
    "empty range": ({"low": 1.0}, "range: .* 1.0 to 1.0"),
    "reversed range": ({"low": 2.0, "high": 1.0}, "range: .* 2.0 to 1.0"),
    "NaN range": ({"low": math.nan}, r"range: .*\(nan, 1\.0\)"),
    "infinite range": ({"high": math.inf}, r"range: .*\(0\.0, inf\)"),
    "two means, three channels": ({"mean": (0.1, 0.2)}, r"mean: .*\(3\), got 2"),
    "no std": ({"std": ()}, r"std: .*\(3\), got 0"),
    "NaN mean": ({"mean": (math.nan,)}, r"mean: .*\(nan,\)"),
    "std 0": ({"std": (0.0,)}, r"std: .*\(0\.0,\)"),
    "one negative std": ({"std": (1.0, -1.0, 1.0)}, "std: .*above 0"),
    "NaN std": ({"std": (1.0, math.nan, 1.0)}, "std: .*finite"),
    "means of a vector": (
        {"kind": "vector", "shape": (3,), "mean": (0.1, 0.2, 0.3)},
        r"mean: .*\(1\), got 3",
    ),
    "no vocabulary": ({"kind": "tokens", "shape": (4,)}, "vocabulary: .* 2 ids, got 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_specifications_that_are_refused(case: str) -> None:
    """The error names the field and the value."""
    changes, message = REFUSED[case]
    with pytest.raises(InputError, match=f"^{message}"):
        InputSpec(**{"shape": (3, 8, 8), "kind": "image", **changes})


IMAGE_NET = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.Linear(9, 9))
INFERRED: dict[str, tuple[nn.Module, dict[str, Any], tuple[str, tuple[int, ...], int]]] = {
    "linear": (nn.Linear(7, 2), {}, ("vector", (7,), 0)),
    "linear, image": (nn.Linear(784, 2), {"shape": (1, 28, 28)}, ("image", (1, 28, 28), 0)),
    "linear, sequence": (nn.Linear(7, 2), {"shape": (5, 7)}, ("signal", (5, 7), 0)),
    "2-D convolution": (IMAGE_NET, {"shape": (3, 8, 9)}, ("image", (3, 8, 9), 0)),
    "1-D convolution": (nn.Conv1d(2, 4, 3), {"shape": (2, 64)}, ("signal", (2, 64), 0)),
    "embedding": (nn.Embedding(50, 4), {"shape": (12,)}, ("tokens", (12,), 50)),
    "embedding, fewer ids": (
        nn.Embedding(50, 4),
        {"shape": (12,), "vocabulary": 20},
        ("tokens", (12,), 20),
    ),
    "stated kind": (
        nn.Conv2d(1, 1, 1),
        {"shape": (1, 4, 4), "kind": "vector"},
        ("vector", (1, 4, 4), 0),
    ),
    "vocabulary implies tokens": (
        nn.Linear(4, 4),
        {"shape": (4,), "vocabulary": 9},
        ("tokens", (4,), 9),
    ),
    "recurrent": (nn.LSTM(5, 4), {"shape": (8, 5)}, ("signal", (8, 5), 0)),
    "unknown layers": (nn.Bilinear(2, 2, 2), {"shape": (2,)}, ("vector", (2,), 0)),
}


@pytest.mark.parametrize("case", INFERRED)
def test_kind_and_shape_are_inferred(case: str) -> None:
    """Options, the first layer and the shape decide the kind of input."""
    model, options, expected = INFERRED[case]
    spec = resolve_inputs(model, InputOptions(**options))
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
    """If the first layer does not determine the size, the error suggests an example."""
    shape = ", ".join(example.split(",")) if "," in example else f"{example},"
    with pytest.raises(InputError, match=re.escape(f"InputOptions(shape=({shape}))")):
        resolve_inputs(model, InputOptions())


def test_the_range_is_assumed_by_default() -> None:
    """The default range is 0 to 1, marked as assumed; stated values are not marked."""
    model = nn.Linear(3, 2)
    assert resolve_inputs(model, InputOptions()) == InputSpec((3,), "vector", assumed=True)
    stated = resolve_inputs(model, InputOptions(range=(-1.0, 2.0)))
    assert stated == InputSpec((3,), "vector", low=-1.0, high=2.0)
    normal = resolve_inputs(model, InputOptions(mean=(0.5,), std=(0.25,)))
    assert normal == InputSpec((3,), "vector", mean=(0.5,), std=(0.25,))
    assert resolve_inputs(model, InputOptions(mean=(0.5,))).std == (1.0,)


def test_options_come_before_the_default() -> None:
    """Options replace single entries of the zoo's description; the others stay."""
    default, model = ZOO["mnist-mlp"].inputs, ZOO["mnist-mlp"].factory()
    assert resolve_inputs(model, InputOptions(), default) == default
    flat = resolve_inputs(model, InputOptions(shape=(784,), kind="vector"), default)
    assert (flat.shape, flat.kind, flat.assumed) == ((784,), "vector", False)
    assert resolve_inputs(model, InputOptions(range=(-1.0, 1.0)), default).low == -1.0


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "both": ({"range": (0.0, 1.0), "mean": (0.5,)}, "range: .*mean"),
    "range of three": ({"range": (0.0, 1.0, 2.0)}, "two numbers"),
    "kind": ({"kind": "imge"}, "'imge'.*'image'"),
    "empty shape": ({"shape": ()}, "input shape: "),
    "fraction": ({"shape": (1, 2.5, 3)}, "input shape: "),
    "batch axis": ({"shape": (1, 3, 8, 8)}, "'image' .*1,3,8,8"),
    "no channel axis": ({"shape": (8, 8)}, r"'image' .*\[channels, height, width\]"),
    "vocabulary": ({"shape": (8,), "vocabulary": 1}, "vocabulary: .*got 1"),
    "vocabulary of an image": ({"kind": "image", "vocabulary": 9}, "vocabulary: .*'image'"),
    "tokens without vocabulary": ({"shape": (8,), "kind": "tokens"}, "2 ids, got 0"),
    "no kind of four axes": ({"shape": (1, 4, 4, 4)}, "input kind: .*1,4,4,4"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_options(case: str) -> None:
    """Options that break a rule are refused with the rule and the value."""
    options, message = WRONG[case]
    model = nn.Conv3d(1, 1, 1) if "four axes" in case else nn.Conv2d(3, 4, 3)
    with pytest.raises(InputError, match=message):
        resolve_inputs(model, InputOptions(**{"shape": (3, 8, 8), **options}))


@given(low=st.floats(-100, 100), width=st.floats(0.01, 100), mean=st.floats(-5, 5))
def test_samples_lie_in_the_normalised_range(low: float, width: float, mean: float) -> None:
    """Uniform samples undone from their normalisation lie in the raw range, channel by channel."""
    spec = InputSpec((2, 3, 4), "image", low, low + width, (mean, mean + 1), (0.5, 2.0))
    batch = sample_inputs(spec, 5, torch.float64, seed=3)
    std, means = (torch.tensor(v).view(2, 1, 1) for v in ([0.5, 2.0], [mean, mean + 1]))
    raw = batch * std + means
    slack = 1e-4 * (1 + abs(low) + width + abs(mean))
    assert batch.shape == (5, 2, 3, 4)
    assert raw.min() >= low - slack
    assert raw.max() <= low + width + slack
    assert torch.equal(batch, sample_inputs(spec, 5, torch.float64, seed=3))
