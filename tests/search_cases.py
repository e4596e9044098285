"""Small layouts, networks and benches that the tests of the search share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from gaprune.calibration.generators.mixture import GeneratorMixture
from gaprune.evaluation.evaluator import Evaluator, ValidationScore
from gaprune.evaluation.forward_modes import TeacherBatch
from gaprune.evaluation.objectives import OBJECTIVES, Objective
from gaprune.evolution.genome import Genes, Individual, rank, seed_genes
from gaprune.evolution.gradient import Refinement
from gaprune.evolution.presets import find_preset
from gaprune.evolution.search_plan import SearchLimits, SearchPlan
from gaprune.evolution.tasks import BreedResult, ValidateTask
from gaprune.masks.supermask import Layout
from gaprune.models.forward import batched_forward
from gaprune.models.input_spec import InputSpec
from gaprune.models.network import DenseNetwork
from gaprune.workers import SerialWorkers, Workers

VECTOR = InputSpec((6,), "vector")


def seeded(seed: int = 0) -> torch.Generator:
    """Return a generator of its own."""
    return torch.Generator().manual_seed(seed)


def layout_of(sizes: Sequence[int]) -> Layout:
    """Return a layout of one-dimensional layers."""
    return Layout(tuple(f"layer{i}" for i in range(len(sizes))), tuple((size,) for size in sizes))


@st.composite
def layouts_with_counts(draw: st.DrawFn, most_layers: int = 4) -> tuple[Layout, tuple[int, ...]]:
    """One to four layers of 1 to 12 weights, and a keep count for each, from 1 to its size."""
    sizes = draw(st.lists(st.integers(1, 12), min_size=1, max_size=most_layers))
    return layout_of(sizes), tuple(draw(st.integers(1, size)) for size in sizes)


def score_vectors(total: int) -> st.SearchStrategy[Tensor]:
    """Float32 vectors: of few values, so that many tie, or of any finite size."""
    few = st.integers(-2, 2).map(float)
    any_size = st.floats(-1e6, 1e6, width=32)
    numbers = st.one_of(
        st.lists(few, min_size=total, max_size=total),
        st.lists(any_size, min_size=total, max_size=total),
    )
    return numbers.map(lambda values: torch.tensor(values, dtype=torch.float32))


def tiny_model(seed: int = 7, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return a frozen network 6 → 12 → 8 → 4 with seeded weights, 200 of them prunable."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 4)]
        model = nn.Sequential(*layers)
        for parameter in model.parameters():  # larger than torch's own, so that classes differ
            nn.init.normal_(parameter, std=1.0)
    return model.to(dtype).eval().requires_grad_(False)


def shown(model: nn.Module, count: int, seed: int, *, labels: bool = False) -> TeacherBatch:
    """Return uniform inputs in [0, 1] with the network's answers, and its classes as labels."""
    inputs = torch.rand(count, 6, generator=seeded(seed))
    teacher = batched_forward(model, inputs)
    return TeacherBatch(inputs, teacher, teacher.argmax(1) if labels else None)


def tiny_evaluator(
    objective: str | Objective = "kl",
    *,
    gradient_share: float | None = None,
    labels: bool = False,
    rungs: Sequence[int] = (16, 64),
) -> Evaluator:
    """Return an evaluator around `tiny_model`, with 64 calibration and 64 validation inputs.

    Args:
        objective: one of `OBJECTIVES`, or one of the test's own.
        gradient_share: fraction of stored inputs in a gradient batch; None stores none.
        labels: whether calibration inputs carry the dense network's classes as labels.
        rungs: of the race.
    """
    model = tiny_model()
    weights = {name: p.detach() for name, p in model.named_parameters() if p.ndim > 1}
    return Evaluator(
        network=DenseNetwork(model, weights, Layout.of(weights), VECTOR),
        layout=Layout.of(weights),
        objective=OBJECTIVES[objective] if isinstance(objective, str) else objective,
        search=shown(model, 64, 1, labels=labels),
        validation=shown(model, 64, 2, labels=labels),
        mixture=None
        if gradient_share == 1
        else GeneratorMixture(VECTOR, {"uniform": 1.0}, torch.float32),
        gradient_inputs=None if gradient_share is None else shown(model, 32, 3, labels=labels),
        gradient_share=gradient_share or 0.0,
        rungs=rungs,
    )


