"""One pruning job in full: the target, what it takes, the test data and the settings, as data.

The command line, a configuration file and a run directory all hold the same keys, so what one
writes another reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gaprune.budget import check_sparsity
from gaprune.config import Settings, make_settings
from gaprune.errors import InputError, unknown_name
from gaprune.input_options import InputOptions
from gaprune.preparation import check_settings
from gaprune.probes.files import read_probes
from gaprune.probes.samples import Samples
from gaprune.target import Target, load_target
from gaprune.zoo import ZOO


@dataclass(frozen=True)
class Job:
    """What one `gaprune prune` does.

    Attributes:
        target: a zoo name, or `path/to/file.py:factory`.
        settings: how to prune it.
        weights: its checkpoint, or None for the zoo's own.
        inputs: what is known about one input.
        prune_also: further parameters to prune, by qualified name.
        test: labelled file for the final accuracy, or None.
    """

    target: str
    settings: Settings
    weights: str | None = None
    inputs: InputOptions = field(default_factory=InputOptions)
    prune_also: tuple[str, ...] = ()
    test: str | None = None

    def load(self) -> tuple[Target, Samples | None]:
        """Load the target and the test data.

        Raises:
            InputError: either is wrong; the message says what.
        """
        target = load_target(
            self.target,
            weights=None if self.weights is None else Path(self.weights),
            inputs=self.inputs,
            prune_also=self.prune_also,
        )
        return target, None if self.test is None else _read_test(self.test, target)

    def as_config(self) -> dict[str, Any]:
        """Return everything stated as flat plain data, such as a TOML file holds; None is left out.

        `make_job` makes the same job of it.
        """
        stated = {
            "target": self.target,
            "weights": self.weights,
            **{key.name: getattr(self.inputs, key.field) for key in JOB_KEYS if key.field},
            "prune_also": self.prune_also or None,
            "test": self.test,
            **self.settings.model_dump(mode="json"),
        }
        listed = {key: list(v) if isinstance(v, tuple) else v for key, v in stated.items()}
        return {key: value for key, value in listed.items() if value is not None}


@dataclass(frozen=True)
class Key:
    """One key of a job that is no setting.

    Attributes:
        name: in a configuration file; on the command line with dashes.
        parse: from what a user writes (text, or a TOML value) and the key's name to its value.
        description: one line for people.
        field: the field of `InputOptions` that it fills, or None.
        metavar: stands for its value in the help.
    """

    name: str
    parse: Callable[[Any, str], Any]
    description: str
    field: str | None = None
    metavar: str = "TEXT"


def _text(value: object, name: str) -> str:
    if not isinstance(value, str) or not value:
        raise InputError(f"{name}: must be text that is not empty, got {value!r}")
    return value


def _names(value: object, name: str) -> tuple[str, ...]:
    """Split at commas, but not inside the path of a file that exists."""
    parts = value if isinstance(value, (list, tuple)) else [value]
    found: list[str] = []
    for part in parts:
        text = _text(part, name)
        whole = Path(text).exists() or Path(text.partition(":")[2] or text).exists()
        found += [text] if whole else [one.strip() for one in text.split(",")]
    return tuple(_text(one, name) for one in found)


def _numbers(value: object, name: str) -> tuple[float, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    parts = parts if isinstance(parts, (list, tuple)) else [parts]
    try:  # as text, so that true and None are no numbers
        return tuple(float(str(part)) for part in parts)
    except ValueError:
        raise InputError(
            f"{name}: must be numbers joined by commas, such as 0.1 or 0.5,0.4,0.3; got {value!r}"
        ) from None


def _sizes(value: object, name: str) -> tuple[int, ...]:
    numbers = _numbers(value, name)
    if not all(number.is_integer() for number in numbers):
        raise InputError(f"{name}: must be whole numbers, such as 1,28,28; got {value!r}")
    return tuple(int(number) for number in numbers)


def _count(value: object, name: str) -> int:
    sizes = _sizes(value, name)
    if len(sizes) != 1:
        raise InputError(f"{name}: must be one whole number, got {value!r}")
    return sizes[0]


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


JOB_KEYS: tuple[Key, ...] = (
    Key("target", _text, "a network of the zoo, or path/to/file.py:factory", metavar="TARGET"),
    Key(
        "weights",
        _text,
        "checkpoint: .safetensors, or a state dict as .pt, .pth, .bin",
        metavar="FILE",
    ),
    Key("prune_also", _names, "prune this parameter too, by its qualified name", metavar="NAME"),
    Key("test", _text, "labelled inputs, for the final accuracy only", metavar="FILE"),
    Key(
        "input_shape",
        _sizes,
        "sizes of one input without the batch axis: 1,28,28",
        "shape",
        "SIZES",
    ),
    Key("input_kind", _text, "image, signal, vector or tokens", "kind", "KIND"),
    Key(
        "range",
        _numbers,
        "lowest and highest value that the network is fed: 0,1",
        "range",
        "LOW,HIGH",
    ),
    Key(
        "mean",
        _numbers,
        "normalisation of raw values in 0 to 1, per channel or one for all",
        "mean",
        "NUMBERS",
    ),
    Key("std", _numbers, "the same: what they are divided by", "std", "NUMBERS"),
    Key(
        "vocabulary",
        _count,
        "number of token ids, for networks that take tokens",
        "vocabulary",
        "COUNT",
    ),
)
"""Every key of a job beside the settings."""

_PARSE_SETTING: dict[str, Callable[[Any, str], Any]] = {
    "sparsity": _sparsity,
    "probes": _names,
}


def make_job(values: Mapping[str, Any]) -> Job:
    """Make a job of flat keys, as a configuration file or the command line states them.

    Args:
        values: keys of `JOB_KEYS` and fields of `Settings`; numbers may come as text.

    Raises:
        InputError: an unknown key (all are listed), a missing target or sparsity, or a value that
            breaks its rule. Nothing has been loaded then.
    """
    keys = {key.name: key for key in JOB_KEYS}
    for name in values:
        if name not in keys and name not in Settings.model_fields:
            raise unknown_name("config key", name, [*keys, *Settings.model_fields])
    if "target" not in values:
        raise InputError(
            f"target: none given; name a network of the zoo ({', '.join(ZOO)}), or "
            "path/to/file.py:factory with --weights FILE for one of your own"
        )
    if "sparsity" not in values:
        raise InputError(
            "sparsity: none given; pass --sparsity, the fraction of weights to remove, such as 0.95"
        )
    stated = {name: key.parse(values[name], name) for name, key in keys.items() if name in values}
    settings = make_settings(
        {
            name: _PARSE_SETTING[name](value, name) if name in _PARSE_SETTING else value
            for name, value in values.items()
            if name not in keys
        }
    )
    check_settings(settings)
    return Job(
        target=stated["target"],
        settings=settings,
        weights=stated.get("weights"),
        inputs=InputOptions(**{key.field: stated.get(key.name) for key in JOB_KEYS if key.field}),
        prune_also=stated.get("prune_also", ()),
        test=stated.get("test"),
    )


def _read_test(text: str, target: Target) -> Samples:
    try:
        samples = read_probes(text, target.inputs)
    except InputError as error:
        raise InputError(f"test: {str(error).removeprefix('probes: ')}") from error
    if samples.labels is None:
        raise InputError(
            f"test: {text} holds no labels, which accuracy needs; give a file with both "
            "(npz keys x and y, or IMAGES+LABELS)"
        )
    if target.inputs.kind != "tokens":
        samples = samples._replace(inputs=samples.inputs.to(target.dtype))
    return samples
