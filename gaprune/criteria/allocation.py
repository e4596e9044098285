"""Counts per layer of a language model, from what an error of each layer costs.

To second order, an error δ of a layer's outputs costs a KL divergence of ½ E[(g·δ)²], where g is
the gradient of the log-likelihood of tokens that are drawn from the dense network's own
distributions (Fisher information). Errors at different places of a text hardly couple, so this is
summed over places. Hence one backward pass measures all layers. The damage of a layer is taken to
fall exponentially with its density, and damages of layers to add up; the counts minimise the sum.
EvoPress (Sieberling et al. 2024) searches such counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd

from gaprune.calibration.inversion.self_text import all_logits
from gaprune.criteria.activations import products, ranked_rows
from gaprune.criteria.layer_inputs import outputs_first
from gaprune.criteria.responses import layer_hooks
from gaprune.criteria.weights_only import flat_scores
from gaprune.models.network import DenseNetwork
from gaprune.models.time_limit import check_time

# A tenth more of its weights halves the damage of a layer. SmolLM2: decays of 6.2 to 7.6 by kind of
# layer; 6.8, 8.5 and decays measured for each layer give equally good counts.
DECAY = 7.0
REACH = 0.5  # a layer's density is at most this fraction of the way to 0 or 1 from the mean


def fisher_wanda_rows(
    network: DenseNetwork,
    calibration: Tensor,
    texts: Tensor,
    density: float,
    generator: torch.Generator,
) -> Tensor:
    """Score weights for measured counts per layer, and in it equal counts per row; flat float32.

    Args:
        network: a language model, which maps ids `[N, L]` to logits `[N, L, vocabulary]`.
        calibration: inputs of which Wanda's products are made.
        texts: ids `[N, L]` on which damages are measured.
        density: of the mask; the counts suit this density.
        generator: draws tokens; it is not advanced.
    """
    densities = network.once(
        f"densities at {density}",
        calibration,
        partial(_densities, network, calibration, texts, density, generator.clone_state()),
    )

    def layers() -> Iterator[tuple[str, Tensor]]:
        for name, ranks in ranked_rows(network, products(network, calibration)):
            yield name, ranks.add_(densities.get(name, density))

    return flat_scores(network, layers())


def _densities(
    network: DenseNetwork,
    calibration: Tensor,
    texts: Tensor,
    density: float,
    generator: torch.Generator,
) -> dict[str, float]:
    """Return the densities of the layers that can be measured."""
    removed = {
        name: ranks <= 1 - density
        for name, ranks in ranked_rows(network, products(network, calibration))
    }
    damages = layer_damages(network, removed, texts, generator)
    names = [name for name, damage in damages.items() if 0 < damage < math.inf]
    if not names:
        return {}
    sizes = torch.tensor([network.weights[name].numel() for name in names], dtype=torch.float64)
    values = torch.tensor([damages[name] for name in names], dtype=torch.float64)
    return dict(zip(names, best_densities(values, sizes, density).tolist(), strict=True))


def layer_damages(
    network: DenseNetwork,
    removed: Mapping[str, Tensor],
    texts: Tensor,
    generator: torch.Generator,
) -> dict[str, float]:
    """Return what each layer's lack of weights costs alone, in nats of all places together.

    Args:
        network: a language model.
        removed: name → bool of the shape of the weight. Only linear layers are measured.
        texts: ids `[N, L]`.
        generator: draws a token at every place.
    """
    damages = dict.fromkeys(removed, 0.0)
    origin = torch.zeros((), device=network.device, requires_grad=True)

    def record(name: str, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        if isinstance(module, _ConvNd) or len(args) != 1:
            return output
        if not output.requires_grad:
            output = output + origin.to(output.dtype)

        def add(gradient: Tensor) -> None:
            lost = outputs_first(module, network.weights[name] * removed[name])
            errors = functional.linear(args[0].detach(), lost)
            damages[name] += float((errors * gradient).float().sum(-1).square().sum()) / 2

        output.register_hook(add)
        return output

    with layer_hooks(network, record), torch.enable_grad():
        for text in texts.to(network.device).split(1):
            check_time()
            logs = all_logits(network.model, text).float().log_softmax(-1).flatten(0, 1)
            if logs.requires_grad and not bool(logs.isnan().any()):
                drawn = torch.multinomial(logs.detach().exp().cpu(), 1, generator=generator)
                torch.autograd.grad(logs.gather(1, drawn.to(logs.device)).sum(), origin)
    return damages


def best_densities(damages: Tensor, sizes: Tensor, density: float) -> Tensor:
    """Return the densities of layers that minimise their damage in all.

    A layer of damage D at the mean density d costs D·exp(−`DECAY`·(x − d)) at x, within `REACH`.

    Args:
        damages: `[layers]`, positive.
        sizes: weights of each layer.
        density: the mean over all weights.
    """
    # In the optimum one more weight saves as much in every layer within its bounds.
    best = damages.div(sizes).log() / DECAY
    bounds = density * (1 - REACH), density + REACH * (1 - density)
    low, high = float(best.min()) - 1, float(best.max()) + 1
    for _ in range(64):
        shift = (low + high) / 2
        densities = (best - shift).clamp(*bounds)
        is_large = float(densities @ sizes) > density * float(sizes.sum())
        low, high = (shift, high) if is_large else (low, shift)
    return densities
