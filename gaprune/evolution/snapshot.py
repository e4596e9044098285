"""The state of a search between two generations: all that the next one depends on, and back.

Genes of the population are kept as they are, bit for bit. Of individuals that only wait to be
chosen (leaders, the hall of fame) the mask is kept, see `gaprune.evolution.archive`. Random
draws of a generation follow from the seed and its number, so DEAP's generator is the only one with
a state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from deap import base
from torch import Tensor

from gaprune.evaluation.evaluator import ValidationScore
from gaprune.evolution.archive import Remembered
from gaprune.evolution.genome import Genes, Individual, bits_key
from gaprune.evolution.search_plan import SearchPlan
from gaprune.records import Generation

Facts = dict[str, Any]
_COUNTERS = ("generation", "evaluations", "gained", "best", "seconds", "random", "rates")


@dataclass(frozen=True, eq=False)
class SearchState:
    """What a search knows after a generation; nothing that happens later changes it.

    Attributes:
        generation, evaluations, gained, best: the counters of the engine.
        seconds: of the search so far.
        random: state of the generator that DEAP draws from, as `random.getstate` gives it.
        rates: phase → kind of operator → operator → what was learnt about it.
        history: one record per generation.
        population: in order.
        hall_of_fame: best first.
        leaders: all that were judged on the validation inputs, in that order. Those that are neither in the
            population nor may have children later have no genes.
    """

    generation: int
    evaluations: int
    gained: int
    best: float
    seconds: float
    random: Any
    rates: Mapping[str, Mapping[str, Mapping[str, float]]]
    history: tuple[Generation, ...]
    population: tuple[Individual, ...]
    hall_of_fame: tuple[Remembered, ...]
    leaders: tuple[tuple[Individual | Remembered, ValidationScore], ...]

    def taken_apart(self) -> tuple[Facts, dict[str, Tensor]]:
        """Return it as plain data and tensors."""
        table = _Table()
        place = {id(one): index for index, one in enumerate(self.population)}
        leaders: list[Facts] = []
        for one, validation_score in self.leaders:
            if id(one) in place:
                facts: Facts = {"in_population": place[id(one)]}
            else:
                facts = table.mask(one) if isinstance(one, Remembered) else table.genes(one)
            leaders.append({**facts, **validation_score._asdict()})
        facts = {
            **{name: getattr(self, name) for name in _COUNTERS},
            "history": [asdict(record) for record in self.history],
            "population": [table.genes(one) for one in self.population],
            "hall_of_fame": [table.mask(one) for one in self.hall_of_fame],
            "leaders": leaders,
        }
        return facts, table.tensors

    @classmethod
    def put_together(
        cls, facts: Mapping[str, Any], tensors: Mapping[str, Tensor], plan: SearchPlan
    ) -> SearchState:
        """Return the snapshot that was taken apart, of a search under the same plan."""
        version, numbers, gauss = facts["random"]
        population = tuple(_individual(one, tensors, plan) for one in facts["population"])
        leaders = tuple(
            (
                population[one["in_population"]]
                if "in_population" in one
                else (_remembered if "mask" in one else _individual)(one, tensors, plan),
                ValidationScore(one["agreement"], one["fitness"]),
            )
            for one in facts["leaders"]
        )
        return cls(
            **{name: facts[name] for name in _COUNTERS if name != "random"},
            random=(version, tuple(numbers), gauss),
            history=tuple(Generation(**record) for record in facts["history"]),
            population=population,
            hall_of_fame=tuple(_remembered(one, tensors, plan) for one in facts["hall_of_fame"]),
            leaders=leaders,
        )


class _Table:
    """Tensors of individuals, each once: seeds of several budgets share their scores."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._names: dict[int, str] = {}

    def genes(self, one: Individual) -> Facts:
        """Return an individual as plain data that names its scores."""
        genes, address = one.genes, one.genes.scores.data_ptr()
        if address not in self._names:
            self._names[address] = f"scores/{len(self._names)}"
            self.tensors[self._names[address]] = genes.scores
        return {
            **_facts(one),
            "scores": self._names[address],
            "counts": None if genes.counts is None else list(genes.counts),
            "keep": genes.keep,
            "fixed": genes.fixed,
            "absolute": genes.absolute,
        }

    def mask(self, one: Remembered) -> Facts:
        """Return what is remembered as plain data that names its mask."""
        name = f"mask/{one.key}"
        if name not in self.tensors:
            self.tensors[name] = torch.from_numpy(one.bits)
        return {**_facts(one), "mask": name, "keep": one.keep}


def _facts(one: Individual | Remembered) -> Facts:
    values = list(one.fitness.values)
    return {
        "origin": one.origin,
        "learning_rate": one.learning_rate,
        "sprint": one.sprint,
        "values": values,
    }


def _individual(facts: Facts, tensors: Mapping[str, Tensor], plan: SearchPlan) -> Individual:
    counts = facts["counts"]
    genes = Genes(
        scores=tensors[facts["scores"]],
        counts=None if counts is None else tuple(counts),
        keep=facts["keep"],
        fixed=facts["fixed"],
        absolute=facts["absolute"],
    )
    found = plan.adopt(Individual(genes, plan.layout, facts["origin"]))
    found.learning_rate, found.sprint = facts["learning_rate"], facts["sprint"]
    found.fitness = _fitness(facts, plan)
    return found


def _remembered(facts: Facts, tensors: Mapping[str, Tensor], plan: SearchPlan) -> Remembered:
    bits = tensors[facts["mask"]].numpy()
    keep = facts.get("keep", int(np.bitwise_count(bits).sum()))  # older ones counted weights
    rest = {name: facts[name] for name in ("origin", "learning_rate", "sprint")}
    return Remembered(bits, bits_key(bits), keep, fitness=_fitness(facts, plan), **rest)


def _fitness(facts: Facts, plan: SearchPlan) -> base.Fitness:
    return plan.fitness(tuple(facts["values"]))
