"""How a pruned network computes outputs in a search: as it is, repaired, compensated, between."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gaprune.errors import GapruneError
from gaprune.models.channel_readers import ChannelReaders
from gaprune.models.forward import CHUNK, batched_forward, functional_call, functional_forward
from gaprune.repair.channel_statistics import statistics_loss
from gaprune.repair.compensation import compensated_weights, without_fitted
from gaprune.repair.dense_statistics import (
    DenseStatistics,
    correct_sites,
    feature_errors,
    measure_dense,
    repaired_outputs,
)
from gaprune.repair.repair_network import repair_candidate
from gaprune.repair.repair_sites import RepairSites


class TeacherBatch(NamedTuple):
    """Inputs with the outputs of the dense network (the teacher), computed once.

    Attributes:
        inputs: `[N, …]` as the network takes them.
        teacher: outputs of the dense network, `[N, …]`.
        labels: int64 `[N]`, or None.
        dense: the dense network's statistics on a batch for a gradient step that needs them.
    """

    inputs: Tensor
    teacher: Tensor
    labels: Tensor | None
    dense: DenseStatistics | None = None

    def to(self, device: str | torch.device) -> TeacherBatch:
        """Return the batch on `device`, without dense statistics."""
        labels = None if self.labels is None else self.labels.to(device)
        return TeacherBatch(self.inputs.to(device), self.teacher.to(device), labels)

    def select(self, index: Tensor | slice) -> TeacherBatch:
        """Return the inputs at `index`, int64 `[N]` or a slice."""
        labels = None if self.labels is None else self.labels[index]
        return TeacherBatch(self.inputs[index], self.teacher[index], labels)


class GradientOutputs(NamedTuple):
    """Differentiable outputs `[N, …]`, and a scalar to add to the objective's loss."""

    outputs: Tensor
    penalty: Tensor | None = None


class StrictForward:
    """Runs the pruned network as it is: masks only."""

    # Static, so that scoring a mask adds no call between the evaluator and the model.
    search_outputs = staticmethod(functional_forward)
    validation_outputs = staticmethod(functional_forward)

    def to(self, device: str | torch.device) -> StrictForward:  # noqa: ARG002
        """Return the mode itself: it holds no tensors."""
        return self

    def gradient_outputs(
        self, model: nn.Module, weights: Mapping[str, Tensor], batch: TeacherBatch
    ) -> GradientOutputs:
        """Run the whole batch in one differentiable pass."""
        # Not split into chunks: the gradient needs the whole graph anyway.
        return GradientOutputs(functional_call(model, dict(weights), (batch.inputs,)))

    def make_batch(
        self, model: nn.Module, stored: TeacherBatch | None, inputs: Tensor | None
    ) -> TeacherBatch:
        """Join a stored batch and new inputs, and run the dense network on the new ones."""
        batches = [] if stored is None else [stored]
        if inputs is not None:
            batches.append(TeacherBatch(inputs, batched_forward(model, inputs), None))
        return join_batches(batches)


STRICT_FORWARD = StrictForward()


@dataclass(frozen=True, eq=False)
class RepairedForward:
    """Runs the pruned network after repair, and after compensation where channels are read.

    Search and gradient steps repair on the very inputs that are scored, which costs one forward
    pass but flatters the candidate. Validation is honest: it repairs on separate calibration
    inputs, writes the corrections into the network, and then runs the validation inputs.

    Attributes:
        sites: where repair changes the network that this mode is for.
        calibration: `[N, …]`, the inputs on which validation repairs.
        features: weight of the feature loss in gradient steps, the mean of `feature_errors`.
        readers: the layers that are compensated for removed channels; gradient steps ignore them.
    """

    sites: RepairSites
    calibration: Tensor = field(repr=False)
    features: float = 0.0
    readers: ChannelReaders = field(default_factory=dict, repr=False)
    _dense: dict[tuple[int, int, int | None], DenseStatistics] = field(
        default_factory=dict, init=False, repr=False
    )

    def to(self, device: str | torch.device) -> RepairedForward:
        """Return the mode on `device`; dense statistics are measured again there."""
        return replace(self, calibration=self.calibration.to(device))

    def search_outputs(
        self, model: nn.Module, weights: Mapping[str, Tensor], inputs: Tensor
    ) -> Tensor:
        """Repair every chunk by its own statistics and return the outputs `[N, …]`."""
        # Chunks of `CHUNK` inputs give stable statistics and bounded memory.
        # A compensated network is repaired by all inputs at once, on which it is compensated.
        dense = self._measured(model, inputs, None if self.readers else CHUNK)
        weights, dense = self._compensated(model, weights, dense)
        with torch.no_grad():
            return repaired_outputs(model, weights, dense)

    def validation_outputs(
        self, model: nn.Module, weights: Mapping[str, Tensor], inputs: Tensor
    ) -> Tensor:
        """Repair on the calibration inputs as at the end of a run, then run `inputs`.

        Raises:
            GapruneError: the dense network overflows on the calibration inputs.
        """
        dense = self._measured(model, self.calibration, None)
        try:
            weights, dense = self._compensated(model, weights, dense)
            state = repair_candidate(model, weights, dense).state
        except GapruneError:
            if not dense.outputs.isfinite().all():
                raise
            # Only the candidate overflows: NaN gives it the worst score, and the search goes on.
            return torch.full_like(functional_forward(model, weights, inputs), torch.nan)
        return functional_forward(model, {**weights, **state}, inputs)

    def gradient_outputs(
        self, model: nn.Module, weights: Mapping[str, Tensor], batch: TeacherBatch
    ) -> GradientOutputs:
        """Repair the batch by its own statistics; gradients also pass through these."""
        errors: dict[str, Tensor] = {}
        outputs = repaired_outputs(model, weights, self.statistics_of(model, batch), errors)
        return GradientOutputs(outputs, _weighted_mean(self.features, errors))

    def make_batch(
        self, model: nn.Module, stored: TeacherBatch | None, inputs: Tensor | None
    ) -> TeacherBatch:
        """Run the dense network once on everything, for its outputs and its statistics."""
        parts = [] if stored is None else [stored.inputs]
        dense = self._measure(model, torch.cat(parts if inputs is None else [*parts, inputs]))
        # New inputs have no labels, so a mixed batch has none.
        labels = stored.labels if stored is not None and inputs is None else None
        return TeacherBatch(dense.inputs, dense.outputs, labels, dense)

    def statistics_of(self, model: nn.Module, batch: TeacherBatch) -> DenseStatistics:
        """Return the dense network's statistics on a batch; measure them if it has none."""
        return self._measure(model, batch.inputs) if batch.dense is None else batch.dense

    def _compensated(
        self, model: nn.Module, weights: Mapping[str, Tensor], dense: DenseStatistics
    ) -> tuple[Mapping[str, Tensor], DenseStatistics]:
        """Return weights, and what is left to repair."""
        if not self.readers:
            return weights, dense
        changed = compensated_weights(model, weights, self.readers, dense)
        return {**weights, **changed}, without_fitted(dense, changed)

    def _measure(self, model: nn.Module, inputs: Tensor) -> DenseStatistics:
        features = self.features != 0
        return measure_dense(model, self.sites, inputs, len(inputs), features=features)

    def _measured(self, model: nn.Module, inputs: Tensor, chunk: int | None) -> DenseStatistics:
        # The address identifies the inputs: the statistics hold them, so it is not reused.
        key = (inputs.data_ptr(), len(inputs), chunk)
        if key not in self._dense:
            self._dense[key] = measure_dense(model, self.sites, inputs, chunk)
        return self._dense[key]

    def __getstate__(self) -> dict[str, Any]:
        """Drop the statistics when pickling: every worker measures the same ones itself."""
        return {**self.__dict__, "_dense": {}}


