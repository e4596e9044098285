"""Masks scored several at a time, against each alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from repair_networks import Convolutional, Encoder, Residual, loop_evaluator, target_of
from search_cases import random_genes, seeds_of, tiny_evaluator
from torch import Tensor, nn

from gaprune.config import make_settings
from gaprune.evaluation.evaluator import GROUP, Evaluator
from gaprune.evaluation.forward_modes import STRICT_FORWARD, GuidedForward
from gaprune.evaluation.objectives import WORST
from gaprune.evolution.engine import Evolution
from gaprune.evolution.gradient import Refinement
from gaprune.evolution.presets import find_preset
from gaprune.evolution.search_plan import SearchLimits, SearchPlan
from gaprune.evolution.tasks import ScoreGroupTask
from gaprune.models.forward import vmap_forward
from gaprune.models.target import load_target
from gaprune.runs.setup import check_settings, make_plan, resolve_settings
from gaprune.workers import FailedTask, SerialWorkers, WorkerOptions, Workers
from gaprune.workers.ray_pool import RayWorkers

cuda = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="torch sees no CUDA GPU on this machine"
)


def masks_of(evaluator: Evaluator, count: int) -> list[Tensor]:
    """Return different masks that keep half of the weights."""
    keep = evaluator.layout.total // 2
    return [
        random_genes(evaluator.layout, keep, seed).decode(evaluator.layout) for seed in range(count)
    ]


def strict(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> Evaluator:
    """Return an evaluator on which candidates answer as they are."""
    return replace(loop_evaluator(target_of(build, shape)), forward_mode=STRICT_FORWARD)


TOGETHER: dict[str, Callable[[], Evaluator]] = {
    "matrices": tiny_evaluator,
    "logits": lambda: tiny_evaluator("logits"),
    "labels": lambda: tiny_evaluator("accuracy", labels=True),
    "convolutions": lambda: strict(Convolutional, (2, 6, 6)),
    "residual": lambda: strict(Residual, (2, 6, 6)),
    "attention": lambda: strict(Encoder, (5, 8)),
}


@pytest.mark.parametrize("count", [1, 3, GROUP, GROUP + 1, 2 * GROUP])
@pytest.mark.parametrize("name", TOGETHER)
def test_masks_score_together_what_they_score_alone(name: str, count: int) -> None:
    """In order, on both rungs, whether groups are full or not; up to rounding."""
    evaluator = TOGETHER[name]()
    masks = masks_of(evaluator, count)
    for rung in (0, -1):
        found = evaluator.fitness_many(masks, rung)
        assert found == pytest.approx([evaluator.fitness(mask, rung) for mask in masks], rel=1e-4)
    assert count == 1 or len(set(found)) > 1


@pytest.mark.parametrize("name", [name for name in TOGETHER if name != "attention"])
def test_several_really_pass_at_once(name: str) -> None:
    """One forward answers for all: these networks do not fall back to one by one."""
    evaluator = TOGETHER[name]()
    masks = torch.stack(masks_of(evaluator, 3))
    kept = {
        part: torch.stack([evaluator.layout.split(mask)[part] * weight for mask in masks])
        for part, weight in evaluator.network.weights.items()
    }
    outputs = vmap_forward(evaluator.network.model, kept, evaluator.search.inputs)
    for mask, answered in zip(masks, outputs, strict=True):
        expected = evaluator.outputs(mask, evaluator.search.inputs)
        assert torch.allclose(answered, expected, rtol=1e-4, atol=1e-5)


def test_what_a_mask_scores_does_not_depend_on_the_others() -> None:
    """Bit for bit: neither on its place in a group, nor on how many there are."""
    evaluator = tiny_evaluator()
    masks = masks_of(evaluator, GROUP + 3)
    alone = [evaluator.fitness_many([mask])[0] for mask in masks]
    assert evaluator.fitness_many(masks) == alone
    assert evaluator.fitness_many(masks[::-1]) == alone[::-1]


class Branching(nn.Module):
    """A network that looks at values; one way changes a tensor in place."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer, self.kind = nn.Linear(6, 4), kind

    def forward(self, inputs: Tensor) -> Tensor:
        hidden: Tensor = self.layer(inputs)
        if self.kind == "branch":
            return -hidden if hidden.sum() > 0 else hidden
        if self.kind == "numpy":
            return hidden + torch.from_numpy(hidden.detach().numpy())
        held = torch.zeros(len(inputs), 4, dtype=inputs.dtype)
        held += hidden
        return held


@pytest.mark.parametrize("kind", ["branch", "numpy", "in place"])
def test_a_network_that_cannot_do_that_has_its_masks_scored_alone(kind: str) -> None:
    """A branch on values, numpy, a tensor changed in place: the bits of each alone."""
    evaluator = strict(lambda: Branching(kind), (6,))
    masks = masks_of(evaluator, 3)
    kept = {
        name: torch.stack([weight, weight]) for name, weight in evaluator.network.weights.items()
    }
    with pytest.raises((RuntimeError, ValueError, TypeError)):
        vmap_forward(evaluator.network.model, kept, evaluator.search.inputs)
    assert evaluator.fitness_many(masks) == [evaluator.fitness(mask) for mask in masks]


def test_candidates_that_answer_after_repair_pass_alone() -> None:
    """A repair belongs to one candidate; a guided search scores strict ones."""
    evaluator = loop_evaluator(target_of(Convolutional, (2, 6, 6)))
    masks = masks_of(evaluator, 3)
    assert evaluator.fitness_many(masks) == [evaluator.fitness(mask) for mask in masks]
    guided = replace(evaluator, forward_mode=GuidedForward(evaluator.forward_mode, 1.0))  # type: ignore[arg-type]
    assert guided.fitness_many(masks) == strict(Convolutional, (2, 6, 6)).fitness_many(masks)


