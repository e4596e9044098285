"""Which parameters of a network can be pruned, and why a network cannot be pruned."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.prune import BasePruningMethod

from gaprune.errors import InputError
from gaprune.models.layer_kinds import DTYPES, LAYER_KINDS, is_quantised, weight_kind
from gaprune.models.name_patterns import matching_parameters
from gaprune.models.parametrizations import computed_weights

_MAX_LISTED = 5  # names listed in a message

_CALL = "call torch.nn.utils.{}(module, {!r}) first"
_SCRIPTED = "is TorchScript, whose weights cannot be replaced"


def find_prunable(
    model: nn.Module, extra: str | Sequence[str] = (), ignore: str | Sequence[str] = ()
) -> dict[str, nn.Parameter]:
    """Return the prunable parameters by qualified name, in order of registration.

    These are the weights of `LAYER_KINDS` and of experts; biases, norms, embeddings and others only
    if a pattern of `extra` fits them, such as `fc1.bias` (see `matching_parameters`). The output
    head and tied embeddings of a language model count as others too. What a pattern of `ignore`
    fits is left out, unless `extra` holds its full name. A parameter with several names appears
    once, under the first (`torch.func.functional_call` then masks every use of it).

    Raises:
        InputError: `check_prunable` raises it, a pattern fits nothing, a name is in both, or
            nothing is prunable.
    """
    check_prunable(model)
    named = dict(model.named_parameters(remove_duplicate=False))
    stated, left_out = _patterns(extra), _patterns(ignore)
    if both := [name for name in stated if name in left_out]:
        raise InputError(f"ignore: {both[0]!r} is in prune_also too; leave one of them out")
    asked = {
        id(named[name])
        for names in matching_parameters(model, stated, "prune_also").values()
        for name in names
    }
    ignored = {
        id(named[name])
        for names in matching_parameters(model, left_out, "ignore").values()
        for name in names
    }
    ignored -= {id(named[name]) for name in stated if name in named}
    default = {id(parameter) for name, parameter in named.items() if weight_kind(model, name)}
    unfit = dict(_unfit_parameters(model))
    for name in stated:
        if name in named and id(named[name]) in unfit:
            raise InputError(f"prune_also: parameter {name!r} {unfit[id(named[name])]}")
    prunable = (default - _language_model_ends(model) | asked) - ignored - unfit.keys()
    parameters = {
        name: parameter
        for name, parameter in model.named_parameters()
        # by identity: a tied parameter is listed once, under its first name
        if id(parameter) in prunable and parameter.numel()
    }
    if not parameters:
        for name, parameter in named.items():
            if id(parameter) in unfit and id(parameter) in default:
                raise InputError(f"model: parameter {name!r} {unfit[id(parameter)]}")
        if foreign := next(_foreign_modules(model), None):
            raise InputError(f"model: layer {foreign[0]!r} {foreign[1]}, and no other is prunable")
        kinds = ", ".join(
            kind.rpartition(".")[2] if isinstance(kind, str) else kind.__name__
            for kind in LAYER_KINDS
        )
        names = list(named)[:_MAX_LISTED]
        listed = f" (such as {', '.join(names)})" if names else ", of which it has none"
        raise InputError(
            f"model: {type(model).__name__} has no layer that can be pruned ({kinds}); "
            f"name other parameters in prune_also{listed}"
        )
    return parameters


def parameters_left_whole(
    model: nn.Module, prunable: Iterable[str], ignore: Sequence[str] = ()
) -> dict[str, int]:
    """Return floating-point parameters that are not prunable → their size, largest first.

    Those that fit a pattern of `ignore` were left whole on purpose and are missing.
    """
    known = {id(model.get_parameter(name)) for name in prunable}
    for names in matching_parameters(model, ignore, "ignore").values():
        known |= {id(model.get_parameter(name)) for name in names}
    sizes = {
        name: parameter.numel()
        for name, parameter in model.named_parameters()
        if parameter.is_floating_point() and id(parameter) not in known
    }
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def parts_left_as_they_are(model: nn.Module) -> list[str]:
    """Return, in words, the parts that are never pruned: other number types, foreign modules."""
    return [
        *(
            f"{name} ({str(parameter.dtype).removeprefix('torch.')})"
            for name, parameter in model.named_parameters()
            if parameter.dtype not in DTYPES
        ),
        *(f"{path} ({problem.partition(':')[0]})" for path, problem in _foreign_modules(model)),
    ]


def floating_total(model: nn.Module) -> int:
    """Return the number of all floating-point weights of a network; tied ones count once."""
    return sum(p.numel() for p in model.parameters() if p.is_floating_point())


def _patterns(stated: str | Sequence[str]) -> tuple[str, ...]:
    return (stated,) if isinstance(stated, str) else tuple(stated)


def _language_model_ends(model: nn.Module) -> set[int]:
    """Return the output heads of language models, and layers tied to an embedding, by identity.

    Every token uses them, and tables of rare tokens look small to every criterion.
    """
    ends = set()
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            ends.add(id(module.weight))
        try:  # the interface of transformers; other libraries adopt it
            head = module.get_output_embeddings()  # type: ignore[operator]
        except (AttributeError, NotImplementedError, TypeError):
            continue
        if isinstance(getattr(head, "weight", None), nn.Parameter):
            ends.add(id(head.weight))
    return ends


def check_prunable(model: nn.Module) -> None:
    """Raise `InputError` unless every parameter and buffer of `model` is plain and finite.

    −Inf is permitted in buffers: attention masks contain it.
    """
    check_structure(model)
    for name, parameter in model.named_parameters():
        if parameter.dtype in DTYPES:
            _check_finite("parameter", name, parameter)
    for name, buffer in model.named_buffers():
        # integer buffers, such as counters, cannot be infinite
        if buffer.layout == torch.strided and buffer.dtype in DTYPES:
            _check_finite("buffer", name, buffer)


def check_structure(model: nn.Module, *, fold: bool = False) -> None:
    """Raise unless weights of `model` can be read and replaced, whatever their values.

    With `fold`, weights that `fold_parametrizations` can make plain are permitted.

    Raises:
        InputError: not a module, TorchScript as a whole, pruned, parametrised or normalised layers,
            tensors without plain values.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model: must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError(f"model: the network {_SCRIPTED}; pass the Python module instead")
    for path, module in model.named_modules():
        if problem := next(_module_problems(module), None):
            label = f"layer {path!r}" if path else "the network"
            raise InputError(f"model: {label} ({type(module).__name__}) {problem}")
    for weight in () if fold else computed_weights(model):
        label = f"layer {weight.path!r}" if weight.path else "the network"
        raise InputError(
            f"model: {label} ({type(weight.module).__name__}) {weight.problem}; "
            "--fold-parametrizations makes its weights plain; or "
            f"{_CALL.format(weight.remedy, weight.leaf)}"
        )
    for name, parameter in model.named_parameters():
        if problem := next(_tensor_problems(parameter), None):
            raise InputError(f"model: parameter {name!r} {problem}")
    for name, buffer in model.named_buffers():
        if problem := next(_tensor_problems(buffer), None):
            raise InputError(f"model: buffer {name!r} {problem}")


