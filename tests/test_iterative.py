"""Iterative pruning: schedules, and masks and weights against torch's own pruning."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from search_cases import same_bits, seeded, tiny_model
from torch import Tensor, nn
from torch.nn.utils import prune

from gaprune.calibration.samples import Samples
from gaprune.comparison.methods.iterative import (
    CUBIC_STEPS,
    SCHEDULES,
    PruningStage,
    PruningStep,
    parse_schedule,
    prune_iteratively,
)
from gaprune.comparison.methods.training import (
    TrainingData,
    TrainingOptions,
    from_labels,
    train,
)
from gaprune.errors import InputError
from gaprune.masks.budget import keep_total
from gaprune.masks.supermask import MIN_KEEP, global_mask, layer_counts
from gaprune.models.input_spec import InputOptions
from gaprune.models.target import Target, target_from_module

INPUTS = torch.rand(64, 6, generator=seeded(3))
LABELS = (INPUTS.sum(1) * 1.3).long() % 4
STEPS = [PruningStep(0.3, 1), PruningStep(0.5, 0.5), PruningStep(0.8, 2)]
FAST = TrainingOptions(learning_rate=0.02, batch=16)


def tiny_target() -> Target:
    """Return `tiny_model` as a target."""
    return target_from_module(tiny_model(), inputs=InputOptions(shape=(6,)))


def data() -> TrainingData:
    """Return labelled inputs for it."""
    return from_labels(Samples(INPUTS, LABELS, "random"))


def stages(seed: int = 0, *, rewind: bool = False) -> list[PruningStage]:
    """Return all stages of a run on `tiny_target`."""
    return list(prune_iteratively(tiny_target(), data(), STEPS, FAST, seeded(seed), rewind=rewind))


def test_stages_match_torchs_pruning_and_training() -> None:
    """The same masks and weights as a plain loop over `torch.nn.utils.prune` and `train`."""
    generator, model = seeded(5), tiny_model().requires_grad_()
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    names = [f"{i}.weight" for i in (0, 2, 4)]
    layout = tiny_target().layout
    for step, stage in zip(STEPS, stages(5), strict=True):
        prune.global_unstructured(
            [(layer, "weight") for layer in layers],
            pruning_method=prune.L1Unstructured,
            amount=layout.total - keep_total(layout, step.sparsity),
        )
        masks = {name: layer.weight != 0 for name, layer in zip(names, layers, strict=True)}
        for layer in layers:
            prune.remove(layer, "weight")
        train(model, data(), FAST, step.epochs, generator, masks=masks)
        assert all(torch.equal(stage.masks[name], masks[name]) for name in names)
        for name, parameter in model.named_parameters():
            assert torch.equal(stage.model.get_parameter(name), parameter)


@pytest.mark.parametrize("rewind", [False, True])
def test_masks_are_exact_and_nested(rewind: bool) -> None:
    """Each stage keeps exactly its budget, within the mask before it, and no layer is emptied."""
    layout, before = tiny_target().layout, torch.ones(200, dtype=torch.bool)
    for step, stage in zip(STEPS, stages(rewind=rewind), strict=True):
        mask = layout.flatten(stage.masks)
        assert int(mask.sum()) == keep_total(layout, step.sparsity)
        assert min(layer_counts(mask, layout)) >= MIN_KEEP
        assert not (mask & ~before).any()
        for name, layer_mask in stage.masks.items():
            gone = stage.model.get_parameter(name)[~layer_mask]
            assert torch.equal(gone.view(torch.int32), torch.zeros_like(gone, dtype=torch.int32))
        before = mask


class Normed(nn.Module):
    """A network with BatchNorm, whose buffers training moves."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.body(x)).relu())
        return logits


