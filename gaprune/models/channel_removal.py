"""Taking channels out of a network, with everything that makes or reads them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from gaprune.errors import GapruneError, InputError
from gaprune.models.channel_groups import (
    ChannelGraph,
    ChannelGroup,
    Dependency,
    Dependents,
    has_channels,
    num_outputs,
    zeroed_copy,
)
from gaprune.models.target import trainable_copy

__all__ = [
    "CoupledChannels",
    "ChannelGroup",
    "LayerChannel",
    "masked_equivalent",
    "removable_groups",
    "remove_channels",
]

ROUNDING = 1000  # the compact network may differ by so many steps of its dtype at the output's size


def removable_groups(model: nn.Module, example: Tensor) -> tuple[ChannelGroup, ...]:
    """Return the channels that can be removed, by what depends on what (Fang et al. 2023).

    The graph is torch-pruning's, traced on one input. Channels have to stay where they are the
    network's outputs, are added to its inputs, or pass through a layer from which no single ones
    can be taken (group and layer norms, attention, embeddings, grouped convolutions that are not
    depthwise, parameters of no layer).

    Args:
        model: stays as it is.
        example: one input `[1, ...]`.

    Raises:
        InputError: the network cannot be traced.
        GapruneError: torch-pruning is not installed.
    """
    return _graph(model, example).groups


def remove_channels(
    model: nn.Module, example: Tensor, channels: Mapping[str, Sequence[int]]
) -> nn.Module:
    """Return a smaller copy, in evaluation mode, without these output channels and what needs them.

    It computes what `masked_equivalent` does; the example is tried before it is returned.

    Args:
        model: stays as it is.
        example: one input `[1, ...]`.
        channels: layer → indices of its output channels.

    Raises:
        InputError: no such layer or channel, channels that have to stay (the message says why),
            nothing left of a layer, a network that computes something else without them.
        GapruneError: torch-pruning is not installed.
    """
    plan = _graph(model, example).plan(channels)
    pruners = _torch_pruning().DependencyGraph()
    compact = copy.deepcopy(model)
    for layer, gone in plan.outputs.items():
        module = compact.get_submodule(layer)
        pruners.get_pruner_of_module(module).prune_out_channels(module, gone)
    for layer, gone in plan.inputs.items():
        module = compact.get_submodule(layer)
        pruners.get_pruner_of_module(module).prune_in_channels(module, gone)
    for name, parameter in model.named_parameters():  # those cut are new and take gradients
        compact.get_parameter(name).requires_grad_(parameter.requires_grad)
    _check_same(compact, zeroed_copy(model, plan), example, sorted(channels))
    return compact


def masked_equivalent(
    model: nn.Module, example: Tensor, channels: Mapping[str, Sequence[int]]
) -> nn.Module:
    """Return a copy of the same size in which these channels are zero and are read as zero.

    Zeroed are the weights and biases that make them, γ and β of their norms (a channel without
    input would still be shifted by β), and the weights that read them (an activation need not
    take 0 to 0). Arguments and errors are those of `remove_channels`.
    """
    return zeroed_copy(model, _graph(model, example).plan(channels))


def _torch_pruning() -> ModuleType:
    try:
        import torch_pruning  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise GapruneError(
            "channels: needs torch-pruning; pip install 'gaprune[compare]'"
        ) from error
    found: ModuleType = torch_pruning
    return found


def _graph(model: nn.Module, example: Tensor) -> ChannelGraph:
    """Trace what the output channels of each convolution and linear layer reach."""
    tp = _torch_pruning()
    private = trainable_copy(model)
    with torch.enable_grad():
        # only what has a history is traced, so the inputs need one to be seen
        seen = example.clone().requires_grad_() * 1 if example.is_floating_point() else example
        try:
            graph = tp.DependencyGraph().build_dependency(private, (seen,), verbose=False)
        except (
            Exception
        ) as error:  # the network's own code runs, and the tracer takes much as given
            raise InputError(
                f"model: torch-pruning cannot trace it ({type(error).__name__}: {error}); channels "
                "can be removed from networks of plain layers that take the example"
            ) from error
    types = tp.ops.OPTYPE
    names = {module: name for name, module in private.named_modules()}
    reaches = {}
    for module, name in names.items():
        node = graph.module2node.get(module)
        if node is None or node.type not in {types.CONV, types.DEPTHWISE_CONV, types.LINEAR}:
            continue
        cut = graph.get_pruner_of_module(module).prune_out_channels
        items = graph.get_pruning_group(module, cut, list(range(num_outputs(module)))).items
        obstacles = (_obstacle(graph, item.dep, seen.grad_fn, types) for item in items)
        reaches[name] = Dependents(
            tuple(_touches(graph, items, names)), next((one for one in obstacles if one), None)
        )
    return ChannelGraph.of(model, reaches)


# torch-pruning carries no types, so its objects are Any


def _touches(
    graph: Any,  # noqa: ANN401
    items: Sequence[Any],
    names: Mapping[nn.Module, str],
) -> Iterator[Dependency]:
    for item in items:
        module = item.dep.target.module
        if module in names and has_channels(module):
            makes = graph.is_out_channel_pruning_fn(item.dep.handler)
            yield Dependency(
                names[module], makes, tuple(zip(item.root_idxs, item.idxs, strict=True))
            )


def _obstacle(graph: Any, dependency: Any, inputs: object, types: Any) -> str | None:  # noqa: ANN401
    """Say why channels that reach the target of a dependency have to stay, or None."""
    node = dependency.target
    module = node.module
    groups = getattr(module, "groups", 1)
    if not node.outputs and graph.is_out_channel_pruning_fn(dependency.handler):
        return "they are the network's outputs"
    if inputs is not None and node.grad_fn is inputs:
        return "they are added to the network's inputs"
    if node.type in {types.LN, types.GN, types.IN, types.EMBED, types.MHA, types.LSTM}:
        return f"they pass through a {type(module).__name__}"
    if node.type in {types.PARAMETER, types.UNBIND, types.EXPAND, types.CUSTOMIZED}:
        return "they meet a parameter of no layer, or are rearranged"
    if groups > 1 and not groups == module.in_channels == module.out_channels:
        return "they pass through a grouped convolution that is not depthwise"
    return None


@torch.no_grad()
def _check_same(
    compact: nn.Module, expected: nn.Module, example: Tensor, layers: Sequence[str]
) -> None:
    """Raise unless both answer the example alike: tracing cannot see all that forward does."""
    wanted = expected.eval()(example)
    try:
        off = float((compact.eval()(example) - wanted).abs().max())
    except RuntimeError as error:
        raise InputError(
            f"channels: those of {', '.join(layers)} cannot be removed, the network doesn't run "
            f"without them ({error}); leave them out"
        ) from error
    if not off <= ROUNDING * torch.finfo(wanted.dtype).eps * max(1.0, float(wanted.abs().max())):
        raise InputError(
            f"channels: those of {', '.join(layers)} cannot be removed, the network computes "
            f"something else without them (its output is off by {off:.3g}); leave them out"
        )
