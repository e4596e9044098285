"""Criteria from the gradient of a loss that needs no labels: SNIP, GraSP and Taylor.

The loss cannot be the distance to the network's own soft outputs: the dense weights minimise that
distance, so all scores would be exactly zero. So the loss is the cross-entropy against the
network's own hard predictions (pseudo-labels), which involves all weights that separate the
predicted class from the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from gaprune.criteria.batching import batch_size, batches
from gaprune.models.forward import functional_call
from gaprune.models.macs import activation_bytes
from gaprune.models.network import DenseNetwork

GRASP_TEMPERATURE = 200.0  # as in Wang et al. 2020: softens a saturated softmax
TAYLOR_BATCH = 16
GRASP_COPIES = 3  # graphs that GraSP keeps: forward, backward, and the backward pass of that


def pseudo_label_loss(outputs: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the label-free loss, summed over the batch.

    `[N, classes]` are logits: cross-entropy against their own argmax. Others are regression:
    ½‖outputs‖², whose gradient Jᵀ·outputs finds the weights that carry the output.
    """
    if outputs.ndim == 2 and outputs.shape[1] > 1:
        labels = outputs.detach().argmax(dim=1)
        return functional.cross_entropy(outputs / temperature, labels, reduction="sum")
    return outputs.square().sum() / 2


def snip(network: DenseNetwork, calibration: Tensor | None, *_: object) -> Tensor:
    """Score |∂L/∂c| = |w · ∂L/∂w| of the mean loss (Lee et al. 2019, eq. 5).

    c is a gate that multiplies the weight. The normalisation of eq. 6 changes no order.
    """
    scores = _mean_gradient(network, calibration)
    for name, part in network.layout.split(scores).items():
        part.mul_(network.weights[name]).abs_()
    return scores.float()


def taylor(network: DenseNetwork, calibration: Tensor | None, *_: object) -> Tensor:
    """Score (w · ∂L/∂w)², averaged over mini-batches of 16 inputs (Molchanov et al. 2019, eq. 8).

    The gradient is that of the mini-batch's mean loss, as in the paper. The square is taken before
    the average, so opposite gradients of mini-batches don't cancel as they do in SNIP.
    """
    leaves = _leaves(network)
    scores, count = _zeros(network), 0
    size = _batch_size(network, calibration, leaves)
    with _twice_differentiable():
        for batch in batches(network, calibration, TAYLOR_BATCH):
            first, *others = batch.split(size)
            gradients = _layer_gradients(network, leaves, first)
            for part in others:
                more = _layer_gradients(network, leaves, part)
                gradients = {name: gradients[name] + more.pop(name) for name in leaves}
            for name, part in network.layout.split(scores).items():
                product = gradients.pop(name) / len(batch)  # changed in place: it is large
                part.add_(product.mul_(network.weights[name]).square_().mul_(len(batch)))
            count += len(batch)
    return scores.div_(count).float()


def grasp(network: DenseNetwork, calibration: Tensor | None, *_: object) -> Tensor:
    """Score w · Hg: keep the weights whose removal reduces the gradient flow ‖g‖² most.

    Wang et al. 2020, eq. 8: removing w changes ‖g‖² by −2·w·Hg to first order, and algorithm 1
    removes the largest −w·Hg. g and H belong to the mean loss at the paper's temperature of 200.
    """
    leaves = _leaves(network)
    gradient = _mean_gradient(network, calibration, GRASP_TEMPERATURE)
    product, count = torch.zeros_like(gradient), 0
    size = _batch_size(network, calibration, leaves, GRASP_COPIES)
    with _twice_differentiable():
        for batch in batches(network, calibration, size):
            # differentiating gᵀ·stop(g) gives H·g without forming H
            outputs = functional_call(network.model, leaves, (batch,))
            loss = pseudo_label_loss(outputs, GRASP_TEMPERATURE)
            graph = _flat_gradient(network, leaves, loss, create_graph=True)
            product += _flat_gradient(network, leaves, graph @ gradient)
            count += len(batch)
    return (network.flat * product / count).float()


def _mean_gradient(
    network: DenseNetwork, calibration: Tensor | None, temperature: float = 1.0
) -> Tensor:
    leaves = _leaves(network)
    total, count = _zeros(network), 0
    parts = network.layout.split(total)
    size = _batch_size(network, calibration, leaves)
    with _twice_differentiable():
        for batch in batches(network, calibration, size):
            gradients = _layer_gradients(network, leaves, batch, temperature)
            for name, part in parts.items():
                part.add_(gradients.pop(name))  # frees it: all are as large as the network
            count += len(batch)
    return total.div_(count)


def _zeros(network: DenseNetwork) -> Tensor:
    """Return zeros in the form of `network.flat`."""
    dtype = reduce(torch.promote_types, (weight.dtype for weight in network.weights.values()))
    return torch.zeros(network.layout.total, dtype=dtype, device=network.device)


def _layer_gradients(
    network: DenseNetwork, leaves: dict[str, Tensor], batch: Tensor, temperature: float = 1.0
) -> dict[str, Tensor]:
    """Return the gradient of every weight by name."""
    loss = pseudo_label_loss(functional_call(network.model, leaves, (batch,)), temperature)
    gradients = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, gradients, strict=True))


def _flat_gradient(
    network: DenseNetwork, leaves: dict[str, Tensor], value: Tensor, *, create_graph: bool = False
) -> Tensor:
    gradients = torch.autograd.grad(
        value, list(leaves.values()), create_graph=create_graph, materialize_grads=True
    )
    return network.layout.flatten(dict(zip(leaves, gradients, strict=True)))


def _batch_size(
    network: DenseNetwork, calibration: Tensor | None, leaves: dict[str, Tensor], copies: int = 1
) -> int:
    with _twice_differentiable():
        example = next(batches(network, calibration, 1))
        return batch_size(activation_bytes(network.model, example, leaves), copies)


def _leaves(network: DenseNetwork) -> dict[str, Tensor]:
    return {name: weight.detach().requires_grad_() for name, weight in network.weights.items()}


@contextmanager
def _twice_differentiable() -> Iterator[None]:
    # the fused attention kernels have no second derivative
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        yield
