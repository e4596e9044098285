"""Presets: named combinations of operators, selection and default settings, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from gaprune import plugins
from gaprune.errors import InputError

FRONT = {"population": 24, "offspring": 12, "steps": 20, "generations": 12}  # for a Pareto search
NONE = "none"  # stands for "no crossover" and "no mutation" among the operators


@dataclass(frozen=True)
class Preset:
    """A way to search.

    Attributes:
        description: one line for users.
        crossovers: name → initial probability; `NONE` copies the first parent.
        mutations: name → initial probability; `NONE` changes nothing.
        options: mutation → keyword arguments.
        gradient: whether every child is refined by straight-through gradient steps.
        swaps: `swaps` or `correlation-swaps` refines the layers of a child whose counts have
            changed, else one random layer; None refines none.
        seeding: `baselines` (every data-free one-shot mask at the budget) or `kaiming`.
        selection: of parents: `tournament`, `roulette` or `random`.
        survival: `best`, or `nsga2` over fitness and sparsity.
        elitist: whether parents compete with their children; else children replace them.
        races: whether children are scored on a few calibration inputs first, and only the better
            half on all of them.
        adaptive: whether operators that make better children are used more often.
        defaults: default values of settings (`Settings` names).
        scope, objective: default values of these settings; None keeps the general default.
    """

    description: str
    crossovers: Mapping[str, float]
    mutations: Mapping[str, float]
    defaults: Mapping[str, Any]
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    gradient: bool = False
    swaps: str | None = None
    seeding: str = "baselines"
    selection: str = "tournament"
    survival: str = "best"
    elitist: bool = True
    races: bool = True
    adaptive: bool = True
    scope: str | None = None
    objective: str | None = None


PRESETS: dict[str, Preset] = {
    "default": Preset(
        description="memetic: crossover and mutation, then gradient steps on fresh inputs",
        crossovers={NONE: 0.35, "averaging": 0.45, "uniform": 0.1, "whole-layer": 0.1},
        mutations={NONE: 0.85, "threshold-swap": 0.05, "budget-shift": 0.05, "gaussian": 0.05},
        gradient=True,
        defaults={
            "population": 4,
            "offspring": 3,
            "steps": 100,
            "learning_rate": 1.2,
            "generations": 8,
            "density_search": 10,
        },
    ),
    "black-box": Preset(
        description="crossover and mutation only; no gradient is ever taken",
        crossovers={
            NONE: 0.4,
            "averaging": 0.2,
            "uniform": 0.2,
            "whole-layer": 0.1,
            "one-point": 0.1,
        },
        mutations={
            "threshold-swap": 0.4,
            "budget-shift": 0.2,
            "gaussian": 0.3,
            "uniform-reset": 0.1,
        },
        defaults={"population": 16, "offspring": 64, "generations": 60, "density_search": 10},
    ),
    "classic": Preset(
        description="the original idea: random scores, roulette, one-point crossover, reset",
        crossovers={"one-point": 1.0},
        mutations={NONE: 0.9, "uniform-reset": 0.1},
        options={"uniform-reset": {"rate": 0.1, "low": -1.0, "high": 1.0}},
        defaults={"population": 100, "offspring": 100, "generations": 20, "density_search": 0},
        seeding="kaiming",
        selection="roulette",
        elitist=False,
        races=False,
        adaptive=False,
        scope="layer",
        objective="accuracy",
    ),
}


def find_preset(name: str) -> Preset:
    """Return a built-in preset or that of a plug-in; see `plugins.find_extension`."""
    return plugins.find_extension("preset", name, PRESETS, plugins.PRESETS, read_preset)


def read_preset(plugin: plugins.Plugin, value: Any) -> Preset:  # noqa: ANN401 - from a plug-in
    """Return a plug-in's preset; raise InputError if it is none or names an unknown operator."""
    # not above: the help of the commands reads the presets, and must not import torch
    from gaprune.evolution.operators import find_crossover, find_mutation  # noqa: PLC0415

    preset = plugins.require_type(Preset)(plugin, value)
    for names, find in ((preset.mutations, find_mutation), (preset.crossovers, find_crossover)):
        for name in set(names) - {NONE}:
            try:
                find(name)
            except InputError as error:
                raise InputError(f"{plugin.title}: {error}") from error
    return preset


def as_pareto(preset: Preset) -> Preset:
    """Return the preset as a Pareto search: NSGA-II survival (Deb et al. 2002), no race."""
    return replace(
        preset,
        selection="random",
        survival="nsga2",
        races=False,
        elitist=True,
        defaults={**preset.defaults, **FRONT},
    )


def as_warmup(preset: Preset) -> Preset:
    """Return the preset without operators: children differ from their parent by gradient steps."""
    return replace(preset, crossovers={NONE: 1.0}, mutations={NONE: 1.0}, options={})


def as_density_search(preset: Preset, swaps: str | None = None) -> Preset:
    """Return the preset with one operator, which changes the keep counts of layers only."""
    return replace(
        preset,
        crossovers={NONE: 1.0},
        mutations={"reallocate": 1.0},
        options={},
        gradient=False,
        swaps=swaps,
    )