def test_rewinding_resets_weights_and_buffers() -> None:
    """Before training, weights, biases and buffers are the original ones under the mask."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        original = Normed().eval()
    target = target_from_module(original, inputs=InputOptions(shape=(6,)))
    steps = [PruningStep(0.3, 4), PruningStep(0.6, 0)]
    training = TrainingOptions(learning_rate=0.1, batch=16)
    first, second = prune_iteratively(target, data(), steps, training, seeded(), rewind=True)
    for name, value in original.state_dict().items():
        mask = second.masks.get(name, torch.tensor(True))
        expected = torch.where(mask, value, torch.zeros_like(value))
        assert torch.equal(second.model.state_dict()[name], expected), name
        assert not torch.equal(first.model.state_dict()[name], value), name
    # the trained weights chose the mask, not the rewound ones
    by_size = global_mask(target.layout.flatten(target.weights).abs(), target.layout, 48)
    assert not torch.equal(target.layout.flatten(second.masks), by_size)
    trained = target.layout.flatten(dict(first.model.named_parameters())).abs()
    assert torch.equal(target.layout.flatten(second.masks), global_mask(trained, target.layout, 48))


def test_the_seed_decides() -> None:
    """Same generator, same bits; the global random state stays."""
    state = torch.get_rng_state()
    first, again, other = (stages(seed)[-1] for seed in (1, 1, 2))
    assert same_bits(first.model, again.model)
    assert not same_bits(first.model, other.model)
    assert torch.equal(torch.get_rng_state(), state)


def test_progress_counts_all_steps() -> None:
    """The callback and the stages count epochs over all steps."""
    epochs: list[float] = []
    run = prune_iteratively(tiny_target(), data(), STEPS, FAST, seeded(), on_epoch=epochs.append)
    assert [(stage.sparsity, stage.epochs) for stage in run] == [(0.3, 1), (0.5, 1.5), (0.8, 3.5)]
    assert epochs == [1, 1.5, 2.5, 3.5]


def test_wrong_steps_are_refused_before_any_work() -> None:
    """Steps that do not grow, and sparsities that empty a layer."""
    for steps, message in (([PruningStep(0.999, 1)], "sparsity: 0.999"), (STEPS[::-1], "grow")):
        with pytest.raises(InputError, match=message):
            prune_iteratively(tiny_target(), data(), steps, FAST, seeded())


GOALS = st.lists(st.floats(0.001, 0.999), min_size=1, max_size=5)


def pairs(steps: Sequence[PruningStep]) -> list[tuple[float, float]]:
    """Return steps as plain numbers."""
    return [(step.sparsity, step.epochs) for step in steps]


@given(name=st.sampled_from(sorted(SCHEDULES)), goals=GOALS, epochs=st.floats(0, 10))
def test_schedules_grow_to_every_goal(name: str, goals: list[float], epochs: float) -> None:
    """Sparsities grow strictly, contain each goal and end at the largest."""
    steps = SCHEDULES[name](goals, epochs)
    sparsities = [step.sparsity for step in steps]
    assert all(before < after for before, after in pairwise(sparsities))
    assert set(goals) <= set(sparsities)
    assert sparsities[-1] == max(goals)
    assert {step.epochs for step in steps} <= {epochs, 2 * epochs, 3 * epochs}


def test_long_has_finer_steps_at_the_end() -> None:
    """Twice the epochs to 0.9, three times after."""
    steps = pairs(SCHEDULES["long"]([0.99, 0.5], 0.5))
    assert steps[:9] == [(tenth / 10, 1.0) for tenth in range(1, 10)]
    tail = [0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.985, 0.99]
    assert steps[9:] == [(sparsity, 1.5) for sparsity in tail]


def test_cubic_follows_its_equation() -> None:
    """s_t = s_f + (0 − s_f)(1 − t/n)³ with the smaller goal between."""
    sparsities = [step.sparsity for step in SCHEDULES["cubic"]([0.9, 0.5], 1)]
    n = CUBIC_STEPS
    expected = sorted([0.5, *(0.9 + (0 - 0.9) * (1 - t / n) ** 3 for t in range(1, n + 1))])
    assert sparsities == pytest.approx(expected)


def test_schedules_are_parsed() -> None:
    """Spaces are allowed, epochs may be fractions or 0; names stay names."""
    steps = parse_schedule("0.5:1, 0.9:3.5,0.99:0")
    assert not isinstance(steps, str)
    assert pairs(steps) == [(0.5, 1), (0.9, 3.5), (0.99, 0)]
    assert parse_schedule("rewind") == "rewind"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("liner", "schedule: .*'linear'"),
        ("0.5:1,", "SPARSITY:EPOCHS.*''"),
        ("half:1", "SPARSITY:EPOCHS"),
        ("nan:1", "'nan:1'"),
        ("0.5:-1", "'0.5:-1'"),
        ("0.5:1,0.5:1", "0.5 after 0.5"),
    ],
)
def test_bad_schedules_are_refused(text: str, message: str) -> None:
    """The error shows the part that is wrong and its rule."""
    with pytest.raises(InputError, match=message):
        parse_schedule(text)
