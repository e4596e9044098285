"""Kinds of layers whose weights are prunable, and which axes of a weight are outputs and inputs."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import NamedTuple

import torch
from torch import nn

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


_QUANTISED = tuple(f"torch.ao.nn.{part}quantized" for part in ("", "intrinsic.", "sparse."))


class LayerKind(NamedTuple):
    """A kind of layer: the names of its prunable weights, and the axes of each.

    `rows` are the axes whose indices together name one output, of one expert if there are several;
    an output reads everything along the other axes. `inputs` is the axis of the input channels.
    """

    weights: tuple[str, ...] = ("weight",)  # names or patterns
    rows: tuple[int, ...] = (0,)
    inputs: int = 1
    in_groups: bool = True  # whether N:M patterns group the inputs


HF_CONV1D = "transformers.pytorch_utils.Conv1D"  # of GPT-2: a linear layer, weight [in, out]
_TRANSPOSED = LayerKind(rows=(1,), inputs=0)
# Of the four gates of an LSTM, or the three of a GRU; `hr` projects the hidden state.
_RECURRENT = LayerKind(("weight_ih*", "weight_hh*", "weight_hr*"))
# Layer type, or its full name where its package may be missing → its kind. Subclasses count.
LAYER_KINDS: dict[type[nn.Module] | str, LayerKind] = {
    nn.Linear: LayerKind(),
    nn.Conv1d: LayerKind(),
    nn.Conv2d: LayerKind(),
    nn.Conv3d: LayerKind(),
    nn.ConvTranspose1d: _TRANSPOSED,
    nn.ConvTranspose2d: _TRANSPOSED,
    nn.ConvTranspose3d: _TRANSPOSED,
    # The output projection is a Linear of its own. The input projections are one packed weight,
    # or three if key or value sizes differ.
    nn.MultiheadAttention: LayerKind(
        ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"), in_groups=False
    ),
    nn.RNNBase: _RECURRENT,
    nn.RNNCellBase: _RECURRENT,
    nn.Bilinear: LayerKind(inputs=2),
    HF_CONV1D: _TRANSPOSED,
}
_PLAIN = LayerKind()
# One matrix per expert: [experts, outputs, inputs], or with the last two exchanged.
_EXPERTS = LayerKind(("*",), rows=(0, 1), inputs=2)
_TRANSPOSED_EXPERTS = LayerKind(("*",), rows=(0, 2), inputs=1)
_TRANSPOSED_CLASSES = ("Llama4TextExperts",)  # do not say so themselves


def qualified_name(path: str, leaf: str) -> str:
    """Return the name of a parameter or child of a module; the path of the network is empty."""
    return f"{path}.{leaf}" if path else leaf


def layer_kind(module: nn.Module) -> LayerKind | None:
    """Return the kind of a layer, or None if its weights are not in `LAYER_KINDS`."""
    for layer, kind in LAYER_KINDS.items():
        if is_layer(module, layer):
            # Grouped transposed convolutions are [in, out / groups, …]; only `in` has all channels.
            is_grouped = kind is _TRANSPOSED and getattr(module, "groups", 1) != 1
            return kind._replace(rows=(0,), inputs=1) if is_grouped else kind
    return None


def is_quantised(module: nn.Module) -> bool:
    """Return whether a module computes with packed integers (`torch.ao.nn.quantized`)."""
    return type(module).__module__.startswith(_QUANTISED)


def is_layer(module: nn.Module, layer: type[nn.Module] | str) -> bool:
    """Return whether a module is of a type, also given by its full name, or of a subclass."""
    if isinstance(layer, type):
        return isinstance(module, layer)
    return any(f"{base.__module__}.{base.__qualname__}" == layer for base in type(module).__mro__)


def weight_kind(model: nn.Module, name: str) -> LayerKind | None:
    """Return the kind of a parameter by its qualified name; None if it is not prunable by default.

    Three-dimensional weights of experts are recognised by the name of their class or their own.
    """
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    kind = layer_kind(module)
    if kind is not None:
        return kind if any(fnmatchcase(leaf, pattern) for pattern in kind.weights) else None
    parameter = getattr(module, leaf)  # of TorchScript, a plain tensor
    is_matrices = parameter.ndim == 3 and 1 not in parameter.shape[1:] and "bias" not in leaf
    if parameter.dtype not in DTYPES or not is_matrices:
        return None
    if "expert" not in f"{type(module).__name__} {name}".lower():
        return None
    # transformers states the orientation of its experts in this attribute
    transposed = getattr(module, "is_transposed", type(module).__name__ in _TRANSPOSED_CLASSES)
    return _TRANSPOSED_EXPERTS if transposed else _EXPERTS


def weight_axes(model: nn.Module, name: str) -> LayerKind:
    """Return the kind of any parameter; one that is not prunable by default has rows on axis 0."""
    return weight_kind(model, name) or _PLAIN
