"""A pruning job as plain data: target, inputs, test data and settings.

The command line, configuration files and run directories hold the same keys, so each reads what
another has written.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gaprune.calibration.samples import Samples
from gaprune.config import Settings, make_settings, unknown_setting
from gaprune.errors import InputError
from gaprune.evaluation.labelled import read_test, zoo_test
from gaprune.masks.budget import check_sparsity
from gaprune.models.input_spec import InputOptions
from gaprune.models.target import Target, load_target
from gaprune.models.zoo import ZOO
from gaprune.profiling import profiled
from gaprune.runs.option_keys import JOB_KEYS, names
from gaprune.runs.setup import CheckedSettings, check_settings


@dataclass(frozen=True)
class PruneJob:
    """What one `gaprune prune` is asked to do; `JOB_KEYS` describes the fields."""

    target: str
    checked: CheckedSettings
    weights: str | None = None  # None for a network of the zoo
    weights_key: str | None = None
    inputs: InputOptions = field(default_factory=InputOptions)
    prune_also: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    test: str | None = None  # None: that of the zoo, if it is a zoo network
    output: str | None = None
    tower: str | None = None
    allow_download: bool = False
    example_inputs: str | None = None  # a .npz file
    fold_parametrizations: bool | None = None  # None for the default of the target's source

    @property
    def settings(self) -> Settings:
        """How to prune it."""
        return self.checked.settings

    def load(self, device: str | None = None) -> tuple[Target, Samples | None]:
        """Load the target and the test data; a zoo network brings its own.

        `device` is that of the dense network; None is where the search runs.

        Raises:
            InputError: either is wrong; the message says what.
        """
        with profiled("load"):
            target = load_target(
                self.target,
                weights=None if self.weights is None else Path(self.weights),
                weights_key=self.weights_key,
                inputs=self.inputs,
                prune_also=self.prune_also,
                ignore=self.ignore,
                device=device or self.checked.driver_device,
                output=self.output,
                tower=self.tower,
                allow_download=self.allow_download,
                fold_parametrizations=self.fold_parametrizations,
                example_inputs=self.example_inputs,
            )
            if self.test is None:
                return target, zoo_test(target)
            return target, read_test(self.test, target)

    def as_config(self) -> dict[str, Any]:
        """Return everything stated as flat plain data, such as a TOML file holds; None is left out.

        `make_job` makes the same job of it.
        """
        stated = {
            "target": self.target,
            "weights": self.weights,
            "weights_key": self.weights_key,
            **{key.name: getattr(self.inputs, key.field) for key in JOB_KEYS if key.field},
            "prune_also": self.prune_also or None,
            "ignore": self.ignore or None,
            "test": self.test,
            "output": self.output,
            "tower": self.tower,
            "allow_download": self.allow_download or None,
            "fold_parametrizations": self.fold_parametrizations,
            "inputs": self.example_inputs,
            **self.settings.model_dump(mode="json"),
        }
        listed = {key: list(v) if isinstance(v, tuple) else v for key, v in stated.items()}
        return {key: value for key, value in listed.items() if value is not None}

    def command(self) -> str:
        """Return the command line that does this job, with every option that was stated."""
        words = ["gaprune", "prune", self.target]
        switches = [key.name for key in JOB_KEYS if key.metavar is None]
        for name, value in self.as_config().items():
            is_setting = name in Settings.model_fields
            is_switch = is_setting or name in switches
            if name == "target" or (is_setting and name not in self.settings.model_fields_set):
                continue
            option = f"--{name.replace('_', '-')}"
            if is_switch and isinstance(value, bool):
                words.append(option if value else option.replace("--", "--no-", 1))
            elif isinstance(value, bool):
                words += [option, "yes" if value else "no"]
            else:
                text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
                words += [option, text]
        return shlex.join(words)


def _sparsity(value: object, name: str) -> float:
    """Read text as a number first: `nan` is one and `abc` is none, both with a message of ours."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise InputError(
                f"{name}: must be a number strictly between 0 and 1 (the fraction of weights "
                f"removed, 0.95 removes 95 %), got {value!r}"
            ) from None
    return check_sparsity(value)


_PARSE_SETTING: dict[str, Callable[[Any, str], Any]] = {
    "sparsity": _sparsity,
    "calibration": names,
    "initial_criteria": names,
    "layer_sparsity": names,
}


def make_job(values: Mapping[str, Any]) -> PruneJob:
    """Make a job of flat keys, as a configuration file or the command line states them.

    Args:
        values: keys of `JOB_KEYS` and fields of `Settings`; numbers may come as text.

    Raises:
        InputError: an unknown key (all are listed), no target, neither sparsity nor max_drop, or a
            value that breaks its rule. Nothing has been loaded then.
    """
    keys = {key.name: key for key in JOB_KEYS}
    for name in values:
        if name not in keys and name not in Settings.model_fields:
            raise unknown_setting("config key", name, [*keys, *Settings.model_fields])
    if "target" not in values:
        raise InputError(
            f"target: none given; name a network of the zoo ({', '.join(ZOO)}), or "
            "path/to/file.py:factory or package.module:factory with --weights=FILE for your own"
        )
    stated = {name: key.parse(values[name], name) for name, key in keys.items() if name in values}
    settings = make_settings(
        {
            name: _PARSE_SETTING[name](value, name) if name in _PARSE_SETTING else value
            for name, value in values.items()
            if name not in keys
        }
    )
    return PruneJob(
        target=stated["target"],
        checked=check_settings(settings),
        weights=stated.get("weights"),
        weights_key=stated.get("weights_key"),
        inputs=InputOptions(**{key.field: stated.get(key.name) for key in JOB_KEYS if key.field}),
        prune_also=stated.get("prune_also", ()),
        ignore=stated.get("ignore", ()),
        test=stated.get("test"),
        output=stated.get("output"),
        tower=stated.get("tower"),
        allow_download=stated.get("allow_download", False),
        fold_parametrizations=stated.get("fold_parametrizations"),
        example_inputs=stated.get("inputs"),
    )
