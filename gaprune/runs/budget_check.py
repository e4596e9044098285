"""The last check of a run: a result that does not spend the budget asked for is an error."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from gaprune.errors import GapruneError
from gaprune.evolution.genome import Individual
from gaprune.evolution.search_plan import SearchPlan
from gaprune.masks.mac_budget import MacCost
from gaprune.masks.supermask import Layout, layer_counts
from gaprune.models.mac_cost import kept_macs
from gaprune.models.target import Target


def check_budget(
    target: Target, plan: SearchPlan, best: Individual, masks: Mapping[str, Tensor]
) -> None:
    """Raise `GapruneError` unless the masks of a result spend its budget, to rounding.

    Multiply-adds are counted on the masks themselves, not by the prices that the search used.
    """
    layout, keep = plan.layout, best.keep
    if plan.most is None and keep != plan.keep:
        raise GapruneError(f"result: its budget is {keep:,}, but {plan.keep:,} was asked for")
    counts = layer_counts(best.mask, layout)
    if layout.mac_cost is None:
        if sum(counts) != keep:
            raise GapruneError(f"result: {sum(counts):,} are kept, but {keep:,} were asked for")
        return
    kept = kept_macs(target, masks)
    lowest = keep - _rounding(layout, layout.mac_cost, counts)
    if not lowest <= kept <= keep + 1:  # fractions of a multiply-add are rounded
        raise GapruneError(
            f"result: it costs {kept:,} multiply-adds, but {keep:,} of "
            f"{layout.mac_cost.dense:,} were asked for; use --budget=weights, or another pattern"
        )


def _rounding(layout: Layout, cost: MacCost, counts: list[int]) -> int:
    """Return the multiply-adds that a result within a budget may leave unspent.

    That is one more step of the most expensive layer, and what prices overestimate.
    """
    steps = [0]
    for index, (count, most) in enumerate(zip(counts, layout.max_counts, strict=True)):
        more = [*counts]
        more[index] = min(most, count + cost.step)
        steps.append(cost.macs(more) - cost.macs(counts))
    overestimate = max(0, cost.macs(layout.sizes) - cost.dense)
    return max(steps) + overestimate + 1
