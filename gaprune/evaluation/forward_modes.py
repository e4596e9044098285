"""How a pruned network answers while masks are chosen: as it is, after repair, or in between."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gaprune.errors import GapruneError
from gaprune.models.forward import CHUNK, batched_forward, functional_forward
from gaprune.repair import (
    Anchors,
    Moments,
    Sites,
    aligned,
    anchor,
    compared,
    noted,
    repair_anchored,
    repaired_outputs,
    statistics_loss,
)


class TeacherBatch(NamedTuple):
    """Inputs with what the dense network answers, computed once.

    Attributes:
        inputs: `[N, …]` as the network takes them.
        teacher: outputs of the dense network, `[N, …]`.
        labels: int64 `[N]`, or None.
        anchors: of a batch for a gradient step that looks at them: the dense network's statistics
            on it, and features; else None.
    """

    inputs: Tensor
    teacher: Tensor
    labels: Tensor | None
    anchors: Anchors | None = None

    def to(self, device: str | torch.device) -> TeacherBatch:
        """Return the same on a device; statistics of a batch are measured where it is used."""
        labels = None if self.labels is None else self.labels.to(device)
        return TeacherBatch(self.inputs.to(device), self.teacher.to(device), labels)

    def at(self, index: Tensor) -> TeacherBatch:
        """Return those at some places, int64 `[N]`."""
        labels = None if self.labels is None else self.labels[index]
        return TeacherBatch(self.inputs[index], self.teacher[index], labels)

    def first(self, count: int) -> TeacherBatch:
        """Return the first `count` of them: one rung of the race."""
        labels = None if self.labels is None else self.labels[:count]
        return TeacherBatch(self.inputs[:count], self.teacher[:count], labels)


class Step(NamedTuple):
    """What a candidate answers to the batch of a gradient step.

    Attributes:
        outputs: `[N, …]`, differentiable.
        penalty: a differentiable scalar to add to the objective's loss, or None.
    """

    outputs: Tensor
    penalty: Tensor | None = None


class ForwardMode(Protocol):
    """What a candidate answers; `kept` replaces parameters of the dense `model`, by name."""

    def to(self, device: str | torch.device) -> ForwardMode:
        """Return the same way of answering for a network on a device."""

    def select(self, model: nn.Module, kept: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Return its answers on search calibration inputs, `[N, …]`, to be compared with the teacher's."""

    def validation_outputs(
        self, model: nn.Module, kept: Mapping[str, Tensor], inputs: Tensor
    ) -> Tensor:
        """Return its answers on inputs that no repair may be measured on, `[N, …]`."""

    def step(self, model: nn.Module, leaves: Mapping[str, Tensor], batch: TeacherBatch) -> Step:
        """Return its answers on a batch, differentiable in `leaves`."""

    def batch(
        self, model: nn.Module, held: TeacherBatch | None, fresh: Tensor | None
    ) -> TeacherBatch:
        """Make the batch of a gradient step of held inputs, new ones, or both."""


