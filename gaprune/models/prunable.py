"""Which parameters of a network can be pruned, and why a network cannot be pruned."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from gaprune.errors import InputError

# Layer type → attributes that hold its prunable weights; subclasses count as their base.
PRUNABLE_LAYERS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: ("weight",),
    nn.Conv1d: ("weight",),
    nn.Conv2d: ("weight",),
    nn.Conv3d: ("weight",),
    nn.ConvTranspose1d: ("weight",),
    nn.ConvTranspose2d: ("weight",),
    nn.ConvTranspose3d: ("weight",),
    # The output projection is a Linear of its own. The input projections are one packed weight,
    # or three if key or value sizes differ.
    nn.MultiheadAttention: ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"),
}

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_MAX_LISTED = 5  # names listed in a message

# Hooks that recompute a weight before every forward: hook type → its attribute with the weight's
# name, what it does, and the function of torch.nn.utils that makes the weight plain again.
_REWRITING_HOOKS: dict[type, tuple[str, str, str]] = {
    BasePruningMethod: ("_tensor_name", "is already pruned", "prune.remove"),
    WeightNorm: ("name", "uses weight normalisation", "remove_weight_norm"),
    SpectralNorm: ("name", "uses spectral normalisation", "remove_spectral_norm"),
}
_CALL = "{}; call torch.nn.utils.{}(module, {!r}) first"
_QUANTISED = tuple(f"torch.ao.nn.{part}quantized" for part in ("", "intrinsic.", "sparse."))


def find_prunable(model: nn.Module, extra: Sequence[str] = ()) -> dict[str, nn.Parameter]:
    """Return the prunable parameters by qualified name, in order of registration.

    These are the weights in `PRUNABLE_LAYERS`; biases, norms, embeddings and others only if `extra`
    names them, such as `fc1.bias`. A parameter with several names appears once, under the first
    (`torch.func.functional_call` then masks every use of it).

    Raises:
        InputError: `check_prunable` raises it, `extra` holds an unknown name, or nothing is
            prunable.
    """
    check_prunable(model)
    prunable = {
        id(getattr(module, attribute))
        for module in model.modules()
        for layer, attributes in PRUNABLE_LAYERS.items()
        if isinstance(module, layer)
        for attribute in attributes
    }
    prunable |= {id(parameter) for parameter in _named_parameters(model, extra)}
    parameters = {
        name: parameter
        for name, parameter in model.named_parameters()
        # by identity: a tied parameter is listed once, under its first name
        if id(parameter) in prunable and parameter.numel()
    }
    if not parameters:
        layers = ", ".join(layer.__name__ for layer in PRUNABLE_LAYERS)
        names = [name for name, _ in model.named_parameters()][:_MAX_LISTED]
        listed = f" (such as {', '.join(names)})" if names else ", of which it has none"
        raise InputError(
            f"model: {type(model).__name__} has no layer that can be pruned ({layers}); "
            f"name other parameters in prune_also{listed}"
        )
    return parameters


def check_prunable(model: nn.Module) -> None:
    """Raise `InputError` unless every parameter and buffer of `model` is plain and finite.

    −Inf is permitted in buffers: attention masks contain it.
    """
    check_structure(model)
    for name, parameter in model.named_parameters():
        _check_finite("parameter", name, parameter, torch.isfinite(parameter))
    for name, buffer in model.named_buffers():
        # integer buffers, such as counters, cannot be infinite
        if buffer.layout == torch.strided and buffer.dtype in DTYPES:
            _check_finite("buffer", name, buffer, torch.isfinite(buffer) | torch.isneginf(buffer))


def check_structure(model: nn.Module) -> None:
    """Raise unless weights of `model` can be read and replaced, whatever their values.

    Raises:
        InputError: not a module, TorchScript, quantised, pruned, parametrised or normalised layers,
            tensors without plain values; a parameter whose type is not in `DTYPES`.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model: must be a torch.nn.Module, got {type(model).__name__}")
    for path, module in model.named_modules():
        if problem := next(_module_problems(module), None):
            label = f"layer {path!r}" if path else "the network"
            raise InputError(f"model: {label} ({type(module).__name__}) {problem}")
    for name, parameter in model.named_parameters():
        if problem := next(_parameter_problems(parameter), None):
            raise InputError(f"model: parameter {name!r} {problem}")
    for name, buffer in model.named_buffers():
        if problem := next(_tensor_problems(buffer), None):
            raise InputError(f"model: buffer {name!r} {problem}")


