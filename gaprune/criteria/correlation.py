"""Correlation: keep every channel's pruned output correlated with its dense output.

Scale and shift of a channel are undone by a following norm or by repair, so what a mask costs a
channel is lost correlation. For an output channel with weights w, mask m and covariance C of its
inputs, let a = (m∘w)ᵀCw, b = (m∘w)ᵀC(m∘w), v = wᵀCw and ρ = a/√(b·v). The least squared error at
equal variance is e = 2v(1 − ρ). Backward elimination in the manner of Optimal Brain Surgeon
(Hassibi and Stork 1993) removes the weight that leaves ρ largest, again and again. The Fisher
information of the channel's output makes errors of different channels and layers comparable.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from gaprune.criteria.layer_inputs import WeightShape, outputs_first
from gaprune.criteria.responses import measure_responses
from gaprune.models.network import DenseNetwork

# Each round removes one in ROUND of a channel's remaining weights. Correlated inputs (neighbouring
# pixels) can each be spared, but not all at once: with 64, mnist-mlp at 0.95 drops from 94.7 % to
# 64 %.
ROUND = 256
WIDE_ROUND = 64  # the same for channels whose inputs lie in several blocks
ENTRIES = 2**17  # weights whose channels are eliminated together: limits memory
NOISE = 1e-12  # variances below this fraction of a channel's variance are rounding errors


def correlation(
    network: DenseNetwork,
    calibration: Tensor | None,
    _density: float | None,
    generator: torch.Generator,
) -> Tensor:
    """Rank weights by how much their removal damages the correlation of their channel.

    The damage is the running maximum of the increments of e along the elimination, times the
    channel's empirical Fisher information: the mean over calibration inputs of Σ (∂ log p(y|x)/∂z)²
    over the positions of its output z, with y drawn from the network's own output. So inside a
    channel the order is that of the removal. The result is a total ranking, in (0, 1]: rank over
    total, equal damages in the order of removal.

    This covers linear layers and convolutions (shared weights with all their inputs). All other
    weights get w²·mean (∂ log p/∂w)², the Fisher information of the weight itself, ties ordered by
    |w|. Weights without effect, as in dead channels or at constant inputs, come last.

    The generator is not advanced: the criterion draws from a copy of it.
    """
    responses = measure_responses(network, calibration, generator.clone_state())
    damages, orders = {}, {}
    for name, weight in network.weights.items():
        response = responses.layers.pop(name, None)  # frees each covariance after its use
        if response is None:
            information = responses.information[name]
            damages[name] = weight.double().square() * information.double()
            orders[name] = weight.double().abs()
        else:
            module, moments = network.layer_of(name), response.moments
            rows = outputs_first(module, weight.detach())
            damage, order = eliminate(rows.flatten(1).double(), moments.covariance(), moments.shape)
            damage *= response.information.double().unsqueeze(1)
            damages[name], orders[name] = (
                outputs_first(module, values.view_as(rows)) for values in (damage, order)
            )
    flat = network.layout.flatten(damages)
    if not flat.isfinite().all():  # `score` reports which layer is not finite
        return flat.float()
    return _ranks(flat, network.layout.flatten(orders))


def eliminate(weights: Tensor, covariance: Tensor, shape: WeightShape) -> tuple[Tensor, Tensor]:
    """Remove all weights `[channels, size]` of every channel, those with the least effect first.

    The covariance is `[groups, blocks, width, width]`, all float64.

    Returns:
        The running maximum of the increments of e, and the position in the order of removal, both
        `[channels, size]`. One round removes up to one in `ROUND` of the remaining weights, all at
        their mean increment.
    """
    total = shape.blocks * shape.width
    padded = functional.pad(weights, (0, total - shape.size))
    cells = padded.view(shape.groups, -1, shape.blocks, shape.width).transpose(1, 2)
    images = (cells @ covariance).transpose(1, 2).reshape(len(weights), total)
    table = covariance.reshape(-1, shape.width)
    diagonals = covariance.diagonal(dim1=-2, dim2=-1).reshape(shape.groups, total)
    groups = torch.arange(shape.groups, device=weights.device)
    groups = groups.repeat_interleave(len(weights) // shape.groups)
    channels = torch.arange(len(weights), device=weights.device)
    parts = [
        _Elimination(padded[rows], images[rows], diagonals[groups[rows]], shape).run(
            table, groups[rows] * total
        )
        for rows in channels.split(max(1, ENTRIES // total))
    ]
    damage, order = (torch.cat(part)[:, : shape.size] for part in zip(*parts, strict=True))
    # a channel without variance has no correlation to lose: order its weights by size
    dead = order.new_zeros(len(weights), 1).bool()
    dead[:, 0] = (padded * images).sum(1) <= 0
    by_size = weights.abs().argsort(dim=1, stable=True).argsort(1).double()
    return damage.masked_fill(dead, 0), torch.where(dead, by_size, order)


class _Elimination:
    """The elimination of some channels of a layer; all tensors are `[channels, total]`."""

    def __init__(
        self, weights: Tensor, images: Tensor, diagonal: Tensor, shape: WeightShape
    ) -> None:
        self.weights, self.shape = weights, shape
        self.inner = images.clone()  # Cw, later C(m∘w)
        self.products = weights * images  # what a loses by a removal; infinite once removed
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
            removed = self._least_damaging(a, b, count)
            a = a - self.products.gather(1, removed).sum(1)
            weights, before = self.weights.gather(1, removed), self.inner.gather(1, removed)
            self.inner -= self._images(removed, weights, table, offsets)
            # b changes by −δᵀC(m∘w) before and after the removal of δ
            b = b - (weights * (before + self.inner.gather(1, removed))).sum(1)
            self.products.scatter_(1, removed, torch.inf)
            correlation = a / (torch.maximum(b, self.least) * self.variance).sqrt()
            reached = 2 * self.variance * (1 - correlation.nan_to_num(0).clamp(0, 1))
            highest = torch.maximum(highest, (reached - error) / count)
            error = torch.maximum(error, reached)
            damage.scatter_(1, removed, highest.unsqueeze(1).expand_as(removed))
            steps = torch.arange(count, device=removed.device).double() + (self.shape.size - left)
            order.scatter_(1, removed, steps.expand_as(removed))
            left -= count
        return damage, order

    def _least_damaging(self, a: Tensor, b: Tensor, count: int) -> Tensor:
        """Return the indices whose removal leaves ρ largest, `[channels, count]`, best first."""
        # without w_i: a' = a − w_i(Cw)_i and b' = b − 2w_i(C(m∘w))_i + w_i²C_ii; ρ ∝ a'/√b'
        variance = (b.unsqueeze(1) + self.squares).addcmul_(self.doubled, self.inner, value=-1)
        variance = torch.maximum(variance, self.least.unsqueeze(1), out=variance)
        scaled = variance.rsqrt_().mul_(a.unsqueeze(1) - self.products)
        if count == 1:
            return scaled.argmax(1, keepdim=True)
        return scaled.topk(count, dim=1).indices

    def _images(self, removed: Tensor, weights: Tensor, table: Tensor, offsets: Tensor) -> Tensor:
        """Return C·δ for the removed weights δ: weighted sums of rows of C, block by block."""
        blocks, width = self.shape.blocks, self.shape.width
        if blocks > 1:
            removed, order = removed.sort(1)
            weights = weights.gather(1, order)
        # one bag per channel and block
        channels = torch.arange(len(removed), device=removed.device).unsqueeze(1)
        bags = removed // width + blocks * channels
        counts = torch.bincount(bags.flatten(), minlength=len(removed) * blocks)
        return functional.embedding_bag(
            (removed + offsets.unsqueeze(1)).flatten(),
            table,
            counts.cumsum(0) - counts,
            mode="sum",
            per_sample_weights=weights.flatten(),
        ).view(len(removed), -1)


def _ranks(damages: Tensor, orders: Tensor) -> Tensor:
    ranking = torch.argsort(orders, stable=True)
    ranking = ranking[torch.argsort(damages[ranking], stable=True)]
    scores = torch.empty_like(damages)
    scores[ranking] = torch.arange(1, len(scores) + 1, device=scores.device).double() / len(scores)
    return scores.float()