class StrictForward:
    """The pruned network as it is."""

    def to(self, device: str | torch.device) -> StrictForward:
        """It holds nothing that could be elsewhere."""
        del device
        return self

    def select(self, model: nn.Module, kept: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Pass the inputs in chunks."""
        return functional_forward(model, kept, inputs)

    def validation_outputs(
        self, model: nn.Module, kept: Mapping[str, Tensor], inputs: Tensor
    ) -> Tensor:
        """Pass the inputs in chunks."""
        return functional_forward(model, kept, inputs)

    def step(self, model: nn.Module, leaves: Mapping[str, Tensor], batch: TeacherBatch) -> Step:
        """Pass the batch at once."""
        return Step(functional_call(model, dict(leaves), (batch.inputs,)))

    def batch(
        self, model: nn.Module, held: TeacherBatch | None, fresh: Tensor | None
    ) -> TeacherBatch:
        """Ask the dense network about the new inputs; what is held knows its answers."""
        parts = [] if held is None else [held]
        if fresh is not None:
            parts.append(TeacherBatch(fresh, batched_forward(model, fresh), None))
        if len(parts) == 1:
            return parts[0]
        return TeacherBatch(
            torch.cat([part.inputs for part in parts]),
            torch.cat([part.teacher for part in parts]),
            None,
        )


STRICT_FORWARD = StrictForward()


@dataclass(frozen=True, eq=False)
class RepairedForward:
    """The pruned network after anchored repair; prunable weights stay as they are.

    Selection and gradient steps match it on the very inputs that it answers, which costs one
    forward. That flatters it, so it is judged as it will be used: repaired on calibration inputs
    of its own, the corrections written in, then shown the others.

    Attributes:
        sites: where repair writes in the one network that this is for.
        calibration inputs: `[N, …]`, on which the judge repairs.
        features: weight in gradient steps of how far what norms put out is from the dense
            network's (`gaprune.repair.features`): the mean over `sites.features`.
    """

    sites: Sites
    calibration: Tensor = field(repr=False)
    features: float = 0.0
    _anchors: dict[tuple[int, int, int | None], Anchors] = field(
        default_factory=dict, init=False, repr=False
    )

    def to(self, device: str | torch.device) -> RepairedForward:
        """Take the calibration inputs there; the dense network's statistics are measured anew."""
        return replace(self, calibration=self.calibration.to(device))

    def select(self, model: nn.Module, kept: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Match every chunk by its own statistics."""
        with torch.no_grad():
            return repaired_outputs(model, kept, self._anchored(model, inputs, CHUNK))

    def validation_outputs(
        self, model: nn.Module, kept: Mapping[str, Tensor], inputs: Tensor
    ) -> Tensor:
        """Repair on the calibration inputs as `repair` does at the end of a run, then pass the inputs.

        Raises:
            GapruneError: the dense network overflows on the calibration inputs.
        """
        anchors = self._anchored(model, self.calibration, None)
        try:
            state = repair_anchored(model, kept, anchors).state
        except GapruneError:
            if not anchors.outputs.isfinite().all():
                raise
            # the candidate overflows where the dense network does not: it loses, the search goes on
            return torch.full_like(functional_forward(model, kept, inputs), torch.nan)
        return functional_forward(model, {**kept, **state}, inputs)

    def step(self, model: nn.Module, leaves: Mapping[str, Tensor], batch: TeacherBatch) -> Step:
        """Match the batch by its own statistics; gradients also pass through them."""
        apart: dict[str, Tensor] = {}
        outputs = repaired_outputs(model, leaves, self.anchors(model, batch), apart)
        return Step(outputs, _cost(self.features, apart))

    def batch(
        self, model: nn.Module, held: TeacherBatch | None, fresh: Tensor | None
    ) -> TeacherBatch:
        """Show all of it to the dense network once, for its answers and its statistics."""
        parts = [*([] if held is None else [held.inputs]), *([] if fresh is None else [fresh])]
        anchors = self._anchor(model, torch.cat(parts))
        labels = held.labels if held is not None and fresh is None else None
        return TeacherBatch(anchors.inputs, anchors.outputs, labels, anchors)

    def anchors(self, model: nn.Module, batch: TeacherBatch) -> Anchors:
        """Return the dense network's statistics on a batch, measured unless it brings them."""
        return self._anchor(model, batch.inputs) if batch.anchors is None else batch.anchors

    def _anchor(self, model: nn.Module, inputs: Tensor) -> Anchors:
        """Show a batch to the dense network at once; note its features where they count."""
        if self.features == 0:
            return anchor(model, self.sites, inputs, len(inputs))
        with noted(model, self.sites) as features:
            anchors = anchor(model, self.sites, inputs, len(inputs))
        return replace(anchors, features=features)

    def _anchored(self, model: nn.Module, inputs: Tensor, chunk: int | None) -> Anchors:
        """Measure the dense network once per set of inputs."""
        # anchors hold their inputs, so nothing else comes to lie at that address
        key = (inputs.data_ptr(), len(inputs), chunk)
        if key not in self._anchors:
            self._anchors[key] = anchor(model, self.sites, inputs, chunk)
        return self._anchors[key]

    def __getstate__(self) -> dict[str, Any]:
        """Leave the statistics behind: every worker measures its own, with the same result."""
        return {**self.__dict__, "_anchors": {}}


@dataclass(frozen=True, eq=False)
class GuidedForward(StrictForward):
    """The pruned network as it is, but gradient steps know the dense network's statistics.

    Selection and judge see what `StrictForward` gives. Steps may begin on the network as it would answer
    after repair and end on the strict one: numerical continuation (Allgower and Georg 1990) from a
    problem with a good solution to the one that is asked. And they may be held near the dense
    statistics, which keeps alive what later layers read.

    Attributes:
        repaired: how it answers after repair; its weight of features holds here too.
        statistics_loss: weight of the mean drift (`gaprune.repair.statistics_loss`) over all sites in the loss.
        fade: part of every correction that is left out: 0 is after repair, 1 as it is.
    """

    repaired: RepairedForward
    statistics_loss: float = 0.0
    fade: float = 1.0

    def to(self, device: str | torch.device) -> GuidedForward:
        """Take the calibration inputs there."""
        return replace(self, repaired=self.repaired.to(device))

    def with_fade(self, fade: float) -> GuidedForward:
        """Return the same with another part of the corrections left out in steps."""
        return replace(self, fade=fade)

    def step(self, model: nn.Module, leaves: Mapping[str, Tensor], batch: TeacherBatch) -> Step:
        """Correct every site in part, by the statistics of the batch; weigh drift and features.

        The drift of a site is measured before it is corrected, behind the sites before it.
        """
        if self._blind:
            return super().step(model, leaves, batch)
        anchors, found = self.repaired.anchors(model, batch), dict[str, Moments]()
        dense = anchors.moments if self._measures else {}
        with (
            aligned(model, anchors.sites, dense, found, 1 - self.fade),
            compared(model, anchors.features) as apart,
        ):
            outputs = functional_call(model, dict(leaves), (batch.inputs,))
        drifts = {
            name: statistics_loss(dense[name], one)
            for name, one in found.items()
            if self.statistics_loss
        }
        costs = [_cost(self.statistics_loss, drifts), _cost(self.repaired.features, apart)]
        stated = [cost for cost in costs if cost is not None]
        return Step(outputs, sum(stated[1:], stated[0]) if stated else None)

    def batch(
        self, model: nn.Module, held: TeacherBatch | None, fresh: Tensor | None
    ) -> TeacherBatch:
        """Show all of it to the dense network once, for its answers and, if needed, statistics."""
        if self._blind:
            return super().batch(model, held, fresh)
        return self.repaired.batch(model, held, fresh)

    @property
    def _blind(self) -> bool:
        """Whether steps look at no statistics."""
        return not self._measures and self.repaired.features == 0

    @property
    def _measures(self) -> bool:
        """Whether steps measure statistics, to correct them or to weigh their drift."""
        return self.fade != 1 or self.statistics_loss != 0


def _cost(weight: float, found: Mapping[str, Tensor]) -> Tensor | None:
    """Return the weighted mean over sites, or None where there are none."""
    return weight * torch.stack(list(found.values())).mean() if found else None
