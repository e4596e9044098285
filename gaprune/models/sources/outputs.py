"""Networks with several outputs or inputs: choose one output, check that one input is enough."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import partial

from torch import Tensor, nn

from gaprune.errors import InputError


def choose_output(model: nn.Module, output: str | int) -> nn.Module:
    """Make a network return one of its outputs, in place.

    For networks that return a tuple, list, dict, dataclass or `ModelOutput`. The choice is a
    forward hook, not a wrapper module: parameters keep the names of the checkpoint, so masks and
    pruned weights fit the user's network. Copies and pickles keep the hook. A second choice
    applies inside the first: `choose_output(choose_output(model, "boxes"), 0)`.

    Args:
        model: the network; it is also returned.
        output: a key or attribute such as `logits`, or an index (negative: from the end); with
            dots, nested: `heads.0`. Text that is a whole number is an index, as on the command
            line.

    Afterwards, running the network raises `InputError` if there is no such output; the message
    lists the outputs.
    """
    model.register_forward_hook(partial(_output_hook, _parse_index(output)))
    return model


def _output_hook(output: str | int, model: nn.Module, inputs: object, outputs: object) -> object:
    # module level and bound with `partial`, so that the network can still be pickled
    return select_output(outputs, output)


def _parse_index(output: str | int) -> str | int:
    if isinstance(output, str) and output.removeprefix("-").isdecimal():
        return int(output)
    return output


def select_output(outputs: object, output: str | int) -> object:
    """Return one of a network's outputs; `heads.0` is the first item of `heads`.

    Raises:
        InputError: there is no such output; the message lists the outputs.
    """
    try:
        return _select(outputs, output)
    except (KeyError, IndexError, AttributeError, TypeError):
        # only if there is no such key: a key may contain dots itself
        outer, dot, inner = str(output).partition(".")
        if dot:
            return select_output(select_output(outputs, _parse_index(outer)), _parse_index(inner))
        raise InputError(f"output: there is no {output!r}; {describe_outputs(outputs)}") from None


def _select(outputs: object, output: str | int) -> object:
    if isinstance(output, int):
        if isinstance(outputs, Mapping):
            return list(outputs.values())[output]
        if isinstance(outputs, Sequence):
            return outputs[output]
        raise TypeError
    if isinstance(outputs, Mapping):
        return outputs[output]
    if isinstance(outputs, Tensor):  # its attributes are not outputs
        raise TypeError
    return getattr(outputs, output)


def describe_outputs(outputs: object) -> str:
    """Describe what a network returned: every output with its shape."""
    if isinstance(outputs, Tensor):
        return f"the network returns one tensor {list(outputs.shape)}; leave --output out"
    if hasattr(outputs, "_asdict"):  # a named tuple
        outputs_by_name = outputs._asdict()
    elif isinstance(outputs, Mapping):
        outputs_by_name = outputs
    elif isinstance(outputs, Sequence) and not isinstance(outputs, str):
        outputs_by_name = dict(enumerate(outputs))
    else:
        outputs_by_name = getattr(outputs, "__dict__", {})
    listed = [f"{key!r}: {_describe_value(value)}" for key, value in outputs_by_name.items()]
    return f"the network returns a {type(outputs).__name__} of {', '.join(listed) or 'nothing'}"


def _describe_value(value: object) -> str:
    if isinstance(value, Tensor):
        return f"tensor {list(value.shape)}"
    if isinstance(value, Mapping | Sequence) and not isinstance(value, str):
        return f"{type(value).__name__} of {len(value)}"
    return type(value).__name__


def check_one_input(model: nn.Module) -> None:
    """Raise unless `model` can be called with one tensor, judging by its signature.

    Raises:
        InputError: its forward needs several inputs (the message names them), or none.
    """
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):  # compiled code has no signature
        return
    needed = [
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    by_position = any(
        p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL) for p in parameters
    )
    kind = type(model).__name__
    if len(needed) > 1:
        raise InputError(
            f"model: forward of {kind} needs {len(needed)} inputs ({', '.join(needed)}), but "
            "gaprune passes one tensor; write a factory that returns a module whose forward takes "
            "one tensor and derives the others from it (a mask, a length) or holds them fixed"
        )
    if not by_position:
        raise InputError(
            f"model: forward of {kind} takes no input by position; write a factory that "
            "returns a module whose forward takes one tensor"
        )
