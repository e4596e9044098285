"""Network slimming: which channels go, how far, and what training in between keeps."""

from __future__ import annotations

import pytest
import torch
import torch_pruning as tp
from channel_networks import IMAGE, Residual, Separable, built, images, parameters
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from gaprune.calibration.samples import Samples
from gaprune.comparison.methods.slimming import (
    SlimmingOptions,
    gamma_penalty,
    hold_out,
    rank_channels,
    slim,
    train_sparse,
)
from gaprune.comparison.methods.training import TrainingData, TrainingOptions, from_labels
from gaprune.errors import InputError
from gaprune.io.weights import sha256_of
from gaprune.models.channel_groups import ChannelGraph
from gaprune.models.channel_removal import masked_equivalent
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
    """Return labelled lessons."""
    return from_labels(samples(count))


def seeded(seed: int = 0) -> torch.Generator:
    """Return a generator of its own."""
    return torch.Generator().manual_seed(seed)


def penalty_of(model: nn.Module, strength: float) -> Tensor:
    """Return the penalty on γ."""
    penalty = gamma_penalty(model, strength)
    assert penalty is not None
    return penalty(model)


def with_scales(stem: Tensor, deep: Tensor, point: Tensor) -> nn.Module:
    """Return a depthwise-separable network with these γ."""
    model = built(Separable)
    scales = {"stem_norm": stem, "deep_norm": deep, "point_norm": point}
    for name, scale in scales.items():
        model.get_parameter(f"{name}.weight").copy_(scale)
    return model


@settings(max_examples=30)
@given(st.permutations(range(14)), st.integers(1, 12))
def test_channels_go_in_the_order_of_their_scales(order: list[int], gone: int) -> None:
    """Ranked over all layers by the mean |γ| of what scales a channel, signs not looked at."""
    ranks = torch.tensor(order, dtype=torch.float32) + 1
    shift = torch.tensor([0.5, -0.5, 0.25, -0.25, 0, 0.125])
    signs = torch.tensor([1.0, -1.0]).repeat(4)
    model = with_scales(ranks[:6] + shift, shift - ranks[:6], ranks[6:] * signs)
    # the means are the ranks: (r + s + |s − r|) / 2 = r
    ranking = rank_channels(model, images(1))
    found = ranking.removed(gone)
    worst = ranks.argsort().tolist()
    expected = {
        "stem": sorted(one for one in worst[:gone] if one < 6),
        "point": sorted(one - 6 for one in worst[:gone] if one >= 6),
    }
    if all(len(channels) < size for channels, size in zip(expected.values(), (6, 8), strict=True)):
        assert found == {layer: channels for layer, channels in expected.items() if channels}
    else:  # a layer would be emptied: its best channel stays and others go instead
        assert sum(map(len, found.values())) == gone
        assert len(found.get("stem", [])) < 6
        assert len(found.get("point", [])) < 8
    assert ranking.total == 14
    assert len(ranking.order) == 12


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


def test_rounds_keep_a_part_of_what_is_left() -> None:
    """Three rounds at 0.7: 14, 10, 7 and 5 channels, with sizes as the layers say."""
    target = target_of(built(Separable))
    before = sha256_of(target.model.state_dict())
    how = SlimmingOptions(rounds=3, width=0.7, epochs=0.5, training=TrainingOptions(batch=16))
    rounds = list(slim(target, data(), how, seeded(), held_out=samples(32, 1)))
    assert [one.before.channels for one in rounds] == [14, 10, 7]
    assert [one.after.channels for one in rounds] == [10, 7, 5]
    assert [one.epochs for one in rounds] == [0.5, 1.0, 1.5]
    for one in rounds:
        first, second = one.model.get_submodule("stem"), one.model.get_submodule("point")
        assert isinstance(first, nn.Conv2d)
        assert isinstance(second, nn.Conv2d)
        widths = first.out_channels, second.out_channels
        assert one.after.parameters == parameters(one.model) == Separable.count(*widths)
        assert one.after.prunable == Separable.prunable(*widths)
        # 3x3 on 6x6 leaves 4x4 places, all later convolutions keep them
        macs = 16 * (18 * widths[0] + 9 * widths[0] + widths[0] * widths[1]) + 3 * widths[1]
        assert one.after.macs == macs
        assert one.error < 1e-5
        assert one.row()["parameters"] == one.after.parameters
        assert not any(p.requires_grad for p in one.model.parameters())
        assert not one.model.training
    assert [one.before for one in rounds[1:]] == [one.after for one in rounds[:-1]]
    assert sha256_of(target.model.state_dict()) == before


