"""Warnings of a run: untrained networks, inputs that say little, a search that overfits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from gaprune.config import EVOLVED
from gaprune.criteria import find_criterion
from gaprune.evaluation.evaluator import Evaluator
from gaprune.evaluation.objectives import agreement
from gaprune.evolution.search_plan import OVERFIT_DROP, SearchResult
from gaprune.io.weights import tensors_of
from gaprune.models.forward import functional_call
from gaprune.models.fresh_weights import fresh_layers
from gaprune.models.input_spec import picture_shapes
from gaprune.models.macs import macs_by_weight
from gaprune.models.network import DenseNetwork
from gaprune.models.prunable import parameters_left_whole, parts_left_as_they_are
from gaprune.models.subnormal_numbers import count_subnormal
from gaprune.models.target import Target
from gaprune.records import LOW_FIT, Provenance

MAX_LISTED = 5  # layers in a message
TRIED = 4  # validation inputs on which weights are looked for that nothing uses
WELL_COVERED = 0.8  # prunable fraction of the weights below which a run warns
ONE_CLASS = 0.99  # share of validation inputs in one class from which agreement says nothing


def network_warnings(target: Target) -> Iterator[str]:
    """Yield what the user should know about a network before its inputs are made."""
    if (fresh := fresh_layers(target.model)) is not None:
        # a factory that was given weights says so in its origin
        without = target.origin == f"factory {target.name}"
        remedy = "no --weights are given" if without else "load its weights first"
        yield (
            f"the network looks untrained: the weights of {fresh[0]} of {fresh[1]} large layers "
            f"are distributed as at their initialisation; {remedy}"
        )
    if target.inputs.assumed:
        yield (
            "the value range of the inputs is not stated; 0 to 1 is assumed "
            "(--range=LOW,HIGH or --mean and --std state it)"
        )
    if shapes := picture_shapes(target.inputs):
        stated = " or ".join("--input-shape=" + ",".join(map(str, shape)) for shape in shapes)
        yield (
            f"inputs are vectors of {target.inputs.shape[0]}, made without order between "
            f"neighbours; if they are the pixels of pictures, state {stated}"
        )
    if (text := coverage_warning(target)) is not None:
        yield text
    if count := count_subnormal(target.model.parameters()):
        yield (
            f"{count:,} weights are below 1.2e-38, which slows Intel processors down where other "
            "programs run the network; here they count as 0, and `gaprune export "
            "--flush-subnormals` writes them as 0"
        )
    if target.folded:
        more = f" and {len(target.folded) - MAX_LISTED} more" if target.folded[MAX_LISTED:] else ""
        yield (
            f"folded into plain weights: {', '.join(target.folded[:MAX_LISTED])}{more}; files hold "
            "them under these names (gaprune.fold_parametrizations prepares a network for them)"
        )
    state = target.model.state_dict()
    others = [f"{name} (no tensor)" for name in state.keys() - tensors_of(state).keys()]
    if parts := [*parts_left_as_they_are(target.model), *sorted(others)]:
        more = f" and {len(parts) - MAX_LISTED} more" if parts[MAX_LISTED:] else ""
        files = "; files hold tensors only" if others else ""
        yield f"left as they are: {', '.join(parts[:MAX_LISTED])}{more}{files}"


def coverage_warning(target: Target) -> str | None:
    """Return the warning that many weights are not prunable; None if few are.

    Weights that the user ignores are left whole on purpose and do not count.
    """
    left = parameters_left_whole(target.model, target.layout.names, target.ignore)
    total = target.layout.total + sum(left.values())
    if target.layout.total >= WELL_COVERED * total:
        return None
    largest = list(left)[:MAX_LISTED]
    listed = ", ".join(f"{name} ({left[name]:,})" for name in largest)
    return (
        f"only {target.layout.total:,} of {total:,} weights ({target.layout.total / total:.1%}) "
        f"are prunable; the largest that are left whole: {listed}; --prune-also={largest[0]} "
        "includes one, --ignore says that it is meant"
    )


def domain_warning(provenance: Provenance, method: str) -> str | None:
    """Return the warning that a method knows little of the network's domain; None if it does.

    A criterion of the weights alone needs to know nothing.
    """
    fit, searched = provenance.domain_fit, method == EVOLVED
    if fit is None or fit >= LOW_FIT or not (searched or find_criterion(method).needs_inputs):
        return None
    other = ", and --method=correlation may be better on real ones" if searched else ""
    return (
        f"domain fit {fit:.2f} (below {LOW_FIT}): the network separates these inputs worse than "
        f"those of its domain, so agreement on them says little{other}; 50 to 500 unlabelled "
        "inputs help most (--calibration=FILE)"
    )


def validation_warnings(evaluator: Evaluator) -> Iterator[str]:
    """Yield the warnings before a search."""
    if unused := unused_weights(evaluator.network, evaluator.validation.inputs[:TRIED]):
        count = sum(evaluator.network.weights[name].numel() for name in unused)
        more = f" and {len(unused) - MAX_LISTED} more" if unused[MAX_LISTED:] else ""
        yield (
            f"{count:,} of {evaluator.network.layout.total:,} prunable weights take no part in the "
            f"outputs ({', '.join(unused[:MAX_LISTED])}{more}): removing them costs nothing, and "
            "the other layers are less sparse than the result says; --ignore=NAME leaves a layer "
            "whole and does not count it"
        )
    n_of_m = evaluator.layout.n_of_m
    if n_of_m is not None and None in n_of_m.axes:
        pairs = zip(evaluator.layout.names, n_of_m.axes, strict=True)
        names = [name for name, axis in pairs if axis is None]
        more = f" and {len(names) - MAX_LISTED} more" if names[MAX_LISTED:] else ""
        yield (
            f"pattern {n_of_m.keep}:{n_of_m.of} does not prune {', '.join(names[:MAX_LISTED])}"
            f"{more}: {n_of_m.of} does not divide the number of their inputs, or they have none "
            "(attention projections and other parameters)"
        )
    if evaluator.objective.agreement is not agreement:  # no classes are compared
        return
    # A network that always predicts one class would agree on all of these inputs as well.
    classes = evaluator.validation.teacher.argmax(1).flatten()
    most_common = int(classes.mode().values)
    share = float((classes == most_common).double().mean())
    if share >= ONE_CLASS:
        yield (
            f"the dense network predicts one class ({most_common}) on {share:.1%} of the "
            "validation inputs, so a pruned network that always predicts it agrees there, and is "
            "within any --max-drop: distrust the figures, and use other inputs (--calibration, "
            "--validation; --range, --mean and --std state their values)"
        )


def unused_weights(network: DenseNetwork, inputs: Tensor) -> list[str]:
    """Return the prunable weights that do not affect the outputs on inputs `[N, …]`.

    Products show nearly all of the others. What is left, such as embeddings, and weights that
    forward standardises first, is used if it has a gradient.
    """
    parameters = {name: network.model.get_parameter(name) for name in network.weights}
    macs = macs_by_weight(network.model, inputs[:1], parameters)[1]
    leaves = {name: p.detach().requires_grad_() for name, p in parameters.items() if not macs[name]}
    if not leaves:
        return []
    with torch.enable_grad():
        outputs = functional_call(network.model, leaves, (inputs,))
    if not outputs.requires_grad:
        return [*leaves]
    gradients = torch.autograd.grad(outputs.sum(), [*leaves.values()], allow_unused=True)
    return [name for name, grad in zip(leaves, gradients, strict=True) if grad is None]


def baseline_warning(agreements: Mapping[str, float]) -> str | None:
    """Return the warning that a random mask is the best one-shot mask; None if another is."""
    others = [value for name, value in agreements.items() if name != "random"]
    if "random" not in agreements or not others or agreements["random"] <= max(others):
        return None
    return (
        "a random mask agrees more with the dense network than that of any criterion: is it "
        "trained, and are the inputs those that it was trained for (--weights, --range, --mean, "
        "--std)?"
    )


def overfitting_warning(
    search: SearchResult,
    evaluator: Evaluator,
    sparsity: float,
    agreed: list[float],
    *,
    front: bool,
) -> str | None:
    """Return the warning about a search that gained on calibration inputs and lost on validation.

    `agreed` are sparsities without overfitting; this one is added if it is one. A `front` of many
    budgets gets no warning: its best candidates cannot be compared.
    """
    scores = search.validation_scores
    known = [individual for individual in search.population if individual.key in scores]
    if not known or front:  # interrupted before the first population was complete
        return None
    leader = max(known, key=lambda individual: individual.search_fitness)
    reached, returned = scores[leader.key].agreement, search.validation_score.agreement
    if search.stopped != "validation" and returned - reached <= OVERFIT_DROP:
        agreed.append(sparsity)
        return None
    best = max(score.agreement for score in scores.values())
    fine = max((other for other in agreed if other < sparsity), default=None)
    without = "" if fine is None else f" (not at {fine})"
    on_calibration = evaluator.validate(leader.mask, evaluator.search).agreement
    ending = (
        "which is returned"
        if best == returned
        else f"and the one with the best validation fitness, {returned:.1%}, is returned"
    )
    return (
        f"the search overfits its calibration inputs at sparsity {sparsity}{without}: its best "
        f"candidate agrees on {on_calibration:.1%} of them and on {reached:.1%} of the validation "
        f"inputs; an earlier one agrees on {best:.1%} of the validation inputs, {ending}; use more "
        "calibration inputs, or fewer generations"
    )
