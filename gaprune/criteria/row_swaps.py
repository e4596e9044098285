"""Reconstruction swaps: exchange kept and removed weights of a row while its outputs improve.

SparseSwaps (arXiv 2512.10922), DSnoT (Zhang et al. 2024, arXiv 2310.08915). For a row w with mask m
and Gram matrix G = E[x·xᵀ] of its inputs let y = Gw and d = G(m∘w). Taking p out and q in changes
the squared error of the row's outputs by

    2w_p(y_p − d_p) + w_p²G_pp − 2w_q(y_q − d_q) + w_q²G_qq − 2w_p·w_q·G_pq.

Where scale and shift of a channel are repaired afterwards, the correlation ρ of dense and pruned
outputs counts instead (see `gaprune.criteria.correlation`): G is the covariance, b = (m∘w)ᵀG(m∘w)
changes by these terms with −d in place of y − d, a = wᵀG(m∘w) by w_q·y_q − w_p·y_p, and ρ ∝ a/√b.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from gaprune.criteria.layer_inputs import WeightShape

CANDIDATES = 48  # weights on each side of a row's swaps: all pairs of them are compared
STEPS = 8  # most swaps of a row between two choices of candidates
ROUNDS = 50  # most choices of candidates
ENTRIES = 2**21  # entries of one intermediate result: decides how many rows are refined together
LEAST_GAIN = 1e-6  # of a row's output power, or of ρ: smaller gains are rounding
NOISE = 1e-12  # powers below this fraction of a row's power are rounding errors


def refine_mask(  # noqa: PLR0913 # a mask, what its rows compute, and the rules of a swap
    weights: Tensor,
    gram: Tensor,
    mask: Tensor,
    shape: WeightShape,
    *,
    correlated: bool = False,
    groups: Tensor | None = None,
    rounds: int = ROUNDS,
) -> Tensor:
    """Swap kept and removed weights of every row, the best pair first, until no pair gains.

    Args:
        weights: `[rows, size]`, one row per output channel.
        gram: Gram matrix of the inputs, or covariance if `correlated`, of the dtype of the weights:
            `[groups, blocks, width, width]` as in `WeightShape`.
        mask: bool `[rows, size]`; True is kept.
        shape: how the inputs of a row lie in `gram`.
        correlated: maximise the correlation of each row's outputs with the dense ones instead of
            minimising their squared error.
        groups: int64 `[groups, M]`: swaps stay inside these groups of inputs, as N:M patterns need.
        rounds: most rounds, each of up to `STEPS` swaps per row among its candidates.

    Returns:
        The refined mask, with as many kept weights in every row (and group).
    """
    total = shape.blocks * shape.width
    indices = torch.arange(len(weights), device=weights.device)
    offsets = indices // max(1, len(weights) // shape.groups) * total
    pairs = CANDIDATES**2 if groups is None else groups.numel() * groups.shape[1]
    refined = torch.empty_like(mask)
    for part in indices.split(max(1, ENTRIES // max(total, pairs))):
        rows = _Rows.of(weights[part], gram, mask[part], shape, offsets[part], correlated)
        refined[part] = _refine(rows, groups, rounds)[:, : shape.size]
    return refined


@dataclass(frozen=True)
class _Rows:
    """Some rows of a layer, padded to whole blocks; `[rows, total]` unless stated."""

    weights: Tensor
    mask: Tensor  # changed by `swap`
    products: Tensor  # w∘y: their sum is the power of the row's dense outputs
    squares: Tensor  # w²·diag(G)
    inner: Tensor  # d if `correlated`, else d − y; changed by `swap`
    offsets: Tensor  # `[rows]`: where the matrix of a row begins in the table
    table: Tensor  # rows of G, `[groups · total, width]`
    shape: WeightShape
    correlated: bool

    @classmethod
    def of(  # see `refine_mask`
        cls,
        weights: Tensor,
        gram: Tensor,
        mask: Tensor,
        shape: WeightShape,
        offsets: Tensor,
        correlated: bool,  # noqa: FBT001
    ) -> _Rows:
        total = shape.blocks * shape.width
        weights, mask = (functional.pad(x, (0, total - shape.size)) for x in (weights, mask))
        dense, pruned = torch.empty_like(weights), torch.empty_like(weights)
        for offset in offsets.unique().tolist():
            rows = offsets == offset
            for vectors, images in ((weights, dense), (weights * mask, pruned)):
                cells = vectors[rows].view(-1, shape.blocks, shape.width).transpose(0, 1)
                images[rows] = (cells @ gram[offset // total]).transpose(0, 1).flatten(1)
        squares = (
            weights.square() * gram.diagonal(dim1=-2, dim2=-1).reshape(-1, total)[offsets // total]
        )
        squares[:, shape.size :] = torch.inf  # so padding is never swapped
        return cls(
            weights,
            mask,
            weights * dense,
            squares,
            pruned if correlated else pruned - dense,
            offsets,
            gram.reshape(-1, shape.width).contiguous(),
            shape,
            correlated,
        )

    def select(self, chosen: Tensor) -> _Rows:
        """Return copies of the rows that a bool tensor `[rows]` chooses."""
        names = ("weights", "mask", "products", "squares", "inner", "offsets")
        return replace(self, **{name: getattr(self, name)[chosen] for name in names})

    def swap(self, rows: Tensor, p: Tensor, q: Tensor) -> None:
        """Take weight p out and q in, in some rows; all `[n]`."""
        width = self.shape.width
        cells = self.inner.view(-1, self.shape.blocks, width)
        for index, is_kept in ((p, False), (q, True)):
            weight = self.weights[rows, index].unsqueeze(1) * (1 if is_kept else -1)
            cells[rows, index // width] += weight * self.table[self.offsets[rows] + index]
            self.mask[rows, index] = is_kept

    def candidates(self) -> tuple[Tensor, Tensor]:
        """Return the weights that cost least to take out, and in, `[rows, 1, CANDIDATES]` each.

        Of a correlation, costs are of first order.
        """
        doubled = 2 * self.weights * self.inner
        leave, enter = self.squares - doubled, self.squares + doubled
        if self.correlated:
            a, b, _ = self.moments()
            covariances, half = self.products / a.unsqueeze(1), 0.5 / b.unsqueeze(1)
            leave, enter = half * leave + covariances, half * enter - covariances
        leave.masked_fill_(~self.mask, torch.inf)
        enter.masked_fill_(self.mask, torch.inf)
        count = min(CANDIDATES, self.shape.size)
        p, q = (costs.topk(count, largest=False).indices for costs in (leave, enter))
        return p.unsqueeze(1), q.unsqueeze(1)

    def moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return a, b and the least of both that is no rounding error, `[rows]` each."""
        least = self.products.sum(1).mul(NOISE).clamp_min(torch.finfo(self.inner.dtype).tiny)
        a, b = ((x * self.mask).sum(1) for x in (self.products, self.weights * self.inner))
        return torch.maximum(a, least), torch.maximum(b, least), least


