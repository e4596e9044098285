"""SynFlow: the flow through the network's absolute weights, pruned round by round."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from gaprune.errors import GapruneError
from gaprune.saliency.network import Network
from gaprune.supermask import top_k_mask

ROUNDS = 100  # as in the experiments of Tanaka et al. 2020
DEFAULT_DENSITY = 0.01  # where the rounds end if nobody says how many weights will stay
MAX_SEQUENCES = 64


def synflow(
    network: Network, _probes: Tensor | None, density: float | None, generator: torch.Generator
) -> Tensor:
    """Rank weights by iterative synaptic flow (Tanaka et al. 2020, algorithm 1), in float64.

    In round k of 100 the total·ρ^(k/100) weights with the largest flow stay, ρ being `density`.
    The result is a total ranking: the later a weight was dropped the higher it stands, weights
    dropped together by their flow in that round, equal flows in index order. So the best total·ρ
    are the paper's mask, and larger budgets add what fell last. The scores are the ranks over the
    total, in (0, 1]: flows of deep networks leave the range of float32.

    Raises:
        GapruneError: the flow leaves the range of float64 too.
    """
    inputs = _ones(network, generator)
    state = linearised(network.model)
    weights = network.flat.double().abs()
    total = network.layout.total
    alive = torch.arange(total, device=weights.device)
    fallen: list[Tensor] = []  # indices, worst first
    for k in range(1, ROUNDS + 1):
        kept = torch.zeros_like(weights).index_copy_(0, alive, weights[alive])
        flow = synaptic_flow(network, state, kept, inputs)[alive]
        if not flow.isfinite().all():
            raise GapruneError(
                "saliency 'synflow': the flow through the absolute weights overflows float64; "
                "use another saliency"
            )
        keep = math.floor(total * (density or DEFAULT_DENSITY) ** (k / ROUNDS) + 0.5)
        stay = top_k_mask(flow, keep)
        fallen.append(_worst_first(alive[~stay], flow[~stay]))
        alive, flow = alive[stay], flow[stay]
    order = torch.cat([*fallen, _worst_first(alive, flow)])
    scores = torch.empty_like(weights)
    scores[order] = torch.arange(1, total + 1, device=weights.device).double() / total
    return scores.float()


def linearised(model: nn.Module) -> dict[str, Tensor]:
    """Return the state that makes the network positive: |θ| of every float tensor, in float64.

    As in the authors' code, biases and normalisation weights included. Running means become 0
    (which is what they are at initialisation, where the paper applies the criterion): subtracting
    a mean of |θ| would let ReLU cut the flow that the criterion measures.
    """
    means = {
        f"{path}.running_mean".lstrip(".")
        for path, module in model.named_modules()
        if isinstance(module, _BatchNorm)
    }
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        name: tensor.detach().double().abs() * (name not in means)
        for name, tensor in state.items()
        if tensor.is_floating_point()
    }


def synaptic_flow(
    network: Network, state: dict[str, Tensor], weights: Tensor, inputs: Tensor
) -> Tensor:
    """Return ∂R/∂θ ⊙ θ (eq. 1), flat `[total]`, for R the sum of all outputs (eq. 2).

    Args:
        network: whose architecture and layout are used.
        state: from `linearised`.
        weights: `[total]`, float64, the absolute prunable weights with dropped ones at 0.
        inputs: a batch for the model, ones in float64.
    """
    leaf = weights.detach().requires_grad_()
    with torch.enable_grad():
        linear = {**state, **network.layout.split(leaf)}
        flow = functional_call(network.model, linear, (inputs,)).sum()
        (gradient,) = torch.autograd.grad(flow, leaf)
    return (gradient * weights).abs()


def _ones(network: Network, generator: torch.Generator) -> Tensor:
    """Return the all-ones input of the paper `[1, ...]`; for tokens, sequences of shuffled ids.

    Ids cannot be all ones: instead every id of the vocabulary appears once (as many as fit into
    64 sequences), and the flow starts at the absolute embedding.
    """
    spec, device = network.inputs, next(iter(network.weights.values())).device
    if spec.kind != "tokens":
        return torch.ones(1, *spec.shape, dtype=torch.float64, device=device)
    length = math.prod(spec.shape)
    sequences = min(math.ceil(spec.vocabulary / length), MAX_SEQUENCES)
    ids = torch.randperm(spec.vocabulary, generator=generator, device=generator.device)
    repeated = ids.repeat(math.ceil(sequences * length / spec.vocabulary))
    return repeated[: sequences * length].view(sequences, *spec.shape).to(device)


def _worst_first(indices: Tensor, flow: Tensor) -> Tensor:
    order = torch.argsort(flow.flip(0), stable=True)  # reversed: of equals the later index falls
    return indices.flip(0)[order]
