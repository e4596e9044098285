"""The keys that are no settings: their parsers, from command-line text or TOML values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from gaprune.choices import DECAYS, FEW_EXAMPLES, INPUT_KINDS, OPTIMISERS, SCHEDULES, listed
from gaprune.errors import InputError

T = TypeVar("T")
ALL, IMP = "all", "imp"  # methods of a comparison: every one; iterative magnitude pruning
LINEAR = "linear"  # the default schedule
DEFAULT_SPARSITIES = (0.5, 0.9, 0.95, 0.98)  # of a comparison
UNUSED = (
    *("sparsity", "method", "seed", "pareto", "max_drop", "speed_up", "repair", "repair_in_loop"),
    "compensate",
    *("checkpoint_every", "budget", "budget_macs", "width_multiple"),  # single runs only
    *("latency_batch", "latency_runtime", "layer_sparsity"),
)
"""Settings that a comparison does not take: rows state them, or they fit no row."""


@dataclass(frozen=True)
class Key:
    """A key that is no setting."""

    name: str  # in a configuration file; on the command line with dashes
    parse: Callable[[Any, str], Any]  # from text or a TOML value, and the key's name
    description: str  # one line for people
    field: str | None = None  # of `InputOptions`, that it fills
    metavar: str | None = "TEXT"  # stands for its value in the help; None for a switch


def text(value: object, name: str) -> str:
    """Check that a value is text that is not empty."""
    if not isinstance(value, str) or not value:
        raise InputError(f"{name}: must be text that is not empty, got {value!r}")
    return value


def names(value: object, name: str) -> tuple[str, ...]:
    """Split text at commas, except inside the path of an existing file."""
    parts = value if isinstance(value, (list, tuple)) else [value]
    words: list[str] = []
    for part in parts:
        joined = text(part, name)
        # A comma may be in a path that stands alone, after a prefix, or before a function.
        paths = (joined, joined.partition(":")[2], joined.rpartition(":")[0])
        whole = any("," in path and _exists(path) for path in paths)
        words += [joined] if whole else [word.strip() for word in joined.split(",")]
    return tuple(text(word, name) for word in words)


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except OSError:  # too long for a path
        return False


def numbers(value: object, name: str) -> tuple[float, ...]:
    """Parse numbers; text holds them joined by commas."""
    parts = value.split(",") if isinstance(value, str) else value
    parts = parts if isinstance(parts, (list, tuple)) else [parts]
    try:  # as text: true and None are no numbers
        return tuple(float(str(part)) for part in parts)
    except ValueError:
        raise InputError(
            f"{name}: must be numbers joined by commas, such as 0.1 or 0.5,0.4,0.3; got {value!r}"
        ) from None


def sizes(value: object, name: str) -> tuple[int, ...]:
    """Parse whole numbers."""
    parsed = numbers(value, name)
    if not all(size.is_integer() for size in parsed):
        raise InputError(f"{name}: must be whole numbers, such as 1,28,28; got {value!r}")
    return tuple(int(size) for size in parsed)


def single_number(value: object, name: str) -> float:
    """Parse one number."""
    return _single(numbers, value, f"{name}: must be one number")


def count(value: object, name: str) -> int:
    """Parse one whole number."""
    return _single(sizes, value, f"{name}: must be one whole number")


def _single(parse: Callable[[object, str], tuple[T, ...]], value: object, rule: str) -> T:
    try:
        (parsed,) = parse(value, "")
    except ValueError:  # unreadable, or several
        raise InputError(f"{rule}, got {value!r}") from None
    return parsed


def yes_or_no(value: object, name: str) -> bool:
    """Parse a switch: true or false, yes or no."""
    words = {"yes": True, "true": True, "no": False, "false": False}
    if str(value).lower() not in words:
        raise InputError(f"{name}: must be yes or no, got {value!r}")
    return words[str(value).lower()]


JOB_KEYS: tuple[Key, ...] = (
    Key(
        "target",
        text,
        "a network of the zoo, path/to/file.py:factory, package.module:factory, timm:NAME, or "
        "hf:NAME",
        metavar="TARGET",
    ),
    Key(
        "weights",
        text,
        "checkpoint: .safetensors, .pt, .pth, .bin, .ckpt, .th, .tar, or a list of shards",
        metavar="FILE",
    ),
    Key(
        "weights_key",
        text,
        "which of several state dicts in that file is taken: state_dict_ema, model.generator",
        metavar="NAME",
    ),
    Key(
        "prune_also",
        names,
        "prune these parameters too: a name, a glob, or a type as in MyLayer.weight",
        metavar="PATTERN",
    ),
    Key(
        "ignore",
        names,
        "leave these whole: a parameter, layer or layer type by name or glob, as fc1, '*.head', "
        "Bilinear; they take no part in the budget",
        metavar="PATTERN",
    ),
    Key(
        "output",
        text,
        "which output is compared, where there are several: logits, 0",
        metavar="NAME",
    ),
    Key(
        "tower",
        text,
        "the part that is pruned, alone: encoder, vision_model; files then hold its names",
        metavar="NAME",
    ),
    Key(
        "inputs",
        text,
        "for networks with several inputs: a .npz with one array per argument of forward; with "
        f"fewer than {FEW_EXAMPLES} examples, inputs are generated around them",
        metavar="FILE",
    ),
    Key(
        "fold_parametrizations",
        yes_or_no,
        "make weights under weight_norm, spectral_norm or a parametrization plain, which masks "
        "need (default: for hf:NAME)",
        metavar=None,
    ),
    Key(
        "allow_download", yes_or_no, "fetch the weights of timm:NAME or hf:NAME", metavar="[yes|no]"
    ),
    Key("test", text, "labelled inputs, for the final accuracy only", metavar="FILE"),
    Key(
        "input_shape", sizes, "sizes of one input without the batch axis: 1,28,28", "shape", "SIZES"
    ),
    Key("input_kind", text, "what the inputs are", "kind", listed(INPUT_KINDS)),
    Key(
        "range",
        numbers,
        "lowest and highest value that the network is fed: 0,1",
        "range",
        "LOW,HIGH",
    ),
    Key(
        "mean",
        numbers,
        "normalisation of raw values in 0 to 1, per channel or one for all",
        "mean",
        "NUMBERS",
    ),
    Key("std", numbers, "the same: what they are divided by", "std", "NUMBERS"),
    Key(
        "vocabulary",
        count,
        "number of token ids, for networks that take tokens",
        "vocabulary",
        "COUNT",
    ),
)
"""Every key of a job beside the settings."""

SPEC_KEYS = (
    Key("sparsity", numbers, "fractions of prunable weights to remove, joined by commas "
        f"(default: {','.join(map(str, DEFAULT_SPARSITIES))})", metavar="NUMBERS"),
    Key("methods", names, "names, FILE.py:FUNCTION for a criterion of your own, or "
        f"{ALL} (the default); --list-methods shows them", metavar="NAMES"),
    Key("seeds", sizes, "one row per seed for every method with randomness (default: 0)",
        metavar="NUMBERS"),
    Key("epochs", single_number, "of training at one step of a schedule; may be a fraction "
        "(default: 1)", metavar="NUMBER"),
    Key("schedule", text, f"of the method {IMP}: {', '.join(SCHEDULES)} (default: {LINEAR}), "
        f"or pairs of sparsity and epochs: 0.5:1,0.9:3; {IMP}:NAME is a method of its own",
        metavar="SCHEDULE"),
    Key("clusters", count, "values per codebook, for the method clustered (default: 16)",
        metavar="INTEGER"),
)  # fmt: skip
TRAINING_KEYS: dict[str, Key] = {  # field of `TrainingOptions` → key
    "optimiser": Key("optimiser", text, "of the training (default: adam)",
                     metavar=listed(OPTIMISERS)),
    "learning_rate": Key("train_learning_rate", single_number,
                         "step size of the optimiser (default: 0.001)", metavar="NUMBER"),
    "batch": Key("train_batch", count, "inputs per step (default: 128)", metavar="INTEGER"),
    "weight_decay": Key("weight_decay", single_number, "L2 penalty (default: 0)", metavar="NUMBER"),
    "decay": Key("decay", text, "of the learning rate (default: constant)",
                 metavar=listed(DECAYS)),
}  # fmt: skip
_TRAIN = Key("train", text, "labelled training data; a zoo network brings its own", metavar="FILE")
COMPARISON_KEYS = (*SPEC_KEYS, _TRAIN, *TRAINING_KEYS.values())
"""Every key of a comparison besides those of a job."""
