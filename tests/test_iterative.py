"""Pruning and training in turns: against torch's own pruning; masks exact and nested."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from search_cases import seeded, tiny_model
from torch import Tensor, nn
from torch.nn.utils import prune

from gaprune.calibration.samples import Samples
from gaprune.comparison.methods.iterative import (
    IterativePruningOptions,
    PruningStage,
    prune_iteratively,
)
from gaprune.comparison.methods.schedule import PruningStep, make_schedule
from gaprune.comparison.methods.training import (
    TrainingData,
    TrainingOptions,
    from_labels,
    from_teacher,
    train,
)
from gaprune.criteria import CRITERIA
from gaprune.errors import GapruneError, InputError
from gaprune.masks.budget import keep_total, uniform_counts
from gaprune.masks.supermask import MIN_KEEP, global_mask, layer_counts
from gaprune.models.input_spec import InputOptions
from gaprune.models.target import Target, target_from_module

SHOWN = torch.rand(64, 6, generator=seeded(3))
LABELS = (SHOWN.sum(1) * 1.3).long() % 4
STEPS = [PruningStep(0.3, 1), PruningStep(0.5, 0.5), PruningStep(0.8, 2)]
FAST = TrainingOptions(learning_rate=0.02, batch=16)


def tiny_target() -> Target:
    """Return `tiny_model` as a target."""
    return target_from_module(tiny_model(), inputs=InputOptions(shape=(6,)))


def data() -> TrainingData:
    """Return labelled inputs for it."""
    return from_labels(Samples(SHOWN, LABELS, "random"))


def stages(
    how: IterativePruningOptions, steps: list[PruningStep] = STEPS, seed: int = 0
) -> list[PruningStage]:
    """Return all stages of a run on `tiny_target`."""
    return list(prune_iteratively(tiny_target(), data(), steps, how, seeded(seed)))


def same(one: nn.Module, other: nn.Module) -> bool:
    """Tell whether two networks hold the same bits."""
    left, right = one.state_dict(), other.state_dict()
    return all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_it_is_torchs_pruning_with_training_between(scope: str) -> None:
    """The same masks and weights as a plain loop over `torch.nn.utils.prune` and `train`."""
    generator, model = seeded(5), tiny_model().requires_grad_()
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    names = [f"{i}.weight" for i in (0, 2, 4)]
    layout = tiny_target().layout
    found = prune_iteratively(
        tiny_target(), data(), STEPS, IterativePruningOptions(FAST, scope=scope), seeded(5)
    )
    for step, stage in zip(STEPS, found, strict=True):
        if scope == "global":
            prune.global_unstructured(
                [(layer, "weight") for layer in layers],
                pruning_method=prune.L1Unstructured,
                amount=layout.total - keep_total(layout, step.sparsity),
            )
        else:
            counts = uniform_counts(layout, step.sparsity)
            for layer, size, keep in zip(layers, layout.sizes, counts, strict=True):
                prune.l1_unstructured(layer, "weight", size - keep)
        masks = {name: layer.weight != 0 for name, layer in zip(names, layers, strict=True)}
        for layer in layers:
            prune.remove(layer, "weight")
        train(model, data(), FAST, step.epochs, generator, masks=masks)
        assert all(torch.equal(stage.masks[name], masks[name]) for name in names)
        assert all(
            torch.equal(stage.model.get_parameter(name), parameter)
            for name, parameter in model.named_parameters()
        )


@pytest.mark.parametrize("rewind", [False, True])
@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_masks_are_exact_and_nested_for_every_criterion(
    criterion: str, scope: str, rewind: bool
) -> None:
    """Each stage keeps exactly its budget, a part of the one before, and every layer lives."""
    how = IterativePruningOptions(FAST, criterion=criterion, scope=scope, rewind=rewind)
    layout, before = tiny_target().layout, torch.ones(200, dtype=torch.bool)
    for step, stage in zip(STEPS, stages(how), strict=True):
        mask = layout.flatten(stage.masks)
        counts = layer_counts(mask, layout)
        assert int(mask.sum()) == keep_total(layout, step.sparsity)
        assert min(counts) >= MIN_KEEP
        assert scope == "global" or counts == uniform_counts(layout, step.sparsity)
        assert not (mask & ~before).any()
        for name, kept in stage.masks.items():
            gone = stage.model.get_parameter(name)[~kept]
            assert torch.equal(gone.view(torch.int32), torch.zeros_like(gone, dtype=torch.int32))
        before = mask


def test_stages_say_where_they_are() -> None:
    """Sparsity, epochs and steps so far; the model is frozen and evaluates."""
    found = stages(IterativePruningOptions(FAST))
    assert [(s.sparsity, s.epochs, s.steps) for s in found] == [
        (0.3, 1, 1),
        (0.5, 1.5, 2),
        (0.8, 3.5, 3),
    ]
    for stage in found:
        assert not any(module.training for module in stage.model.modules())
        assert not any(parameter.requires_grad for parameter in stage.model.parameters())


def test_stages_are_the_callers_own() -> None:
    """Spoiling a stage changes neither the next ones nor the target."""
    target = tiny_target()
    run = prune_iteratively(target, data(), STEPS, IterativePruningOptions(FAST), seeded())
    for expected in stages(IterativePruningOptions(FAST)):
        stage = next(run)
        assert same(stage.model, expected.model)
        for parameter in stage.model.parameters():
            parameter.fill_(float("nan"))
        for mask in stage.masks.values():
            assert not mask.is_inference()
    assert same(target.model, tiny_model())


def test_without_rewinding_all_weights_are_trained_on() -> None:
    """Zero epochs keep the values of the step before; biases have moved since the start."""
    first, second = stages(
        IterativePruningOptions(FAST), [PruningStep(0.3, 2), PruningStep(0.6, 0)]
    )
    for name, mask in second.masks.items():
        expected = torch.where(mask, first.model.get_parameter(name), torch.zeros(()))
        assert torch.equal(second.model.get_parameter(name), expected)
    assert torch.equal(second.model.get_parameter("0.bias"), first.model.get_parameter("0.bias"))
    assert not torch.equal(
        first.model.get_parameter("0.bias"), tiny_model().get_parameter("0.bias")
    )


class Normed(nn.Module):
    """A network with BatchNorm, whose buffers training moves."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.body(x)).relu())
        return logits


