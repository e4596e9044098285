"""Searches for the measurement of workers: noise as calibration inputs, two cheap seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from gaprune.config import make_settings
from gaprune.evaluation.evaluator import Evaluator
from gaprune.evolution.engine import Evolution
from gaprune.evolution.genome import Individual
from gaprune.evolution.search_plan import SearchPlan, SearchResult
from gaprune.evolution.seeding import baselines
from gaprune.models.target import load_target
from gaprune.runs.run import PruningRun
from gaprune.runs.setup import check_settings, resolve_settings
from gaprune.workers import Workers

NOISE: dict[str, Any] = {
    "sparsity": 0.95,
    "calibration": ("noise",),
    "validation": "noise",
    "density_search": 0,
}


@dataclass(frozen=True, eq=False)
class Search:
    """A search that is ready to start.

    Attributes:
        evaluator: evaluator of the workers.
        plan: settings of the search.
        seeds: first individuals.
    """

    evaluator: Evaluator
    plan: SearchPlan
    seeds: Sequence[Individual]

    def run(self, workers: Workers, turn: int = 0) -> SearchResult:
        """Run the search; each turn has another seed, since workers cache the masks they scored."""
        plan = replace(self.plan, seed=self.plan.seed + turn)
        return Evolution(plan, workers).run(self.seeds)


def make_search(target: str, **settings: Any) -> Search:
    """Prepare the search of a network of the zoo."""
    network = load_target(target)
    checked = check_settings(make_settings(NOISE | settings))
    run = PruningRun(network, resolve_settings(checked, network))
    evaluator = run.evaluator
    seeds = baselines(
        evaluator.network,
        evaluator.statistics_inputs,
        run.settings.sparsity,
        run.settings.scope,
        run.generator,
        gradients=False,
        only={"magnitude", "random"},
        warn=print,
    )
    return Search(evaluator, run.plan, list(seeds))