def _check_finite(kind: str, name: str, tensor: Tensor) -> None:
    if not tensor.numel():
        return
    low, high = tensor.detach().aminmax()  # both NaN if a value is; nothing large is allocated
    if not (low.isnan() or high.isposinf() or (low.isneginf() and kind == "parameter")):
        return
    nan, infinite = (int(test(tensor).count_nonzero()) for test in (torch.isnan, torch.isinf))
    raise InputError(
        f"model: {kind} {name!r} must be finite, but {nan} of its {tensor.numel()} values are NaN "
        f"and {infinite} are infinite; load a sound checkpoint"
    )


def _module_problems(module: nn.Module) -> Iterator[str]:
    # a hook of torch's pruning would overwrite masked weights before every forward pass
    pruned = [
        hook._tensor_name
        for hook in module._forward_pre_hooks.values()
        if isinstance(hook, BasePruningMethod)
    ]
    # torch's pruning leaves these names behind even if its hook is lost, as after unpickling
    pruned += [
        leaf.removesuffix("_orig")
        for leaf, _ in module.named_parameters(recurse=False)
        if leaf.endswith("_orig") and f"{leaf.removesuffix('_orig')}_mask" in module._buffers
    ]
    for leaf in pruned:
        yield f"is already pruned; {_CALL.format('prune.remove', leaf)}"


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
    if tensor.layout != torch.strided and isinstance(tensor, nn.Parameter):
        yield f"is stored as {tensor.layout}; make it dense with .to_dense() first"


def _unfit_parameters(model: nn.Module) -> Iterator[tuple[int, str]]:
    """Yield the identities of parameters that cannot be pruned, and why."""
    for parameter in model.parameters():
        if parameter.dtype not in DTYPES:
            problem = (
                f"is {parameter.dtype}, an integer, quantised or complex type; weights must be one "
                f"of {', '.join(map(str, DTYPES))}: pass the network before it was converted"
            )
            yield id(parameter), problem
    for path, problem in _foreign_modules(model):
        for parameter in model.get_submodule(path).parameters():
            yield id(parameter), f"belongs to {path!r}, which {problem}"


def _foreign_modules(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield the outermost modules whose weights cannot be replaced, and why."""
    outer: tuple[str, ...] = ()
    for path, module in model.named_modules():
        if path.startswith(outer or "\0"):
            continue
        if isinstance(module, torch.jit.ScriptModule):
            problem = _SCRIPTED
        elif is_quantised(module):
            problem = "is quantised: its weights are packed integers; prune before that"
        else:
            continue
        outer = (*outer, f"{path}.")
        yield path, problem