def test_the_error_compares_the_smaller_network_with_the_masked_one() -> None:
    """It is the largest difference of outputs, measured here by hand on the same lessons."""
    target = target_of(built(Residual))
    (only,) = slim(target, data(), SlimmingOptions(1, 0.6, epochs=0), seeded())
    masked = masked_equivalent(target.model, target.example(), only.removed)
    with torch.no_grad():
        theirs = (only.compact(images(64)) - masked(images(64))).abs().max()
    assert only.error == pytest.approx(float(theirs), abs=1e-6)
    assert only.error < 1e-5
    assert only.after.parameters < only.before.parameters


def test_no_layer_is_emptied() -> None:
    """A width that leaves nothing leaves one channel of each layer, and further rounds nothing."""
    how = SlimmingOptions(rounds=2, width=0.001, epochs=0)
    first, second = slim(target_of(built(Separable)), data(), how, seeded())
    assert first.after.parameters == Separable.count(1, 1)
    assert second.removed == {}
    assert second.after == first.after


@settings(max_examples=10)
@given(st.floats(0.05, 0.85), st.integers(0, 99))
def test_slim_to_removes_no_more_than_it_must(sparsity: float, seed: int) -> None:
    """The goal is met, and with the last channel of the ranking put back it would not be."""
    target = target_of(built(Separable, seed))
    (only,) = slim(target, data(), UNTRAINED, seeded(), sparsity=sparsity)
    goal = Separable.prunable(6, 8) * (1 - sparsity)
    assert only.after.prunable <= goal + 0.5
    ranking = rank_channels(target.model, target.example())
    gone = sum(len(channels) for channels in only.removed.values())
    assert only.removed == ranking.removed(gone)
    fewer = ranking.removed(gone - 1)
    widths = 6 - len(fewer.get("stem", [])), 8 - len(fewer.get("point", []))
    assert Separable.prunable(*widths) > goal - 0.5


def test_slim_to_goes_there_in_rounds() -> None:
    """Each of four rounds leaves about the same part of the weights, the last one the goal."""
    target = target_of(built(lambda: Separable(24, 32)))
    total = target.layout.total
    how = SlimmingOptions(rounds=4, epochs=0)
    left = [one.after.prunable for one in slim(target, data(), how, seeded(), sparsity=0.8)]
    goals = [total * 0.2 ** (number / 4) for number in (1, 2, 3, 4)]
    widest = 9 * 3 + 32 + 24  # the most weights that one channel has
    assert all(goal - widest < now <= goal + 0.5 for now, goal in zip(left, goals, strict=True))


def test_slim_to_says_what_is_possible() -> None:
    """A goal below one channel per layer is refused with the number of weights that must stay."""
    least = Separable.prunable(1, 1)
    with pytest.raises(InputError, match=f"{least} of 234"):
        list(slim(target_of(built(Separable)), data(), UNTRAINED, seeded(), sparsity=0.9))
    with pytest.raises(InputError, match=r"sparsity: .*0.*1"):
        list(slim(target_of(built(Separable)), data(), UNTRAINED, seeded(), sparsity=1.0))


def test_networks_without_batch_norm_are_refused_before_training() -> None:
    """The message says what is missing; no epoch has passed."""
    target = target_from_module(built(LeNet), inputs=InputOptions(shape=(1, 28, 28)))
    shown = TrainingData(torch.rand(8, 1, 28, 28), torch.zeros(8).long(), functional.cross_entropy)
    how = SlimmingOptions(sparse_epochs=1)

    def never(_: float) -> None:
        pytest.fail("trained first")

    with pytest.raises(InputError, match=r"model: .*BatchNorm"):
        next(slim(target, shown, how, seeded(), on_epoch=never))
    with pytest.raises(InputError, match=r"penalty: .*BatchNorm"):
        train_sparse(target, shown, how, seeded())


def test_channels_without_batch_norm_stay() -> None:
    """Only what a γ scales is ranked, though more could be removed."""

    def build() -> nn.Module:
        model = Separable()
        model.add_module("head", nn.Sequential(nn.Linear(8, 20), nn.ReLU(), nn.Linear(20, 3)))
        return model

    model = built(build)
    groups = ChannelGraph.trace(model, images(1)).groups
    assert sum(len(group.channels) for group in groups) == 14 + 20
    assert rank_channels(model, images(1)).total == 14


def test_a_round_keeps_its_best_epoch() -> None:
    """Of the networks after 1, 2, 3 and 4 epochs the one that does best on the held-out part."""
    held_out = samples(60, 5)
    training = TrainingOptions(
        optimiser="sgd", learning_rate=0.3, batch=16
    )  # so high that accuracy goes up and down
    scores, models = [], []
    for epochs in (1, 2, 3, 4):
        how = SlimmingOptions(1, 0.8, epochs=epochs, training=training)
        (last,) = slim(target_of(built(Separable)), data(), how, seeded())
        with torch.no_grad():
            right = last.model(held_out.inputs).argmax(1) == held_out.labels
        scores.append(float(right.double().mean()))
        models.append(sha256_of(last.model.state_dict()))
        assert (last.score_before, last.score_after) == (None, None)
    (best,) = slim(target_of(built(Separable)), data(), how, seeded(), held_out=held_out)
    assert scores[-1] < max(scores)  # else the last epoch would do
    assert best.score_after == max(scores)
    at = len(scores) - 1 - scores[::-1].index(max(scores))
    assert sha256_of(best.model.state_dict()) == models[at]