@dataclass(frozen=True, eq=False)
class GuidedForward(StrictForward):
    """Scores the pruned network as it is, and guides gradient steps by dense statistics.

    Gradient steps may begin on the repaired network and end on the strict one: numerical
    continuation (Allgower and Georg 1990). A loss may also keep statistics and features close to
    the dense network's, so that the inputs of later layers stay alive.

    Attributes:
        repaired: the repaired mode; its weight of the feature loss applies here too.
        statistics_loss: weight of the mean `statistics_loss` over all sites.
        fade: fraction of every correction that is left out: 0 is repaired, 1 is strict.
    """

    repaired: RepairedForward
    statistics_loss: float = 0.0
    fade: float = 1.0

    def to(self, device: str | torch.device) -> GuidedForward:
        """Return the mode on `device`."""
        return replace(self, repaired=self.repaired.to(device))

    def gradient_outputs(
        self, model: nn.Module, weights: Mapping[str, Tensor], batch: TeacherBatch
    ) -> GradientOutputs:
        """Correct every site in part by the batch's statistics, and add the two losses."""
        if not self._uses_statistics and self.repaired.features == 0:
            return super().gradient_outputs(model, weights, batch)
        measured = self.repaired.statistics_of(model, batch)
        # Without entries in `dense`, `correct_sites` neither measures nor corrects.
        dense = measured.pooled if self._uses_statistics else {}
        with (
            # Hooks run in the order of registration: features are compared after the correction.
            correct_sites(model, measured.sites, dense, 1 - self.fade) as pruned,
            feature_errors(model, measured.features) as errors,
        ):
            outputs = functional_call(model, dict(weights), (batch.inputs,))
        losses = {
            name: statistics_loss(dense[name], statistics)
            for name, statistics in pruned.items()
            if self.statistics_loss
        }
        penalties = (
            _weighted_mean(self.statistics_loss, losses),
            _weighted_mean(self.repaired.features, errors),
        )
        # Start from the first term, not from 0, so that a single term keeps its bits.
        terms = [penalty for penalty in penalties if penalty is not None]
        return GradientOutputs(outputs, sum(terms[1:], terms[0]) if terms else None)

    def make_batch(
        self, model: nn.Module, stored: TeacherBatch | None, inputs: Tensor | None
    ) -> TeacherBatch:
        """Run the dense network on the batch, and measure its statistics where they are used."""
        if not self._uses_statistics and self.repaired.features == 0:
            return super().make_batch(model, stored, inputs)
        return self.repaired.make_batch(model, stored, inputs)

    @property
    def _uses_statistics(self) -> bool:
        return self.fade != 1 or self.statistics_loss != 0


ForwardMode = StrictForward | RepairedForward  # `GuidedForward` is a `StrictForward`


def join_batches(batches: list[TeacherBatch]) -> TeacherBatch:
    """Return several batches as one; only a single batch keeps its labels."""
    if len(batches) == 1:
        return batches[0]
    inputs, teacher, *_ = zip(*batches, strict=True)
    return TeacherBatch(torch.cat(inputs), torch.cat(teacher), None)


def _weighted_mean(weight: float, values: Mapping[str, Tensor]) -> Tensor | None:
    return weight * torch.stack(list(values.values())).mean() if values else None