def _named_parameters(model: nn.Module, names: Sequence[str]) -> Iterator[nn.Parameter]:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name in (names,) if isinstance(names, str) else names:
        if name not in parameters:
            near = difflib.get_close_matches(str(name), parameters, n=_MAX_LISTED, cutoff=0.4)
            listed = ", ".join(near or list(parameters)[:_MAX_LISTED]) or "none"
            raise InputError(
                f"prune_also: the network has no parameter {name!r}; "
                f"nearest of its {len(parameters)} parameters: {listed}"
            )
        yield parameters[name]


def _check_finite(kind: str, name: str, tensor: Tensor, permitted: Tensor) -> None:
    bad = tensor.numel() - int(permitted.count_nonzero())
    if bad:  # counted only now: a second pass over every tensor would take time
        nan = int(torch.isnan(tensor).count_nonzero())
        raise InputError(
            f"model: {kind} {name!r} must be finite, but {nan} of its {tensor.numel()} values are "
            f"NaN and {bad - nan} are infinite; load a sound checkpoint"
        )


def _module_problems(module: nn.Module) -> Iterator[str]:
    if isinstance(module, torch.jit.ScriptModule):
        yield "is TorchScript, whose weights cannot be replaced; pass the Python module instead"
    if type(module).__module__.startswith(_QUANTISED):
        yield "is quantised: its weights are packed integers; prune the network before quantising"
    # these hooks would overwrite masked weights before every forward pass
    for hook in module._forward_pre_hooks.values():
        for kind, (attribute, problem, remedy) in _REWRITING_HOOKS.items():
            if isinstance(hook, kind):
                yield _CALL.format(problem, remedy, getattr(hook, attribute))
    # torch's pruning leaves these names behind even if its hook is lost, as after unpickling
    for leaf in module._parameters:
        stem = leaf.removesuffix("_orig")
        if stem != leaf and f"{stem}_mask" in module._buffers:
            yield _CALL.format(*_REWRITING_HOOKS[BasePruningMethod][1:], stem)
    if parametrize.is_parametrized(module):
        leaf = next(iter(module.parametrizations))  # type: ignore[arg-type]
        yield _CALL.format("is parametrised", "parametrize.remove_parametrizations", leaf)


def _tensor_problems(tensor: Tensor) -> Iterator[str]:
    if is_lazy(tensor):
        yield "is lazy: it has no shape yet; run the network once on an input first"
    if tensor.is_meta:
        yield "is on the meta device: it has a shape but no values; build the network on the CPU"
    # tensor subclasses that wrap others (quantised by torchao, DTensor) define this method
    if hasattr(tensor, "__tensor_flatten__") or tensor.is_quantized:
        yield (
            f"is a {type(tensor).__name__} of {tensor.dtype}, quantised or distributed; "
            "only plain tensors can be pruned: pass the network before it was converted"
        )


def _parameter_problems(tensor: Tensor) -> Iterator[str]:
    yield from _tensor_problems(tensor)
    if tensor.layout != torch.strided:
        yield f"is stored as {tensor.layout}; make it dense with .to_dense() first"
    if tensor.dtype not in DTYPES:
        names = ", ".join(map(str, DTYPES))
        yield (
            f"is {tensor.dtype}, an integer, quantised or complex type; weights must be one of "
            f"{names}: pass the network before it was converted"
        )
