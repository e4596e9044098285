"""How the next child is made: operators drawn by their rates, step lengths, budgets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import cos, exp, pi

import torch

from gaprune.evolution.genome import Individual
from gaprune.evolution.operator_rates import OperatorRates
from gaprune.evolution.phases import SearchPhase
from gaprune.evolution.presets import NONE
from gaprune.evolution.search_plan import SearchPlan
from gaprune.evolution.tasks import Variation

Pair = tuple[Individual, Individual]

ASKED = 0.25  # part of the children of a Pareto search that keep exactly the asked number
ANYWHERE = 0.25  # part whose budget is drawn log-uniformly over the whole front
LEAST_RATE = 0.1  # of the first gradient step length, reached in the phase's last generation
SLOWEST, FASTEST = 0.25, 4.0  # bounds of an individual's own factor on the step length


class VariationSampler:
    """Draws the recipes of a phase and learns from how the children turn out."""

    def __init__(self, plan: SearchPlan, phase: SearchPhase) -> None:
        self._plan, self._phase = plan, phase
        adaptive = phase.preset.adaptive
        self._crossovers = OperatorRates(phase.preset.crossovers, adaptive=adaptive)
        self._mutations = OperatorRates(phase.preset.mutations, adaptive=adaptive)

    @property
    def rates(self) -> dict[str, dict[str, float]]:
        """Current probabilities of crossovers and mutations."""
        return {
            "crossover": self._crossovers.probabilities,
            "mutation": self._mutations.probabilities,
        }

    @property
    def memory(self) -> dict[str, dict[str, float]]:
        """What was learnt, to be recalled by the book of an equal phase."""
        return {
            "crossover": dict(self._crossovers.success),
            "mutation": dict(self._mutations.success),
        }

    def recall(self, memory: Mapping[str, Mapping[str, float]]) -> None:
        """Know what another book had learnt."""
        self._crossovers.success.update(memory["crossover"])
        self._mutations.success.update(memory["mutation"])

    def draw(
        self, pair: Pair, generation: int, generator: torch.Generator
    ) -> tuple[Variation, float]:
        """Return the recipe of a child of `pair`, and the step-length factor that it inherits."""
        crossover, mutation = self._crossovers.draw(generator), self._mutations.draw(generator)
        change = exp(0.3 * float(torch.randn((), generator=generator)))
        refinement, factor = self._phase.refinement, pair[0].learning_rate
        # without steps, nothing would select among factors; some say themselves where they end
        if refinement is not None and refinement.last_rate is None:
            factor = (pair[0].learning_rate * pair[1].learning_rate) ** 0.5 * change
            factor = min(max(factor, SLOWEST), FASTEST)
            most = refinement.learning_rate * factor
            first, last = most * self._annealing(generation - 1), most * self._annealing(generation)
            refinement = replace(refinement, learning_rate=first, last_rate=last)
        recipe = Variation(
            crossover=None if crossover == NONE or pair[0] is pair[1] else crossover,
            mutation=None if mutation == NONE else mutation,
            options=tuple(self._phase.preset.options.get(mutation, {}).items()),
            refinement=refinement,
            keep=self._budget(pair, generator),
        )
        return recipe, factor

    def learn(self, recipe: Variation, *, improved: bool) -> None:
        """Record whether the child of a recipe beat its better parent."""
        self._crossovers.credit(recipe.crossover or NONE, improved=improved)
        self._mutations.credit(recipe.mutation or NONE, improved=improved)

    def _annealing(self, generation: int) -> float:
        """Shorten gradient steps along a cosine, from 1 to `LEAST_RATE` after the last one."""
        progress = self._phase.progress(generation)
        return LEAST_RATE + (1 - LEAST_RATE) * (1 + cos(pi * progress)) / 2

    def _budget(self, pair: Pair, generator: torch.Generator) -> int | None:
        """Draw a child's keep count in a Pareto search: the asked, any, or near its parents'."""
        plan = self._plan
        if plan.most is None:
            return None
        kind, place, change = (float(draw) for draw in torch.rand(3, generator=generator))
        if kind < ASKED:
            return plan.keep
        if kind < ASKED + ANYWHERE:
            return int(plan.keep * (plan.most / plan.keep) ** place)
        mean = (pair[0].genes.keep * pair[1].genes.keep) ** 0.5
        return min(max(int(mean * 2 ** (change - 0.5)), plan.keep), plan.most)
