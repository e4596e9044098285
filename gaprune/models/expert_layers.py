"""Pattern `expert`: which experts of a network can be removed, and the units of its masks."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch

from gaprune.errors import InputError, first_line
from gaprune.masks.supermask import Layout
from gaprune.masks.units import ChannelIndices, ChannelUnits
from gaprune.models.channel_removal import check_same
from gaprune.models.expert_routing import ExpertLayer, find_experts, matrices_of, remove_experts
from gaprune.models.target import Target
from gaprune.pattern_names import EXPERT

# Trying takes some passes, so layers are kept as long as their target lives.
_tried: WeakKeyDictionary[Target, list[ExpertLayer]] = WeakKeyDictionary()


def removable_experts(target: Target) -> list[ExpertLayer]:
    """Return the layers of experts of a target, tried once: it runs without some, and equally.

    Raises:
        InputError: there are none, their numbers differ, or the network computes something else.
    """
    if target not in _tried:
        layers = find_experts(target.model)
        if not layers:
            raise InputError(
                f"pattern: expert removes whole experts, and {target.name} has no matrices of "
                "experts beside a router with top_k, as Mixtral of transformers has; use another "
                "pattern"
            )
        counts = sorted({(layer.count, layer.per_token) for layer in layers})
        if len(counts) > 1:
            raise InputError(
                "pattern: expert keeps as many experts in every layer, and layers have "
                f"{' and '.join(str(count) for count, _ in counts)}; use another pattern"
            )
        _try(target, layers)
        _tried[target] = layers
    return _tried[target]


def expert_units(target: Target) -> ChannelUnits:
    """Return one unit per expert, all of its matrices.

    Raises:
        InputError: see `removable_experts`; or some matrices are left whole.
    """
    layers = removable_experts(target)
    layout = Layout(tuple(layer.experts for layer in layers), tuple((n.count,) for n in layers))
    of_layer = {
        id(m): i for i, n in enumerate(layers) for m in matrices_of(target.model, n.experts)
    }
    layer_of = {
        name: of_layer.get(id(target.model.get_parameter(name))) for name in target.layout.names
    }
    if left := len(of_layer) - sum(number is not None for number in layer_of.values()):
        raise InputError(
            f"ignore: leaves {left} of {len(of_layer)} matrices of experts whole, and pattern "
            "expert removes as many experts from every layer; leave it out"
        )
    units = [torch.arange(part.start, part.stop) for part in layout.slices]
    indices = tuple(
        ChannelIndices((0, 1), (None if number is None else units[number], None))
        for number in layer_of.values()
    )
    return ChannelUnits(target.layout, layout, indices, EXPERT)


def _try(target: Target, layers: Sequence[ExpertLayer]) -> None:
    """Raise unless the network with experts set to zero equals the smaller one."""
    model = target.model
    written = {id(matrix) for layer in layers for matrix in matrices_of(model, layer.experts)}
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    compact = copy.deepcopy(model, dict(shared))
    zeroed = copy.deepcopy(model, {key: t for key, t in shared.items() if key not in written})
    remaining = {}
    for layer in layers:
        last = torch.arange(layer.count - 1, -1, -2)[: layer.count - layer.per_token]
        with torch.no_grad():
            for matrix in matrices_of(zeroed, layer.experts):
                matrix[last] = 0
        stays = torch.ones(layer.count, dtype=torch.bool).index_fill(0, last, value=False)
        remaining[layer.experts] = stays.nonzero().flatten().to(target.device)
    names = f"pattern: experts of {', '.join(layer.experts for layer in layers)}"
    try:
        remove_experts(compact, remaining)
        check_same(compact, zeroed, target.example(), names)
    except (RuntimeError, TypeError, IndexError) as error:
        raise InputError(
            f"{names} cannot be removed, the network doesn't run without some "
            f"({first_line(error)}); use another pattern"
        ) from error
