"""Which parameters of a network can be pruned, and what stands in the way of pruning it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from gaprune.errors import InputError

# Which attributes of which layers hold the weights. Subclasses count as their base.
PRUNABLE_LAYERS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: ("weight",),
    nn.Conv1d: ("weight",),
    nn.Conv2d: ("weight",),
    nn.Conv3d: ("weight",),
    nn.ConvTranspose1d: ("weight",),
    nn.ConvTranspose2d: ("weight",),
    nn.ConvTranspose3d: ("weight",),
    # the output projection is a Linear of its own; the input ones are packed unless sizes differ
    nn.MultiheadAttention: ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"),
}

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_SHOWN = 5  # names listed in a message

# Hooks that recompute a weight before every forward: hook type → the attribute that holds the
# weight's name, what the layer is, and the call that makes it plain again.
_REWRITING_HOOKS: dict[type, tuple[str, str, str]] = {
    BasePruningMethod: (
        "_tensor_name",
        "is already pruned with torch.nn.utils.prune",
        "torch.nn.utils.prune.remove(module, {leaf!r})",
    ),
    WeightNorm: (
        "name",
        "is under weight normalisation (torch.nn.utils.weight_norm)",
        "torch.nn.utils.remove_weight_norm(module, {leaf!r})",
    ),
    SpectralNorm: (
        "name",
        "is under spectral normalisation (torch.nn.utils.spectral_norm)",
        "torch.nn.utils.remove_spectral_norm(module, {leaf!r})",
    ),
}

_QUANTISED_MODULES = (
    "torch.ao.nn.quantized",
    "torch.ao.nn.intrinsic.quantized",
    "torch.ao.nn.sparse.quantized",
)


def find_prunable(model: nn.Module, extra: Sequence[str] = ()) -> dict[str, nn.Parameter]:
    """Return the parameters that can be pruned, by qualified name, in order of registration.

    These are the weights of linear layers, of convolutions and transposed convolutions in one to
    three dimensions, and the four projections of `nn.MultiheadAttention`; biases, norms, embeddings
    and all others only when named. A parameter that is used under several names comes once, under
    its first (`torch.func.functional_call` then masks every use of it).

    Args:
        model: any module; nothing in it is changed.
        extra: qualified names of further parameters, such as `fc1.bias`.

    Raises:
        InputError: `check_prunable` objects, `extra` holds an unknown name, or nothing is left to
            prune.
    """
    check_prunable(model)
    wanted = {id(parameter) for parameter in _layer_weights(model)}
    wanted |= {id(parameter) for parameter in _named_extras(model, extra)}
    found = {
        name: parameter
        for name, parameter in model.named_parameters()
        if id(parameter) in wanted and parameter.numel()
    }
    if not found:
        layers = ", ".join(layer.__name__ for layer in PRUNABLE_LAYERS)
        others = [name for name, _ in model.named_parameters()]
        listed = f" (such as {', '.join(others[:_SHOWN])})" if others else ", of which it has none"
        raise InputError(
            f"model: {type(model).__name__} has no layer that can be pruned ({layers}); "
            f"name other parameters in prune_also{listed}"
        )
    return found


def check_prunable(model: nn.Module) -> None:
    """Raise unless every parameter and buffer of `model` is plain, present and finite.

    Raises:
        InputError: `check_structure` objects; a parameter holds NaN or Inf; a buffer holds NaN or
            +Inf (−Inf is allowed there: attention masks are made of it). The message names it.
    """
    check_structure(model)
    for name, parameter in model.named_parameters():
        _check_finite("parameter", name, parameter, torch.isfinite(parameter))
    for name, buffer in model.named_buffers():
        if buffer.layout == torch.strided and buffer.dtype in DTYPES:
            _check_finite("buffer", name, buffer, torch.isfinite(buffer) | torch.isneginf(buffer))


def check_structure(model: nn.Module) -> None:
    """Raise unless weights can be read and replaced in `model`, whatever their values.

    Raises:
        InputError: not a module; TorchScript; a layer that is quantised, pruned, parametrised or
            under a weight or spectral norm; a parameter or buffer that is lazy, on the meta device,
            quantised or sparse; a parameter that is not float16, bfloat16, float32 or float64. The
            message names the layer and the way out.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model: must be a torch.nn.Module, got {type(model).__name__}")
    for path, module in model.named_modules():
        label = f"layer {path!r}" if path else "the network"
        for module_rule in _MODULE_RULES:
            if complaint := module_rule(module):
                raise InputError(f"model: {label} ({type(module).__name__}) {complaint}")
    for kind, name, tensor in _tensors(model):
        for tensor_rule in _TENSOR_RULES[kind]:
            if complaint := tensor_rule(tensor):
                raise InputError(f"model: {kind} {name!r} {complaint}")


