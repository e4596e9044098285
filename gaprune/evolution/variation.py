"""How children are made: operators are drawn by adaptive rates, with step lengths and budgets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import cos, exp, pi
from typing import Any

import torch

from gaprune.evolution.genome import Individual
from gaprune.evolution.gradient import Refinement
from gaprune.evolution.presets import NONE
from gaprune.evolution.search_plan import SearchPhase, SearchPlan

MIN_RATE = 0.02  # no operator dies out: it may become useful later in the search
SUCCESS_DECAY = 0.9  # of the running success rate, per child
EXACT_BUDGET = 0.25  # fraction of children in a Pareto search with exactly the requested budget
RANDOM_BUDGET = 0.25  # fraction whose budget is drawn log-uniformly from the whole front
MIN_ANNEALING = 0.1  # factor on the gradient step length after the last generation of a phase
MIN_SCALE, MAX_SCALE = 0.25, 4.0  # bounds of an individual's own factor on the step length


@dataclass(frozen=True)
class Variation:
    """The recipe of one child."""

    crossover: str | None = None  # key of `CROSSOVERS`; None: a copy of the first parent
    mutation: str | None = None  # key of `MUTATIONS`
    options: tuple[tuple[str, Any], ...] = ()  # keyword arguments of the mutation
    refinement: Refinement | None = None  # gradient steps after the mutation
    keep: int | None = None  # new budget, under one ranking over all layers; None: the parent's
    # what refines the layers that the operators have changed, before gradient steps: `Preset.swaps`
    swaps: str | None = None

    @property
    def origin(self) -> str:
        """The operators, joined by `+`: the origin of the child."""
        steps = "gradient" if self.refinement else None
        names = (self.crossover, self.mutation, self.swaps, steps)
        return "+".join(filter(None, names)) or "copy"

    @property
    def steps(self) -> int:
        """Number of gradient steps."""
        return self.refinement.steps if self.refinement else 0


class OperatorRates:
    """Adaptive operator selection by probability matching (Goldberg 1990).

    `initial` holds the probability of every operator; unless `adaptive`, they never change.
    """

    def __init__(self, initial: Mapping[str, float], *, adaptive: bool) -> None:
        self._initial = dict(initial)
        # running rate of the children that beat their better parent
        self.success = dict.fromkeys(initial, 0.5)
        self._adaptive = adaptive

    @property
    def probabilities(self) -> dict[str, float]:
        """Operator → current probability, at least `MIN_RATE` if they adapt."""
        if not self._adaptive:
            return dict(self._initial)
        credit = {name: rate * self.success[name] for name, rate in self._initial.items()}
        total = sum(credit.values())
        least = min(MIN_RATE, 1 / len(credit))
        free = 1 - least * len(credit)
        return {name: least + free * share / total for name, share in credit.items()}

    def draw(self, generator: torch.Generator) -> str:
        """Draw an operator."""
        table = self.probabilities
        weights = torch.tensor(list(table.values()), dtype=torch.float64)
        return list(table)[int(torch.multinomial(weights, 1, generator=generator))]

    def credit(self, name: str, *, improved: bool) -> None:
        """Record whether a child of this operator beat its better parent."""
        if name in self.success:
            rate = SUCCESS_DECAY * self.success[name] + (1 - SUCCESS_DECAY) * float(improved)
            self.success[name] = max(0.01, rate)


class VariationSampler:
    """Draws the variations of one phase and learns from the fitness of the children."""

    def __init__(self, plan: SearchPlan, phase: SearchPhase) -> None:
        self._plan, self._phase = plan, phase
        preset = phase.preset
        self._operators = {
            "crossover": OperatorRates(preset.crossovers, adaptive=preset.adaptive),
            "mutation": OperatorRates(preset.mutations, adaptive=preset.adaptive),
        }

    @property
    def rates(self) -> dict[str, dict[str, float]]:
        """Current probabilities of the crossovers and mutations."""
        return {kind: rates.probabilities for kind, rates in self._operators.items()}

    @property
    def success(self) -> dict[str, dict[str, float]]:
        """Success rates of the crossovers and mutations, to be saved in a checkpoint."""
        return {kind: dict(rates.success) for kind, rates in self._operators.items()}

    def restore(self, success: Mapping[str, Mapping[str, float]]) -> None:
        """Continue with saved success rates."""
        for kind, rates in self._operators.items():
            rates.success.update(success[kind])

    def draw(
        self, pair: tuple[Individual, Individual], generation: int, generator: torch.Generator
    ) -> tuple[Variation, float]:
        """Return the variation for a child of `pair`, and the step scale of the child."""
        crossover, mutation = (rates.draw(generator) for rates in self._operators.values())
        # Log-normal mutation of the step scale: self-adaptation as in evolution strategies. Drawn
        # even where it is not used, so that every child takes the same number of random draws.
        change = exp(0.3 * float(torch.randn((), generator=generator)))
        refinement, scale = self._phase.refinement, pair[0].step_scale
        # Without gradient steps nothing selects among scales. A refinement with a `last_rate`
        # (warm-up) has a schedule of its own.
        if refinement is not None and refinement.last_rate is None:
            scale = (pair[0].step_scale * pair[1].step_scale) ** 0.5 * change
            scale = min(max(scale, MIN_SCALE), MAX_SCALE)
            rate = refinement.learning_rate * scale
            first, last = rate * self._annealing(generation - 1), rate * self._annealing(generation)
            refinement = replace(refinement, learning_rate=first, last_rate=last)
        variation = Variation(
            crossover=None if crossover == NONE or pair[0] is pair[1] else crossover,
            mutation=None if mutation == NONE else mutation,
            options=tuple(self._phase.preset.options.get(mutation, {}).items()),
            swaps=self._phase.preset.swaps,
            refinement=refinement,
            keep=self._draw_budget(pair, generator),
        )
        return variation, scale

    def learn(self, variation: Variation, *, improved: bool) -> None:
        """Record whether the child of a variation beat its better parent."""
        self._operators["crossover"].credit(variation.crossover or NONE, improved=improved)
        self._operators["mutation"].credit(variation.mutation or NONE, improved=improved)

    def _annealing(self, generation: int) -> float:
        """Return the factor on step lengths: a cosine from 1 to `MIN_ANNEALING` over the phase."""
        progress = self._phase.progress(generation)
        return MIN_ANNEALING + (1 - MIN_ANNEALING) * (1 + cos(pi * progress)) / 2

    def _draw_budget(
        self, pair: tuple[Individual, Individual], generator: torch.Generator
    ) -> int | None:
        """Draw the budget of a child in a Pareto search: exact, random, or near its parents'."""
        plan = self._plan
        if plan.most is None:
            return None
        kind, position, change = (float(draw) for draw in torch.rand(3, generator=generator))
        if kind < EXACT_BUDGET:
            return plan.keep
        if kind < EXACT_BUDGET + RANDOM_BUDGET:
            return int(plan.keep * (plan.most / plan.keep) ** position)
        mean = (pair[0].keep * pair[1].keep) ** 0.5
        return min(max(int(mean * 2 ** (change - 0.5)), plan.keep), plan.most)
