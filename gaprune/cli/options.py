"""The options of a run or a comparison, generated from the tables that define the settings."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Annotated, Any, get_args

import typer

from gaprune.calibration.files import ALIASES
from gaprune.calibration.generators.procedural import GENERATORS
from gaprune.calibration.parse import AUTO, OPTIMISED, PATH_FORMS, PROCEDURAL, available_generators
from gaprune.cli.common_options import completion
from gaprune.comparison.methods.method_registry import known_methods
from gaprune.comparison.methods.training import DECAYS, OPTIMISERS
from gaprune.comparison.spec import ALL
from gaprune.config import EVOLVED, Settings
from gaprune.criteria import CRITERIA
from gaprune.evaluation.batch_pool import BATCHES, BYTES
from gaprune.evaluation.objectives import OBJECTIVES
from gaprune.evolution.presets import PRESETS
from gaprune.exports.measure import RUNTIMES
from gaprune.masks.budget import SCOPES
from gaprune.models.zoo import MNIST_INPUT, ZOO
from gaprune.pattern_names import BUDGETS, CHANNEL, UNSTRUCTURED
from gaprune.runs.job import JOB_KEYS
from gaprune.runs.option_keys import Key
from gaprune.runs.setup import STATISTICS_LOSS, WARMUP

Command = Callable[..., None]
Decorator = Callable[[Command], Command]
SEARCH, LIMITS = "Search", "When to stop"
PANELS: dict[str, tuple[str, ...]] = {
    "What to remove": (
        *("sparsity", "max_drop", "pattern", "budget"),
        *("width_multiple", "budget_macs", "latency_batch", "latency_runtime"),
        *("scope", "floor", "method", "repair", "repair_in_loop"),
        *("prune_also", "ignore", "layer_sparsity"),
    ),
    "Calibration, validation and test inputs": (
        *("calibration", "validation", "calibration_count", "validation_count", "gradient_count"),
        *("impressions", "inversions", "calibration_seconds", "test"),
    ),
    "Network and its inputs": (
        *("weights", "weights_key", "output", "allow_download"),
        *(key.name for key in JOB_KEYS if key.field),
    ),
    LIMITS: ("generations", "evaluations", "seconds", "stagnation", "patience"),
    "Workers and device": (
        *("workers", "threads_per_worker", "gpus_per_worker", "device", "precision"),
        *("ray_address", "task_timeout", "retries", "checkpoint_every"),
    ),
    "What to compare": ("methods", "seeds", "clusters"),
    "Training, for methods that train": (
        *("train", "epochs", "schedule", "optimiser", "train_learning_rate", "train_batch"),
        *("weight_decay", "decay"),
    ),
}
"""Heading in the help → its options; all other options come under `SEARCH`."""
_PANEL_OF = {name: panel for panel, names in PANELS.items() for name in names}

_CALIBRATION_NAMES = (AUTO, PROCEDURAL, *OPTIMISED, *available_generators(MNIST_INPUT), *ALIASES)
_EXTRA_HELP: dict[str, str] = {
    "method": f": {', '.join(CRITERIA)}",
    "calibration": f": {', '.join([*_CALIBRATION_NAMES, *PATH_FORMS])}; repeatable, or joined by "
    "commas",
    **dict.fromkeys(("prune_also", "ignore", "layer_sparsity"), "; repeatable"),
    "initial_criteria": f": {', '.join(CRITERIA)}; repeatable, or joined by commas",
    "methods": "; repeatable, or joined by commas",
}
_DEFAULT_HELP = {
    "patience": " (default: 2 with impressions or inverted inputs, also those of 'auto'; otherwise "
    "no limit)",
    "max_drop": "",
    "layer_sparsity": "",
    "initial_criteria": " (default: all)",
    "budget_macs": "",
    "task_timeout": " (default: 20 times the slowest task of its kind, and at least a minute)",
    "warmup": f" (default: {WARMUP} with inverted inputs)",
    "batch_cache": f" (default: {BATCHES}, or what fits in {BYTES >> 20} MB; 0 if that is little)",
    "statistics_loss": f" (default: {STATISTICS_LOSS} with inverted inputs)",
    "feature_loss": " (default: 0)",
}
_VALUES: dict[str, Iterable[str]] = {
    "target": ZOO,
    "method": (EVOLVED, *CRITERIA),
    "methods": (ALL, *known_methods()),
    "initial_criteria": CRITERIA,
    "preset": PRESETS,
    "scope": SCOPES,
    "pattern": (UNSTRUCTURED, "2:4", "4x1", CHANNEL),
    "budget": BUDGETS,
    "latency_runtime": [name for name in RUNTIMES if name != "torch-csr"],
    "objective": (AUTO, *OBJECTIVES),
    "calibration": _CALIBRATION_NAMES,
    "validation": _CALIBRATION_NAMES,
    "device": (AUTO, "cpu", "cuda"),
    "precision": ("float32", "bfloat16", "float16", AUTO),
    "ray_address": (AUTO, "none"),
    "allow_download": ("yes", "no"),
    "input_kind": GENERATORS,
    "optimiser": OPTIMISERS,
    "decay": DECAYS,
}
"""What shells complete; other values may be valid as well."""
_REPEATABLE = (
    *("calibration", "initial_criteria", "methods"),
    *("prune_also", "ignore", "layer_sparsity"),
)


def with_options(keys: Sequence[Key] = (), leave_out: Collection[str] = ()) -> Decorator:
    """Give a command with `**options` a signature: target, settings, job keys, its own options.

    Every generated option is None, or an empty list, unless the user gives it, so that --config and
    the defaults can fill it in. Numbers are passed on as text: `make_job` parses the command line
    and files by one rule, with one message. `keys` are added to the job keys; settings in
    `leave_out` are no options.
    """
    help_text = f"{JOB_KEYS[0].description}; not needed if --config names it"
    argument = typer.Argument(
        help=help_text, metavar="TARGET", show_default=False, autocompletion=completion(ZOO)
    )
    # one option per field of `Settings`: a new setting is an option at once
    parameters = [_parameter("target", Annotated[str | None, argument])]
    for name, field in Settings.model_fields.items():
        if name not in leave_out:
            text = f"{field.description or name}{_default_help(name)}"
            parameters.append(_option(name, text, _metavar(field.annotation)))
    job_keys = (*keys, *JOB_KEYS[1:])
    parameters += [_option(key.name, key.description, key.metavar) for key in job_keys]
    return _with_parameters(parameters)


def with_changes(names: Collection[str]) -> Decorator:
    """Give a command with `**options` its own options, and options for some settings of a run."""
    return _with_parameters(
        [
            _option(name, f"{field.description} (default: unchanged)", _metavar(field.annotation))
            for name, field in Settings.model_fields.items()
            if name in names
        ]
    )


def _with_parameters(
    parameters: Sequence[inspect.Parameter],
) -> Decorator:
    """Return a decorator that adds parameters to a signature: typer reads options from there."""

    def decorate(function: Command) -> Command:
        stated = inspect.signature(function, eval_str=True).parameters.values()
        explicit = [p for p in stated if p.kind is not inspect.Parameter.VAR_KEYWORD]
        signature = inspect.Signature([*parameters, *explicit])
        function.__signature__ = signature  # type: ignore[attr-defined]
        return function

    return decorate


def _metavar(annotation: Any) -> str | None:  # noqa: ANN401 - any type a setting may have
    """Return the placeholder for a value in the help; None for a switch, which takes none."""
    kinds = get_args(annotation) or (annotation,)  # `int | None` → int, NoneType
    if bool in kinds:
        return None
    return "INTEGER" if int in kinds else "NUMBER" if float in kinds else "TEXT"


def _option(name: str, text: str, metavar: str | None) -> inspect.Parameter:
    repeatable = name in _REPEATABLE
    option = typer.Option(
        help=text + _EXTRA_HELP.get(name, ""),
        metavar=metavar,
        show_default=False,
        rich_help_panel=_PANEL_OF.get(name, SEARCH),
        autocompletion=completion(_VALUES[name], joined=repeatable) if name in _VALUES else None,
    )
    if metavar is None:
        return _parameter(name, Annotated[bool | None, option])
    return _parameter(name, Annotated[list[str] | None if repeatable else str | None, option])


def _parameter(name: str, annotation: object) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=None, annotation=annotation)


def _default_help(name: str) -> str:
    """Return the default of a setting as a text for its help."""
    field = Settings.model_fields[name]
    if name in _DEFAULT_HELP:
        return _DEFAULT_HELP[name]
    if field.is_required() or field.annotation is bool:
        return ""
    if field.default is not None:
        several = isinstance(field.default, tuple)
        return f" (default: {', '.join(field.default) if several else field.default})"
    values = [f"{k} {p.defaults[name]}" for k, p in PRESETS.items() if name in p.defaults]
    if values:
        return f" (by preset: {', '.join(values)})"
    unlimited = name == "calibration_seconds" or name in PANELS[LIMITS]
    return f" (default: {'no limit' if unlimited else 'chosen by the network'})"
