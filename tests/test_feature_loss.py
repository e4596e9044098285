"""The feature loss: the distance of norm outputs from those of the dense network.

The expected loss is written out by hand for a small network of residual bottlenecks that works in
place, as real ones do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from repair_networks import (
    Convolutional,
    Encoder,
    Perceptron,
    calibration_for,
    flat_mask,
    gradient_step,
    guided_evaluator,
    hook_count,
    in_loop_evaluator,
    masked,
    normed,
    outputs_of,
    target_of,
)
from search_cases import seeded
from torch import Tensor, nn
from torch.nn import functional

from gaprune import InputError, InputOptions
from gaprune.config import make_settings
from gaprune.evaluation.evaluator import Evaluator
from gaprune.evaluation.forward_modes import TeacherBatch
from gaprune.models.target import Target, target_from_module
from gaprune.repair import RepairSites, find_repair_sites, repair, repaired_copy
from gaprune.repair.dense_statistics import feature_errors, measure_dense
from gaprune.repair.repair_sites import repair_rule
from gaprune.runs.setup import check_settings, resolve_settings

SHAPE, NARROW = (2, 6, 6), ("stem.1", "blocks.0.4", "blocks.1.4")


class Bottlenecks(nn.Module):
    """A stem and two wide blocks; ReLUs and sums overwrite BatchNorm outputs in place."""

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
        hidden = self.stem(inputs)
        for block in self.blocks:
            residual = block(hidden)
            residual += hidden
            hidden = residual.relu_()
        return self.head(hidden.mean((2, 3)))  # type: ignore[no-any-return]


Weights = Mapping[str, Tensor]


def norms_by_hand(
    model: nn.Module, weights: Weights, inputs: Tensor, match: Callable[[str, Tensor], Tensor]
) -> Weights:
    """Return the output of every BatchNorm of `Bottlenecks`; `match` corrects their inputs."""
    outputs: dict[str, Tensor] = {}

    def norm(name: str, values: Tensor) -> Tensor:
        module, values = model.get_submodule(name), match(name, values)
        mean, var, weight, bias = (
            getattr(module, leaf).view(-1, 1, 1)
            for leaf in ("running_mean", "running_var", "weight", "bias")
        )
        outputs[name] = (values - mean) / (var + 1e-5).sqrt() * weight + bias
        return outputs[name]

    def conv(name: str, values: Tensor) -> Tensor:
        return functional.conv2d(values, weights[f"{name}.weight"], padding=1)

    hidden = norm("stem.1", conv("stem.0", inputs))
    for block in ("blocks.0", "blocks.1"):
        residual = conv(f"{block}.3", norm(f"{block}.1", conv(f"{block}.0", hidden)).relu())
        hidden = (norm(f"{block}.4", residual) + hidden).relu()
    return outputs


def per_channel(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of every channel of `[N, C, H, W]`."""
    flat = maps.transpose(0, 1).flatten(1)
    return flat.mean(1).view(-1, 1, 1), flat.std(1, correction=0).view(-1, 1, 1)


def distance_by_hand(target: Target, weights: Weights, inputs: Tensor, fade: float) -> Tensor:
    """Return the mean over `NARROW` of the relative squared distance of features.

    Args:
        target: of a `Bottlenecks`.
        weights: the candidate's.
        inputs: of both networks.
        fade: fraction of every correction that is not applied; 1 corrects nothing.
    """
    dense_in: dict[str, Tensor] = {}

    def record(name: str, values: Tensor) -> Tensor:
        dense_in[name] = values
        return values

    def match(name: str, values: Tensor) -> Tensor:
        (mean, std), (dense_mean, dense_std) = per_channel(values), per_channel(dense_in[name])
        std = torch.where(std > 0, std, dense_std)  # a dead channel keeps its scale
        return fade * values + (1 - fade) * ((values - mean) / std * dense_std + dense_mean)

    dense = norms_by_hand(target.model, target.weights, inputs, record)
    pruned = norms_by_hand(target.model, weights, inputs, match)
    distances = []
    for name in NARROW:
        variance = per_channel(dense[name])[1].square().mean()
        squared = (pruned[name] - dense[name]).square().sum()
        distances.append(squared / (dense[name].numel() * variance))
    return torch.stack(distances).mean()


MODES: dict[str, Callable[..., Evaluator]] = {
    "in the loop": in_loop_evaluator,
    "strict": guided_evaluator,
}
FADES = {"in the loop": 0.0, "strict": 1.0}


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    """Repair in the loop, or strict steps."""
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def target() -> Target:
    """Residual bottlenecks in float64."""
    return target_of(Bottlenecks, SHAPE)


