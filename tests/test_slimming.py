"""Network slimming: the ranking of channels, the rounds, and training between them."""

from __future__ import annotations

import pytest
import torch
import torch_pruning as tp
from channel_networks import IMAGE, Separable, built, images, parameters
from hypothesis import given, settings
from hypothesis import strategies as st
from search_cases import seeded
from torch import Tensor, nn
from torch.nn import functional

from gaprune.calibration.samples import Samples
from gaprune.comparison.methods.slimming import (
    SlimmingOptions,
    gamma_penalty,
    rank_channels,
    slim,
)
from gaprune.comparison.methods.training import TrainingData, TrainingOptions, from_labels
from gaprune.errors import InputError
from gaprune.io.weights import sha256_of
from gaprune.models.input_spec import InputOptions
from gaprune.models.target import Target, target_from_module, trainable_copy
from gaprune.models.zoo.networks import LeNet

UNTRAINED = SlimmingOptions(rounds=1, epochs=0)


def target_of(model: nn.Module) -> Target:
    """Return a target that takes small images."""
    return target_from_module(model, inputs=InputOptions(shape=IMAGE))


def samples(count: int = 64, seed: int = 0) -> Samples:
    """Return inputs whose class is which of three corners is the brightest."""
    inputs = images(count, seed)
    return Samples(inputs, inputs[:, 0, 0, :3].argmax(1), "a test")


def data(count: int = 64) -> TrainingData:
    """Return labelled training data."""
    return from_labels(samples(count))


def penalty_of(model: nn.Module, strength: float) -> Tensor:
    """Return the penalty on γ."""
    penalty = gamma_penalty(strength)
    assert penalty is not None
    return penalty(model)


def with_scales(stem: Tensor, deep: Tensor, point: Tensor) -> nn.Module:
    """Return a depthwise-separable network with these γ."""
    model = built(Separable)
    scales = {"stem_norm": stem, "deep_norm": deep, "point_norm": point}
    for name, scale in scales.items():
        model.get_parameter(f"{name}.weight").copy_(scale)
    return model


def test_the_ranking_is_that_of_torch_pruning() -> None:
    """`BNScaleImportance` without normalisation, but for channels that would empty a layer."""
    model = with_scales(*(torch.randn(size, generator=seeded(size)) for size in (6, 6, 8)))
    copy = trainable_copy(model)
    graph = tp.DependencyGraph().build_dependency(copy, images(1))
    importance, scored = tp.importance.BNScaleImportance(normalizer=None), []
    for layer in ("stem", "point"):
        module = copy.get_submodule(layer)
        assert isinstance(module, nn.Conv2d)
        channels = list(range(module.out_channels))
        group = graph.get_pruning_group(module, tp.prune_conv_out_channels, channels)
        scored += [(float(score), layer, i) for i, score in enumerate(importance(group))]
    ranked = [tuple(channel.outputs[0]) for channel in rank_channels(model, images(1)).order]
    assert ranked == [(layer, i) for _, layer, i in sorted(scored) if (layer, i) in ranked]
    assert len(ranked) == len(scored) - 2


def test_rounds_keep_a_fraction_of_the_channels() -> None:
    """Three rounds at 0.7 leave 14, 10, 7 and 5 channels; sizes and MACs follow from widths."""
    target = target_of(built(Separable))
    before = sha256_of(target.model.state_dict())
    options = SlimmingOptions(rounds=3, width=0.7, epochs=0.5, training=TrainingOptions(batch=16))
    rounds = list(slim(target, data(), options, seeded(), held_out=samples(32, 1)))
    assert [result.after.channels for result in rounds] == [10, 7, 5]
    assert [result.epochs for result in rounds] == [0.5, 1.0, 1.5]
    for result in rounds:
        stem, point = (len(result.model.get_parameter(f"{n}.weight")) for n in ("stem", "point"))
        assert result.after.parameters == parameters(result.model) == Separable.count(stem, point)
        assert result.after.prunable == Separable.prunable(stem, point)
        # a 3x3 kernel on 6x6 leaves 4x4 positions, and all later convolutions keep them
        assert result.after.macs == 16 * (18 * stem + 9 * stem + stem * point) + 3 * point
        assert result.error < 1e-5
        assert not any(p.requires_grad for p in result.model.parameters())
        assert not result.model.training
    assert sha256_of(target.model.state_dict()) == before


def test_no_layer_is_emptied() -> None:
    """A width near 0 leaves one channel per layer; the next round removes nothing."""
    options = SlimmingOptions(rounds=2, width=0.001, epochs=0)
    first, second = slim(target_of(built(Separable)), data(), options, seeded())
    assert first.after.parameters == Separable.count(1, 1)
    assert second.removed == {}
    assert second.after == first.after


@pytest.mark.slow
@settings(max_examples=6)
@given(st.floats(0.05, 0.85), st.integers(0, 99))
def test_a_sparsity_is_met_with_the_fewest_channels(sparsity: float, seed: int) -> None:
    """The sparsity is met, and with one channel fewer it is not."""
    target = target_of(built(Separable, seed))
    (result,) = slim(target, data(), UNTRAINED, seeded(), sparsity=sparsity)
    goal = Separable.prunable(6, 8) * (1 - sparsity)
    assert result.after.prunable <= goal + 0.5
    ranking = rank_channels(target.model, target.example())
    gone = sum(len(channels) for channels in result.removed.values())
    assert result.removed == ranking.removed(gone)
    fewer = ranking.removed(gone - 1)
    widths = 6 - len(fewer.get("stem", [])), 8 - len(fewer.get("point", []))
    assert Separable.prunable(*widths) > goal - 0.5


