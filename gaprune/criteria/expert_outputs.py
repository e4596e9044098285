"""Experts by what they add to the outputs of their layer."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gaprune.criteria.batching import batches
from gaprune.masks.units import ChannelUnits
from gaprune.models.expert_routing import find_experts
from gaprune.models.network import DenseNetwork

BATCH = 16  # texts per forward pass


@torch.no_grad()
def reap(network: DenseNetwork, calibration: Tensor | None, units: ChannelUnits) -> Tensor:
    """Score experts by the mean of g·‖f(x)‖₂ over tokens x that are routed to them, float32.

    g is the gate and f(x) the output of the expert, so the product is its part of the layer's
    output (Lasby et al. 2025, REAP, section 4). The mean, not the sum, since how many tokens are
    routed to an expert depends on the topics of the texts, and those that a model writes by itself
    are not those of its use. An expert that no token is routed to scores 0. Shape `[units]`.
    """
    totals = torch.zeros(2, units.layout.total, dtype=torch.float64)  # of the products, of tokens
    layers = find_experts(network.model)
    with ExitStack() as hooks:
        for layer, (part, tokens) in zip(layers, _slices(totals, units), strict=True):
            record = partial(_record, part, tokens)
            module = network.model.get_submodule(layer.experts)
            hooks.enter_context(module.register_forward_pre_hook(record, with_kwargs=True))
        for batch in batches(network, calibration, BATCH):
            network.model(batch)
    return (totals[0] / totals[1].clamp_min(1)).float().to(network.device)


def _slices(totals: Tensor, units: ChannelUnits) -> list[tuple[Tensor, Tensor]]:
    return [(totals[0, part], totals[1, part]) for part in units.layout.slices]


def _record(
    products: Tensor,
    tokens: Tensor,
    experts: nn.Module,
    args: tuple[Tensor, ...],
    kwargs: dict[str, Any],
) -> None:
    """Add what each expert adds for its tokens; experts are called with one of them each."""
    stated: list[Tensor] = [*args, *kwargs.values()]
    hidden, chosen, gates = stated
    for expert in range(len(products)):
        rows, places = (chosen == expert).nonzero(as_tuple=True)
        if len(rows):
            alone = torch.full_like(rows[:, None], expert)
            ones = torch.ones_like(gates[rows, :1])
            outputs = experts.forward(hidden[rows], alone, ones).double()
            norms = outputs.norm(dim=1) * gates[rows, places].double()
            products[expert] += norms.sum().cpu()
            tokens[expert] += len(rows)
