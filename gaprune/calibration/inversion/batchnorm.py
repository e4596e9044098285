"""BatchNorm inversion: inputs optimised until their statistics are those of the training data.

The loss has three terms: the divergence of the batch from the statistics stored in every BatchNorm
(DeepInversion, Yin et al. 2020, eq. 4; ZeroQ, Cai et al. 2020), the distance of the outputs from
soft targets, and the total variation. Inputs are shifted at random in every step, and large images
are optimised at half the resolution first (as DeepInversion does on ImageNet).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from gaprune.calibration.generators.random_draws import to_network
from gaprune.calibration.inversion.adam import AdamSteps
from gaprune.calibration.inversion.augment import shift_and_mirror
from gaprune.calibration.inversion.batchnorm_statistics import (
    BatchNormRecorder,
    ChunkedMoments,
    batchnorms,
)
from gaprune.calibration.inversion.impressions import (
    check_continuous,
    check_differentiable,
    draw_targets,
    target_loss,
    total_variation,
)
from gaprune.errors import InputError
from gaprune.models.input_spec import InputSpec
from gaprune.models.macs import activation_bytes

METHOD = "inverted inputs"  # in messages
LARGE_SIDE = 96  # pixels: images of this height and width begin at half the resolution
LAST_RATE = 0.05  # of the first learning rate
SMALL_STEPS = 2 / 3  # of the steps are taken at half the resolution

Progress = Callable[[int, int], None]
"""(steps done, total steps), over all batches."""


@dataclass(frozen=True)
class InversionOptions:
    """Lengths and weights of the optimisation.

    Attributes:
        learning_rate: of the first step, as a fraction of the unit range; it falls to a twentieth
            of that along a cosine.
        seconds: time limit: no batch begins that would end later, and the first batch takes fewer
            steps if necessary. With a limit the result depends on the speed of the machine.
        memory: bytes that the activations of one pass may take; larger batches pass in chunks.
    """

    steps: int = 150  # Adam steps on every batch
    learning_rate: float = 0.02
    batch: int = 128  # inputs whose common statistics are matched; use 64 or more
    statistics: float = 100.0  # weight of the divergence in nats per channel
    classes: float = 1.0  # weight of the cross-entropy to the targets, in nats per input
    smoothness: float = 1.0  # weight of the mean absolute difference of neighbours
    jitter: float = 1 / 16  # largest shift in a step, as a fraction of the axis; shifts are cyclic
    mirror: bool = True  # whether images are mirrored in half of the steps, as is usual in training
    seconds: float | None = None
    memory: float = 1e9


def invert(
    model: nn.Module,
    spec: InputSpec,
    starts: Tensor,
    generator: torch.Generator,
    options: InversionOptions,
    progress: Progress = lambda _done, _total: None,
) -> Tensor:
    """Optimise inputs towards the statistics that a network stores, and towards soft targets.

    `starts` is floating `[N, *spec.shape]` in the unit range; `generator` draws targets, shifts and
    reflections. The result is `[N', *spec.shape]` as the network takes them, detached. N' is N, or
    a smaller number of whole batches if the time runs out; the first batch is always made.

    Raises:
        InputError: token inputs, a network without BatchNorm statistics, or one that passes no
            gradients to its inputs.
    """
    check_continuous(spec, METHOD)
    if not batchnorms(model):
        raise InputError(
            "calibration inputs: only a network with BatchNorm (with running statistics) can be "
            "inverted; use --calibration=impressions"
        )
    # Convolutions of a CPU otherwise reorder their inputs and outputs.
    fast = spec.kind == "image" and _accepts(model, spec, spec.shape[-2:], torch.channels_last)
    layout = torch.channels_last if fast else torch.contiguous_format
    stages = _plan_stages(model, spec, options.steps, layout)
    optimiser = _BatchOptimiser(model, spec, options, generator, layout, stages)
    batches = starts.tensor_split(math.ceil(len(starts) / options.batch))
    inverted: list[Tensor] = []
    begin, longest, total = time.monotonic(), 0.0, options.steps * len(batches)
    for number, batch in enumerate(batches):
        start = time.monotonic()
        seconds = None if options.seconds is None else options.seconds - (start - begin)
        if inverted and seconds is not None and seconds < longest:
            break

        def report(fraction: float, done: int = number * options.steps) -> None:
            progress(done + int(fraction * options.steps), total)

        inverted.append(optimiser.optimise(batch, seconds, report))
        longest = max(longest, time.monotonic() - start)
    progress(total, total)
    return to_network(spec, torch.cat(inverted))


class _Stage(NamedTuple):
    """Steps at one resolution: `size` pixels, or None for the network's own."""

    size: tuple[int, int] | None
    steps: int
    cost: int  # of a step, relative to the other stages


def _plan_stages(
    model: nn.Module, spec: InputSpec, steps: int, layout: torch.memory_format
) -> list[_Stage]:
    """Plan half the resolution first, for large images if the network accepts them."""
    height, width = spec.shape[-2:] if spec.kind == "image" else (0, 0)
    size = height // 2, width // 2
    if steps < 2 or min(height, width) < LARGE_SIDE or not _accepts(model, spec, size, layout):
        return [_Stage(None, steps, 1)]
    small = round(SMALL_STEPS * steps)
    # A pass at the full resolution has four times as many pixels.
    return [_Stage(size, small, 1), _Stage(None, steps - small, 4)]


