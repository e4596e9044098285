"""Searches under a pattern: what comes out holds it, anywhere, cut off or not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from batchnorm_targets import Listener
from channel_networks import IMAGE, Residual, Separable, built
from search_cases import run_to_bits, seeded
from second_device import second_device
from test_resume import Copying, found, saved
from torch import nn

from gaprune import InputOptions, Result, prune, resume
from gaprune.config import make_settings
from gaprune.criteria import CRITERIA
from gaprune.evaluation.evaluator import Evaluator
from gaprune.evolution.genome import Individual
from gaprune.evolution.gradient import Refinement
from gaprune.evolution.tasks import BreedTask
from gaprune.evolution.variation import Variation
from gaprune.masks.supermask import layer_counts
from gaprune.models.target import target_from_module
from gaprune.runs.prune import prepare_run
from gaprune.runs.run import PruningRun
from gaprune.runs.setup import check_settings, resolve_settings
from gaprune.workers import SerialWorkers, WorkerOptions
from gaprune.workers.ray_pool import RayWorkers

SMALL: dict[str, Any] = {
    "calibration": ("procedural",),
    "calibration_count": 24,
    "validation_count": 24,
    "generations": 2,
    "steps": 2,
    "batch": 8,
    "population": 3,
    "offspring": 3,
    "seed": 4,
}
PATTERNS: dict[str, dict[str, Any]] = {
    "2:4": {"pattern": "2:4"},
    "4x1": {"pattern": "4x1", "sparsity": 0.5},
    "channel": {"pattern": "channel", "sparsity": 0.4},
}
PRICED: dict[str, dict[str, Any]] = {
    "unstructured": {"sparsity": 0.5, "budget": "macs"},
    "4x1": {"pattern": "4x1", "sparsity": 0.5, "budget": "macs"},
    "channel": {"pattern": "channel", "sparsity": 0.4, "budget": "macs"},
}
"""Pattern → a budget in multiply-adds."""
SMALL_2_4 = {**SMALL, **PATTERNS["2:4"]}
IMAGES = InputOptions(shape=IMAGE, range=(0, 1))


def wide() -> nn.Module:
    """Return a network in which there is something to choose."""
    return Separable(16, 32)


def searched(kind: Callable[[], nn.Module] = Separable, **stated: Any) -> Result:
    """Return what a small search finds."""
    return prune(built(kind), inputs=IMAGES, **{**SMALL, **stated})


def run_of(pattern: str, kind: Callable[[], nn.Module] = Separable, /, **stated: Any) -> PruningRun:
    """Return a run that has not begun."""
    target = target_from_module(built(kind), inputs=IMAGES)
    settings = make_settings({**SMALL, **PATTERNS.get(pattern, {}), **stated})
    return PruningRun(target, resolve_settings(check_settings(settings), target))


def holds(result: Result, pattern: str) -> bool:
    """Tell whether the masks hold the pattern, by hand."""
    masks = result.masks
    if pattern == "2:4":
        return all(
            bool((mask.movedim(1, -1).reshape(-1, 4).sum(1) == 2).all())
            if mask.shape[1] % 4 == 0
            else bool(mask.all())
            for mask in masks.values()
        )
    if pattern == "4x1":
        matrices = [mask.flatten(1) for mask in masks.values()]
        parts = [part for one in matrices for part in one.split(4)]
        return all(bool((part == part[:1]).all()) for part in parts)
    stem, deep = masks["stem.weight"].flatten(1), masks["deep.weight"].flatten(1)
    point, head = masks["point.weight"].flatten(1), masks["head.weight"]
    first, second = stem.any(1), point.any(1)
    expected = {
        "stem.weight": first[:, None].expand_as(stem),
        "deep.weight": first[:, None].expand_as(deep),
        "point.weight": second[:, None] & first[None],
        "head.weight": second[None].expand_as(head),
    }
    return all(torch.equal(masks[name].flatten(1), one) for name, one in expected.items())


@pytest.mark.parametrize("preset", ["default", "black-box", "classic"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_a_search_finds_holds_the_pattern(pattern: str, preset: str) -> None:
    """Exactly so many weights, blocks or channels stay; dropped weights are 0."""
    result = searched(preset=preset, objective="kl", **PATTERNS[pattern])
    assert holds(result, pattern)
    assert all(
        not value[~result.masks[name]].any()
        for name, value in result.state_dict().items()
        if name in result.masks
    )
    if pattern == "channel":
        kept = int(result.masks["stem.weight"].flatten(1).any(1).sum())
        kept += int(result.masks["point.weight"].flatten(1).any(1).sum())
        assert kept == math.floor(0.6 * (6 + 8) + 0.5)
    if pattern == "2:4":
        assert result.sparsity == 0.5
        assert {layer.name: layer.kept for layer in result.layers} == {
            "stem.weight": 108,  # two channels: no groups of four
            "deep.weight": 54,
            "point.weight": 48,  # six channels
            "head.weight": 12,
        }


def test_layers_that_a_quota_leaves_whole_are_named() -> None:
    """One warning names the layers that 2:4 does not prune; without any there is no warning."""
    listener = Listener()
    prune(built(Separable), inputs=IMAGES, observer=listener, method="magnitude", **SMALL_2_4)
    (text,) = [text for text in listener.warnings if "2:4" in text]
    assert "stem.weight, deep.weight, point.weight" in text
    listener = Listener()
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    plain = {**SMALL_2_4, "observer": listener, "method": "magnitude"}
    prune(net, inputs=InputOptions(range=(0, 1)), **plain)
    assert not [text for text in listener.warnings if "2:4" in text]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_criterion_seeds_the_search(pattern: str) -> None:
    """Under the same pattern and budget, also where it is asked for alone."""
    run = run_of(pattern)
    seeds = {one.origin.removesuffix("-layer"): one for one in run.seeds()}
    of_units = {name for name, criterion in CRITERIA.items() if not criterion.single_weights}
    expected = {"channel": of_units | {"conditional", "conditional-loss"}, "4x1": of_units}
    assert set(seeds) == expected.get(pattern, set(CRITERIA))
    evaluator = run.evaluator
    for one in seeds.values():
        assert one.keep == int(one.mask.sum()) == next(iter(seeds.values())).keep
        assert evaluator.layout.satisfies_pattern(one.mask)
    result = searched(method="magnitude", **PATTERNS[pattern])
    assert holds(result, pattern)
    assert result.origin == "magnitude"


@pytest.mark.parametrize("pattern", ["4x1", "channel"])
def test_gradients_of_units_are_those_of_their_factor(pattern: str) -> None:
    """By a network in which every unit is a number that multiplies its weights."""
    evaluator = run_of(pattern, Residual).evaluator
    units = evaluator.units
    assert units is not None
    mask = torch.rand(evaluator.layout.total, generator=seeded(2)) < 0.7
    shown = evaluator.search.select(slice(8))
    factors = mask.double().requires_grad_()
    flat = torch.ones(units.weights.total, dtype=torch.float64)
    for unit in range(evaluator.layout.total):  # a weight has the product of all units that drop it
        alone = torch.ones(evaluator.layout.total, dtype=torch.bool)
        alone[unit] = False
        own = ~units.weight_mask(alone)
        flat = torch.where(own, flat * factors[unit], flat)
    leaves = {
        name: evaluator.network.weights[name].double()
        * part.view(evaluator.network.weights[name].shape)
        for name, part in zip(units.weights.names, flat.split(units.weights.sizes), strict=True)
    }
    model = built(Residual).double()
    outputs = torch.func.functional_call(model, leaves, (shown.inputs.double(),))
    assert evaluator.objective.loss is not None
    loss = evaluator.objective.loss(outputs, shown.teacher.double(), None)
    (expected,) = torch.autograd.grad(loss, factors)
    found = evaluator.score_gradient(mask, shown).double()
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-5)


def tasks_of(evaluator: Evaluator, seeds: list[Individual]) -> list[BreedTask]:
    """Return children of every kind: crossed, mutated, refined."""
    steps = Refinement(steps=2, learning_rate=0.5, batch=8)
    recipes = (
        Variation("one-point", "gaussian", (("sigma", 0.3),)),
        Variation("averaging", "threshold-swap", (), steps),
        Variation("whole-layer", "budget-shift", (("rate", 0.5),)),
        Variation(None, "reallocate", (), steps),
    )
    pair = (seeds[0].genes, seeds[-1].genes)
    return [BreedTask(pair, one, number, -1) for number, one in enumerate(recipes)]


@pytest.mark.slow
def test_any_workers_breed_the_same_children(ray_session: None) -> None:
    """In this process or in Ray actors: scores, counts, masks and fitness, bit for bit."""
    for pattern, stated in (("2:4", {}), ("channel", PRICED["channel"])):
        run = run_of(pattern, **stated)
        evaluator, seeds = run.evaluator, run.seeds()
        tasks = tasks_of(evaluator, seeds)
        with SerialWorkers(evaluator) as serial, RayWorkers(evaluator, WorkerOptions(2)) as actors:
            expected = run_to_bits(serial, tasks)
            assert run_to_bits(actors, tasks) == expected, pattern
            for child in serial.fetch(serial.run(tasks)):
                assert layer_counts(child.decode(evaluator.layout), evaluator.layout)
                assert evaluator.layout.satisfies_pattern(child.decode(evaluator.layout))


@pytest.mark.slow
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_second_device_gives_the_same_bits(pattern: str) -> None:
    """Children, fitness and judgement, where tensors of two devices do not mix."""
    run = run_of(pattern)
    evaluator, seeds = run.evaluator, run.seeds()
    tasks = tasks_of(evaluator, seeds)
    expected = run_to_bits(SerialWorkers(evaluator), tasks)
    judged = [evaluator.validate(one.mask) for one in seeds]
    with second_device() as device:
        moved = evaluator.to(device)
        assert run_to_bits(SerialWorkers(moved), tasks) == expected
        assert [moved.validate(one.mask) for one in seeds] == judged


@pytest.mark.slow
@pytest.mark.parametrize("stated", [*PATTERNS.values(), *PRICED.values()])
def test_stopped_after_any_generation_it_finds_the_same(
    stated: dict[str, Any], tmp_path: Path
) -> None:
    """By a power cut: only what is on the disk is known."""
    model, place = built(Separable), tmp_path / "run"
    copying = Copying(place)
    settings = {**SMALL, **stated}
    whole = prune(model, inputs=IMAGES, out=place, observer=copying, **settings)
    assert len(copying.copies) == 3
    for copy in copying.copies:
        again = resume(copy, model=model, observer=Copying(copy))
        assert found(again) == found(whole)
        assert saved(copy) == saved(place)


@pytest.mark.slow
@pytest.mark.parametrize("budget", ["weights", "macs"])
@pytest.mark.parametrize("pattern", ["4x1", "channel"])
def test_a_front_and_a_limit_hold_pattern_and_budget(pattern: str, budget: str) -> None:
    """Sparsities are fractions of the dense network's blocks, channels or multiply-adds."""
    stated: dict[str, Any] = {
        "preset": "black-box",
        "pattern": pattern,
        "sparsity": 0.6,
        "budget": budget,
    }
    front, limit = searched(pareto=True, **stated), searched(max_drop=0.5, **stated)
    pruned = [replace(front, masks=masks) for masks in front.front_masks]
    sparsities = [point["sparsity"] for point in front.front]
    for result, sparsity in zip([*pruned, limit], [*sparsities, limit.sparsity], strict=True):
        assert holds(result, pattern)
        if budget == "macs":
            assert result.macs["kept"] is not None
            assert result.macs["dense"] is not None
            assert result.macs["kept"] / result.macs["dense"] <= 1 - sparsity + 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["default", "black-box", "classic"])
