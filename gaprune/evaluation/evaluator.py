"""The evaluator on which candidates are tried: network, calibration inputs and objective, held by every worker."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gaprune.calibration.generators.mixture import GeneratorMixture
from gaprune.calibration.inversion.augment import augment
from gaprune.errors import InputError
from gaprune.evaluation.batch_pool import BatchPool
from gaprune.evaluation.cache import Marks, MaskCache, marks_of
from gaprune.evaluation.forward_modes import (
    STRICT_FORWARD,
    ForwardMode,
    GuidedForward,
    StrictForward,
    TeacherBatch,
)
from gaprune.evaluation.objectives import Objective, finite
from gaprune.evaluation.precision import FULL, gradients, reduced
from gaprune.masks.supermask import Layout, masked_weights
from gaprune.masks.units import Units
from gaprune.models.forward import batched_forward, functional_forward, vmap_forward
from gaprune.models.input_spec import InputSpec
from gaprune.profiling import profiled

GROUP = 8  # masks of one forward pass, where several are scored at once


class ValidationScore(NamedTuple):
    """How a candidate does on the validation inputs: agreement with the dense network, and its fitness."""

    agreement: float
    fitness: float


@dataclass(frozen=True, eq=False)
class Evaluator:
    """What a worker needs to breed, score and judge candidates; sent to it once.

    Masks, scores and random draws come from the CPU, whatever device the evaluator is on. Where a
    pattern has units, masks and scores are theirs.

    Attributes:
        model: the dense network, frozen, in evaluation mode.
        weights: its prunable weights.
        layout: where they, or the units, lie in a flat vector.
        units: of the pattern, or None: every weight has a score of its own.
        objective: what is maximised.
        search: the calibration inputs that select.
        validation: the calibration inputs that judge.
        mixture: generators of new inputs for gradient steps, or None.
        batch_cache: batches of them that are drawn once, and take their place; or None.
        gradient_inputs: held inputs for gradient steps with the teacher's outputs, or None.
        gradient_share: the part of a gradient batch that comes from `gradient_inputs`.
        augmentation: the form of the inputs of `gradient_inputs` where they are shifted and mirrored anew for every
            batch, so that the search cannot learn them by heart; else None.
        rungs: growing numbers of search calibration inputs; the last one is all of them.
        forward_mode: how a candidate answers: as it is, after repair, or guided from one to the other.
        domain_inputs: inputs nearer to the domain than those that select, or None.
        precision: key of `PRECISIONS`, for selection and gradient steps; the judge has all bits.
        known: what masks scored here. Every evaluator has its own, also one that is made of another,
            and it does not travel.
    """

    model: nn.Module
    weights: Mapping[str, Tensor]
    layout: Layout
    objective: Objective
    search: TeacherBatch
    validation: TeacherBatch
    mixture: GeneratorMixture | None
    gradient_inputs: TeacherBatch | None
    gradient_share: float
    rungs: Sequence[int]
    augmentation: InputSpec | None = None
    forward_mode: ForwardMode = STRICT_FORWARD
    domain_inputs: Tensor | None = None
    precision: str = FULL
    batch_cache: BatchPool | None = None
    units: Units | None = None
    known: MaskCache = field(default_factory=MaskCache, init=False, repr=False)

    @property
    def device(self) -> torch.device:
        """Where candidates are tried."""
        return next(iter(self.weights.values())).device

    @property
    def weight_layout(self) -> Layout:
        """Where the prunable weights lie in a flat vector."""
        return self.layout if self.units is None else self.units.weights

    def weight_mask(self, mask: Tensor) -> Tensor:
        """Return the flat mask of the weights of a flat mask of what has scores."""
        return mask if self.units is None else self.units.weight_mask(mask)

    def masks(self, mask: Tensor) -> dict[str, Tensor]:
        """Return the masks of the weights by name."""
        return self.weight_layout.split(self.weight_mask(mask))

    @property
    def is_cpu_float32(self) -> bool:
        """Whether candidates are tried on the CPU in the network's own arithmetic."""
        return self.device.type == "cpu" and self.precision == FULL

    def to(self, device: str | torch.device) -> Evaluator:
        """Return the evaluator on a device; on the CPU, where it is made, it is the same one."""
        if torch.device(device).type == self.device.type == "cpu":
            return self
        model = copy.deepcopy(self.model).to(device)
        return replace(
            self,
            model=model,
            weights={name: model.get_parameter(name).detach() for name in self.weights},
            search=self.search.to(device),
            validation=self.validation.to(device),
            gradient_inputs=None
            if self.gradient_inputs is None
            else self.gradient_inputs.to(device),
            batch_cache=None if self.batch_cache is None else self.batch_cache.anew(),
            forward_mode=self.forward_mode.to(device),
            domain_inputs=None if self.domain_inputs is None else self.domain_inputs.to(device),
        )

    def check_forward(self) -> None:
        """Run the dense network on a few search calibration inputs, where and as candidates are run.

        Raises:
            InputError: it does not run there, or gives what is not finite.
        """
        inputs = self.search.inputs[:2]
        where = f"on {self.device} in {self.precision}"
        own = self.precision == FULL
        argument = "device" if own else "precision"
        remedy = "use --device cpu" if own else "leave --precision out"
        try:
            with reduced(self.precision, self.device):
                outputs = batched_forward(self.model, inputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise InputError(
                f"{argument}: the network does not run {where} ({error}); hold its tensors as "
                f"parameters or buffers (register_buffer), or {remedy}"
            ) from error
        if self.search.teacher[:2].isfinite().all() and not outputs.isfinite().all():
            raise InputError(f"{argument}: the network overflows {where}; {remedy}")

    @property
    def statistics_inputs(self) -> Tensor:
        """Inputs `[N, …]` on which statistics are measured, by criteria and by repair."""
        return self.search.inputs if self.domain_inputs is None else self.domain_inputs

    @property
    def strict(self) -> Evaluator:
        """The same evaluator on which candidates answer as they are."""
        return replace(self, forward_mode=STRICT_FORWARD)

    @cached_property
    def repaired(self) -> Evaluator:
        """The evaluator of a guided search on which candidates answer as after repair."""
        return replace(self, forward_mode=self._guided.repaired)

    def with_fade(self, fade: float) -> Evaluator:
        """Return the evaluator of a guided search with another fade in gradient steps, 0 to 1."""
        return replace(self, forward_mode=self._guided.with_fade(fade))

    @property
    def _guided(self) -> GuidedForward:
        assert isinstance(self.forward_mode, GuidedForward), (
            "make_bench guides where a plan needs it"
        )
        return self.forward_mode

    def fitness(self, mask: Tensor, rung: int = -1) -> float:
        """Score a flat bool mask on the search calibration inputs of one rung; larger is better, finite.

        What is known of the mask is not computed again; see `MaskCache`.
        """
        shown = self.search.first(self.rungs[rung])
        with profiled("cache"):
            whole = self.weight_mask(mask)
            marks = marks_of(whole, self.weight_layout)
        asked = marks[-1], self.rungs[rung]
        found = self.known.scores.get(asked)
        if found is None:
            found = self._score(self._selected(whole, shown.inputs, marks), shown)
            self.known.scores.put(asked, found)
        return found

    def _selected(self, mask: Tensor, inputs: Tensor, marks: Marks) -> Tensor:
        with profiled("mask"):
            kept = self._kept(mask)
        with profiled("forward"), reduced(self.precision, self.device):
            if isinstance(self.forward_mode, StrictForward):
                return self.known.answers(self.model, self.weights, kept, inputs, marks)
            return self.forward_mode.select(self.model, kept, inputs)

    def fitness_many(self, masks: Sequence[Tensor], rung: int = -1) -> list[float]:
        """Score flat bool masks on one rung, `GROUP` of them per forward pass.

        Rounding is another than that of `fitness`. It does not depend on what else is scored: a
        group that is not full is filled up. Where torch cannot do that with this network (see
        `vmap_forward`), or candidates answer after repair, they pass one by one.
        """
        if not isinstance(self.forward_mode, StrictForward):
            return [self.fitness(mask, rung) for mask in masks]
        found: list[float] = []
        for start in range(0, len(masks), GROUP):
            group = masks[start : start + GROUP]
            found += self._fitness_of_group(group, rung)
        return found

    def _fitness_of_group(self, group: Sequence[Tensor], rung: int) -> list[float]:
        shown = self.search.first(self.rungs[rung])
        whole, layout = [self.weight_mask(mask) for mask in group], self.weight_layout
        full = torch.stack([*whole, *[whole[-1]] * (GROUP - len(whole))]).to(self.device)
        masks = {
            name: full[:, part].view(GROUP, *shape)
            for name, part, shape in zip(layout.names, layout.slices, layout.shapes, strict=True)
        }
        try:
            with profiled("mask"):
                kept = masked_weights(self.weights, masks)
            with profiled("forward"), reduced(self.precision, self.device):
                outputs = vmap_forward(self.model, kept, shown.inputs)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, ValueError):
            return [self.fitness(mask, rung) for mask in group]
        return [self._score(one, shown) for one in outputs[: len(group)]]

    def _score(self, outputs: Tensor, shown: TeacherBatch) -> float:
        with profiled("objective"):
            wide = outputs.to(shown.teacher.dtype)
            return self.objective.score(wide, shown.teacher, shown.labels)

    def validate(self, mask: Tensor, shown: TeacherBatch | None = None) -> ValidationScore:
        """Judge a flat bool mask on the validation inputs, or on other inputs."""
        shown = self.validation if shown is None else shown
        outputs = self.validation_outputs(mask, shown.inputs)
        agreement = finite(float(self.objective.agreement(outputs, shown.teacher, shown.labels)))
        if self.objective.needs_labels and shown.labels is None:
            return ValidationScore(agreement, agreement)
        return ValidationScore(
            agreement, self.objective.score(outputs, shown.teacher, shown.labels)
        )

    def outputs(self, mask: Tensor, inputs: Tensor) -> Tensor:
        """Return what the masked network answers as it is, `[N, …]`."""
        return functional_forward(self.model, self._kept(self.weight_mask(mask)), inputs)

    def validation_outputs(self, mask: Tensor, inputs: Tensor) -> Tensor:
        """Return what the masked network answers as it is judged, `[N, …]`."""
        return self.forward_mode.validation_outputs(
            self.model, self._kept(self.weight_mask(mask)), inputs
        )

    def score_gradient(self, mask: Tensor, shown: TeacherBatch) -> Tensor:
        """Return ∂loss/∂score of a flat bool mask, flat float32 `[total]`.

        The straight-through estimator lets the gradient pass the top-k as if it were the identity
        (Ramanujan et al. 2020, eq. 4 and 5): w · ∂loss/∂(w·m), also where the mask drops w. The
        loss is the objective's, and what the way of answering adds to it. The score of a unit moves
        all weights that it decides on.

        Raises:
            InputError: the objective has no loss to differentiate, or the network has no gradients.
        """
        if self.objective.loss is None:
            raise InputError(
                f"objective: {self.objective.name!r} is a black box without gradients; "
                "use --preset black-box"
            )
        with profiled("mask"):
            kept = self._kept(self.weight_mask(mask))
            leaves = {name: weight.requires_grad_() for name, weight in kept.items()}
        with torch.enable_grad():
            with reduced(self.precision, self.device):
                outputs, penalty = self.forward_mode.step(self.model, leaves, shown)
            wide = outputs.to(shown.teacher.dtype)
            loss = self.objective.loss(wide, shown.teacher, shown.labels)
            if not loss.requires_grad:
                raise InputError(
                    "model: its outputs carry no gradient (torch.no_grad, detach or numpy inside "
                    "its forward?); use --preset black-box"
                )
            if penalty is not None:
                loss = loss + penalty
            # a prunable layer that forward does not use has gradient 0
            found = gradients(loss, list(leaves.values()), self.precision)
        del kept, leaves, outputs, wide, loss, penalty  # large, where the network is
        flat = torch.empty(self.weight_layout.total, device=self.device)
        parts = self.weight_layout.split(flat).values()
        for gradient, weight, part in zip(found, self.weights.values(), parts, strict=True):
            torch.mul(gradient, weight, out=part)
        return flat if self.units is None else self.units.unit_gradient(flat, mask.to(self.device))

    def draw_batch(self, count: int, generator: torch.Generator) -> TeacherBatch:
        """Draw one batch for a gradient step: generated inputs, held ones, or some of both."""
        held: list[TeacherBatch] = []
        fresh: list[Tensor] = []
        pooled = 0
        with reduced(self.precision, self.device):
            if self.gradient_inputs is not None and (pooled := round(count * self.gradient_share)):
                index = torch.randint(
                    len(self.gradient_inputs.inputs), (pooled,), generator=generator
                )
                held.append(self.gradient_inputs.at(index))
                count -= pooled
            if self.batch_cache is not None and count > 0:
                held.append(self.batch_cache.pick(count, generator, self._answered, self.precision))
            elif self.mixture is not None and count > 0:
                fresh.append(self.mixture.draw(count, generator).to(self.device))
            if pooled and self.augmentation is not None:  # the teacher has not seen them so
                fresh.insert(0, augment(held.pop(0).inputs, self.augmentation, generator))
            new = torch.cat(fresh) if fresh else None
            batch = self.forward_mode.batch(self.model, _joined(held), new)
        return batch._replace(teacher=batch.teacher.to(self.search.teacher.dtype))

    def _answered(self, inputs: Tensor) -> TeacherBatch:
        inputs = inputs.to(self.device)
        return TeacherBatch(inputs, batched_forward(self.model, inputs), None)

    def __getstate__(self) -> dict[str, Any]:
        """Leave behind what is known: it is worth less than its way, and is no part of a evaluator."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.init}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Know nothing yet."""
        self.__dict__.update(state, known=MaskCache())

    def _kept(self, mask: Tensor) -> dict[str, Tensor]:
        return masked_weights(self.weights, self.weight_layout.split(mask.to(self.device)))


def _joined(parts: Sequence[TeacherBatch]) -> TeacherBatch | None:
    """Return what is held of a batch as one; only a batch from one place has labels."""
    if len(parts) < 2:
        return parts[0] if parts else None
    inputs = torch.cat([part.inputs for part in parts])
    return TeacherBatch(inputs, torch.cat([part.teacher for part in parts]), None)