def test_an_impossible_sparsity_is_refused() -> None:
    """The error gives the number of weights in one channel per layer."""
    least = Separable.prunable(1, 1)
    with pytest.raises(InputError, match=f"{least} of 234"):
        list(slim(target_of(built(Separable)), data(), UNTRAINED, seeded(), sparsity=0.9))
    with pytest.raises(InputError, match=r"sparsity: .*0.*1"):
        list(slim(target_of(built(Separable)), data(), UNTRAINED, seeded(), sparsity=1.0))


def test_networks_without_batchnorm_are_refused() -> None:
    """Before any training."""
    target = target_from_module(built(LeNet), inputs=InputOptions(shape=(1, 28, 28)))
    inputs = TrainingData(torch.rand(8, 1, 28, 28), torch.zeros(8).long(), functional.cross_entropy)
    epochs: list[float] = []
    options = SlimmingOptions(sparse_epochs=1)
    with pytest.raises(InputError, match=r"model: .*BatchNorm"):
        next(slim(target, inputs, options, seeded(), on_epoch=epochs.append))
    assert epochs == []


@pytest.mark.slow
def test_a_round_returns_its_best_epoch() -> None:
    """Of the networks after 1 to 4 epochs, the one with the best held-out accuracy."""
    held_out = samples(60, 5)
    # the learning rate is so high that accuracy goes up and down
    training = TrainingOptions(optimiser="sgd", learning_rate=0.3, batch=16)
    scores, models = [], []
    for epochs in (1, 2, 3, 4):
        options = SlimmingOptions(1, 0.8, epochs=epochs, training=training)
        (last,) = slim(target_of(built(Separable)), data(), options, seeded())
        with torch.no_grad():
            right = last.model(held_out.inputs).argmax(1) == held_out.labels
        scores.append(float(right.double().mean()))
        models.append(sha256_of(last.model.state_dict()))
    (best,) = slim(target_of(built(Separable)), data(), options, seeded(), held_out=held_out)
    assert scores[-1] < max(scores)  # else the last epoch would do
    at = len(scores) - 1 - scores[::-1].index(max(scores))
    assert sha256_of(best.model.state_dict()) == models[at]


def test_the_penalty_shrinks_scales() -> None:
    """λ · Σ|γ| has the gradient λ · sign γ, and training under it shrinks Σ|γ|."""
    model = with_scales(torch.ones(6), -torch.ones(6), torch.full((8,), 0.5)).requires_grad_()
    penalty = penalty_of(model, 0.25)
    penalty.backward()
    assert penalty.item() == pytest.approx(0.25 * (6 + 6 + 4))
    assert model.get_parameter("deep_norm.weight").grad.tolist() == [-0.25] * 6  # type: ignore[union-attr]
    assert model.get_parameter("head.weight").grad is None
    totals = []
    for strength in (0.0, 0.1):
        training = TrainingOptions(learning_rate=0.01, batch=16)
        options = SlimmingOptions(1, 0.99, 0, strength, 8, training)
        (result,) = slim(target_of(built(Separable)), data(), options, seeded())
        totals.append(penalty_of(result.compact, 1).item())
    assert totals[1] < 0.9 * totals[0]


def test_sparse_training_comes_first() -> None:
    """Epochs are counted over the sparse training and all rounds."""
    epochs: list[float] = []
    options = SlimmingOptions(2, epochs=1.5, sparse_epochs=1, training=TrainingOptions(batch=16))
    target = target_of(built(Separable))
    rounds = list(slim(target, data(), options, seeded(), on_epoch=epochs.append))
    assert epochs == [1, 2, 2.5, 3.5, 4]
    assert [result.epochs for result in rounds] == [2.5, 4]


def test_the_same_seed_gives_the_same_bits() -> None:
    """The global random state stays; another seed gives another network."""
    options = SlimmingOptions(rounds=2, width=0.8, epochs=1, training=TrainingOptions(batch=16))

    def final(seed: int) -> str:
        *_, last = slim(target_of(built(Separable)), data(), options, seeded(seed))
        return sha256_of(last.model.state_dict())

    state = torch.random.get_rng_state()
    first = final(0)
    assert torch.equal(state, torch.random.get_rng_state())
    assert first == final(0) != final(1)


def test_numbers_outside_their_range() -> None:
    """The error gives the option and its rule."""
    for bad, message in (
        ({"rounds": 0}, "rounds: .*1.*0"),
        ({"width": 1.0}, "width: .*0.*1"),
        ({"epochs": -1.0}, "epochs: .*0"),
        ({"penalty": float("nan")}, "penalty: .*0"),
        ({"sparse_epochs": float("inf")}, "sparse_epochs: .*0"),
    ):
        with pytest.raises(InputError, match=message):
            SlimmingOptions(**bad)