def test_rewinding_brings_everything_but_the_mask_back() -> None:
    """After a step without training, weights, biases and buffers are the original's, masked."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        original = Normed().eval()
    target = target_from_module(original, inputs=InputOptions(shape=(6,)))
    steps = [PruningStep(0.3, 4), PruningStep(0.6, 0)]
    how = IterativePruningOptions(TrainingOptions(learning_rate=0.1, batch=16), rewind=True)
    first, second = prune_iteratively(target, data(), steps, how, seeded())
    for name, value in original.state_dict().items():
        kept = second.masks.get(name, torch.tensor(True))
        expected = torch.where(kept, value, torch.zeros_like(value))
        assert torch.equal(second.model.state_dict()[name], expected), name
        assert not torch.equal(first.model.state_dict()[name], value), name
    # the trained weights chose the mask, not the rewound ones
    by_size = global_mask(target.layout.flatten(target.weights).abs(), target.layout, 48)
    assert not torch.equal(target.layout.flatten(second.masks), by_size)
    trained = target.layout.flatten(dict(first.model.named_parameters())).abs()
    assert torch.equal(target.layout.flatten(second.masks), global_mask(trained, target.layout, 48))


def test_the_teacher_can_give_the_lessons() -> None:
    """Fine-tuning on calibration inputs alone brings answers closer to the dense network's."""
    target = tiny_target()
    calibration = from_teacher(target, torch.rand(512, 6, generator=seeded(4)))
    steps = make_schedule("linear", [0.5], 4)

    def loss(epochs: float) -> float:
        one = [PruningStep(step.sparsity, epochs) for step in steps]
        *_, last = prune_iteratively(
            target, calibration, one, IterativePruningOptions(FAST), seeded()
        )
        return float(calibration.loss(last.model(SHOWN), target.model(SHOWN)))

    assert loss(4) < loss(0) / 5


@pytest.mark.parametrize("criterion", ["magnitude", "taylor", "random"])
def test_the_seed_decides(criterion: str) -> None:
    """Same generator, same bits; nothing global is used or moved."""
    state = torch.get_rng_state()
    how = IterativePruningOptions(FAST, criterion=criterion)
    first, again, other = (stages(how, seed=seed)[-1] for seed in (1, 1, 2))
    assert same(first.model, again.model)
    assert not same(first.model, other.model)
    assert torch.equal(torch.get_rng_state(), state)


def test_progress_counts_all_steps() -> None:
    """Epochs of earlier steps are part of what is told."""
    told: list[float] = []
    list(
        prune_iteratively(
            tiny_target(), data(), STEPS, IterativePruningOptions(FAST), seeded(), told.append
        )
    )
    assert told == [1, 1.5, 2.5, 3.5]


def test_layers_that_would_gain_a_weight_by_rounding_stay_nested() -> None:
    """Equal shares of many small layers round up and down from step to step."""
    sizes = [5, 2, 4, 6, 5]
    model = nn.Sequential(*(nn.Linear(*pair, bias=False) for pair in pairwise(sizes)))
    target = target_from_module(model, inputs=InputOptions(shape=(5,)))
    steps = [PruningStep(0.14, 0), PruningStep(0.15, 0), PruningStep(0.16, 0)]
    first, second = (uniform_counts(target.layout, step.sparsity) for step in steps[:2])
    assert second[0] > first[0]
    before = torch.ones(target.layout.total, dtype=torch.bool)
    shown = from_labels(Samples(SHOWN[:, :5], LABELS, "random"))
    how = IterativePruningOptions(FAST, scope="layer")
    for stage in prune_iteratively(target, shown, steps, how, seeded()):
        mask = target.layout.flatten(stage.masks)
        assert int(mask.sum()) == keep_total(target.layout, stage.sparsity)
        assert not (mask & ~before).any()
        before = mask


def test_what_cannot_be_is_refused_before_any_work() -> None:
    """Unknown names, steps that do not grow, and sparsities that empty a layer."""
    with pytest.raises(InputError, match="did you mean 'magnitude'"):
        IterativePruningOptions(criterion="magnitud")
    with pytest.raises(InputError, match="scope: unknown name 'allocated'"):
        IterativePruningOptions(scope="allocated")
    for scope, sparsity in (("global", 0.999), ("layer", 0.99)):
        how = IterativePruningOptions(scope=scope)
        with pytest.raises(InputError, match=f"sparsity: {sparsity} keeps"):
            prune_iteratively(tiny_target(), data(), [PruningStep(sparsity, 1)], how, seeded())
    with pytest.raises(InputError, match="must grow"):
        prune_iteratively(tiny_target(), data(), STEPS[::-1], IterativePruningOptions(), seeded())


def test_training_that_diverges_is_an_error() -> None:
    """The iterator raises what training raises."""
    how = IterativePruningOptions(TrainingOptions("sgd", learning_rate=1e38, batch=16))
    with pytest.raises(GapruneError, match="lower rate"):
        list(prune_iteratively(tiny_target(), data(), STEPS, how, seeded()))
