"""The state of a search between two generations, and its form in a checkpoint.

The genes of the population are saved bit for bit; of other individuals only the mask is. The
random draws of a generation follow from the seed and its number, so DEAP's generator is the only
one with a state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from gaprune.evaluation.evaluator import ValidationScore
from gaprune.evolution.genome import Genes, Individual
from gaprune.evolution.search_plan import SearchPlan
from gaprune.records import Generation

Record = dict[str, Any]
_PLAIN = (
    *("generation", "evaluations", "best_fitness", "best_generation"),
    *("seconds", "random", "operator_success"),
)


@dataclass(frozen=True, eq=False)
class SearchState:
    """Everything that the next generation depends on; counters are those of `Evolution`."""

    generation: int
    evaluations: int
    best_fitness: float  # of any generation
    best_generation: int  # the first that reached it
    seconds: float  # of the search so far
    random: Any  # state of the generator that DEAP draws from: `random.getstate()`
    # phase → `crossover` or `mutation` → operator → success rate
    operator_success: Mapping[str, Mapping[str, Mapping[str, float]]]
    history: tuple[Generation, ...]
    population: tuple[Individual, ...]  # in order
    # In the order in which they led. Leaders have genes while they may still have children: they
    # are in the population, or the warm-up may choose its parent among them.
    leaders: tuple[tuple[Individual, ValidationScore], ...]

    def to_record(self) -> tuple[Record, dict[str, Tensor]]:
        """Return the state as plain data and tensors."""
        tensors: dict[str, Tensor] = {}
        names: dict[int, str] = {}  # address of a score tensor → name; seeds may share one
        index = {id(individual): number for number, individual in enumerate(self.population)}

        def record_of(individual: Individual) -> Record:
            record: Record = {
                "origin": individual.origin,
                "step_scale": individual.step_scale,
                "race_fitness": individual.race_fitness,
                "fitness": list(individual.fitness.values),
                "keep": individual.keep,
            }
            genes = individual.genes
            if genes is None:
                name = f"mask/{individual.key}"
                tensors.setdefault(name, torch.from_numpy(individual.bits))
                return {**record, "mask": name}
            name = names.setdefault(genes.scores.data_ptr(), f"scores/{len(names)}")
            tensors.setdefault(name, genes.scores)
            counts = None if genes.counts is None else list(genes.counts)
            return {
                **record,
                "scores": name,
                "counts": counts,
                "fixed": genes.fixed,
                "absolute": genes.absolute,
            }

        record = {name: getattr(self, name) for name in _PLAIN}
        record["history"] = [asdict(generation) for generation in self.history]
        record["population"] = [record_of(individual) for individual in self.population]
        record["leaders"] = [
            {
                "individual": index[id(leader)] if id(leader) in index else record_of(leader),
                "validation": score._asdict(),
            }
            for leader, score in self.leaders
        ]
        return record, tensors

    @classmethod
    def from_record(
        cls, record: Mapping[str, Any], tensors: Mapping[str, Tensor], plan: SearchPlan
    ) -> SearchState:
        """Return the state of `to_record`, of a search under the same plan."""

        def individual_of(record: Record) -> Individual:
            if "mask" in record:
                bits = tensors[record["mask"]].numpy()
                individual = Individual(bits, plan.layout.total, record["keep"], record["origin"])
            else:
                genes = Genes(
                    scores=tensors[record["scores"]],
                    counts=None if record["counts"] is None else tuple(record["counts"]),
                    keep=record["keep"],
                    fixed=record["fixed"],
                    absolute=record["absolute"],
                )
                individual = Individual.from_genes(genes, plan.layout, record["origin"])
            individual.step_scale = record["step_scale"]
            individual.race_fitness = record["race_fitness"]
            individual.fitness = plan.new_fitness()
            individual.fitness.values = tuple(record["fitness"])
            return individual

        population = tuple(map(individual_of, record["population"]))
        leaders = []
        for leader in record["leaders"]:
            entry = leader["individual"]
            # a leader in the population is the same object again: the engine compares identities
            individual = population[entry] if isinstance(entry, int) else individual_of(entry)
            leaders.append((individual, ValidationScore(**leader["validation"])))
        version, numbers, gauss = record["random"]
        plain = {name: record[name] for name in _PLAIN if name != "random"}
        return cls(
            **plain,
            random=(version, tuple(numbers), gauss),
            history=tuple(Generation(**generation) for generation in record["history"]),
            population=population,
            leaders=tuple(leaders),
        )
