"""SynFlow: the flow through the network's absolute weights, pruned round by round."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from gaprune.errors import GapruneError
from gaprune.masks.supermask import top_k_mask
from gaprune.models.macs import macs_per_input
from gaprune.models.network import DenseNetwork

ROUNDS = 100  # as in the experiments of Tanaka et al. 2020
FEWEST_ROUNDS = 30
WORK = 1e10  # multiply-adds of all forward passes; what goes beyond takes fewer rounds
DEFAULT_DENSITY = 0.01  # where the rounds end if nobody says how many weights will stay
MAX_SEQUENCES = 64
SEQUENCE_WORK = 1e9  # multiply-adds of one forward pass on sequences


def synflow(
    network: DenseNetwork,
    _calibration: Tensor | None,
    density: float | None,
    generator: torch.Generator,
) -> Tensor:
    """Rank weights by iterative synaptic flow (Tanaka et al. 2020, algorithm 1), in float64.

    In round k of n the total·ρ^(k/n) weights with the largest flow stay, ρ being `density`; n is
    100, or less (at least 30) where a forward pass takes more than 10⁸ multiply-adds.
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
    rounds = _rounds(network)
    for k in range(1, rounds + 1):
        kept = torch.zeros_like(weights).index_copy_(0, alive, weights[alive])
        flow = synaptic_flow(network, state, kept, inputs)[alive]
        if not flow.isfinite().all():
            raise GapruneError(
                "criterion 'synflow': the flow through the absolute weights overflows float64; "
                "use another criterion"
            )
        keep = math.floor(total * (density or DEFAULT_DENSITY) ** (k / rounds) + 0.5)
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
    network: DenseNetwork, state: dict[str, Tensor], weights: Tensor, inputs: Tensor
) -> Tensor:
    """Return ∂R/∂θ ⊙ θ (eq. 1), flat `[total]`, for R the sum of all outputs (eq. 2).

    Args:
        network: whose architecture and layout are used.
        state: from `linearised`.
        weights: `[total]`, float64, the absolute prunable weights with dropped ones at 0.
        inputs: a batch for the model, ones in float64.
    """
    # one leaf a layer: the backward pass of a slice fills a vector of `total` for each of them
    leaves = {
        name: layer.detach().requires_grad_()
        for name, layer in network.layout.split(weights).items()
    }
    with torch.enable_grad():
        flow = functional_call(network.model, {**state, **leaves}, (inputs,)).sum()
        gradients = torch.autograd.grad(flow, list(leaves.values()), materialize_grads=True)
    gradient = network.layout.flatten(dict(zip(leaves, gradients, strict=True)))
    return (gradient * weights).abs()


def _ones(network: DenseNetwork, generator: torch.Generator) -> Tensor:
    """Return the all-ones input of the paper `[1, ...]`; for tokens, sequences of shuffled ids.

    Ids cannot be all ones: instead every id of the vocabulary appears once (as many as fit into
    64 sequences, or into those that cost 10⁹ multiply-adds), and the flow starts at the absolute
    embedding.
    """
    spec, device = network.inputs, next(iter(network.weights.values())).device
    if spec.kind != "tokens":
        return torch.ones(1, *spec.shape, dtype=torch.float64, device=device)
    length = math.prod(spec.shape)
    affordable = max(1, int(SEQUENCE_WORK // max(1, _macs(network))))
    sequences = min(math.ceil(spec.vocabulary / length), MAX_SEQUENCES, affordable)
    ids = torch.randperm(spec.vocabulary, generator=generator, device=generator.device)
    repeated = ids.repeat(math.ceil(sequences * length / spec.vocabulary))
    return repeated[: sequences * length].view(sequences, *spec.shape).to(device)


def _worst_first(indices: Tensor, flow: Tensor) -> Tensor:
    order = torch.argsort(flow.flip(0), stable=True)  # reversed: of equals the later index falls
    return indices.flip(0)[order]


def _rounds(network: DenseNetwork) -> int:
    return min(ROUNDS, max(FEWEST_ROUNDS, int(WORK // max(1, _macs(network)))))


def _macs(network: DenseNetwork) -> int:
    """Return the multiply-adds of a forward pass on one input."""
    weight, spec = next(iter(network.weights.values())), network.inputs
    if spec.kind == "tokens":
        return macs_per_input(
            network.model, torch.zeros(1, *spec.shape, dtype=torch.int64, device=weight.device)
        )
    blank = torch.zeros(1, *spec.shape, dtype=weight.dtype, device=weight.device)
    return macs_per_input(network.model, blank)
