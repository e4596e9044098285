"""Correlation: keep every channel's pruned output in step with its dense output.

Scale and shift of a channel are what a following norm takes away and a repair puts back, so what
a mask costs a channel is the correlation that is lost. For one output channel with weights w, mask
m and the covariance C of its inputs, a = (m∘w)ᵀCw, b = (m∘w)ᵀC(m∘w), v = wᵀCw and ρ = a/√(b·v);
the least squared error at equal variance is e = 2v(1 − ρ). Backward elimination in the manner of
Optimal Brain Surgeon (Hassibi and Stork 1993) removes whatever leaves ρ largest, and the Fisher
information of the channel's output makes the errors of different channels and layers comparable.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from gaprune.criteria.layer_inputs import Shape
from gaprune.criteria.responses import Response, respond
from gaprune.models.network import DenseNetwork

# A round removes one in so many of the weights that a channel has left. Inputs that vary together
# (neighbouring pixels) can each be missed, but not all at once: with 64, mnist-mlp at 0.95 falls
# from 94.7 % to 64 %.
ROUND = 256
WIDE_ROUND = 64  # the same for channels in several blocks
ENTRIES = 2**17  # weights whose channels are eliminated at once: what the caches hold
NOISE = 1e-12  # of a channel's variance: below, it is rounding


def correlation(
    network: DenseNetwork,
    calibration: Tensor | None,
    _density: float | None,
    generator: torch.Generator,
) -> Tensor:
    """Rank weights by the damage that their removal does to the correlation of their channel.

    The damage is the running maximum of the increments of e along the elimination, times the
    channel's empirical Fisher information: the mean over calibration inputs of Σ (∂ log p(y|x)/∂z)² over the
    positions of its output z, y being drawn from the network's own answer. So inside a channel the
    order is that of the removal. The result is a total ranking, (0, 1]: rank over total, equal
    damages in the order of removal.

    Weights of linear layers and convolutions are seen by their inputs (shared ones by all of
    them). All others (embeddings, attention projections, transposed convolutions, vectors, and
    layers that are never called) get w²·mean (∂ log p/∂w)², the same Fisher information of the
    weight itself; equal ones are ordered by |w|. Weights that move nothing, as in dead channels or
    at constant inputs, come last.

    The generator is not advanced: draws come from a copy of it.

    Raises:
        InputError: there are no calibration inputs.
    """
    seen = respond(network, calibration, generator.clone_state())
    damages, orders = {}, {}
    for name, weight in network.weights.items():
        response = seen.layers.pop(name, None)  # let go of each covariance as soon as it is used
        if response is None:
            damages[name] = weight.double().square() * seen.information[name].double()
            orders[name] = weight.double().abs()
        else:
            damages[name], orders[name] = layer_damage(weight.detach(), response)
    damage = network.layout.flatten(damages)
    if not damage.isfinite().all():  # no ranking: whoever asked is to see where
        return damage.float()
    return _ranks(damage, network.layout.flatten(orders))


def layer_damage(weight: Tensor, response: Response) -> tuple[Tensor, Tensor]:
    """Return the damage of every weight of a layer and when it goes, both in the weight's shape.

    Float64; the second is a number that grows along the elimination of each channel.
    """
    covariance, shape = response.moments.covariance(), response.moments.shape
    damage, order = eliminate(weight.reshape(len(weight), -1).double(), covariance, shape)
    damage *= response.information.double().unsqueeze(1)
    return damage.view_as(weight), order.view_as(weight)


def eliminate(weights: Tensor, covariance: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
    """Remove the weights of every channel, those that are missed least first.

    Args:
        weights: `[channels, size]`, float64, channels of the same group beside each other.
        covariance: `[groups, blocks, width, width]`, float64.
        shape: of the layer.

    Returns:
        The running maximum of the increments of e, and the number of the removal, `[channels,
        size]` both. A round removes up to one in `ROUND` of what is left, at its mean increment.
    """
    total = shape.blocks * shape.width
    padded = functional.pad(weights, (0, total - shape.size))
    cells = padded.view(shape.groups, -1, shape.blocks, shape.width).transpose(1, 2)
    images = (cells @ covariance).transpose(1, 2).reshape(len(weights), total)
    table = covariance.reshape(-1, shape.width)
    diagonals = covariance.diagonal(dim1=-2, dim2=-1).reshape(shape.groups, total)
    groups = torch.arange(shape.groups, device=weights.device)
    groups = groups.repeat_interleave(len(weights) // shape.groups)
    parts = [
        _Channels(padded[rows], images[rows], diagonals[groups[rows]], shape).run(
            table, groups[rows] * total
        )
        for rows in torch.arange(len(weights), device=weights.device).split(
            max(1, ENTRIES // total)
        )
    ]
    damage, order = (torch.cat(one)[:, : shape.size] for one in zip(*parts, strict=True))
    dead = order.new_zeros(len(weights), 1).bool()
    dead[:, 0] = (padded * images).sum(1) <= 0
    by_size = weights.abs().argsort(dim=1, stable=True).argsort(1).double()
    return damage.masked_fill(dead, 0), torch.where(dead, by_size, order)


class _Channels:
    """Some channels of a layer on their way from dense to empty; all tensors `[channels, total]`.

    Args:
        weights: w.
        images: Cw.
        diagonal: of C.
        shape: of the layer.
    """

    def __init__(self, weights: Tensor, images: Tensor, diagonal: Tensor, shape: Shape) -> None:
        self.weights, self.shape = weights, shape
        self.inner = images.clone()  # C(m∘w)
        self.products = weights * images  # what a loses by a removal; infinite where it is gone
        self.squares = weights.square() * diagonal
        self.doubled = 2 * weights
        self.variance = self.products.sum(1).clamp_min(0)
        self.products[:, shape.size :] = torch.inf
        self.least = (self.variance * NOISE).clamp_min(torch.finfo(torch.float64).tiny)

    def run(self, table: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """Remove all weights; `table` holds the rows of C, those of a channel from its offset."""
        a, b = self.variance.clone(), self.variance.clone()
        highest, error = torch.zeros_like(a), torch.zeros_like(a)
        damage, order = torch.zeros_like(self.weights), torch.zeros_like(self.weights)
        left, share = self.shape.size, ROUND if self.shape.blocks == 1 else WIDE_ROUND
        while left:
            count = max(1, left // share)
            gone = self._least_missed(a, b, count)
            a = a - self.products.gather(1, gone).sum(1)
            weights, before = self.weights.gather(1, gone), self.inner.gather(1, gone)
            self.inner -= self._images(gone, weights, table, offsets)
            b = b - (weights * (before + self.inner.gather(1, gone))).sum(1)
            self.products.scatter_(1, gone, torch.inf)
            correlation = a / (torch.maximum(b, self.least) * self.variance).sqrt()
            reached = 2 * self.variance * (1 - correlation.nan_to_num(0).clamp(0, 1))
            highest = torch.maximum(highest, (reached - error) / count)
            error = torch.maximum(error, reached)
            damage.scatter_(1, gone, highest.unsqueeze(1).expand_as(gone))
            steps = torch.arange(count, device=gone.device).double() + (self.shape.size - left)
            order.scatter_(1, gone, steps.expand_as(gone))
            left -= count
        return damage, order

    def _least_missed(self, a: Tensor, b: Tensor, count: int) -> Tensor:
        """Return the indices whose removal leaves ρ largest, `[channels, count]`, best first."""
        variance = (b.unsqueeze(1) + self.squares).addcmul_(self.doubled, self.inner, value=-1)
        variance = torch.maximum(variance, self.least.unsqueeze(1), out=variance)
        scaled = variance.rsqrt_().mul_(a.unsqueeze(1) - self.products)
        if count == 1:
            return scaled.argmax(1, keepdim=True)
        return scaled.topk(count, dim=1).indices

    def _images(self, gone: Tensor, weights: Tensor, table: Tensor, offsets: Tensor) -> Tensor:
        """Return C·δ for δ the removed weights: sums of rows of the table, block by block."""
        blocks, width = self.shape.blocks, self.shape.width
        if blocks > 1:
            gone, order = gone.sort(1)
            weights = weights.gather(1, order)
        bags = gone // width + blocks * torch.arange(len(gone), device=gone.device).unsqueeze(1)
        counts = torch.bincount(bags.flatten(), minlength=len(gone) * blocks)
        return functional.embedding_bag(
            (gone + offsets.unsqueeze(1)).flatten(),
            table,
            counts.cumsum(0) - counts,
            mode="sum",
            per_sample_weights=weights.flatten(),
        ).view(len(gone), -1)


def _ranks(damages: Tensor, orders: Tensor) -> Tensor:
    """Return the rank over the total of every weight, by damage, then by order, then by index."""
    ranking = torch.argsort(orders, stable=True)
    ranking = ranking[torch.argsort(damages[ranking], stable=True)]
    scores = torch.empty_like(damages)
    scores[ranking] = torch.arange(1, len(scores) + 1, device=scores.device).double() / len(scores)
    return scores.float()
