"""Networks with several parts, outputs or inputs: choose one, check that one input is enough."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import partial

from torch import Tensor, nn

from gaprune.errors import InputError


def choose_output(model: nn.Module, output: str | int) -> nn.Module:
    """Make a network return one of its outputs, in place.

    The choice is a forward hook, not a wrapper module: parameters keep the names of the checkpoint,
    so masks and pruned weights fit the user's network. Copies and pickles keep the hook. A second
    choice applies inside the first: `choose_output(choose_output(model, "boxes"), 0)`.

    `output` is a key or attribute such as `logits`, or an index (negative: from the end), also as
    text; with dots, nested: `heads.0`. Running the network raises `InputError` if there is none.
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
    """Return one of a network's outputs; if there is none, raise `InputError` with a list."""
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


def choose_tower(model: nn.Module, tower: str) -> nn.Module:
    """Return a part of a network, such as the encoder of a pair.

    `tower` is the part's name with dots, or the end of it: `encoder` for `model.encoder`.

    Raises:
        InputError: there is no such part, or several of the same depth.
    """
    parts: dict[str, nn.Module] = dict(model.named_modules())
    if tower in parts:
        return parts[tower]
    matches = [name for name in parts if name.endswith(f".{tower}")]
    outermost = min((name.count(".") for name in matches), default=0)
    matches = [name for name in matches if name.count(".") == outermost]
    if len(matches) == 1:
        return parts[matches[0]]
    listed = matches or tower_names(model) or [name for name, _ in model.named_children()]
    raise InputError(
        f"tower: {type(model).__name__} has {'several parts' if matches else 'no part'} {tower!r}; "
        f"name one of {', '.join(listed)}"
    )


def tower_names(model: nn.Module) -> list[str]:
    """Return the names of the parts of a network of transformers that are networks themselves."""
    # transformers' attribute of everything that takes inputs of its own
    names = [name for name, part in model.named_modules() if hasattr(part, "main_input_name")]
    return [n for n in names if n and not any(other.startswith(f"{n}.") for other in names)]


def check_one_input(model: nn.Module) -> None:
    """Raise `InputError` unless the signature of `model` permits calls with one tensor."""
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):  # compiled code has no signature
        return
    try:
        signature.bind("one input")
    except TypeError as error:
        needed = [
            parameter.name
            for parameter in signature.parameters.values()
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        ]
        raise InputError(
            f"model: gaprune passes one tensor by position, but forward of {type(model).__name__} "
            f"needs {', '.join(needed)}; state examples with --inputs (gaprune prune only), or "
            "wrap it in a module whose forward takes one tensor"
        ) from error