def test_without_labels_agreement_judges() -> None:
    """Held-out inputs without labels are scored by the classes of the dense network."""
    target, held_out = target_of(built(Residual)), images(50, 9)
    how = SlimmingOptions(1, 0.4, epochs=1)
    (only,) = slim(target, data(), how, seeded(), held_out=Samples(held_out, None, "a test"))
    with torch.no_grad():
        dense, small = target.model(held_out).argmax(1), only.compact(held_out).argmax(1)
    assert only.score_before == pytest.approx(float((dense == small).double().mean()))


def test_the_penalty_makes_scales_small() -> None:
    """λ · Σ|γ| has the gradient λ · sign γ, and training under it shrinks Σ|γ|."""
    model = with_scales(torch.ones(6), -torch.ones(6), torch.full((8,), 0.5)).requires_grad_()
    penalty = penalty_of(model, 0.25)
    penalty.backward()
    assert penalty.item() == pytest.approx(0.25 * (6 + 6 + 4))
    assert model.get_parameter("deep_norm.weight").grad.tolist() == [-0.25] * 6  # type: ignore[union-attr]
    assert model.get_parameter("head.weight").grad is None
    totals = []
    for strength in (0.0, 0.1):
        how = SlimmingOptions(
            penalty=strength,
            sparse_epochs=8,
            training=TrainingOptions(learning_rate=0.01, batch=16),
        )
        trained = train_sparse(target_of(built(Separable)), data(), how, seeded())
        totals.append(penalty_of(trained, 1).item())
        assert not any(parameter.requires_grad for parameter in trained.parameters())
    assert totals[1] < 0.9 * totals[0]


def test_sparse_training_comes_first_and_progress_is_told() -> None:
    """Epochs are counted on from the training before the first round."""
    told: list[float] = []
    how = SlimmingOptions(rounds=2, epochs=1.5, sparse_epochs=1, training=TrainingOptions(batch=16))
    target = target_of(built(Separable))
    rounds = list(slim(target, data(), how, seeded(), on_epoch=told.append))
    assert told == [1, 2, 2.5, 3.5, 4]
    assert [one.epochs for one in rounds] == [2.5, 4]
    start = train_sparse(target, data(), how, seeded())
    assert rounds[0].removed == rank_channels(start, target.example()).removed(1)


def test_the_same_seed_gives_the_same_bits() -> None:
    """Nothing global is drawn from, and another seed gives another network."""
    how = SlimmingOptions(rounds=2, width=0.8, epochs=1, training=TrainingOptions(batch=16))

    def final(seed: int) -> str:
        *_, last = slim(target_of(built(Separable)), data(), how, seeded(seed))
        return sha256_of(last.model.state_dict())

    state = torch.random.get_rng_state()
    first = final(0)
    assert torch.equal(state, torch.random.get_rng_state())
    assert first == final(0) != final(1)


@given(st.integers(2, 30), st.data())
def test_hold_out_splits(total: int, data: st.DataObject) -> None:
    """Every sample is in one of the two parts, with its label."""
    count = data.draw(st.integers(1, total - 1))
    inputs = torch.arange(total)
    learned, judged = hold_out(Samples(inputs, inputs * 2, "a test"), count, seeded())
    assert len(judged.inputs) == count
    assert sorted([*learned.inputs.tolist(), *judged.inputs.tolist()]) == inputs.tolist()
    for part in (learned, judged):
        assert part.labels is not None
        assert torch.equal(part.labels, part.inputs * 2)
    bare = hold_out(Samples(inputs, None, "a test"), count, seeded())
    assert [part.labels for part in bare] == [None, None]
    assert torch.equal(bare[1].inputs, judged.inputs)


def test_numbers_outside_their_range() -> None:
    """Settings that make no sense are refused with the rule."""
    for bad, message in (
        ({"rounds": 0}, "rounds: .*1.*0"),
        ({"width": 1.0}, "width: .*0.*1"),
        ({"epochs": -1.0}, "epochs: .*0"),
        ({"penalty": float("nan")}, "penalty: .*0"),
        ({"sparse_epochs": float("inf")}, "sparse_epochs: .*0"),
    ):
        with pytest.raises(InputError, match=message):
            SlimmingOptions(**bad)
    for count in (0, 64):
        with pytest.raises(InputError, match=r"held out: .*1.*64"):
            hold_out(samples(), count, seeded())
