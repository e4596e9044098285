"""The options of a run or a comparison, generated from the tables that define the settings."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Annotated, Any, get_args

import typer

from gaprune import choices
from gaprune.choices import CRITERIA, UNIT_CRITERIA, listed
from gaprune.cli.command_help import HELP_ALL
from gaprune.cli.common_options import completion
from gaprune.config import EVOLVED, LIMITS, Settings
from gaprune.evolution.presets import PRESETS
from gaprune.pattern_names import BUDGETS, CHANNEL, EXPERT, UNSTRUCTURED
from gaprune.runs.option_keys import ALL, JOB_KEYS, Key

Command = Callable[..., None]
Decorator = Callable[[Command], Command]
SEARCH = "Search"
PANELS: dict[str, tuple[str, ...]] = {
    "What to remove": (
        *("sparsity", "max_drop", "speed_up", "pattern", "budget"),
        *("width_multiple", "budget_macs", "latency_batch", "latency_runtime"),
        *("scope", "floor", "method", "repair", "repair_in_loop"),
        "compensate",
        *("prune_also", "ignore", "layer_sparsity"),
    ),
    "Calibration, validation and test inputs": (
        *("calibration", "validation", "calibration_count", "validation_count", "gradient_count"),
        *("impressions", "inversions", "calibration_seconds", "test"),
    ),
    "Network and its inputs": (
        *(
            "weights",
            "weights_key",
            "output",
            "tower",
            "inputs",
            "allow_download",
            "fold_parametrizations",
        ),
        *(key.name for key in JOB_KEYS if key.field),
    ),
    "When to stop": LIMITS,
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

_EXTRA_HELP: dict[str, str] = {
    "method": f": {', '.join(CRITERIA)}; "
    + ", ".join(f"for pattern {pattern} {name}" for name, pattern in UNIT_CRITERIA.items()),
    "calibration": f"; names: {', '.join(choices.CALIBRATION)}, PATH, labelled:PATH, proxy:PATH; "
    "repeatable, or joined by commas",
    **dict.fromkeys(("prune_also", "ignore", "layer_sparsity"), "; repeatable"),
    "initial_criteria": f": {', '.join(CRITERIA)}; repeatable, or joined by commas",
    "methods": "; repeatable, or joined by commas",
}
_DEFAULT_HELP = {
    "patience": " (default: 2 with impressions or inverted inputs, also those of 'auto'; otherwise "
    "no limit)",
    "max_drop": "",
    "speed_up": "",
    "layer_sparsity": "",
    "initial_criteria": " (default: all)",
    "budget_macs": "",
    "task_timeout": " (default: 20 times the slowest task of its kind, and at least a minute)",
    "warmup": " (default: 300 with inverted inputs)",
    "batch_cache": " (default: 128, or what fits in 128 MB; 0 if that is little)",
    "statistics_loss": " (default: 2.0 with inverted inputs)",
    "feature_loss": " (default: 0)",
}
_CHOICES: dict[str, Iterable[str]] = {
    "preset": PRESETS,
    "scope": choices.SCOPES,
    "budget": BUDGETS,
    "latency_runtime": [name for name in choices.RUNTIMES if name != "torch-csr"],
    "precision": choices.PRECISIONS,
}
"""Settings of closed lists, which the help shows in full."""
_METAVARS = {
    "pattern": "PATTERN",
    "layer_sparsity": "PATTERN=FRACTION",
    "device": "DEVICE",
    "ray_address": "ADDRESS",
    **dict.fromkeys(("method", "objective", "validation"), "NAME"),
    **dict.fromkeys(("calibration", "initial_criteria"), "NAMES"),
}
_VALUES: dict[str, Iterable[str]] = {
    **_CHOICES,
    "method": (EVOLVED, *CRITERIA, *UNIT_CRITERIA),
    "methods": (ALL, *choices.METHODS),
    "initial_criteria": (*CRITERIA, *UNIT_CRITERIA),
    "pattern": (UNSTRUCTURED, "2:4", "4x1", CHANNEL, EXPERT),
    "objective": ("auto", *choices.OBJECTIVES),
    "calibration": choices.CALIBRATION,
    "validation": choices.CALIBRATION,
    "device": ("auto", "cpu", "cuda"),
    "ray_address": ("auto", "none"),
    "allow_download": ("yes", "no"),
    "input_kind": choices.INPUT_KINDS,
    "optimiser": choices.OPTIMISERS,
    "decay": choices.DECAYS,
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
        help=help_text, metavar="TARGET", show_default=False, autocompletion=completion(choices.ZOO)
    )
    # one option per field of `Settings`: a new setting is an option at once
    parameters = [_parameter("target", Annotated[str | None, argument])]
    for name, field in Settings.model_fields.items():
        if name not in leave_out:
            summary, semicolon, details = (field.description or name).partition("; ")
            text = f"{summary}{_default_help(name)}{semicolon}{details}"
            parameters.append(_option(name, text, _metavar(name, field.annotation)))
    job_keys = (*keys, *JOB_KEYS[1:])
    parameters += [_option(key.name, key.description, key.metavar) for key in job_keys]
    parameters.append(_parameter("help_all", Annotated[bool | None, HELP_ALL]))
    return _with_parameters(parameters)


def with_changes(names: Collection[str]) -> Decorator:
    """Give a command with `**options` its own options, and options for some settings of a run."""
    return _with_parameters(
        [
            _option(
                name, f"{field.description} (default: unchanged)", _metavar(name, field.annotation)
            )
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


def _metavar(name: str, annotation: Any) -> str | None:  # noqa: ANN401 - any type a setting may have
    """Return the placeholder for a value in the help; None for a switch, which takes none."""
    kinds = get_args(annotation) or (annotation,)  # `int | None` → int, NoneType
    if bool in kinds:
        return None
    if name in _CHOICES:
        return listed(_CHOICES[name])
    return "INTEGER" if int in kinds else "NUMBER" if float in kinds else _METAVARS[name]


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
    unlimited = name == "calibration_seconds" or name in LIMITS
    return f" (default: {'no limit' if unlimited else 'chosen by the network'})"