@pytest.mark.parametrize("pattern", PRICED)
def test_a_search_spends_its_multiply_adds(pattern: str, preset: str) -> None:
    """Whatever is searched for; every seed spends them too."""
    stated = PRICED[pattern]
    result = searched(preset=preset, objective="kl", **stated)
    kept, dense = result.macs["kept"], result.macs["dense"]
    assert kept is not None
    assert dense is not None
    left = 1 - stated["sparsity"]  # one of the few channels is a tenth of all
    assert 0.7 * left < kept / dense <= left
    assert result.record()["macs"] == {"dense": dense, "kept": kept}
    assert result.record()["budget"] == "macs"
    run = run_of(pattern, **stated)
    layout, seeds = run.evaluator.layout, run.seeds()
    assert layout.mac_cost is not None
    criteria = set(CRITERIA)
    if "pattern" in stated:
        criteria -= {"swaps", "correlation-swaps"}  # these refine single weights
    if stated.get("pattern") == "channel":
        criteria |= {"conditional", "conditional-loss"}
    assert {one.origin.removesuffix("-layer") for one in seeds} == criteria
    for one in seeds:
        assert layout.mac_cost.is_maximal(layer_counts(one.mask, layout), one.keep), one.origin


def test_widths_are_multiples() -> None:
    """Or whole, or too narrow for that."""
    result = searched(wide, width_multiple=4, pattern="channel", sparsity=0.5, budget="macs")
    widths = [int(one.flatten(1).any(1).sum()) for one in result.masks.values()][:3:2]
    assert all(width % 4 == 0 for width in widths)
    assert result.macs["kept"] is not None


def test_repair_in_the_loop_takes_channels() -> None:
    """Statistics of norms whose channels are gone disturb nobody."""
    result = searched(repair_in_loop=True, **PATTERNS["channel"])
    repaired = result.repaired_model()
    assert holds(result, "channel")
    assert repaired is not None
    assert repaired(torch.rand(3, *IMAGE)).isfinite().all()


@pytest.mark.parametrize("pattern", ["2:4", "1:4"])
def test_one_shot_masks_without_genes_are_those_with_them(pattern: str) -> None:
    """A mask that has no children needs no ranks, and is the same; each call draws a random one."""
    checked = make_settings({**SMALL, "pattern": pattern})
    run = prepare_run(target_from_module(built(wide), inputs=IMAGES), checked)
    assert isinstance(run, PruningRun)
    masks = [{i.origin: i.mask for i in run.seeds(with_genes=each)} for each in (True, False)]
    assert list(masks[0]) == list(masks[1])
    assert all(mask.equal(masks[1][name]) for name, mask in masks[0].items() if name != "random")
