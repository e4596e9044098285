"""The calibration inputs of a run as plain data and tensors, so that it can go on with the very same inputs.

Files may have gone by then, made inputs may no longer be on the disk, and those made under
`--calibration-seconds` would come out otherwise. Fresh inputs need only their generators and shares.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from gaprune.calibration.calibration_set import CalibrationSet
from gaprune.calibration.generators.mixture import GeneratorMixture
from gaprune.calibration.samples import Samples
from gaprune.models.target import Target
from gaprune.records import Provenance

HELD = ("search", "validation", "gradient_inputs", "domain_inputs")


def to_record(plan: CalibrationSet) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return everything that is shown as plain data and tensors; `nearest` is seldom its own."""
    facts: dict[str, Any] = {
        "mixture": None if plan.mixture is None else list(plan.mixture.shares.items()),
        "gradient_share": plan.gradient_share,
        "augment": plan.augment,
        "provenance": asdict(plan.provenance),
        "mutual_information": list(plan.mutual_information.items()),
    }
    tensors: dict[str, Tensor] = {}
    for name in HELD:
        samples: Samples | None = getattr(plan, name)
        if name == "domain_inputs" and (same := _first_of(plan)) is not None:
            facts[name] = same
        elif samples is not None:
            facts[name] = {"source": samples.source}
            tensors[f"{name}/inputs"] = samples.inputs
            if samples.labels is not None:
                tensors[f"{name}/labels"] = samples.labels
    return facts, tensors


def from_record(
    facts: Mapping[str, Any], tensors: Mapping[str, Tensor], target: Target
) -> CalibrationSet:
    """Return the plan that `to_record` took apart, for the same network."""
    held: dict[str, Samples] = {}
    for name in HELD:
        if name not in facts:
            continue
        if "first" in facts[name]:
            held[name] = _first(held[facts[name]["of"]], facts[name]["first"])
        else:
            inputs, labels = tensors[f"{name}/inputs"], tensors.get(f"{name}/labels")
            held[name] = Samples(inputs, labels, facts[name]["source"])
    provenance = facts["provenance"]
    fresh = facts["mixture"]
    return CalibrationSet(
        search=held["search"],
        validation=held["validation"],
        mixture=None
        if fresh is None
        else GeneratorMixture(target.inputs, dict(fresh), target.dtype),
        gradient_inputs=held.get("gradient_inputs"),
        gradient_share=facts["gradient_share"],
        augment=facts["augment"],
        domain_inputs=held["domain_inputs"],
        provenance=Provenance(**{**provenance, "sources": tuple(provenance["sources"])}),
        mutual_information=dict(facts["mutual_information"]),
    )


def _first_of(plan: CalibrationSet) -> dict[str, Any] | None:
    """Say which first inputs of which other ones the nearest are, or None."""
    near = plan.domain_inputs
    for name in ("search", "gradient_inputs"):
        held: Samples | None = getattr(plan, name)
        if held is not None and torch.equal(_first(held, len(near.inputs)).inputs, near.inputs):
            return {"of": name, "first": len(near.inputs)}
    return None


def _first(samples: Samples, count: int) -> Samples:
    if count == len(samples.inputs):
        return samples
    labels = None if samples.labels is None else samples.labels[:count]
    return Samples(samples.inputs[:count], labels, samples.source)
