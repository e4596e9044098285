"""Inverted inputs of a target, from disk where they have been made before."""

from __future__ import annotations

from dataclasses import asdict

import torch
from torch import Tensor

from gaprune.observe import Observer
from gaprune.probes.cache import cache_key, cached
from gaprune.probes.inversion import Inversion, invert
from gaprune.probes.mixture import Mixture
from gaprune.probes.samples import Samples
from gaprune.target import Target

WHAT = "inverting the network"  # names the part of the run in progress


def inverted_samples(
    target: Target,
    starts: Mixture,
    count: int,
    generator: torch.Generator,
    how: Inversion,
    observer: Observer,
) -> Samples:
    """Invert a target, or read what was made for the same weights, settings and seed.

    Args:
        target: a network with BatchNorm.
        starts: draws the inputs where the optimisation begins.
        count: how many inputs.
        generator: gives the seed; it advances equally whether the inputs are made or read.
        how: lengths and weights of the optimisation. With a time limit there may be fewer inputs.
        observer: told of progress, and of a cache that cannot be used.

    Raises:
        InputError: the network cannot be inverted.
    """
    seed = int(torch.randint(2**62, (), generator=generator))

    def make() -> Tensor:
        own = torch.Generator().manual_seed(seed)
        begin = starts.draw_unit(count, own).to(target.device, target.dtype)
        made = invert(
            target.model,
            target.inputs,
            begin,
            own,
            how,
            lambda done, total: observer.progress(WHAT, done, total),
        )
        return made.cpu()

    settings = {
        "network": repr(target.model),  # the same weights can be used in another way
        "inputs": asdict(target.inputs),
        "device": str(target.device),
        "starts": list(starts.portions.items()),  # their order decides as well
        "count": count,
        "seed": seed,
        "how": asdict(how),
    }
    made = cached(cache_key(target.weights_sha256, settings), make, observer.warning)
    source = f"{len(made)} inputs inverted from BatchNorm, started from {starts.description}"
    return Samples(made, None, source)
