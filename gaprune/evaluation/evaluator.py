"""The evaluator scores masks: it holds the network, the inputs and the objective of a search."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gaprune.calibration.generators.mixture import GeneratorMixture
from gaprune.calibration.inversion.augment import Augmentation
from gaprune.errors import InputError
from gaprune.evaluation.batch_pool import BatchPool
from gaprune.evaluation.forward_modes import (
    STRICT_FORWARD,
    ForwardMode,
    GuidedForward,
    StrictForward,
    TeacherBatch,
    join_batches,
)
from gaprune.evaluation.objectives import Objective, finite
from gaprune.evaluation.precision import FULL, gradients, reduced
from gaprune.masks.supermask import Layout, masked_weights, pack
from gaprune.masks.units import Units
from gaprune.models.forward import (
    batched_forward,
    forward_batch_size,
    functional_forward,
    vmap_forward,
)
from gaprune.models.network import DenseNetwork
from gaprune.profiling import profiled

GROUP = 8  # masks per forward pass, where several are scored together
OUTPUT_CACHE = 64 << 20  # bytes of outputs kept per worker


class ValidationScore(NamedTuple):
    """The score of a mask on validation inputs: agreement with the dense network, and fitness."""

    agreement: float
    fitness: float


class LRUCache:
    """Maps keys to tensors; drops the least recently used ones above `capacity` bytes."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.size = capacity, 0
        self._entries: OrderedDict[bytes, Tensor] = OrderedDict()

    def get(self, key: bytes) -> Tensor | None:
        """Return the tensor of a key, or None."""
        if key in self._entries:
            self._entries.move_to_end(key)
        return self._entries.get(key)

    def put(self, key: bytes, value: Tensor) -> None:
        """Store a tensor, unless it alone is larger than the capacity."""
        if (old := self._entries.pop(key, None)) is not None:
            self.size -= old.nbytes
        if value.nbytes > self.capacity:
            return
        self._entries[key] = value
        self.size += value.nbytes
        while self.size > self.capacity:
            self.size -= self._entries.popitem(last=False)[1].nbytes  # the least recently used

    def __len__(self) -> int:
        return len(self._entries)