@torch.no_grad()
def _accepts(
    model: nn.Module, spec: InputSpec, size: Sequence[int], layout: torch.memory_format
) -> bool:
    """Return whether outputs have the same shape for images of another size or memory layout."""
    weight = next(parameter for parameter in model.parameters() if parameter.is_floating_point())
    grey = torch.full((1, *spec.shape), 0.5, dtype=weight.dtype, device=weight.device)
    expected = model(to_network(spec, grey)).shape
    try:
        resized = functional.interpolate(to_network(spec, grey), tuple(size))
        actual = model(resized.contiguous(memory_format=layout)).shape
    except Exception:  # noqa: BLE001 - the network's code may raise anything on other images
        return False
    return bool(actual == expected)


@dataclass(frozen=True)
class _BatchOptimiser:
    """Optimises one batch after another."""

    model: nn.Module
    spec: InputSpec
    options: InversionOptions
    generator: torch.Generator
    layout: torch.memory_format  # of the network's inputs
    stages: Sequence[_Stage]

    def optimise(
        self, starts: Tensor, seconds: float | None, report: Callable[[float], None]
    ) -> Tensor:
        """Optimise one batch `[n, *shape]` in the unit range."""
        ends = list(accumulate(stage.steps * stage.cost for stage in self.stages))
        done, begin = 0, time.monotonic()

        def fraction() -> float:
            """Return the finished fraction: by steps, or by time if that runs out first."""
            elapsed = 0.0 if seconds is None else (time.monotonic() - begin) / max(seconds, 1e-9)
            return min(1.0, max(done / ends[-1], elapsed))

        inputs, targets = starts, None
        for stage, end in zip(self.stages, ends, strict=True):
            if stage.size is not None:
                inputs = functional.interpolate(inputs, stage.size, mode="area")
            elif inputs.shape != starts.shape:
                inputs = functional.interpolate(inputs, starts.shape[-2:], mode="bilinear")
            chunks = self._split(inputs)
            # The targets stay the same at every resolution.
            if targets is None:
                with torch.no_grad():
                    outputs = [self._outputs(chunk) for chunk in chunks]
                targets = draw_targets(torch.cat(outputs), self.generator)
            # Every resolution needs a new Adam: its moments have the shape of the inputs.
            adam = AdamSteps(chunks)
            with BatchNormRecorder(self.model) as recorder:
                moments = self._measure(chunks, recorder)
                while True:  # at least one step, even if the time is over
                    decay = max(LAST_RATE, (1 + math.cos(math.pi * fraction())) / 2)
                    gradients = self._gradients(chunks, targets, recorder, moments)
                    adam.step(gradients, self.options.learning_rate * decay)
                    with torch.no_grad():
                        for chunk in chunks:
                            chunk.clamp_(0, 1)
                    done += stage.cost
                    report(fraction())
                    if fraction() >= end / ends[-1]:
                        break
            inputs = torch.cat([chunk.detach() for chunk in chunks])
        return inputs

    def _outputs(self, chunk: Tensor) -> Tensor:
        """Return the network's outputs for inputs `[n, *shape]` in the unit range."""
        inputs = to_network(self.spec, chunk).contiguous(memory_format=self.layout)
        outputs: Tensor = self.model(inputs)
        return outputs

    def _split(self, inputs: Tensor) -> list[Tensor]:
        """Split a batch into chunks whose activations fit into memory."""
        needed = len(inputs) * activation_bytes(self.model, to_network(self.spec, inputs[:1]))
        chunks = inputs.tensor_split(min(len(inputs), math.ceil(needed / self.options.memory)))
        return [chunk.clone().requires_grad_() for chunk in chunks]

    @torch.no_grad()
    def _measure(self, chunks: Sequence[Tensor], recorder: BatchNormRecorder) -> ChunkedMoments:
        """Measure all chunks, so that the first step knows the moments of the whole batch."""
        moments = ChunkedMoments([len(chunk) for chunk in chunks])
        for number, chunk in enumerate(chunks if len(chunks) > 1 else ()):
            self._outputs(chunk)
            moments.update(number, recorder.take()[0])
        return moments

    def _gradients(
        self,
        chunks: Sequence[Tensor],
        targets: Tensor,
        recorder: BatchNormRecorder,
        batch_moments: ChunkedMoments,
    ) -> list[Tensor]:
        """Return the gradients of the loss of the whole batch for all chunks."""
        options, count = self.options, len(targets)
        values = count * chunks[0][0].numel()
        chunk_targets, gradients = targets.split([len(chunk) for chunk in chunks]), list[Tensor]()
        for number, (chunk, wanted) in enumerate(zip(chunks, chunk_targets, strict=True)):
            # Random shifts average out gradients that depend on the exact position.
            jittered = shift_and_mirror(
                chunk, self.spec, options.jitter, self.generator, mirror=options.mirror
            )
            outputs = self._outputs(jittered)
            check_differentiable(outputs, METHOD)
            moments, statistics = recorder.take()
            loss = options.statistics * statistics.divergence(batch_moments.update(number, moments))
            loss = loss + options.classes / count * target_loss(outputs, wanted)
            loss = loss + options.smoothness / values * total_variation(chunk, self.spec)
            gradients += torch.autograd.grad(loss, chunk)
        return gradients
