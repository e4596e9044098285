"""Mixtures of generators fitted to the BatchNorm statistics of a network."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from batchnorm_targets import bare_network
from search_cases import seeded, tiny_model
from torch import Tensor, nn

from gaprune.calibration.auto import MAX_DIVERGENCE
from gaprune.calibration.generators.procedural import GENERATORS
from gaprune.calibration.generators.random_draws import InputGenerator, to_network
from gaprune.calibration.inversion.batchnorm_statistics import BatchNormRecorder
from gaprune.calibration.inversion.mixture_fit import MixtureFit, MixtureFitter, measure_moments
from gaprune.errors import InputError
from gaprune.models.input_spec import InputSpec
from gaprune.models.zoo import ZOO, load_zoo_network


def fit(
    model: nn.Module, spec: InputSpec, table: Mapping[str, InputGenerator], seed: int = 1
) -> MixtureFit:
    """Fit a mixture of all generators."""
    moments = measure_moments(bare_network(model, spec), table, seeded(seed))
    with torch.no_grad(), BatchNormRecorder(model) as recorder:
        model(to_network(spec, next(iter(table.values()))(spec, 1, seeded())))
        statistics = recorder.take()[1].double()
    return MixtureFitter(list(table), moments, statistics).fit()


SPEC = InputSpec((3,), "vector", low=-10, high=10)


def around(*centre: float) -> InputGenerator:
    """Return a generator of vectors around a point in the unit cube."""

    def draw(spec: InputSpec, count: int, generator: torch.Generator) -> Tensor:
        return torch.tensor(centre) + 0.01 * torch.randn(count, *spec.shape, generator=generator)

    return draw


CORNERS = {
    "low": around(0.2, 0.3, 0.4),
    "high": around(0.6, 0.7, 0.4),
    "other": around(0.9, 0.1, 0),
}


def remembering(**shares: int) -> nn.Module:
    """Return a BatchNorm with the statistics of that many inputs of each generator."""
    norm = nn.BatchNorm1d(3, momentum=None)
    parts = [CORNERS[name](SPEC, count, seeded(9)) for name, count in shares.items()]
    norm(-10 + 20 * torch.cat(parts))
    return norm.eval().requires_grad_(False)


@pytest.mark.parametrize("low", [100, 500, 900])
def test_the_shares_of_the_training_data_are_found(low: int) -> None:
    """A network trained on a mixture of two generators gets that mixture, without a third."""
    result = fit(remembering(low=low, high=1000 - low), SPEC, CORNERS)
    assert result.shares["low"] == pytest.approx(low / 1000, abs=0.05)
    assert "other" not in result.shares
    assert sum(result.shares.values()) == pytest.approx(1)
    assert list(result.shares.values()) == sorted(result.shares.values(), reverse=True)
    assert result.divergence < 0.02
    assert 10 * result.divergence < min(result.single_divergence.values())


def test_equally_good_generators_get_similar_shares() -> None:
    """Two generators of the same inputs are both used."""
    twins = {"first": CORNERS["high"], "second": CORNERS["high"]}
    assert min(fit(remembering(high=1000), SPEC, twins).shares.values()) > 0.3


def test_pen_drawings_are_nearest_to_a_network_of_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The three pen generators have the smallest divergence for the bundled MNIST network."""
    monkeypatch.setattr("gaprune.calibration.inversion.mixture_fit.SAMPLE", 64)
    model = load_zoo_network("mobile-student").requires_grad_(False)
    spec = ZOO["mobile-student"].inputs
    result = fit(model, spec, GENERATORS["image"])
    single = result.single_divergence
    nearest = sorted(single, key=lambda name: single[name])[:3]
    assert set(nearest) == {"glyphs", "outlines", "strokes"}
    assert sum(result.shares.get(name, 0) for name in nearest) > 0.8
    assert result.divergence < MAX_DIVERGENCE  # so `auto` chooses procedural inputs


def test_the_seed_decides() -> None:
    """The same seed gives the same shares; no hook stays on the network."""
    model = remembering(low=500, high=500)
    first, second = (fit(model, SPEC, CORNERS, 2) for _ in range(2))
    assert first == second
    assert not model._forward_pre_hooks


def test_a_network_without_batchnorm_cannot_be_fitted() -> None:
    """It stores no statistics."""
    spec = InputSpec((6,), "vector")
    with pytest.raises(InputError, match="no BatchNorm"):
        fit(tiny_model(), spec, GENERATORS["vector"])


def test_shares_are_found_where_gradients_are_switched_off() -> None:
    """The result is the same inside `torch.no_grad()`."""
    with torch.no_grad():
        inside = fit(remembering(high=1000), SPEC, CORNERS)
    assert inside == fit(remembering(high=1000), SPEC, CORNERS)