def test_the_penalty_is_the_mean_distance_of_the_narrow_norms(target: Target, mode: str) -> None:
    """After the corrections, where there are any; its gradient is that of the distance."""
    evaluator, plain = (MODES[mode](target, features=weight) for weight in (4.0, 0.0))
    for seed in (1, 2):
        mask, batch = flat_mask(target, seed), evaluator.draw_batch(20, seeded(seed))
        leaves = {name: w.requires_grad_() for name, w in masked(target, mask).items()}
        distance = distance_by_hand(target, leaves, batch.inputs, FADES[mode])
        penalty = gradient_step(evaluator, mask, batch).penalty
        assert penalty is not None
        assert penalty.item() == pytest.approx(4 * distance.item(), rel=1e-9)
        assert distance > 0.05
        gradients = torch.autograd.grad(distance, list(leaves.values()), materialize_grads=True)
        pairs = zip(leaves, gradients, strict=True)
        expected = target.layout.flatten({name: target.weights[name] * g for name, g in pairs})
        without = plain.score_gradient(mask, batch)
        assert expected.norm() > 1e-2 * without.norm()
        added = (evaluator.score_gradient(mask, batch) - without).double()
        assert torch.allclose(added, 4 * expected.double(), atol=1e-5 * float(expected.norm()))


@pytest.mark.parametrize("fade", [0.0, 0.3, 1.0])
def test_statistics_loss_and_feature_loss_add_up_at_any_fade(target: Target, fade: float) -> None:
    """Features are measured in the network of the step, corrected as far as the fade says."""
    mask = flat_mask(target)
    both, alone = (
        guided_evaluator(target, features=weight, statistics_loss=2.0, fade=fade)
        for weight in (3.0, 0.0)
    )
    batch = both.draw_batch(20, seeded())
    sum_step, statistics_step = (gradient_step(mode, mask, batch) for mode in (both, alone))
    assert torch.equal(sum_step.outputs, statistics_step.outputs)
    assert sum_step.penalty is not None
    assert statistics_step.penalty is not None
    distance = distance_by_hand(target, masked(target, mask), batch.inputs, fade).item()
    expected = statistics_step.penalty.item() + 3 * distance
    assert sum_step.penalty.item() == pytest.approx(expected, rel=1e-9)


def partly_affine() -> nn.Module:
    """Return group norms, one of them without parameters: `[N, 2, L]` → `[N, 6]`."""
    norms = nn.GroupNorm(2, 6), nn.Tanh(), nn.GroupNorm(2, 6, affine=False)
    return nn.Sequential(nn.Conv1d(2, 6, 1), *norms, nn.LPPool1d(2, 5), nn.Flatten())


@pytest.mark.parametrize(
    ("build", "shape", "also", "names"),
    [
        (Bottlenecks, SHAPE, (), NARROW),
        (Convolutional, SHAPE, (), ("bn2",)),
        (normed, (6,), (), ("norm",)),
        (Encoder, (5, 8), (), ("layer.norm1", "layer.norm2")),
        (Encoder, (5, 8), ("layer.norm1.weight",), ("layer.norm2",)),
        (partly_affine, (2, 5), (), ("1",)),
        (Perceptron, (6,), (), ()),
    ],
)
def test_the_norms_at_the_ends_of_blocks_are_compared(
    build: Callable[[], nn.Module], shape: tuple[int, ...], also: tuple[str, ...], names: object
) -> None:
    """Those no larger than the mean; layer and group norms where there is no BatchNorm."""
    target = target_of(build, shape, *also)
    inputs = calibration_for(target)
    assert find_repair_sites(target.model, inputs, frozen=target.weights).features == names


def test_layer_norms_are_compared_after_their_own_correction(mode: str) -> None:
    """Repair changes their parameters, so the corrected outputs count."""
    target = target_of(Encoder, (5, 8))
    mask, evaluator = flat_mask(target), MODES[mode](target, features=1.0)
    masks, batch = target.layout.split(mask), evaluator.draw_batch(20, seeded())
    candidate = target.masked_copy(masks)
    if mode == "in the loop":
        candidate = repaired_copy(target, masks, repair(target, masks, batch.inputs))
    dense = outputs_of(target.model, batch.inputs, nn.LayerNorm)
    pruned = outputs_of(candidate, batch.inputs, nn.LayerNorm)
    distances = [
        (pruned[name] - values).square().mean() / values.var((0, 1), correction=0).mean()
        for name, values in dense.items()
    ]
    penalty = gradient_step(evaluator, mask, batch).penalty
    assert penalty is not None
    assert penalty.item() == pytest.approx(float(sum(distances)) / len(distances), rel=1e-7)
    assert penalty > 0.01


