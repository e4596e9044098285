"""Inputs made for a target out of a mixture's draws, from disk where they have been made before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gaprune.calibration.disk_cache import cache_key, cached
from gaprune.calibration.generators.mixture import GeneratorMixture
from gaprune.callbacks import Observer
from gaprune.models.target import Target

Maker = Callable[[Tensor, torch.Generator], Tensor]
"""(drawn starts in the unit range, or ids; generator of its own) → inputs as the network takes."""


@dataclass(frozen=True)
class Order:
    """What is made, of what.

    Attributes:
        target: the network.
        starts: draws what the inputs are made of.
        count: how many are drawn.
        seed: of the draws and of the making.
    """

    target: Target
    starts: GeneratorMixture
    count: int
    seed: int


def make_or_read(order: Order, how: Mapping[str, Any], make: Maker, observer: Observer) -> Tensor:
    """Make inputs, or read what was made for the same weights, settings and seed.

    Args:
        order: what is made.
        how: everything else that the inputs depend on, as plain data.
        make: makes them.
        observer: told of a cache that cannot be used.

    Returns:
        Inputs on the CPU.
    """
    target, starts = order.target, order.starts

    def anew() -> Tensor:
        own = torch.Generator().manual_seed(order.seed)
        return make(starts.draw_unit(order.count, own).to(target.device), own).cpu()

    settings = {
        "network": repr(target.model),  # the same weights can be used in another way
        "inputs": target.inputs.facts(),
        "device": str(target.device),
        "starts": list(starts.shares.items()),  # their order decides as well
        "count": order.count,
        "seed": order.seed,
        "how": dict(how),
    }
    return cached(cache_key(target.weights_sha256, settings), anew, observer.warning)


def draw_seed(generator: torch.Generator) -> int:
    """Draw the seed of what is made; the generator advances alike if it is read instead."""
    return int(torch.randint(2**62, (), generator=generator))
