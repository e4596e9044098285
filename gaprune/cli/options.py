"""The options of a run or a comparison, made from the tables that own the settings."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Annotated, Any, get_args

import typer

from gaprune.calibration.files import ALIASES
from gaprune.calibration.generators.procedural import GENERATORS
from gaprune.calibration.parse import AUTO, OPTIMISED, PATH_FORMS, PROCEDURAL, available_generators
from gaprune.cli.completion import among
from gaprune.comparison.methods.method_registry import ALL, methods
from gaprune.comparison.methods.training import DECAYS, OPTIMISERS
from gaprune.config import EVOLVED, Settings
from gaprune.criteria import CRITERIA
from gaprune.evaluation.batch_pool import BATCHES, BYTES
from gaprune.evaluation.objectives import OBJECTIVES
from gaprune.evolution.presets import PRESETS
from gaprune.export.measure import RUNTIMES
from gaprune.masks.budget import SCOPES
from gaprune.models.zoo import MNIST_INPUT, ZOO
from gaprune.pattern_names import BUDGETS, CHANNEL, UNSTRUCTURED
from gaprune.runs.job import JOB_KEYS
from gaprune.runs.option_keys import Key
from gaprune.runs.resolve_settings import STATISTICS_LOSS, WARMUP

OTHER, STOP = "Search", "When to stop"
PANELS: dict[str, tuple[str, ...]] = {
    "What to remove": (
        *("sparsity", "max_drop", "pattern", "budget"),
        *("width_multiple", "budget_macs", "latency_batch", "latency_runtime"),
        *("scope", "floor", "method"),
        *("repair", "repair_in_loop"),
        "prune_also",
    ),
    "What is shown to the network": (
        *(
            "calibration",
            "validation",
            "calibration_count",
            "validation_count",
            "gradient_count",
            "impressions",
        ),
        *("inversions", "calibration_seconds"),
        "test",
    ),
    "The network and what it takes": (
        "weights",
        "output",
        "allow_download",
        *(key.name for key in JOB_KEYS if key.field),
    ),
    STOP: ("generations", "evaluations", "seconds", "stagnation", "patience"),
    "Where it runs": (
        *("workers", "threads_per_worker", "gpus_per_worker", "device", "precision"),
        *("ray_address", "task_timeout", "retries", "checkpoint_every"),
    ),
    "What is compared": ("methods", "seeds", "clusters"),
    "Training, for the methods that train": (
        *(
            "train",
            "epochs",
            "schedule",
            "optimiser",
            "train_learning_rate",
            "train_batch",
            "weight_decay",
            "decay",
        ),
    ),
}
"""Heading in the help → options below it; the others come under `OTHER`."""
_LIMITS = (*PANELS[STOP], "calibration_seconds")
_PANEL_OF = {name: panel for panel, names in PANELS.items() for name in names}

_CALIBRATION = (
    AUTO,
    PROCEDURAL,
    *OPTIMISED,
    *available_generators(MNIST_INPUT),
    *ALIASES,
    *PATH_FORMS,
)
_MORE: dict[str, str] = {
    "method": f": {', '.join(CRITERIA)}",
    "calibration": f": {', '.join(_CALIBRATION)}; repeatable, or joined by commas",
    "prune_also": "; repeatable",
    "initial_criteria": f": {', '.join(CRITERIA)}; repeatable, or joined by commas",
    "methods": "; repeatable, or joined by commas",
}
"""What is added to the words of the tables."""
_DEFAULTS = {
    "patience": " (default: 2 where impressions or inverted inputs are shown, 'auto' included; "
    "else no limit)",
    "max_drop": "",
    "initial_criteria": " (default: all)",
    "budget_macs": "",
    "task_timeout": " (default: 20 times the slowest one of its kind, and at least a minute)",
    "warmup": f" (default: {WARMUP} where inverted inputs are shown)",
    "batch_cache": f" (default: {BATCHES}, or what {BYTES >> 20} MB hold; 0 where that is little)",
    "statistics_loss": f" (default: {STATISTICS_LOSS} where inverted inputs are shown)",
    "feature_loss": " (default: 0)",
}
_NAMED = [name for name in _CALIBRATION if name not in PATH_FORMS]
_VALUES: dict[str, Iterable[str]] = {
    "target": ZOO,
    "method": (EVOLVED, *CRITERIA),
    "methods": (ALL, *methods()),
    "initial_criteria": CRITERIA,
    "preset": PRESETS,
    "scope": SCOPES,
    "pattern": (UNSTRUCTURED, "2:4", "4x1", CHANNEL),
    "budget": BUDGETS,
    "latency_runtime": [name for name in RUNTIMES if name != "torch-csr"],
    "objective": (AUTO, *OBJECTIVES),
    "calibration": _NAMED,
    "validation": _NAMED,
    "device": (AUTO, "cpu", "cuda"),
    "precision": ("float32", "bfloat16", "float16", AUTO),
    "ray_address": (AUTO, "none"),
    "allow_download": ("yes", "no"),
    "input_kind": GENERATORS,
    "optimiser": OPTIMISERS,
    "decay": DECAYS,
}
"""What a shell completes; other words may be right too."""
_MANY = ("calibration", "initial_criteria", "prune_also", "methods")  # options that may be repeated
_METAVARS = {int: "INTEGER", float: "NUMBER"}


def with_options(
    keys: Sequence[Key] = (), leave_out: Collection[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command that takes `**options` a signature: target, job keys, settings, its own.

    Args:
        keys: further keys that the command takes.
        leave_out: settings that it does not take.

    Every option is None (or an empty list) where the user does not state it, so that a
    configuration file and the defaults can fill it in. Numbers come as text, and `make_job` reads
    them: one rule and one message for the command line and for files.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        stated = [
            _parameter(key.name, key.description, key.metavar) for key in (*keys, *JOB_KEYS[1:])
        ]
        function.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [_target(), *_settings(leave_out), *stated, *_own(function)]
        )
        return function

    return decorate


def with_changes(
    names: Collection[str],
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command that takes `**options` its own parameters and options for some settings."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        stated = [
            _parameter(
                name, f"{field.description} (default: as it was)", _metavar(field.annotation)
            )
            for name, field in Settings.model_fields.items()
            if name in names
        ]
        function.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [*_own(function), *stated]
        )
        return function

    return decorate


def _own(function: Callable[..., None]) -> list[inspect.Parameter]:
    """Return the parameters that a command states itself."""
    parameters = inspect.signature(function, eval_str=True).parameters.values()
    return [one for one in parameters if one.kind is not inspect.Parameter.VAR_KEYWORD]


def _target() -> inspect.Parameter:
    text = f"{JOB_KEYS[0].description}; none where --config names it"
    argument = typer.Argument(
        help=text, metavar="TARGET", show_default=False, autocompletion=_completing("target")
    )
    return _keyword("target", Annotated[str | None, argument])


def _settings(leave_out: Collection[str]) -> list[inspect.Parameter]:
    """One option per field of `Settings`, so that a new setting is an option at once."""
    parameters = []
    for name, field in Settings.model_fields.items():
        if name in leave_out:
            continue
        text = f"{field.description or name}{_default(name)}"
        if field.annotation is bool:
            option = typer.Option(help=text, show_default=False, rich_help_panel=_panel(name))
            parameters.append(_keyword(name, Annotated[bool | None, option]))
        else:
            parameters.append(_parameter(name, text, _metavar(field.annotation)))
    return parameters


def _metavar(annotation: Any) -> str:  # noqa: ANN401 - any type a setting may have
    kinds = get_args(annotation) or (annotation,)
    return next((_METAVARS[kind] for kind in kinds if kind in _METAVARS), "TEXT")


def _parameter(name: str, text: str, metavar: str) -> inspect.Parameter:
    option = typer.Option(
        help=text + _MORE.get(name, ""),
        metavar=metavar,
        show_default=False,
        rich_help_panel=_panel(name),
        autocompletion=_completing(name),
    )
    return _keyword(name, Annotated[list[str] | None if name in _MANY else str | None, option])


def _completing(name: str) -> Callable[[str], list[str]] | None:
    return among(_VALUES[name], joined=name in _MANY) if name in _VALUES else None


def _keyword(name: str, annotation: object) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=None, annotation=annotation)


def _panel(name: str) -> str:
    return _PANEL_OF.get(name, OTHER)


def _default(name: str) -> str:
    """Return in words what holds where the user states nothing."""
    field = Settings.model_fields[name]
    if name in _DEFAULTS:
        return _DEFAULTS[name]
    if field.is_required() or field.annotation is bool:
        return ""
    if isinstance(field.default, tuple):
        return f" (default: {', '.join(field.default)})"
    if field.default is not None:
        return f" (default: {field.default})"
    values = [
        f"{key} {preset.defaults.get(name)}"
        for key, preset in PRESETS.items()
        if name in preset.defaults
    ]
    if values:
        return f" (by preset: {', '.join(values)})"
    return f" (default: {'no limit' if name in _LIMITS else 'what suits the network'})"