def test_constant_features_cost_nothing(mode: str) -> None:
    """They have no scale; gradients stay finite."""
    target = target_of(normed, (6,), double=False)
    norm, evaluator = target.model.get_submodule("norm"), MODES[mode](target, features=1.0)
    gradient = evaluator.score_gradient(flat_mask(target), evaluator.draw_batch(1, seeded()))
    assert gradient.isfinite().all()
    rule = repair_rule(norm)
    assert rule is not None
    sites = RepairSites({"": rule}, (), 0, ("",))
    dense = measure_dense(norm, sites, torch.ones(4, 12), features=True)
    with feature_errors(norm, dense.features) as errors:
        norm(torch.randn(4, 12, generator=seeded()))
    assert errors[""].item() == 0


def test_the_feature_loss_changes_no_output_and_is_free_without_weight(
    target: Target, mode: str
) -> None:
    """Steps, fitness and validation score keep their bits; weight 0 adds no hook, no feature."""
    mask, hooks = flat_mask(target), list[int]()
    plain, evaluator = (MODES[mode](target, features=weight) for weight in (0.0, 3.0))
    batch, other = plain.draw_batch(20, seeded()), evaluator.draw_batch(20, seeded())
    hook = target.model.register_forward_pre_hook(lambda *_: hooks.append(hook_count(target.model)))
    step = gradient_step(plain, mask, batch)
    hook.remove()
    assert step.penalty is None
    assert hooks == [6 if mode == "in the loop" else 1]
    assert (batch.dense is None) == (mode == "strict")
    assert batch.dense is None or not batch.dense.features
    assert torch.equal(batch.inputs, other.inputs)
    assert torch.equal(step.outputs, gradient_step(evaluator, mask, other).outputs)
    assert plain.fitness(mask) == evaluator.fitness(mask)
    assert plain.validate(mask) == evaluator.validate(mask)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("options", [{"features": 2.0}, {"statistics_loss": 1.0}, {"fade": 0.5}])
def test_the_dense_network_runs_once_per_input(
    target: Target, options: dict[str, float], share: float
) -> None:
    """Outputs, statistics and features come from one pass; the candidate's is the second."""
    evaluator, sizes = guided_evaluator(target, **options, share=share), list[int]()
    hook = target.model.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    batch = evaluator.draw_batch(20, seeded())
    gradient = evaluator.score_gradient(flat_mask(target), batch)
    hook.remove()
    assert sizes == [20, 20]
    without_statistics = TeacherBatch(batch.inputs, batch.teacher, None)
    assert torch.equal(evaluator.score_gradient(flat_mask(target), without_statistics), gradient)
    for mode in (evaluator.strict, evaluator.repaired):  # the inputs are those of every mode
        assert torch.equal(mode.draw_batch(20, seeded()).inputs, batch.inputs)


BIASED = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def resolved(net: nn.Module, **stated: Any) -> float | None:
    """Return the feature loss of the resolved settings."""
    target = target_from_module(net, inputs=InputOptions(shape=(6,), range=(0, 1)))
    settings = make_settings({"sparsity": 0.5, **stated})
    return resolve_settings(check_settings(settings), target).settings.feature_loss


@pytest.mark.parametrize(
    ("net", "stated", "word"),
    [
        (BIASED, {}, "BatchNorm"),
        (BIASED, {"repair_in_loop": True}, "BatchNorm"),
        (normed(), {"preset": "black-box"}, "'black-box'"),
    ],
)
def test_an_impossible_feature_loss_is_refused(
    net: nn.Module, stated: dict[str, Any], word: str
) -> None:
    """0 may be stated and is the default."""
    with pytest.raises(InputError, match=f"feature.*4.0 .*{word}.*feature.loss="):
        resolved(net, **stated, feature_loss=4)
    assert resolved(net, **stated) == resolved(net, **stated, feature_loss=0) == 0


@pytest.mark.parametrize(
    "stated", [{}, {"repair_in_loop": True}, {"pareto": True}, {"calibration": ("inversion",)}]
)
def test_a_feature_loss_works_in_every_search_with_gradients(stated: dict[str, Any]) -> None:
    """The default is 0; a negative weight is refused."""
    assert resolved(normed(), **stated, feature_loss=4) == 4
    assert resolved(normed(), **stated) == 0
    with pytest.raises(InputError, match=r"^feature_loss: .* 0, got -1"):
        make_settings({"sparsity": 0.5, **stated, "feature_loss": -1})