class _Swaps:
    """The swaps of some rows: pairs of `p` `[rows, n, P]` and `q` `[rows, n, Q]` with equal n."""

    def __init__(self, rows: _Rows, p: Tensor, q: Tensor) -> None:
        self.rows, self.p, self.q = rows, p, q
        width, offsets = rows.shape.width, rows.offsets.view(-1, 1, 1)
        starts = (p + offsets).unsqueeze(-1) * width
        self.couplings = rows.table.view(-1).take(starts + (q % width).unsqueeze(-2))
        if rows.shape.blocks > 1:  # between blocks, inputs count as uncorrelated
            self.couplings *= (p // width).unsqueeze(-1) == (q // width).unsqueeze(-2)
        self.weights, self.squares = self._pick(rows.weights), self._pick(rows.squares)
        self.couplings *= -2 * self.weights[0] * self.weights[1]

    def best(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the largest relative gain of a swap, and its p and q; all `[rows]`."""
        rows = self.rows
        inner, kept = self._pick(rows.inner), self._pick(rows.mask)
        leave = self.squares[0] - 2 * self.weights[0] * inner[0]
        enter = self.squares[1] + 2 * self.weights[1] * inner[1]
        changes = self.couplings + leave.masked_fill_(~kept[0], torch.inf)
        changes += enter.masked_fill_(kept[1], torch.inf)
        power = rows.products.sum(1).view(-1, 1, 1, 1)
        if rows.correlated:
            a, b, least = (moment.view(-1, 1, 1, 1) for moment in rows.moments())
            scale = torch.maximum(changes.add_(b), least).mul_(power).rsqrt_()
            lost, won = self._pick(rows.products)
            gains = (won - lost).add_(a).mul_(scale).sub_(a * (b * power).rsqrt())
        else:
            gains = changes.div_(-power)
        gain, index = gains.flatten(1).max(1)
        n, pair = index // gains[0, 0].numel(), index % gains[0, 0].numel()
        every, columns = torch.arange(len(index), device=index.device), gains.shape[-1]
        return gain, self.p[every, n, pair // columns], self.q[every, n, pair % columns]

    def _pick(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return values `[rows, total]` of p as `[rows, n, P, 1]` and of q as `[rows, n, 1, Q]`."""
        p, q = (values.gather(1, x.flatten(1)).view(x.shape) for x in (self.p, self.q))
        return p.unsqueeze(-1), q.unsqueeze(-2)


def _refine(rows: _Rows, groups: Tensor | None, rounds: int) -> Tensor:
    """Return the refined masks of some rows."""
    refined = rows.mask.clone()
    active = torch.arange(len(refined), device=refined.device)
    improves = rows.products.sum(1) > 0  # else there is no output to improve
    for _ in range(rounds):
        if not improves.all():
            refined[active] = rows.mask
            rows, active = rows.select(improves), active[improves]
        if not len(active):
            break
        if groups is None:
            swaps = _Swaps(rows, *rows.candidates())
        else:
            swaps = _Swaps(rows, *[groups.expand(len(active), -1, -1)] * 2)
        improves = torch.zeros_like(improves[: len(active)])
        for _ in range(STEPS):
            gain, p, q = swaps.best()
            chosen = (gain > LEAST_GAIN).nonzero().flatten()
            if not len(chosen):
                break
            improves[chosen] = True
            rows.swap(chosen, p[chosen], q[chosen])
    refined[active] = rows.mask
    return refined
