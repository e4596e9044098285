"""Networks with several outputs or inputs: one tensor goes in, one comes out."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import partial

from torch import Tensor, nn

from gaprune.errors import InputError


def choose_output(model: nn.Module, output: str | int) -> nn.Module:
    """Let a network return one of its outputs, in place.

    For networks that return a tuple, a list, a dict, a dataclass or a `ModelOutput`. The choice is
    a forward hook, not a module around the network: parameters keep the names of the checkpoint, so
    masks and pruned weights fit the network that the user knows. Copies and pickles of the network
    take it along. Chosen twice, the second choice is made inside the first:
    `choose_output(choose_output(model, "boxes"), 0)`.

    Args:
        model: the network; it is returned too.
        output: a key or attribute such as `logits`, or a place from 0 (negative: from the end);
            with dots, one inside another: `heads.0`. Text that is a whole number is a place, as it
            comes from a command line.

    Once chosen, running the network raises `InputError` where there is no such output; the message
    lists what there is.
    """
    model.register_forward_hook(partial(_chosen, _as_place(output)))
    return model


def _chosen(output: str | int, model: nn.Module, inputs: object, outputs: object) -> object:
    """Return the chosen one of `outputs`: a forward hook, once `output` is bound."""
    return select_output(outputs, output)


def _as_place(output: str | int) -> str | int:
    if isinstance(output, str) and output.removeprefix("-").isdecimal():
        return int(output)
    return output


def select_output(outputs: object, output: str | int) -> object:
    """Return one of a network's outputs; `heads.0` is the first of what `heads` holds.

    Raises:
        InputError: there is no such output; the message lists what there is.
    """
    try:
        return _pick(outputs, output)
    except (KeyError, IndexError, AttributeError, TypeError):
        outer, dot, inner = str(output).partition(".")
        if dot:
            return select_output(select_output(outputs, _as_place(outer)), _as_place(inner))
        raise InputError(f"output: there is no {output!r}; {describe_outputs(outputs)}") from None


def _pick(outputs: object, output: str | int) -> object:
    if isinstance(output, int):
        if isinstance(outputs, Mapping):
            return list(outputs.values())[output]
        if isinstance(outputs, Sequence):
            return outputs[output]
        raise TypeError
    if isinstance(outputs, Mapping):
        return outputs[output]
    if isinstance(outputs, Tensor):  # has attributes, but they are no outputs
        raise TypeError
    return getattr(outputs, output)


def describe_outputs(outputs: object) -> str:
    """Say in words what a network returned: every output with its shape."""
    if isinstance(outputs, Tensor):
        return f"the network returns one tensor {list(outputs.shape)}; leave --output out"
    if isinstance(outputs, Mapping):
        held = [f"{key!r}: {_one(value)}" for key, value in outputs.items()]
    elif hasattr(outputs, "_asdict"):  # a named tuple
        held = [f"{key!r}: {_one(value)}" for key, value in outputs._asdict().items()]
    elif isinstance(outputs, Sequence) and not isinstance(outputs, str):
        held = [f"{place}: {_one(value)}" for place, value in enumerate(outputs)]
    elif hasattr(outputs, "__dict__"):
        held = [f"{key!r}: {_one(value)}" for key, value in vars(outputs).items()]
    else:
        held = []
    return f"the network returns a {type(outputs).__name__} of {', '.join(held) or 'nothing'}"


def _one(value: object) -> str:
    if isinstance(value, Tensor):
        return f"tensor {list(value.shape)}"
    if isinstance(value, Mapping | Sequence) and not isinstance(value, str):
        return f"{type(value).__name__} of {len(value)}"
    return type(value).__name__


def check_one_input(model: nn.Module) -> None:
    """Raise unless `model` can be called with one tensor, as far as its signature tells.

    Raises:
        InputError: its forward needs several inputs (the message names them), or none.
    """
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):  # compiled code has no signature
        return
    needed = [
        one.name
        for one in parameters
        if one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
    ]
    positional = [
        one.name
        for one in parameters
        if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD, one.VAR_POSITIONAL)
    ]
    kind = type(model).__name__
    if len(needed) > 1:
        raise InputError(
            f"model: forward of {kind} needs {len(needed)} inputs ({', '.join(needed)}), but one "
            "tensor is shown to it; write a factory that returns a module whose forward takes one "
            "tensor and makes the others of it (a mask, a length) or holds them fixed"
        )
    if not positional:
        raise InputError(
            f"model: forward of {kind} takes no input by position; write a factory that "
            "returns a module whose forward takes one tensor"
        )