@dataclass(frozen=True, eq=False)
class Evaluator:
    """Everything a worker needs to vary, score and validate masks; sent to each worker once.

    Masks, scores and random numbers are made on the CPU, whatever the device of the network. Under
    a pattern of blocks or channels, masks and scores have one entry per unit.

    Attributes:
        network: the dense network: model, prunable weights and their layout.
        layout: layout of what is searched: the weights, or the units of a pattern.
        objective: what the search maximises.
        search: calibration inputs that score candidates.
        validation: validation inputs that choose the final candidate.
        mixture: generators of new inputs for gradient steps, or None.
        gradient_inputs: stored inputs for gradient steps, or None.
        gradient_share: fraction of a gradient batch that comes from `gradient_inputs`.
        rungs: numbers of search inputs for successive halving, growing; the last is all of them.
        augmentation: how `gradient_inputs` are changed for every batch, or None.
        forward_mode: how a candidate computes its outputs: strict, repaired or guided.
        domain_inputs: inputs closer to the training data than `search`, or None.
        precision: key of `PRECISIONS`, for search and gradient steps; validation is exact.
        batch_cache: replaces `mixture` by a fixed number of batches that are drawn once; or None.
        units: the units of the pattern, or None where every weight has its own score.
    """

    network: DenseNetwork
    layout: Layout
    objective: Objective
    search: TeacherBatch
    validation: TeacherBatch
    mixture: GeneratorMixture | None
    gradient_inputs: TeacherBatch | None
    gradient_share: float
    rungs: Sequence[int]
    augmentation: Augmentation | None = None
    forward_mode: ForwardMode = STRICT_FORWARD
    domain_inputs: Tensor | None = None
    precision: str = FULL
    batch_cache: BatchPool | None = None
    units: Units | None = None
    # Hash of a mask → its outputs on the first search inputs. A candidate that wins on the first
    # rung then only runs the remaining inputs on the next one.
    _outputs: LRUCache = field(
        default_factory=lambda: LRUCache(OUTPUT_CACHE), init=False, repr=False
    )

    @property
    def device(self) -> torch.device:
        """The device on which candidates run."""
        return self.network.device

    def weight_mask(self, mask: Tensor) -> Tensor:
        """Return the flat mask of the weights for a flat mask of `layout`."""
        return mask if self.units is None else self.units.weight_mask(mask)

    def masks(self, mask: Tensor) -> dict[str, Tensor]:
        """Return the masks of the weights by name."""
        return self.network.layout.split(self.weight_mask(mask))

    @property
    def is_cpu_float32(self) -> bool:
        """Whether candidates run on the CPU in the network's own precision."""
        return self.device.type == "cpu" and self.precision == FULL

    def to(self, device: str | torch.device) -> Evaluator:
        """Return the evaluator on a device, or itself if it is there already."""
        # Cached batches and dense statistics are not moved but computed again on the device.
        network = self.network.to(device)
        if network is self.network:
            return self
        return replace(
            self,
            network=network,
            search=self.search.to(device),
            validation=self.validation.to(device),
            batch_cache=self.batch_cache and replace(self.batch_cache),
            forward_mode=self.forward_mode.to(device),
            gradient_inputs=self.gradient_inputs and self.gradient_inputs.to(device),
            domain_inputs=None if self.domain_inputs is None else self.domain_inputs.to(device),
        )

    def check_forward(self) -> None:
        """Raise `InputError` unless the dense network runs as candidates do: device, precision."""
        setting = f"on {self.device} in {self.precision}"
        full = self.precision == FULL
        argument, remedy = (
            ("device", "use --device=cpu") if full else ("precision", "leave --precision out")
        )
        try:
            # Two inputs, because a norm without running statistics rejects a single one.
            with reduced(self.precision, self.device):
                outputs = batched_forward(self.network.model, self.search.inputs[:2])
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise InputError(
                f"{argument}: the network does not run {setting} ({error}); hold its tensors as "
                f"parameters or buffers (register_buffer), or {remedy}"
            ) from error
        if self.search.teacher[:2].isfinite().all() and not outputs.isfinite().all():
            raise InputError(f"{argument}: the network overflows {setting}; {remedy}")

    @property
    def statistics_inputs(self) -> Tensor:
        """Inputs `[N, …]` on which criteria and repair measure statistics."""
        return self.search.inputs if self.domain_inputs is None else self.domain_inputs

    @property
    def strict(self) -> Evaluator:
        """The same evaluator without repair."""
        return replace(self, forward_mode=STRICT_FORWARD)

    @cached_property
    def repaired(self) -> Evaluator:
        """The evaluator of a guided search that scores candidates after repair."""
        return replace(self, forward_mode=self._guided.repaired)

    def with_fade(self, fade: float) -> Evaluator:
        """Return the evaluator of a guided search with another fade of its corrections, 0 to 1."""
        return replace(self, forward_mode=replace(self._guided, fade=fade))

    @property
    def _guided(self) -> GuidedForward:
        assert isinstance(self.forward_mode, GuidedForward), "make_evaluator guides if needed"
        return self.forward_mode

    def fitness(self, mask: Tensor, rung: int = -1) -> float:
        """Score a flat bool mask on the search inputs of one rung; finite, larger is better."""
        batch = self.search.select(slice(self.rungs[rung]))
        count = len(batch.inputs)
        with profiled("cache"):
            # The key is the mask of the weights: different masks of units can give the same one.
            mask = self.weight_mask(mask)
            key = hashlib.blake2b(pack(mask).data, digest_size=16).digest()
            cached = self._outputs.get(key)
            done = 0 if cached is None else self._reusable(cached, batch.inputs)
        parts = [] if cached is None else [cached[:done]]
        if done < count:
            with profiled("mask"):
                weights = self._masked(mask)
            with profiled("forward"), reduced(self.precision, self.device):
                parts.append(
                    self.forward_mode.search_outputs(
                        self.network.model, weights, batch.inputs[done:]
                    )
                )
        outputs = parts[0] if len(parts) == 1 else torch.cat(parts)
        if len(outputs) == count and (cached is None or count > len(cached)):
            # A copy, because a user's objective may write into its arguments.
            self._outputs.put(key, outputs.clone())
        return self._score(outputs, batch)

    def _reusable(self, cached: Tensor, inputs: Tensor) -> int:
        """Return how many cached outputs have the bits that a new forward pass would give."""
        if len(cached) == len(inputs):
            return len(cached)
        if not isinstance(self.forward_mode, StrictForward):
            return 0  # repair depends on all inputs of a pass
        done = min(len(cached), len(inputs))
        # The rounding of an output may depend on the other inputs of its chunk.
        return done - done % forward_batch_size(inputs)

    def fitness_many(self, masks: Sequence[Tensor], rung: int = -1) -> list[float]:
        """Score flat bool masks on one rung, `GROUP` of them per forward pass.

        Rounding differs from that of `fitness`, but does not depend on the other masks. Masks are
        scored one by one where torch cannot batch this network, or candidates are repaired.
        """
        if not isinstance(self.forward_mode, StrictForward):
            return [self.fitness(mask, rung) for mask in masks]
        groups = (masks[start : start + GROUP] for start in range(0, len(masks), GROUP))
        return [score for group in groups for score in self._fitness_of_group(group, rung)]

    def _fitness_of_group(self, group: Sequence[Tensor], rung: int) -> list[float]:
        batch, layout = self.search.select(slice(self.rungs[rung])), self.network.layout
        # vmap rounds by the size of the batch, so a group always has `GROUP` masks: the last one is
        # repeated.
        masks = [self.weight_mask(mask) for mask in group]
        stacked = torch.stack([*masks, *[masks[-1]] * (GROUP - len(masks))]).to(self.device)
        by_name = {
            name: stacked[:, part].view(GROUP, *shape)
            for name, part, shape in zip(layout.names, layout.slices, layout.shapes, strict=True)
        }
        try:
            with profiled("mask"):
                weights = masked_weights(self.network.weights, by_name)
            with profiled("forward"), reduced(self.precision, self.device):
                outputs = vmap_forward(self.network.model, weights, batch.inputs)
        except torch.OutOfMemoryError:
            raise
        # torch raises these where vmap does not support an operation of the network.
        except (RuntimeError, TypeError, ValueError):
            return [self.fitness(mask, rung) for mask in group]
        return [self._score(candidate, batch) for candidate in outputs[: len(group)]]

    def _score(self, outputs: Tensor, batch: TeacherBatch) -> float:
        with profiled("objective"):
            # In reduced precision outputs have 16 bits; the teacher's outputs are exact.
            outputs = outputs.to(batch.teacher.dtype)
            return self.objective.score(outputs, batch.teacher, batch.labels)

    def validate(self, mask: Tensor, batch: TeacherBatch | None = None) -> ValidationScore:
        """Score a flat bool mask on the validation inputs, or on another batch."""
        batch = self.validation if batch is None else batch
        weights = self._masked(self.weight_mask(mask))
        del mask  # a byte per weight, and the forward pass needs room
        outputs = self.forward_mode.validation_outputs(self.network.model, weights, batch.inputs)
        del weights
        agreement = finite(float(self.objective.agreement(outputs, batch.teacher, batch.labels)))
        # Validation inputs may be generated and unlabelled even where the objective needs labels.
        if self.objective.needs_labels and batch.labels is None:
            return ValidationScore(agreement, agreement)
        fitness = self.objective.score(outputs, batch.teacher, batch.labels)
        return ValidationScore(agreement, fitness)

    def outputs(self, mask: Tensor, inputs: Tensor) -> Tensor:
        """Return the outputs `[N, …]` of the masked network without repair."""
        return functional_forward(self.network.model, self._masked(self.weight_mask(mask)), inputs)

    def validation_outputs(self, mask: Tensor, inputs: Tensor) -> Tensor:
        """Return the outputs `[N, …]` of the masked network as validation computes them."""
        weights = self._masked(self.weight_mask(mask))
        return self.forward_mode.validation_outputs(self.network.model, weights, inputs)

    def score_gradient(self, mask: Tensor, batch: TeacherBatch) -> Tensor:
        """Return ∂loss/∂score of a flat bool mask, flat float32 `[total]`.

        The straight-through estimator treats top-k as the identity in the backward pass
        (Ramanujan et al. 2020, eq. 4 and 5): the gradient is w · ∂loss/∂(w·m), also where the mask
        drops w. The loss is the objective's, plus the penalty of the forward mode. The score of a
        unit gets the gradients of all weights that it decides on.

        Raises:
            InputError: the objective has no loss, or the network's outputs have no gradient.
        """
        if self.objective.loss is None:
            raise InputError(
                f"objective: {self.objective.name!r} is a black box without gradients; "
                "use --preset=black-box"
            )
        with profiled("mask"):
            weights = self._masked(self.weight_mask(mask))
            leaves = {name: weight.requires_grad_() for name, weight in weights.items()}
        with torch.enable_grad():
            with reduced(self.precision, self.device):
                outputs, penalty = self.forward_mode.gradient_outputs(
                    self.network.model, leaves, batch
                )
            outputs = outputs.to(batch.teacher.dtype)
            loss = self.objective.loss(outputs, batch.teacher, batch.labels)
            if not loss.requires_grad:
                raise InputError(
                    "model: its outputs carry no gradient (torch.no_grad, detach or numpy inside "
                    "its forward?); use --preset=black-box"
                )
            if penalty is not None:
                loss = loss + penalty
            # A prunable layer that forward does not use gets gradient 0.
            by_layer = gradients(loss, list(leaves.values()), self.precision)
        # Free the graph before the flat gradient is allocated: both are as large as the network.
        del weights, leaves, outputs, loss, penalty
        flat = torch.empty(self.network.layout.total, device=self.device)
        parts = self.network.layout.split(flat).values()
        for gradient, weight, part in zip(
            by_layer, self.network.weights.values(), parts, strict=True
        ):
            # ∂loss/∂score = w · ∂loss/∂(w·m) with the identity in place of top-k.
            torch.mul(gradient, weight, out=part)
        return flat if self.units is None else self.units.unit_gradient(flat, mask.to(self.device))

    def draw_batch(self, count: int, generator: torch.Generator) -> TeacherBatch:
        """Draw `count` inputs for a gradient step: generated ones, stored ones, or some of both."""
        stored: list[TeacherBatch] = []
        new: list[Tensor] = []
        # The order of the random draws below is part of the result: same seed, same masks.
        num_stored = 0 if self.gradient_inputs is None else round(count * self.gradient_share)
        with reduced(self.precision, self.device):
            if self.gradient_inputs is not None and num_stored:
                size = len(self.gradient_inputs.inputs)
                index = torch.randint(size, (num_stored,), generator=generator)
                stored.append(self.gradient_inputs.select(index))
                count -= num_stored
            if self.batch_cache is not None and count > 0:
                cache, network = self.batch_cache, self.network
                stored.append(cache.pick(count, generator, network, self.precision))
            elif self.mixture is not None and count > 0:
                new.append(self.mixture.draw(count, generator).to(self.device))
            if num_stored and self.augmentation is not None:
                # Augmented inputs are new to the teacher, whose stored outputs do not fit them.
                inputs = stored.pop(0).inputs
                new.insert(0, self.augmentation.apply(inputs, self.network.inputs, generator))
            batch = self.forward_mode.make_batch(
                self.network.model,
                join_batches(stored) if stored else None,
                torch.cat(new) if new else None,
            )
        # Autocast may return 16-bit outputs; the loss compares them in the network's own type.
        return batch._replace(teacher=batch.teacher.to(self.search.teacher.dtype))

    def _masked(self, mask: Tensor) -> dict[str, Tensor]:
        # Masks are made on the CPU, so that they do not depend on the device.
        split = self.network.layout.split(mask.to(self.device))
        return masked_weights(self.network.weights, split)

    def __getstate__(self) -> dict[str, Any]:
        """Drop the cached outputs when pickling: computing them again is cheaper than sending."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.init}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start with an empty cache."""
        self.__dict__.update(state, _outputs=LRUCache(OUTPUT_CACHE))
