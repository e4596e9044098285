"""Criteria from the gradient of a loss that needs no labels: SNIP, GraSP and Taylor.

A loss without data cannot be the distance to the network's own soft outputs: at the dense weights
that distance is at its minimum, so its gradient is exactly zero and every score with it. Instead
the loss is the cross-entropy against the network's own hard prediction (pseudo-labels), which
pulls on all weights that separate the predicted class from the others. Labels drawn at random from
the soft prediction would give a mean gradient of zero too, plus noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from gaprune.criteria.network import batches, fitting
from gaprune.models.macs import activation_bytes
from gaprune.models.network import DenseNetwork

GRASP_TEMPERATURE = 200.0  # as Wang et al. 2020: softens a saturated softmax
TAYLOR_BATCH = 16
GRASP_PASSES = 3  # graphs that GraSP holds: forward, backward, and the backward pass of that


def pseudo_label_loss(outputs: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the label-free loss, summed over the batch.

    Args:
        outputs: `[N, classes]` are taken as logits and give the cross-entropy against their own
            argmax. Any other shape (one number per input, maps, sequences) is taken as regression
            and gives ½‖outputs‖², whose gradient is Jᵀ·outputs: it finds the weights that carry
            the output, and is zero only where the output is.
        temperature: divides the logits.
    """
    if outputs.ndim == 2 and outputs.shape[1] > 1:
        labels = outputs.detach().argmax(dim=1)
        return functional.cross_entropy(outputs / temperature, labels, reduction="sum")
    return outputs.square().sum() / 2


def snip(
    network: DenseNetwork,
    calibration: Tensor | None,
    _density: float | None,
    _generator: torch.Generator,
) -> Tensor:
    """Score |∂L/∂c| = |w · ∂L/∂w| of the mean loss (Lee et al. 2019, eq. 5).

    c is a gate that multiplies the weight. The normalisation of eq. 6 divides all scores by one
    number and is left out.
    """
    return (network.flat * _mean_gradient(network, calibration)).abs().float()


def taylor(
    network: DenseNetwork,
    calibration: Tensor | None,
    _density: float | None,
    _generator: torch.Generator,
) -> Tensor:
    """Score (w · ∂L/∂w)², averaged over mini-batches of 16 calibration inputs (Molchanov et al. 2019, eq. 8).

    The gradient is that of the mini-batch's mean loss, as in the paper; the square is taken before
    the average, so opposite gradients of different mini-batches don't cancel as they do in SNIP.
    """
    weights, leaves = network.flat, _leaves(network)
    scores, count = torch.zeros_like(weights), 0
    size = _batch(network, calibration, leaves)
    with _differentiable():
        for batch in batches(network, calibration, TAYLOR_BATCH):
            parts = batch.split(size)
            gradient = sum(
                (_gradient(network, leaves, part) for part in parts[1:]),
                _gradient(network, leaves, parts[0]),
            ) / len(batch)
            scores += len(batch) * (weights * gradient).square()
            count += len(batch)
    return (scores / count).float()


def grasp(
    network: DenseNetwork,
    calibration: Tensor | None,
    _density: float | None,
    _generator: torch.Generator,
) -> Tensor:
    """Score w · Hg: keep the weights whose removal weakens the gradient flow ‖g‖² most.

    Wang et al. 2020, eq. 8: removing w changes ‖g‖² by −2·w·Hg to first order, and algorithm 1
    removes the largest −w·Hg, so w·Hg is what to keep. g and H belong to the mean loss over all
    calibration inputs at the paper's temperature of 200. Hg comes from the gradient of gᵀ·stop(g).
    """
    leaves = _leaves(network)
    gradient = _mean_gradient(network, calibration, GRASP_TEMPERATURE)
    product, count = torch.zeros_like(gradient), 0
    size = _batch(network, calibration, leaves, GRASP_PASSES)
    with _differentiable():
        for batch in batches(network, calibration, size):
            graph = _gradient(network, leaves, batch, GRASP_TEMPERATURE, create_graph=True)
            product += _flat_gradient(network, leaves, graph @ gradient)
            count += len(batch)
    return (network.flat * product / count).float()


def _mean_gradient(
    network: DenseNetwork, calibration: Tensor | None, temperature: float = 1.0
) -> Tensor:
    leaves = _leaves(network)
    total, count = torch.zeros_like(network.flat), 0
    size = _batch(network, calibration, leaves)
    with _differentiable():
        for batch in batches(network, calibration, size):
            total += _gradient(network, leaves, batch, temperature)
            count += len(batch)
    return total / count


def _gradient(
    network: DenseNetwork,
    leaves: dict[str, Tensor],
    batch: Tensor,
    temperature: float = 1.0,
    *,
    create_graph: bool = False,
) -> Tensor:
    loss = pseudo_label_loss(functional_call(network.model, leaves, (batch,)), temperature)
    return _flat_gradient(network, leaves, loss, create_graph=create_graph)


def _flat_gradient(
    network: DenseNetwork, leaves: dict[str, Tensor], value: Tensor, *, create_graph: bool = False
) -> Tensor:
    gradients = torch.autograd.grad(
        value, list(leaves.values()), create_graph=create_graph, materialize_grads=True
    )
    return network.layout.flatten(dict(zip(leaves, gradients, strict=True)))


def _batch(
    network: DenseNetwork, calibration: Tensor | None, leaves: dict[str, Tensor], passes: int = 1
) -> int:
    """Return how many calibration inputs fit into memory at once, with what a backward pass keeps of them."""
    with _differentiable():
        example = next(batches(network, calibration, 1))
        return fitting(activation_bytes(network.model, example, leaves), passes)


def _leaves(network: DenseNetwork) -> dict[str, Tensor]:
    return {name: weight.detach().requires_grad_() for name, weight in network.weights.items()}


@contextmanager
def _differentiable() -> Iterator[None]:
    # the fused attention kernels have no second derivative
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        yield
