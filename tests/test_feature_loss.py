"""The feature loss: the distance of norm outputs from those of the dense network.

The expected loss is written out by hand for a small network of residual bottlenecks that works in
place, as real ones do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from repair_networks import (
    Convolutional,
    Encoder,
    Perceptron,
    calibration_for,
    hook_count,
    loop_evaluator,
    normed,
    outputs_of,
    random_masks,
    seeded,
    target_of,
)
from search_cases import random_genes
from torch import Tensor, nn
from torch.nn import functional

from gaprune import InputError, InputOptions, prune_target
from gaprune.config import make_settings
from gaprune.evaluation.evaluator import Evaluator
from gaprune.evaluation.forward_modes import (
    GradientOutputs,
    GuidedForward,
    RepairedForward,
    TeacherBatch,
)
from gaprune.evolution.gradient import Refinement, refine
from gaprune.masks.supermask import masked_weights
from gaprune.models.target import Target, target_from_module
from gaprune.repair import RepairSites, find_repair_sites, repair, repaired_copy
from gaprune.repair.dense_statistics import feature_errors, measure_dense
from gaprune.repair.repair_rules import repair_rule
from gaprune.runs.setup import check_settings, resolve_settings

torch.set_num_threads(1)

SHAPE, NARROW = (2, 6, 6), ("stem.1", "blocks.0.4", "blocks.1.4")


class Bottlenecks(nn.Module):
    """A stem and two blocks, wide inside; ReLUs and sums write into what BatchNorms put out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(3, 9, 3, padding=1, bias=False),
                nn.BatchNorm2d(9),
                nn.ReLU(inplace=True),
                nn.Conv2d(9, 3, 3, padding=1, bias=False),
                nn.BatchNorm2d(3),
            )
            for _ in range(2)
        )
        self.head = nn.Linear(3, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        """`[N, 2, H, W]` → `[N, 3]`."""
        hidden = self.stem(inputs)
        for block in self.blocks:
            way = block(hidden)
            way += hidden
            hidden = way.relu_()
        return self.head(hidden.mean((2, 3)))  # type: ignore[no-any-return]


Weights = Mapping[str, Tensor]
Match = Callable[[str, Tensor], Tensor]
"""(name of a BatchNorm, what comes in) → what goes through it."""


def norms_by_hand(model: nn.Module, weights: Weights, inputs: Tensor, match: Match) -> Weights:
    """Return what every BatchNorm of `Bottlenecks` puts out, by name."""
    found: dict[str, Tensor] = {}

    def norm(name: str, values: Tensor) -> Tensor:
        one, values = model.get_submodule(name), match(name, values)
        mean, var, weight, bias = (
            getattr(one, leaf).view(-1, 1, 1)
            for leaf in ("running_mean", "running_var", "weight", "bias")
        )
        found[name] = (values - mean) / (var + 1e-5).sqrt() * weight + bias
        return found[name]

    hidden = norm("stem.1", functional.conv2d(inputs, weights["stem.0.weight"], padding=1))
    for block in ("blocks.0", "blocks.1"):
        way = norm(
            f"{block}.1", functional.conv2d(hidden, weights[f"{block}.0.weight"], padding=1)
        ).relu()
        way = functional.conv2d(way, weights[f"{block}.3.weight"], padding=1)
        hidden = (norm(f"{block}.4", way) + hidden).relu()
    return found


def per_channel(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of every channel of `[N, C, H, W]`."""
    flat = maps.transpose(0, 1).flatten(1)
    return flat.mean(1).view(-1, 1, 1), flat.std(1, correction=0).view(-1, 1, 1)


def distance_by_hand(target: Target, kept: Weights, inputs: Tensor, *, left: float = 1.0) -> Tensor:
    """Return the mean over `NARROW` of the features' relative squared distance.

    Args:
        target: of a `Bottlenecks`.
        kept: the candidate's weights.
        inputs: shown to both.
        left: part of every correction that is left out; 1 leaves the candidate as it is.
    """
    dense_in: dict[str, Tensor] = {}

    def keep(name: str, values: Tensor) -> Tensor:
        dense_in[name] = values
        return values

    def match(name: str, values: Tensor) -> Tensor:
        (mean, spread), (wanted, unit) = per_channel(values), per_channel(dense_in[name])
        spread = torch.where(spread > 0, spread, unit)  # a channel that died keeps its scale
        return left * values + (1 - left) * ((values - mean) / spread * unit + wanted)

    dense = norms_by_hand(target.model, target.weights, inputs, keep)
    pruned = norms_by_hand(target.model, kept, inputs, match)
    each = []
    for name in NARROW:
        variance = per_channel(dense[name])[1].square().mean()
        squared = (pruned[name] - dense[name]).square().sum()
        each.append(squared / (dense[name].numel() * variance))
    return torch.stack(each).mean()


def in_loop(target: Target, weight: float, share: float = 1.0) -> Evaluator:
    """Return an evaluator with repair in the loop; a batch comes from a pool, or part of it."""
    evaluator = loop_evaluator(target, gradient_share=share)
    assert isinstance(evaluator.forward_mode, RepairedForward)
    return replace(evaluator, forward_mode=replace(evaluator.forward_mode, features=weight))


def strictly(
    target: Target,
    weight: float,
    share: float = 1.0,
    statistics_loss: float = 0.0,
    fade: float = 1.0,
) -> Evaluator:
    """Return a guided evaluator."""
    evaluator = in_loop(target, weight, share)
    assert isinstance(evaluator.forward_mode, RepairedForward)
    return replace(
        evaluator, forward_mode=GuidedForward(evaluator.forward_mode, statistics_loss, fade)
    )


WAYS: dict[str, Callable[..., Evaluator]] = {"in the loop": in_loop, "strict": strictly}
LEFT = {"in the loop": 0.0, "strict": 1.0}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    """One of both ways of searching."""
    name: str = request.param
    return name


@pytest.fixture
def target() -> Target:
    """Residual bottlenecks in float64."""
    return target_of(Bottlenecks, SHAPE)


def flat_mask(target: Target, seed: int = 1) -> Tensor:
    """Return a random flat mask."""
    return target.layout.flatten(random_masks(target, seed=seed)).bool()


def kept_of(target: Target, mask: Tensor) -> dict[str, Tensor]:
    """Return the weights that a flat mask leaves."""
    return masked_weights(target.weights, target.layout.split(mask))


def stepped(evaluator: Evaluator, mask: Tensor, batch: TeacherBatch) -> GradientOutputs:
    """Return what a candidate answers in a step."""
    kept = masked_weights(evaluator.network.weights, evaluator.layout.split(mask))
    return evaluator.forward_mode.gradient_outputs(evaluator.network.model, kept, batch)


@pytest.mark.parametrize("weight", [0.5, 4.0])
def test_the_penalty_is_the_mean_distance_of_the_narrow_norms(
    target: Target, way: str, weight: float
) -> None:
    """Of outputs behind the corrections, where there are any; written out by hand."""
    evaluator = WAYS[way](target, weight)
    for seed in (1, 2, 3):
        mask, batch = flat_mask(target, seed), evaluator.draw_batch(20, seeded(seed))
        penalty = stepped(evaluator, mask, batch).penalty
        assert penalty is not None
        hand = distance_by_hand(target, kept_of(target, mask), batch.inputs, left=LEFT[way])
        assert penalty.item() == pytest.approx(weight * hand.item(), rel=1e-9)
        assert hand > 0.05


@pytest.mark.parametrize("fade", [0.0, 0.3, 1.0])
def test_drift_and_features_add_up_at_any_fade(target: Target, fade: float) -> None:
    """The features are those of the network as steps see it there."""
    mask, alone = flat_mask(target), strictly(target, 0.0, statistics_loss=2.0, fade=fade)
    both = strictly(target, 3.0, statistics_loss=2.0, fade=fade)
    batch = both.draw_batch(20, seeded())
    found, statistics_loss = stepped(both, mask, batch), stepped(alone, mask, batch)
    assert torch.equal(found.outputs, statistics_loss.outputs)
    assert found.penalty is not None
    assert statistics_loss.penalty is not None
    hand = distance_by_hand(target, kept_of(target, mask), batch.inputs, left=fade)
    assert found.penalty.item() == pytest.approx(
        statistics_loss.penalty.item() + 3 * hand.item(), rel=1e-9
    )


def test_gradients_flow_through_the_features(target: Target, way: str) -> None:
    """What they add to the score gradient is weight · w · ∂distance/∂w of the one by hand."""
    mask, batch = flat_mask(target), WAYS[way](target, 1.0).draw_batch(20, seeded())
    none, thrice = (WAYS[way](target, w).score_gradient(mask, batch) for w in (0.0, 3.0))
    leaves = {name: one.requires_grad_() for name, one in kept_of(target, mask).items()}
    distance_by_hand(target, leaves, batch.inputs, left=LEFT[way]).backward()
    expected = target.layout.flatten(
        {
            name: target.weights[name] * (torch.zeros(()) if one.grad is None else one.grad)
            for name, one in leaves.items()
        }
    )
    assert expected.norm() > 1e-2 * none.norm()
    added = (thrice - none).double()
    assert torch.allclose(added, 3 * expected.double(), atol=1e-5 * float(expected.norm()))


def sites_of(build: Callable[[], nn.Module], shape: tuple[int, ...], *also: str) -> tuple[str, ...]:
    """Return the names of the norms that are compared."""
    target = target_of(build, shape, *also)
    inputs = calibration_for(target)
    found = find_repair_sites(target.model, inputs, frozen=target.weights).features
    norms = outputs_of(
        target.model, inputs, nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm
    )
    mean = sum(one.numel() for one in norms.values()) / max(1, len(norms))
    assert set(found) <= {name for name, one in norms.items() if one.numel() <= mean}
    return found


class Apart(nn.Module):
    """Group norms of which one has nothing to write into."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 6, 1)
        self.kept, self.bare = nn.GroupNorm(2, 6), nn.GroupNorm(2, 6, affine=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """`[N, 2, L]` → `[N, 6]`."""
        hidden: Tensor = self.bare(torch.tanh(self.kept(self.conv(inputs))))
        return hidden.square().mean(2)


def test_the_norms_that_are_compared_are_those_that_blocks_end_with() -> None:
    """No larger than their mean; layer and group norms where there is no BatchNorm; else none."""
    assert sites_of(Bottlenecks, SHAPE) == NARROW
    assert sites_of(Convolutional, SHAPE) == ("bn2",)
    assert sites_of(normed, (6,)) == ("norm",)
    assert sites_of(Encoder, (5, 8)) == ("layer.norm1", "layer.norm2")
    assert sites_of(Encoder, (5, 8), "layer.norm1.weight") == ("layer.norm2",)
    assert sites_of(Apart, (2, 5)) == ("kept",)
    assert sites_of(Perceptron, (6,)) == ()


def test_layer_norms_are_compared_behind_their_own_correction(way: str) -> None:
    """Repair writes into them: what counts is what they put out afterwards."""
    target = target_of(Encoder, (5, 8))
    mask, evaluator = flat_mask(target), WAYS[way](target, 1.0)
    masks, batch = target.layout.split(mask), evaluator.draw_batch(20, seeded())
    candidate = target.masked_copy(masks)
    if way == "in the loop":
        candidate = repaired_copy(target, masks, repair(target, masks, batch.inputs))
    dense = outputs_of(target.model, batch.inputs, nn.LayerNorm)
    pruned = outputs_of(candidate, batch.inputs, nn.LayerNorm)
    each = [
        (pruned[name] - one).square().mean() / one.var((0, 1), correction=0).mean()
        for name, one in dense.items()
    ]
    penalty = stepped(evaluator, mask, batch).penalty
    assert penalty is not None
    assert penalty.item() == pytest.approx(float(sum(each)) / len(each), rel=1e-7)
    assert penalty > 0.01


def test_constants_have_no_unit() -> None:
    """A norm that puts out the same for every input costs nothing, and gradients stay finite."""
    target = target_of(normed, (6,), double=False)
    norm, mask = target.model.get_submodule("norm"), flat_mask(target)
    for evaluator in (in_loop(target, 1.0), strictly(target, 1.0)):
        assert evaluator.score_gradient(mask, evaluator.draw_batch(1, seeded())).isfinite().all()
    kind = repair_rule(norm)
    assert kind is not None
    sites = RepairSites({"": kind}, (), 0, ("",))
    dense = measure_dense(norm, sites, torch.ones(4, 12), features=True)
    with feature_errors(norm, dense.features) as apart:
        norm(torch.randn(4, 12, generator=seeded()))
    assert apart[""].item() == 0


def test_without_weight_no_feature_is_recorded(target: Target, way: str) -> None:
    """No penalty, no features with the batch, no hook of theirs; strict steps see no statistics."""
    evaluator, mask = WAYS[way](target, 0.0), flat_mask(target)
    batch, hooks = evaluator.draw_batch(20, seeded()), list[int]()
    counter = target.model.register_forward_pre_hook(
        lambda *_: hooks.append(hook_count(target.model))
    )
    assert stepped(evaluator, mask, batch).penalty is None
    counter.remove()
    corrected = 5 if way == "in the loop" else 0
    assert hooks == [1 + corrected]
    assert (batch.dense is None) == (way == "strict")
    assert batch.dense is None or not batch.dense.features


def test_outputs_do_not_depend_on_the_feature_loss(target: Target, way: str) -> None:
    """Bit for bit: in steps, where masks are selected, and where they are judged."""
    plain, evaluator, mask = WAYS[way](target, 0.0), WAYS[way](target, 3.0), flat_mask(target)
    batches = plain.draw_batch(20, seeded()), evaluator.draw_batch(20, seeded())
    assert torch.equal(batches[0].inputs, batches[1].inputs)
    steps = stepped(plain, mask, batches[0]), stepped(evaluator, mask, batches[1])
    assert torch.equal(steps[0].outputs, steps[1].outputs)
    assert plain.fitness(mask) == evaluator.fitness(mask)
    assert plain.validate(mask) == evaluator.validate(mask)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_dense_network_runs_once_per_input(target: Target, way: str, share: float) -> None:
    """Answers, statistics and features come from one forward; the candidate's is the second."""
    evaluator, sizes, mask = WAYS[way](target, 2.0, share), list[int](), flat_mask(target)
    hook = target.model.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    batch = evaluator.draw_batch(20, seeded())
    found = evaluator.score_gradient(mask, batch)
    hook.remove()
    assert sizes == [20, 20]
    bare = TeacherBatch(batch.inputs, batch.teacher, None)
    assert torch.equal(evaluator.score_gradient(mask, bare), found)


def test_steps_with_features_end_nearer_to_those_of_the_dense_network(
    target: Target, way: str
) -> None:
    """On inputs that they have not seen, at the same budget and from the same start."""
    held, plan = calibration_for(target, 64, 9), Refinement(steps=25, learning_rate=0.3, batch=32)
    genes = random_genes(target.layout, target.layout.total // 2, 1)
    ends = []
    for weight in (0.0, 4.0):
        refined = refine(genes, WAYS[way](target, weight), plan, seeded())
        kept = kept_of(target, refined.decode(target.layout))
        ends.append(distance_by_hand(target, kept, held, left=LEFT[way]).item())
    start = distance_by_hand(target, kept_of(target, genes.decode(target.layout)), held)
    assert ends[1] < 0.8 * ends[0]
    assert ends[1] < 0.8 * start.item()


def test_fewer_bits_point_the_same_way(way: str) -> None:
    """In bfloat16 the distance is still measured in float32."""
    target = target_of(Bottlenecks, SHAPE, double=False)
    wide, mask = WAYS[way](target, 4.0), flat_mask(target)
    narrow = replace(wide, precision="bfloat16")
    found = [one.score_gradient(mask, one.draw_batch(24, seeded())) for one in (narrow, wide)]
    assert found[0].dtype == torch.float32
    assert functional.cosine_similarity(found[0], found[1], dim=0) > 0.97
    assert not torch.equal(*found)
    batch = narrow.draw_batch(24, seeded())
    with torch.autocast("cpu", torch.bfloat16):
        penalty = stepped(narrow, mask, batch).penalty
    assert penalty is not None
    assert penalty.dtype == torch.float32


SMALL: dict[str, Any] = {
    "sparsity": 0.6,
    "calibration": ("procedural",),
    "calibration_count": 32,
    "validation_count": 32,
    "generations": 2,
    "steps": 8,
    "learning_rate": 1.0,
    "batch": 16,
    "population": 2,
    "offspring": 3,
    "objective": "relative-error",
}
LOOPS: dict[str, dict[str, Any]] = {
    "in the loop": {"repair_in_loop": True},
    "strict": {"warmup": 2, "statistics_loss": 0.5},
}


def test_no_weight_changes_nothing(way: str) -> None:
    """Stating 0 is stating nothing, bit for bit; another weight is another search."""
    target = target_of(Bottlenecks, SHAPE, double=False)
    results = [
        prune_target(target, make_settings({**SMALL, **LOOPS[way], **stated}))
        for stated in ({}, {"feature_loss": 0}, {"feature_loss": 30.0})
    ]
    assert [result.settings["feature_loss"] for result in results] == [0, 0, 30]
    masks = [target.layout.flatten(result.masks).bool() for result in results]
    told = [[(one.best, one.mean) for one in result.history] for result in results]
    assert torch.equal(masks[0], masks[1])
    assert told[0] == told[1] != told[2]


BIASED = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
IMPOSSIBLE: list[tuple[nn.Module, dict[str, Any], str]] = [
    (BIASED, {}, "BatchNorm"),
    (BIASED, {"repair_in_loop": True}, "BatchNorm"),
    (normed(), {"preset": "black-box"}, "'black-box'"),
]


def resolved(net: nn.Module, **stated: Any) -> float | None:
    """Return what becomes of the setting."""
    target = target_from_module(net, inputs=InputOptions(shape=(6,), range=(0, 1)))
    settings = make_settings({"sparsity": 0.5, **stated})
    return resolve_settings(check_settings(settings), target).settings.feature_loss


@pytest.mark.parametrize(("net", "stated", "words"), IMPOSSIBLE)
def test_an_impossible_feature_loss_is_refused(
    net: nn.Module, stated: dict[str, Any], words: str
) -> None:
    """With the reason and the way out; 0 may be said, and is what holds by default."""
    message = f"feature.*4.0 .*{words}.*--feature.loss"
    with pytest.raises(InputError, match=message):
        resolved(net, **stated, feature_loss=4)
    assert resolved(net, **stated) == resolved(net, **stated, feature_loss=0) == 0


def test_it_goes_with_every_way_of_searching() -> None:
    """Also with a Pareto front and on inverted inputs; a negative weight is refused."""
    for stated in ({}, {"repair_in_loop": True}, {"pareto": True}, {"calibration": ("inversion",)}):
        assert resolved(normed(), **stated, feature_loss=4) == 4
        assert resolved(normed(), **stated) == 0
    with pytest.raises(InputError, match=r"^feature_loss: .* 0, got -1"):
        make_settings({"sparsity": 0.5, "feature_loss": -1})


def test_a_one_shot_method_ignores_the_feature_loss() -> None:
    """Its result is the same, bit for bit."""
    target = target_of(Bottlenecks, SHAPE, double=False)
    plain, stated = (
        prune_target(target, make_settings({**SMALL, "method": "lamp", **more}))
        for more in ({}, {"feature_loss": 4.0})
    )
    assert all(torch.equal(plain.masks[name], mask) for name, mask in stated.masks.items())
    assert plain.validation_agreement == stated.validation_agreement
