"""Find the network's weights in what a trainer saved: below which key, behind which prefix.

Several state dicts in one file are common: an average (EMA) beside the raw weights, a generator
beside its discriminator. Where a known loader has a rule, its rule is followed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor

from gaprune.errors import InputError
from gaprune.io.bounded_reading import MAX_DEPTH

OPTION = "--weights-key"
# The first that is there is taken. Averages come first, as in the loaders of timm
# (`state_dict_ema`, `model_ema`), BasicSR (`params_ema`), YOLO (`ema`) and DINO (`teacher`).
# mmengine is the exception: its `ema_state_dict` holds the raw weights beside the average.
_PREFERRED = (
    *("state_dict_ema", "model_ema", "params_ema", "ema", "state_dict", "model"),
    *("model_state_dict", "params", "module", "net", "network", "teacher"),
)
_MAX_LISTED = 5  # names listed in a message


class LoadedWeights(NamedTuple):
    """The weights in a file."""

    state: dict[str, Tensor]
    origin: str  # "weights from FILE", and under which key where the file holds several


def select_state(content: object, key: str | None) -> tuple[object, str]:
    """Return the state dict in the content of a file, and in words which one if there are several.

    Args:
        content: what was unpickled: a state dict, or mappings that hold one or several.
        key: the user's choice: a key, keys joined by dots, or a prefix of names; None for a choice
            by `_PREFERRED`.

    Raises:
        InputError: `key` is not in it, or several unknown keys hold a state dict.
    """
    prefix, origin = "", ""
    if key is not None:
        content, prefix = _follow(content, key)
        origin = f", {key!r}"
    for _ in range(MAX_DEPTH):  # a pickled dictionary may contain itself
        if not isinstance(content, Mapping):
            break
        nested = [name for name, value in content.items() if _holds_weights(value, set())]
        choice = next((name for name in _PREFERRED if name in nested), None)
        if choice is None and (not nested or _is_plain(content)):
            break
        if choice is None and len(nested) > 1:
            raise InputError(
                f"weights: it holds several state dicts ({some(map(str, nested))}); choose one "
                f"with {OPTION}"
            )
        choice = choice or nested[0]
        if others := [str(name) for name in nested if name != choice]:
            origin += f", {choice!r} and not {some(map(repr, others))} ({OPTION} chooses another)"
        content = content[choice]
    if prefix and isinstance(content, Mapping):
        named = {name: v for name, v in content.items() if str(name).startswith(prefix)}
        if not named:
            raise InputError(
                f"weights: it has no key or prefix {key!r}; it holds {some(map(str, content))}"
            )
        content = {name.removeprefix(prefix): value for name, value in named.items()}
    return content, origin


def without_prefix(
    state: Mapping[str, Tensor], wanted: Iterable[Iterable[str]]
) -> tuple[dict[str, Tensor], list[str]]:
    """Return a state dict without what a trainer's wrapper put in front of the network's names.

    A LightningModule, for instance, names its network `model`, and may hold a loss as well: the
    names of such other parts are returned, too.

    Args:
        state: the names in the file.
        wanted: for every tensor of the network its names, any of which will do.

    Raises:
        InputError: several parts of the file fit the network, or one that is the smaller part.
    """
    groups = [list(names) for names in wanted]
    endings = {f".{name}" for name in groups[0]} if groups else set()
    prefixes = {
        name.removesuffix(ending[1:])
        for ending in endings
        for name in state
        if name.endswith(ending)
    }
    fitting = sorted(
        prefix
        for prefix in prefixes
        if all(any(prefix + name in state for name in names) for names in groups)
    )
    if not fitting:
        return dict(state), []
    parts = [
        {name.removeprefix(prefix): v for name, v in state.items() if name.startswith(prefix)}
        for prefix in fitting
    ]
    if len(parts) > 1 or 2 * len(parts[0]) < len(state):
        listed = some(prefix.removesuffix(".") for prefix in fitting)
        raise InputError(
            f"weights: the network fits a part of the file, under {listed}; state it with {OPTION}"
        )
    return parts[0], [name for name in state if not name.startswith(fitting[0])]


def some(items: Iterable[str]) -> str:
    """Return the first of some names, joined by commas, and how many others there are."""
    listed = list(items)
    more = f" and {len(listed) - _MAX_LISTED} more" if len(listed) > _MAX_LISTED else ""
    return ", ".join(listed[:_MAX_LISTED]) + more


def _follow(content: object, key: str) -> tuple[object, str]:
    """Return the mapping that a key leads to, or everything and the prefix that it may be."""
    inner, rest = content, key
    while rest and isinstance(inner, Mapping):
        # the longest first: a key may contain dots itself
        names = [str(name) for name, value in inner.items() if isinstance(value, Mapping)]
        fitting = [name for name in names if name in inner and f"{rest}.".startswith(f"{name}.")]
        if not fitting:
            break
        name = max(fitting, key=len)
        inner, rest = inner[name], rest[len(name) + 1 :]
    return inner, f"{rest}." if rest else ""


def _is_plain(content: Mapping[object, object]) -> bool:
    """Tell whether tensors with names of layers are in it, such as `conv.weight`."""
    return any(
        isinstance(name, str) and "." in name and isinstance(value, Tensor)
        for name, value in content.items()
    )


def _holds_weights(value: object, seen: set[int]) -> bool:
    """Tell whether a state dict is in it; those of optimizers and random generators are not."""
    if not isinstance(value, Mapping) or "param_groups" in value or id(value) in seen:
        return False
    seen.add(id(value))
    if not all(isinstance(name, str) for name in value):
        return False
    return any(
        value.is_floating_point() and value.ndim > 0
        if isinstance(value, Tensor)
        else _holds_weights(value, seen)
        for value in value.values()
    )
