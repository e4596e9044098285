"""What a run tells the user about its guard: that it says little, or that the search left it."""

from __future__ import annotations

from collections.abc import Iterator

from gaprune.evaluation.evaluator import Bench
from gaprune.evaluation.objectives import agreement
from gaprune.evolution.search_plan import PARTED, Outcome

SHOWN = 5  # layers in a message
ONE_CLASS = 0.99  # of the guard's inputs in one class: agreement on them tells nothing


def doubts(bench: Bench) -> Iterator[str]:
    """Yield what is to be said before anything is searched for."""
    yield from filter(None, (doubt(bench), whole_layers(bench)))


def whole_layers(bench: Bench) -> str | None:
    """Say which layers a quota leaves whole, or return None."""
    quota = bench.layout.quota
    if quota is None or None not in quota.axes:
        return None
    pairs = zip(bench.layout.names, quota.axes, strict=True)
    names = [name for name, axis in pairs if axis is None]
    some = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if names[SHOWN:] else "")
    return (
        f"pattern {quota.keep}:{quota.of} leaves {some} whole: {quota.of} does not divide the "
        "number of their inputs, or they are neither linear nor convolutions"
    )


def doubt(bench: Bench) -> str | None:
    """Say when a network that always names the same class would agree on the guard as well.

    Args:
        bench: the probes with the dense network's answers.

    Returns:
        The warning, or None where the guard tells networks apart, or compares no classes.
    """
    if bench.objective.judge is not agreement:
        return None
    named = bench.guard.teacher.argmax(1).flatten()
    often = int(named.mode().values)
    share = float((named == often).double().mean())
    if share < ONE_CLASS:
        return None
    return (
        f"the dense network names one class ({often}) on {share:.1%} of the guard, so a pruned "
        "network that names no other agrees there and holds any --max-drop: read the figures with "
        "doubt, and show it other inputs (--probes and --guard; --range, --mean and --std say "
        "which values it takes)"
    )


def advise(
    outcome: Outcome, bench: Bench, sparsity: float, agreed: list[float], *, front: bool
) -> str | None:
    """Say when the search still gains while the guard loses, with the figures.

    Args:
        outcome: what was found.
        bench: the probes.
        sparsity: where.
        agreed: sparsities at which search and guard did not part; this one is added if it is one.
        front: whether many budgets were searched; their leaders cannot be compared.

    Returns:
        The advice, or None where they agree, or too little is known.
    """
    known = [one for one in outcome.population if one.key in outcome.judged]
    if not known or front:  # interrupted before the first population was complete
        return None
    leader = max(known, key=lambda one: one.quality)
    reached, returned = outcome.judged[leader.key].agreement, outcome.verdict.agreement
    if outcome.stopped != "guard" and returned - reached <= PARTED:
        agreed.append(sparsity)
        return None
    best = max(verdict.agreement for verdict in outcome.judged.values())
    held = max((one for one in agreed if one < sparsity), default=None)
    ending = (
        "which is returned"
        if best == returned
        else f"and the closest to the dense network there, {returned:.1%}, is returned"
    )
    return (
        f"the search and the guard part at sparsity {sparsity}: don't go further"
        f"{'' if held is None else f' (at {held} they did not part)'}; the best on the search "
        f"probes agrees {bench.judge(leader.mask, bench.search).agreement:.1%} there and "
        f"{reached:.1%} on the guard, an earlier one {best:.1%} on the guard, {ending}; more "
        "search on these probes does harm"
    )