def test_one_that_overflows_does_not_spoil_the_others() -> None:
    """It alone is the worst."""
    evaluator = tiny_evaluator("logits")
    full = torch.ones(evaluator.layout.total, dtype=torch.bool)
    first = full.clone()
    first[evaluator.layout.slices[-1]] = False
    weights = dict(evaluator.network.weights)
    name = evaluator.layout.names[-1]
    weights[name] = torch.full_like(weights[name], torch.inf)
    found = replace(evaluator, network=replace(evaluator.network, weights=weights)).fitness_many(
        [first, full]
    )
    assert found[0] > WORST
    assert found[1] == WORST


def plan_of(evaluator: Evaluator, group: int) -> SearchPlan:
    """Return a plan of races with gradient steps."""
    return SearchPlan(
        preset=find_preset("default"),
        layout=evaluator.layout,
        seed=3,
        population=4,
        offspring=6,
        refinement=Refinement(3, 0.5, 16),
        limits=SearchLimits(generations=3),
        keep=60,
        density_search=1,
        group=group,
    )


def searched(
    evaluator: Evaluator, group: int, workers: Workers
) -> tuple[list[str], list[float], int]:
    """Return the last population, the best of every generation, and the count of evaluations."""
    outcome = Evolution(plan_of(evaluator, group), workers).run(seeds_of(evaluator, 60))
    best = [record.best for record in outcome.history]
    return [one.key for one in outcome.population], best, outcome.evaluations


def test_a_search_in_groups_finds_what_it_finds_one_by_one() -> None:
    """Masks and counts; the fitness of each up to rounding."""
    evaluator = tiny_evaluator(gradient_share=0.5)
    alone = searched(evaluator, 1, SerialWorkers(evaluator))
    grouped = searched(evaluator, GROUP, SerialWorkers(evaluator))
    assert grouped[0] == alone[0]
    assert grouped[1] == pytest.approx(alone[1], rel=1e-4)
    assert grouped[2] == alone[2]


@pytest.mark.slow
def test_groups_give_the_same_bits_on_actors(ray_session: None) -> None:
    """What is in a group follows from the search, not from the workers; also in bfloat16."""
    evaluator = replace(tiny_evaluator(gradient_share=0.5), precision="bfloat16")
    here = searched(evaluator, GROUP, SerialWorkers(evaluator))
    with RayWorkers(evaluator, WorkerOptions(2)) as actors:
        assert searched(evaluator, GROUP, actors) == here


class Crashing(SerialWorkers):
    """Workers that crash on one mask, and record the size of every group."""

    def __init__(self, evaluator: Evaluator, poison: bytes) -> None:
        super().__init__(evaluator)
        self.poison, self.sizes = poison, list[list[int]]()

    def run(self, tasks: Sequence[Any]) -> list[Any]:
        """Return a `FailedTask` for every group that holds the mask."""
        groups = [task.bits if isinstance(task, ScoreGroupTask) else () for task in tasks]
        self.sizes.append([len(group) for group in groups])
        deadly = [any(bits.tobytes() == self.poison for bits in group) for group in groups]
        results = super().run([task for task, dies in zip(tasks, deadly, strict=True) if not dies])
        return [FailedTask(3, "died") if dies else results.pop(0) for dies in deadly]


def test_a_mask_that_crashes_its_worker_takes_no_others_with_it() -> None:
    """Its group is retried mask by mask; the others score what they score in a group."""
    evaluator, warnings = tiny_evaluator(), list[str]()
    seeds = seeds_of(evaluator, 60, count=5)
    workers = Crashing(evaluator, seeds[2].bits.tobytes())
    plan = replace(
        plan_of(evaluator, 4), limits=SearchLimits(generations=0), density_search=0, population=5
    )
    result = Evolution(plan, workers, warn=warnings.append).run(seeds)
    assert workers.sizes[:2] == [[4, 1], [1, 1, 1, 1]]
    assert {i.key for i in result.population} == {i.key for i in seeds} - {seeds[2].key}
    scores = evaluator.fitness_many([individual.mask for individual in result.population])
    assert [individual.search_fitness for individual in result.population] == scores
    assert len(warnings) == 1
    assert "random2" in warnings[0]


@pytest.mark.parametrize(
    ("name", "device", "expected"),
    [("mnist-mlp", "cpu", 1), ("mnist-mlp", "cuda", GROUP), ("lenet", "cuda", 1)],
)
def test_groups_are_for_small_networks_of_matrices_on_gpus(
    name: str, device: str, expected: int
) -> None:
    """It follows from network and device, not from a clock: equal seeds, equal masks."""
    target = load_target(name)
    settings = make_settings({"sparsity": 0.9, "device": "cpu", "calibration": ("procedural",)})
    resolved = resolve_settings(check_settings(settings), target)
    on_device = resolved.settings.replace(device=device)
    plan = make_plan(target, replace(resolved, settings=on_device))
    assert plan.group == expected


@cuda
@pytest.mark.parametrize("name", TOGETHER)
def test_a_gpu_scores_them_together_too(name: str) -> None:
    """Up to rounding what each scores alone, and equal bits twice."""
    evaluator = TOGETHER[name]().to("cuda")
    masks = masks_of(evaluator, GROUP + 1)
    found = evaluator.fitness_many(masks)
    assert found == pytest.approx([evaluator.fitness(mask) for mask in masks], rel=1e-3, abs=1e-5)
    assert evaluator.fitness_many(masks) == found
