"""Token sequences whose outputs differ, and those that a language model writes."""

from __future__ import annotations

import math

import pytest
import torch
from criterion_networks import TOKENS, Attention, network_of, seeded
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gaprune.calibration.generators.token_sequences import zipf_bursts
from gaprune.calibration.inversion.self_text import is_causal_language_model
from gaprune.calibration.inversion.token_search import (
    TokenSearchOptions,
    decorrelation,
    diversify,
    information,
    spread_of,
)
from gaprune.errors import InputError
from gaprune.models.input_spec import InputSpec


def classifier() -> nn.Module:
    """Return a frozen attention network whose outputs depend strongly on its ids."""
    model = network_of(Attention, TOKENS).model
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(2)
    return model


def starts(count: int = 24, seed: int = 1) -> Tensor:
    """Return ids below 11, five a row."""
    return zipf_bursts(TOKENS, count, seeded(seed))


@given(st.integers(2, 9), st.integers(2, 6), st.integers(0, 999))
@settings(max_examples=30)
def test_information_is_the_mutual_information(rows: int, classes: int, seed: int) -> None:
    """Its mean is H(mean p) − mean H(p) of torch's own categorical distributions."""
    logits = 3 * torch.randn(rows, classes, generator=seeded(seed), dtype=torch.float64)
    rows_of = torch.distributions.Categorical(logits=logits)
    mean = torch.distributions.Categorical(probs=rows_of.probs.mean(0))
    expected = float(mean.entropy() - rows_of.entropy().mean())
    assert spread_of(logits, information) == pytest.approx(expected, abs=1e-9)


def test_decorrelation_by_hand() -> None:
    """Two pairs of opposite, orthogonal directions: half of the squared cosines are 1, half 0."""
    outputs = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]]) + torch.tensor([5.0, -2])
    assert spread_of(outputs, decorrelation) == pytest.approx(0.5)
    line = torch.tensor([[1.0, 2], [2, 4], [-3, -6]])
    assert spread_of(line, decorrelation) == pytest.approx(0, abs=1e-6)


SHORT = TokenSearchOptions(rounds=5)
SPREADS = {"information": (information, math.log(3)), "decorrelation": (decorrelation, 2 / 3)}


def model_of(spread: str) -> nn.Module:
    """Return a network for this spread: with classes, or with three output axes."""
    if spread == "information":
        return classifier()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(nn.Embedding(11, 4), nn.Linear(4, 3), nn.Tanh()).requires_grad_(False)


@pytest.mark.parametrize("spread", SPREADS)
def test_a_search_spreads_the_outputs(spread: str) -> None:
    """Ids stay in the vocabulary, and the starts are unchanged."""
    (function, largest), model, ids = SPREADS[spread], model_of(spread), starts()
    before = ids.clone()
    options = TokenSearchOptions(rounds=20, shortlist=3)
    varied = diversify(model, TOKENS, ids, seeded(3), options)
    old, new = (spread_of(model(rows), function) for rows in (ids, varied))
    assert new > old
    if spread == "information":
        assert largest - new < 2 / 3 * (largest - old)
    assert (varied.dtype, varied.shape) == (torch.int64, ids.shape)
    assert 0 <= int(varied.min()) <= int(varied.max()) < TOKENS.vocabulary
    assert torch.equal(ids, before)


@given(st.integers(0, 99), st.integers(1, 9), st.sampled_from(sorted(SPREADS)))
@settings(max_examples=10, deadline=None)
def test_the_spread_of_no_batch_falls(seed: int, batch: int, spread: str) -> None:
    """Every batch of the result has at least the spread of its starts."""
    function, model, ids = SPREADS[spread][0], model_of(spread), starts(9, seed)
    options = TokenSearchOptions(rounds=3, batch=batch)
    varied = diversify(model, TOKENS, ids, seeded(seed), options)
    for old, new in zip(ids.split(batch), varied.split(batch), strict=True):
        value, least = (spread_of(model(rows), function) for rows in (new, old))
        assert value >= least - 1e-5


def test_gradients_beat_random_substitution() -> None:
    """A shortlist of the best substitutes beats drawing from the whole vocabulary."""
    model, ids = classifier(), starts(48)
    guided, blind = (
        spread_of(
            model(diversify(model, TOKENS, ids, seeded(3), TokenSearchOptions(6, shortlist))),
            information,
        )
        for shortlist in (2, TOKENS.vocabulary)
    )
    assert guided > blind > spread_of(model(ids), information)


def test_the_seed_determines_the_ids_and_the_model_is_unchanged() -> None:
    """Another seed gives other ids; no hook, gradient or changed bit is left."""
    model, ids = classifier(), starts()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    first, second, third = (diversify(model, TOKENS, ids, seeded(s), SHORT) for s in (3, 3, 4))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


class Detached(Attention):
    """Passes no gradients to its embedding."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids).detach()


@pytest.mark.parametrize(
    ("model", "spec", "message"),
    [
        (Detached(), TOKENS, r"gradients.*calibration='procedural'"),
        (Attention(), InputSpec((5,), "tokens", vocabulary=9), r"nn\.Embedding"),
    ],
)
def test_networks_that_cannot_be_searched(model: nn.Module, spec: InputSpec, message: str) -> None:
    """The error names an alternative, and no hook stays on the network."""
    with pytest.raises(InputError, match=message):
        diversify(model.eval(), spec, torch.zeros(3, 5, dtype=torch.int64), seeded(), SHORT)
    assert not any(module._forward_hooks for module in model.modules())


class Chain(nn.Module):
    """A memoryless language model: token t is followed by t + 1 or t + 2 only."""

    def forward(self, ids: Tensor) -> Tensor:
        first, second = (nn.functional.one_hot((ids + step) % 7, 7) for step in (1, 2))
        return torch.where(first + second > 0, 0.0, -torch.inf) + first * 0.5


class LookAhead(Chain):
    """Depends on the following tokens."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids.flip(1).cumsum(1) % 7)


LETTERS = InputSpec((12,), "tokens", vocabulary=7)


@pytest.mark.parametrize("model", [LookAhead(), Attention()])
def test_other_networks_are_no_causal_language_models(model: nn.Module) -> None:
    """Those that depend on following tokens, or have other outputs."""
    spec = LETTERS if isinstance(model, LookAhead) else TOKENS
    ids = torch.randint(7, (3, *spec.shape), generator=seeded(1))
    assert not is_causal_language_model(model.eval(), spec, ids)
