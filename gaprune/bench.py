"""The bench on which candidates are tried: network, probes and objective, held by every worker."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gaprune.answering import (
    CHUNK,
    STRICT,
    Answering,
    Guided,
    Shown,
    Strict,
    answers,
    forward,
    forward_many,
)
from gaprune.errors import InputError
from gaprune.inputs import InputSpec
from gaprune.objectives import Objective, finite
from gaprune.precision import FULL, gradients, reduced
from gaprune.probes.mixture import Mixture
from gaprune.probes.variants import moved_anew
from gaprune.supermask import Layout, masked_weights

__all__ = ["CHUNK", "GROUP", "Bench", "Shown", "Verdict", "answers"]

GROUP = 8  # masks of one forward pass, where several are scored at once


class Verdict(NamedTuple):
    """How a candidate does on the guard: agreement with the dense network, and its fitness."""

    agreement: float
    fitness: float


@dataclass(frozen=True, eq=False)
class Bench:
    """What a worker needs to breed, score and judge candidates; sent to it once.

    Masks, scores and random draws come from the CPU, whatever device the bench is on.

    Attributes:
        model: the dense network, frozen, in evaluation mode.
        weights: its prunable weights.
        layout: where they lie in a flat vector.
        objective: what is maximised.
        search: the probes that select.
        guard: the probes that judge.
        fresh: generators of new inputs for gradient steps, or None.
        pool: held inputs for gradient steps with the teacher's outputs, or None.
        pool_share: the part of a gradient batch that comes from `pool`.
        moving: the form of the inputs of `pool` where they are shifted and mirrored anew for every
            batch, so that the search cannot learn them by heart; else None.
        rungs: growing numbers of search probes; the last one is all of them.
        answering: how a candidate answers: as it is, after repair, or guided from one to the other.
        near: inputs nearer to the domain than those that select, or None.
        precision: key of `PRECISIONS`, for selection and gradient steps; the judge has all bits.
    """

    model: nn.Module
    weights: Mapping[str, Tensor]
    layout: Layout
    objective: Objective
    search: Shown
    guard: Shown
    fresh: Mixture | None
    pool: Shown | None
    pool_share: float
    rungs: Sequence[int]
    moving: InputSpec | None = None
    answering: Answering = STRICT
    near: Tensor | None = None
    precision: str = FULL

    @property
    def device(self) -> torch.device:
        """Where candidates are tried."""
        return next(iter(self.weights.values())).device

    @property
    def is_plain(self) -> bool:
        """Whether candidates are tried on the CPU in the network's own arithmetic."""
        return self.device.type == "cpu" and self.precision == FULL

    def to(self, device: str | torch.device) -> Bench:
        """Return the bench on a device; on the CPU, where it is made, it is the same one."""
        if torch.device(device).type == self.device.type == "cpu":
            return self
        model = copy.deepcopy(self.model).to(device)
        return replace(
            self,
            model=model,
            weights={name: model.get_parameter(name).detach() for name in self.weights},
            search=self.search.to(device),
            guard=self.guard.to(device),
            pool=None if self.pool is None else self.pool.to(device),
            answering=self.answering.to(device),
            near=None if self.near is None else self.near.to(device),
        )

    def try_once(self) -> None:
        """Run the dense network on a few search probes, where and as candidates are run.

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
                outputs = answers(self.model, inputs)
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
    def nearest(self) -> Tensor:
        """Inputs `[N, …]` on which statistics are measured, by criteria and by repair."""
        return self.search.inputs if self.near is None else self.near

    @property
    def strict(self) -> Bench:
        """The same bench on which candidates answer as they are."""
        return replace(self, answering=STRICT)

    @property
    def repaired(self) -> Bench:
        """The bench of a guided search on which candidates answer as after repair."""
        return replace(self, answering=self._guided.repaired)

    def faded(self, fade: float) -> Bench:
        """Return the bench of a guided search with another fade in gradient steps, 0 to 1."""
        return replace(self, answering=self._guided.faded(fade))

    @property
    def _guided(self) -> Guided:
        assert isinstance(self.answering, Guided), "make_bench guides where a plan needs it"
        return self.answering

    def fitness(self, mask: Tensor, rung: int = -1) -> float:
        """Score a flat bool mask on the search probes of one rung; larger is better, finite."""
        shown = self.search.first(self.rungs[rung])
        with reduced(self.precision, self.device):
            outputs = self.answering.select(self.model, self._kept(mask), shown.inputs)
        return self._score(outputs, shown)

    def fitness_many(self, masks: Sequence[Tensor], rung: int = -1) -> list[float]:
        """Score flat bool masks on one rung, `GROUP` of them per forward pass.

        Rounding is another than that of `fitness`. It does not depend on what else is scored: a
        group that is not full is filled up. Where torch cannot do that with this network (see
        `forward_many`), or candidates answer after repair, they pass one by one.
        """
        if not isinstance(self.answering, Strict):
            return [self.fitness(mask, rung) for mask in masks]
        found: list[float] = []
        for start in range(0, len(masks), GROUP):
            group = masks[start : start + GROUP]
            found += self._fitness_of_group(group, rung)
        return found

    def _fitness_of_group(self, group: Sequence[Tensor], rung: int) -> list[float]:
        shown = self.search.first(self.rungs[rung])
        full = torch.stack([*group, *[group[-1]] * (GROUP - len(group))]).to(self.device)
        masks = {
            name: full[:, part].view(GROUP, *shape)
            for name, part, shape in zip(
                self.layout.names, self.layout.slices, self.layout.shapes, strict=True
            )
        }
        try:
            with reduced(self.precision, self.device):
                outputs = forward_many(
                    self.model, masked_weights(self.weights, masks), shown.inputs
                )
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, ValueError):
            return [self.fitness(mask, rung) for mask in group]
        return [self._score(one, shown) for one in outputs[: len(group)]]

    def _score(self, outputs: Tensor, shown: Shown) -> float:
        wide = outputs.to(shown.teacher.dtype)
        return self.objective.score(wide, shown.teacher, shown.labels)

    def judge(self, mask: Tensor, shown: Shown | None = None) -> Verdict:
        """Judge a flat bool mask on the guard, or on other inputs."""
        shown = self.guard if shown is None else shown
        outputs = self.judged_outputs(mask, shown.inputs)
        agreement = finite(float(self.objective.judge(outputs, shown.teacher, shown.labels)))
        if self.objective.needs_labels and shown.labels is None:
            return Verdict(agreement, agreement)
        return Verdict(agreement, self.objective.score(outputs, shown.teacher, shown.labels))

    def outputs(self, mask: Tensor, inputs: Tensor) -> Tensor:
        """Return what the masked network answers as it is, `[N, …]`."""
        return forward(self.model, self._kept(mask), inputs)

    def judged_outputs(self, mask: Tensor, inputs: Tensor) -> Tensor:
        """Return what the masked network answers as it is judged, `[N, …]`."""
        return self.answering.judge(self.model, self._kept(mask), inputs)

    def score_gradient(self, mask: Tensor, shown: Shown) -> Tensor:
        """Return ∂loss/∂score of a flat bool mask, flat float32 `[total]`.

        The straight-through estimator lets the gradient pass the top-k as if it were the identity
        (Ramanujan et al. 2020, eq. 4 and 5): w · ∂loss/∂(w·m), also where the mask drops w. The
        loss is the objective's, and what the way of answering adds to it.

        Raises:
            InputError: the objective has no loss to differentiate, or the network has no gradients.
        """
        if self.objective.loss is None:
            raise InputError(
                f"objective: {self.objective.name!r} is a black box without gradients; "
                "use --preset black-box"
            )
        leaves = {name: weight.requires_grad_() for name, weight in self._kept(mask).items()}
        with torch.enable_grad():
            with reduced(self.precision, self.device):
                outputs, penalty = self.answering.step(self.model, leaves, shown)
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
        parts = [
            (gradient * weight).reshape(-1)
            for gradient, weight in zip(found, self.weights.values(), strict=True)
        ]
        return torch.cat(parts).float()

    def draw(self, count: int, generator: torch.Generator) -> Shown:
        """Draw one batch for a gradient step: fresh inputs, held ones, or some of both."""
        held, fresh, rest = None, None, count
        if self.pool is not None and (taken := round(count * self.pool_share)):
            held = self.pool.at(torch.randint(len(self.pool.inputs), (taken,), generator=generator))
            rest = count - taken
        if self.fresh is not None and rest > 0:
            fresh = self.fresh.draw(rest, generator).to(self.device)
        if held is not None and self.moving is not None:  # the teacher has not seen them so
            new = moved_anew(held.inputs, self.moving, generator)
            held, fresh = None, new if fresh is None else torch.cat([new, fresh])
        with reduced(self.precision, self.device):
            batch = self.answering.batch(self.model, held, fresh)
        return batch._replace(teacher=batch.teacher.to(self.search.teacher.dtype))

    def _kept(self, mask: Tensor) -> dict[str, Tensor]:
        return masked_weights(self.weights, self.layout.split(mask.to(self.device)))