def plan_for(evaluator: Evaluator, preset: str = "black-box", **changes: Any) -> SearchPlan:
    """Return a small plan of a preset that keeps 60 weights; `changes` replaces fields."""
    chosen = find_preset(preset)
    plan = SearchPlan(
        preset=chosen,
        layout=evaluator.layout,
        seed=1,
        population=4,
        offspring=8,
        refinement=Refinement(steps=4, learning_rate=0.5, batch=16) if chosen.gradient else None,
        limits=SearchLimits(generations=5),
        keep=60,
    )
    return replace(plan, **changes)


def random_genes(
    layout: Layout, keep: int, seed: int = 0, scope: str = "allocated", *, absolute: bool = False
) -> Genes:
    """Return genes of random ranks at a budget; scope `layer` keeps counts of equal density."""
    scores = rank(torch.rand(layout.total, generator=seeded(seed)))
    uniform = None
    if scope == "layer":
        uniform = [max(1, round(keep * size / layout.total)) for size in layout.sizes]
        keep = sum(uniform)
    genes = seed_genes(scores, layout, keep, scope, uniform)
    return Genes(genes.scores, genes.counts, genes.keep, genes.fixed, absolute)


def seeds_of(
    evaluator: Evaluator, keep: int, count: int = 4, scope: str = "allocated"
) -> list[Individual]:
    """Return individuals of random genes and one of magnitude."""
    flat = evaluator.layout.flatten(evaluator.network.weights).abs()
    found = [
        Individual.from_genes(
            seed_genes(flat, evaluator.layout, keep, scope), evaluator.layout, "magnitude"
        )
    ]
    for seed in range(1, count):
        genes = random_genes(evaluator.layout, keep, seed, scope)
        found.append(Individual.from_genes(genes, evaluator.layout, f"random{seed}"))
    return found


def run_to_bits(workers: Workers, tasks: Sequence[Any]) -> list[object]:
    """Return results as plain data that compares bit for bit; genes are fetched."""
    results = workers.run(tasks)
    children = [one for one in results if isinstance(one, BreedResult)]
    fetched = iter(workers.fetch(children))

    def plain(result: Any) -> object:  # noqa: ANN401 - whatever a task returns
        if not isinstance(result, BreedResult):
            return result
        genes = next(fetched)
        scores, bits = genes.scores.numpy().tobytes(), result.bits.tobytes()
        return scores, genes.counts, genes.keep, result.keep, bits, result.fitness

    return [plain(one) for one in results]


class Recording(SerialWorkers):
    """Workers that remember the tasks and the children of every call."""

    def __init__(self, evaluator: Evaluator) -> None:
        super().__init__(evaluator)
        self.calls: list[Sequence[Any]] = []
        self.broods: list[list[BreedResult]] = []

    @property
    def bred(self) -> list[Genes]:
        """The genes of all children."""
        return [child.genes for brood in self.broods for child in brood]

    def run(self, tasks: Sequence[Any]) -> list[Any]:
        """Run and remember."""
        results = super().run(tasks)
        self.calls.append(tasks)
        if results and isinstance(results[0], BreedResult):
            self.broods.append(results)
        return results


def validated(seeds: Sequence[Individual], evaluator: Evaluator) -> dict[str, ValidationScore]:
    """Return the scores of seeds on the validation inputs, by mask key."""
    return {seed.key: ValidateTask(seed.bits).run(evaluator) for seed in seeds}


def same_bits(model: nn.Module, other: nn.Module) -> bool:
    """Tell whether two networks hold the same bits."""
    left, right = model.state_dict(), other.state_dict()
    return all(torch.equal(left[name], right[name]) for name in left)
