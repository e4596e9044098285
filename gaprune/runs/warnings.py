"""What a run tells the user about its validation: that it says little, or that the search left it."""

from __future__ import annotations

from collections.abc import Iterator

from gaprune.evaluation.evaluator import Evaluator
from gaprune.evaluation.objectives import agreement
from gaprune.evolution.search_plan import OVERFIT_DROP, SearchResult

SHOWN = 5  # layers in a message
ONE_CLASS = 0.99  # of the validation inputs's inputs in one class: agreement on them tells nothing


def doubts(evaluator: Evaluator) -> Iterator[str]:
    """Yield what is to be said before anything is searched for."""
    yield from filter(None, (doubt(evaluator), whole_layers(evaluator)))


def whole_layers(evaluator: Evaluator) -> str | None:
    """Say which layers a quota leaves whole, or return None."""
    quota = evaluator.layout.n_of_m
    if quota is None or None not in quota.axes:
        return None
    pairs = zip(evaluator.layout.names, quota.axes, strict=True)
    names = [name for name, axis in pairs if axis is None]
    some = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if names[SHOWN:] else "")
    return (
        f"pattern {quota.keep}:{quota.of} leaves {some} whole: {quota.of} does not divide the "
        "number of their inputs, or they are neither linear nor convolutions"
    )


def doubt(evaluator: Evaluator) -> str | None:
    """Say when a network that always names the same class would agree on the validation inputs as well.

    Args:
        evaluator: the calibration inputs with the dense network's answers.

    Returns:
        The warning, or None where the validation inputs tells networks apart, or compares no classes.
    """
    if evaluator.objective.agreement is not agreement:
        return None
    named = evaluator.validation.teacher.argmax(1).flatten()
    often = int(named.mode().values)
    share = float((named == often).double().mean())
    if share < ONE_CLASS:
        return None
    return (
        f"the dense network names one class ({often}) on {share:.1%} of the validation inputs, so a pruned "
        "network that names no other agrees there and holds any --max-drop: read the figures with "
        "doubt, and show it other inputs (--calibration and --validation; --range, --mean and --std say "
        "which values it takes)"
    )


def advise(
    outcome: SearchResult,
    evaluator: Evaluator,
    sparsity: float,
    agreed: list[float],
    *,
    front: bool,
) -> str | None:
    """Say when the search still gains while the validation inputs loses, with the figures.

    Args:
        outcome: what was found.
        evaluator: the calibration inputs.
        sparsity: where.
        agreed: sparsities at which search and validation did not part; this one is added if it is one.
        front: whether many budgets were searched; their leaders cannot be compared.

    Returns:
        The advice, or None where they agree, or too little is known.
    """
    known = [one for one in outcome.population if one.key in outcome.validation_scores]
    if not known or front:  # interrupted before the first population was complete
        return None
    leader = max(known, key=lambda one: one.search_fitness)
    reached, returned = (
        outcome.validation_scores[leader.key].agreement,
        outcome.validation_score.agreement,
    )
    if outcome.stopped != "validation" and returned - reached <= OVERFIT_DROP:
        agreed.append(sparsity)
        return None
    best = max(
        validation_score.agreement for validation_score in outcome.validation_scores.values()
    )
    held = max((one for one in agreed if one < sparsity), default=None)
    ending = (
        "which is returned"
        if best == returned
        else f"and the closest to the dense network there, {returned:.1%}, is returned"
    )
    return (
        f"the search and the validation inputs part at sparsity {sparsity}: don't go further"
        f"{'' if held is None else f' (at {held} they did not part)'}; the best on the search "
        f"calibration inputs agrees {evaluator.validate(leader.mask, evaluator.search).agreement:.1%} there and "
        f"{reached:.1%} on the validation inputs, an earlier one {best:.1%} on the validation inputs, {ending}; more "
        "search on these calibration inputs does harm"
    )
