"""Iterative pruning: schedules, and masks and weights against torch's own pruning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from search_cases import seeded, tiny_model
from torch import Tensor, nn
from torch.nn.utils import prune

from gaprune.calibration.samples import Samples
from gaprune.comparison.methods.iterative import (
    CUBIC_STEPS,
    SCHEDULES,
    IterativePruningOptions,
    PruningStage,
    PruningStep,
    check_steps,
    parse_schedule,
    prune_iteratively,
)
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
    assert [(s.sparsity, s.epochs) for s in found] == [(0.3, 1), (0.5, 1.5), (0.8, 3.5)]
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
    steps = SCHEDULES["linear"]([0.5], 4)

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


GOALS = st.lists(st.floats(0.001, 0.999), min_size=1, max_size=5)


def pairs(steps: Sequence[PruningStep]) -> list[tuple[float, float]]:
    """Return steps as plain numbers."""
    return [(step.sparsity, step.epochs) for step in steps]


@given(name=st.sampled_from(sorted(SCHEDULES)), goals=GOALS, epochs=st.floats(0, 10))
def test_every_goal_is_a_step_and_none_goes_beyond(
    name: str, goals: list[float], epochs: float
) -> None:
    """Sparsities grow strictly, hold each goal exactly and end at the largest."""
    steps = SCHEDULES[name](goals, epochs)
    found = [step.sparsity for step in steps]
    assert all(before < after for before, after in pairwise(found))
    assert set(goals) <= set(found)
    assert found[-1] == max(goals)
    assert {step.epochs for step in steps} <= {epochs, 2 * epochs, 3 * epochs}


def test_linear_goes_in_tenths() -> None:
    """Goals between the tenths are steps too."""
    assert pairs(SCHEDULES["linear"]([0.45, 0.25], 1)) == [
        (0.1, 1),
        (0.2, 1),
        (0.25, 1),
        (0.3, 1),
        (0.4, 1),
        (0.45, 1),
    ]


def test_long_takes_more_time_and_finer_steps_at_the_end() -> None:
    """Twice the epochs to 0.9, three times after."""
    steps = pairs(SCHEDULES["long"]([0.99, 0.5], 0.5))
    assert steps[:9] == [(tenth / 10, 1.0) for tenth in range(1, 10)]
    tail = [0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.985, 0.99]
    assert steps[9:] == [(sparsity, 1.5) for sparsity in tail]


def test_cubic_follows_its_equation() -> None:
    """s_t = s_f + (0 − s_f)(1 − t/n)³ with the smaller goal between."""
    found = [step.sparsity for step in SCHEDULES["cubic"]([0.9, 0.5], 1)]
    n = CUBIC_STEPS
    expected = sorted([0.5, *(0.9 + (0 - 0.9) * (1 - t / n) ** 3 for t in range(1, n + 1))])
    assert found == pytest.approx(expected)


def test_direct_has_one_step_a_goal() -> None:
    """Doubled goals count once."""
    assert pairs(SCHEDULES["direct"]([0.9, 0.5, 0.9], 2.5)) == [(0.5, 2.5), (0.9, 2.5)]


def test_a_goal_replaces_a_point_that_differs_by_rounding() -> None:
    """0.1 + 0.2 is not a step beside 0.3."""
    found = [step.sparsity for step in SCHEDULES["linear"]([0.1 + 0.2], 1)]
    assert found == [0.1, 0.2, 0.1 + 0.2]


def test_schedules_are_parsed() -> None:
    """Spaces are allowed, epochs may be fractions or 0; names stay names."""
    steps = parse_schedule("0.5:1, 0.9:3.5,0.99:0")
    assert not isinstance(steps, str)
    assert pairs(steps) == [(0.5, 1), (0.9, 3.5), (0.99, 0)]
    assert parse_schedule("rewind") == "rewind"


@given(
    st.lists(st.floats(0.001, 0.999), min_size=1, max_size=6, unique=True),
    st.lists(st.floats(0, 100), min_size=6, max_size=6),
)
def test_what_is_written_is_read(sparsities: list[float], epochs: list[float]) -> None:
    """Numbers survive the text."""
    steps = [PruningStep(s, e) for s, e in zip(sorted(sparsities), epochs, strict=False)]
    text = ",".join(f"{step.sparsity!r}:{step.epochs!r}" for step in steps)
    assert parse_schedule(text) == tuple(steps)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("liner", "schedule: .*'linear'"),
        ("0.5", "schedule: .*SPARSITY:EPOCHS"),
        ("0.5:1,", "SPARSITY:EPOCHS.*''"),
        ("0.5:1:2", "SPARSITY:EPOCHS"),
        ("half:1", "SPARSITY:EPOCHS"),
        ("1:1", "'1:1': sparsity"),
        ("nan:1", "'nan:1': sparsity"),
        ("0.5:-1", "'0.5:-1': epochs"),
        ("0.5:inf", "epochs: .*inf"),
        ("0.5:nan", "epochs: .*nan"),
        ("0.5:1,0.5:1", "0.5 after 0.5"),
        ("0.9:1,0.5:1", "0.5 after 0.9"),
    ],
)
def test_bad_schedules_are_refused(text: str, message: str) -> None:
    """The message shows the part, the rule and how it is written."""
    with pytest.raises(InputError, match=message):
        parse_schedule(text)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(
    ("goals", "epochs", "message"),
    [
        ([], 1, "goals: "),
        ([0.5, 1.0], 1, "1.0"),
        ([0.5], -1, "epochs: "),
        ([0.5], math.nan, "epochs: .*nan"),
    ],
)
def test_bad_goals_are_refused(name: str, goals: list[float], epochs: float, message: str) -> None:
    """No schedule is made of what cannot be a goal."""
    with pytest.raises(InputError, match=message):
        SCHEDULES[name](goals, epochs)


def test_steps_that_do_not_grow_are_refused() -> None:
    """Also where no text was parsed."""
    with pytest.raises(InputError, match="at least one step"):
        check_steps([])
    with pytest.raises(InputError, match="must grow"):
        check_steps([PruningStep(0.9, 1), PruningStep(0.8, 1)])
