"""SynFlow: the flow through the network's absolute weights, pruned round by round."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gaprune.errors import GapruneError
from gaprune.masks.supermask import top_k_mask
from gaprune.models.forward import functional_call
from gaprune.models.macs import macs_per_input
from gaprune.models.network import DenseNetwork

ROUNDS = 100  # as in the experiments of Tanaka et al. 2020
FEWEST_ROUNDS = 30
TOTAL_MACS = 1e10  # multiply-adds of all rounds together; larger networks get fewer rounds
DEFAULT_DENSITY = 0.01  # final density if the caller does not know how many weights will stay
MAX_SEQUENCES = 64
SEQUENCE_MACS = 1e9  # multiply-adds of one forward pass on token sequences


def synflow(
    network: DenseNetwork,
    _calibration: Tensor | None,
    density: float | None,
    generator: torch.Generator,
) -> Tensor:
    """Rank weights by iterative synaptic flow (Tanaka et al. 2020, algorithm 1), in float64.

    In round k of n the total·ρ^(k/n) weights with the largest flow stay, where ρ is `density`. n
    is 100, or fewer for large networks. The result is a total ranking: the later a weight is
    dropped the higher its score; weights dropped in the same round are ordered by their flow, equal
    flows by index. So the best total·ρ weights are the paper's mask. Scores are ranks over the
    total, in (0, 1], because flows of deep networks leave the range of float32.

    Raises:
        GapruneError: the flow leaves the range of float64 too.
    """
    dtype = torch.int64 if network.inputs.kind == "tokens" else network.dtype
    example = torch.zeros(1, *network.inputs.shape, dtype=dtype, device=network.device)
    macs = max(1, macs_per_input(network.model, example))
    inputs = _ones(network, generator, macs)
    state = absolute_state(network.model)
    weights = network.flat.double().abs()
    total = network.layout.total
    alive = torch.arange(total, device=weights.device)
    dropped: list[Tensor] = []  # indices, worst first
    # fewer rounds for large networks keep the time bounded
    rounds = min(ROUNDS, max(FEWEST_ROUNDS, int(TOTAL_MACS // macs)))
    for k in range(1, rounds + 1):
        remaining = torch.zeros_like(weights).index_copy_(0, alive, weights[alive])
        flow = synaptic_flow(network, state, remaining, inputs)[alive]
        if not flow.isfinite().all():
            raise GapruneError(
                "criterion 'synflow': the flow through the absolute weights overflows float64; "
                "use another criterion"
            )
        # the exponential schedule: ρ^(k/n) of all weights stay after round k
        keep = math.floor(total * (density or DEFAULT_DENSITY) ** (k / rounds) + 0.5)
        stay = top_k_mask(flow, keep)
        dropped.append(_worst_first(alive[~stay], flow[~stay]))
        alive, flow = alive[stay], flow[stay]
    order = torch.cat([*dropped, _worst_first(alive, flow)])
    scores = torch.empty_like(weights)
    scores[order] = torch.arange(1, total + 1, device=weights.device).double() / total
    return scores.float()


def absolute_state(model: nn.Module) -> dict[str, Tensor]:
    """Return |θ| of every float parameter and buffer, in float64: the network becomes positive.

    As in the authors' code this includes biases and normalisation weights. Running means become 0,
    as at initialisation: subtracting a mean of |θ| would let ReLU cut the flow.
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
    } | {
        name: tensor.detach().abs().to(torch.complex128)
        for name, tensor in state.items()
        if tensor.is_complex()
    }


def synaptic_flow(
    network: DenseNetwork, state: dict[str, Tensor], weights: Tensor, inputs: Tensor
) -> Tensor:
    """Return ∂R/∂θ ⊙ θ (eq. 1), flat `[total]`, where R is the sum of all outputs (eq. 2).

    `state` is that of `absolute_state`; `weights` `[total]` are |w| in float64, 0 where dropped.
    """
    # One leaf per layer: the gradient of a slice would fill a vector of `total` for each layer.
    leaves = {
        name: layer.detach().requires_grad_()
        for name, layer in network.layout.split(weights).items()
    }
    with torch.enable_grad():
        flow = functional_call(network.model, {**state, **leaves}, (inputs,)).sum()
        gradients = torch.autograd.grad(flow, list(leaves.values()), materialize_grads=True)
    gradient = network.layout.flatten(dict(zip(leaves, gradients, strict=True)))
    return (gradient * weights).abs()


def _ones(network: DenseNetwork, generator: torch.Generator, macs: int) -> Tensor:
    """Return the all-ones input of the paper `[1, ...]`; for tokens, sequences of shuffled ids.

    Every id of the vocabulary appears once, as far as time permits.
    """
    spec, device = network.inputs, network.device
    if spec.kind != "tokens":
        return torch.ones(1, *spec.shape, dtype=torch.float64, device=device)
    length = math.prod(spec.shape)
    affordable = max(1, int(SEQUENCE_MACS // macs))
    sequences = min(math.ceil(spec.vocabulary / length), MAX_SEQUENCES, affordable)
    ids = torch.randperm(spec.vocabulary, generator=generator, device=generator.device)
    repeated = ids.repeat(math.ceil(sequences * length / spec.vocabulary))
    return repeated[: sequences * length].view(sequences, *spec.shape).to(device)


def _worst_first(indices: Tensor, flow: Tensor) -> Tensor:
    order = torch.argsort(flow.flip(0), stable=True)  # of equal flows the later index drops first
    return indices.flip(0)[order]