def _layer_weights(model: nn.Module) -> Iterator[nn.Parameter]:
    for module in model.modules():
        for layer, attributes in PRUNABLE_LAYERS.items():
            if isinstance(module, layer):
                weights = (getattr(module, attribute) for attribute in attributes)
                yield from (weight for weight in weights if isinstance(weight, nn.Parameter))


def _named_extras(model: nn.Module, extra: Sequence[str]) -> Iterator[nn.Parameter]:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name in (extra,) if isinstance(extra, str) else extra:
        if name not in parameters:
            near = difflib.get_close_matches(str(name), parameters, n=_SHOWN, cutoff=0.4)
            listed = ", ".join(near or list(parameters)[:_SHOWN]) or "none"
            raise InputError(
                f"prune_also: the network has no parameter {name!r}; "
                f"nearest of its {len(parameters)} parameters: {listed}"
            )
        yield parameters[name]


def _tensors(model: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    yield from (("parameter", name, tensor) for name, tensor in model.named_parameters())
    yield from (("buffer", name, tensor) for name, tensor in model.named_buffers())


def _check_finite(kind: str, name: str, tensor: Tensor, sound: Tensor) -> None:
    bad = tensor.numel() - int(sound.count_nonzero())
    if bad:
        nan = int(torch.isnan(tensor).count_nonzero())
        raise InputError(
            f"model: {kind} {name!r} must be finite, but {nan} of its {tensor.numel()} values are "
            f"NaN and {bad - nan} are infinite; load a sound checkpoint"
        )


def _scripted(module: nn.Module) -> str | None:
    if isinstance(module, torch.jit.ScriptModule):
        return "is TorchScript, whose weights cannot be replaced; pass the Python module instead"
    return None


def _quantised_layer(module: nn.Module) -> str | None:
    if type(module).__module__.startswith(_QUANTISED_MODULES):
        return "is quantised: its weights are packed integers; prune the network before quantising"
    return None


def _rewritten(module: nn.Module) -> str | None:
    for hook in module._forward_pre_hooks.values():
        for kind, (attribute, what, remedy) in _REWRITING_HOOKS.items():
            if isinstance(hook, kind):
                call = remedy.format(leaf=getattr(hook, attribute))
                return f"{what}; call {call} first"
    return None


def _pruned(module: nn.Module) -> str | None:
    for leaf in module._parameters:
        stem = leaf.removesuffix("_orig")
        if stem != leaf and f"{stem}_mask" in module._buffers:
            return (
                "is already pruned with torch.nn.utils.prune; "
                f"call torch.nn.utils.prune.remove(module, {stem!r}) first"
            )
    return None


def _parametrised(module: nn.Module) -> str | None:
    if not parametrize.is_parametrized(module):
        return None
    leaf = next(iter(module.parametrizations))  # type: ignore[arg-type]
    return (
        "is parametrised (torch.nn.utils.parametrize); call "
        f"torch.nn.utils.parametrize.remove_parametrizations(module, {leaf!r}) first"
    )


def _lazy(tensor: Tensor) -> str | None:
    if is_lazy(tensor):
        return "is lazy: it has no shape yet; run the network once on an input first"
    return None


def _meta(tensor: Tensor) -> str | None:
    if tensor.is_meta:
        return "is on the meta device: it has a shape but no values; build the network on the CPU"
    return None


def _wrapped(tensor: Tensor) -> str | None:
    if hasattr(tensor, "__tensor_flatten__") or tensor.is_quantized:
        return (
            f"is a {type(tensor).__name__} of {tensor.dtype}, quantised or distributed; "
            "only plain tensors can be pruned: take the network before it was converted"
        )
    return None


def _not_floating(tensor: Tensor) -> str | None:
    if tensor.dtype not in DTYPES:
        names = ", ".join(str(dtype) for dtype in DTYPES)
        return (
            f"is {tensor.dtype}, an integer, quantised or complex type; weights must be one of "
            f"{names}: take the network before it was converted"
        )
    return None


def _sparse(tensor: Tensor) -> str | None:
    if tensor.layout != torch.strided:
        return f"is stored as {tensor.layout}; make it dense with .to_dense() first"
    return None


_MODULE_RULES: tuple[Callable[[nn.Module], str | None], ...] = (
    _scripted,
    _quantised_layer,
    _rewritten,
    _pruned,
    _parametrised,
)
_TENSOR_RULES: dict[str, tuple[Callable[[Tensor], str | None], ...]] = {
    "parameter": (_lazy, _meta, _wrapped, _sparse, _not_floating),
    "buffer": (_lazy, _meta, _wrapped),
}
