"""BatchNorm inversion: inputs optimised until they look, to the network, like its training data.

At every BatchNorm the mean and variance of a batch are moved to those that the network remembers
(DeepInversion, Yin et al. 2020, eq. 4; ZeroQ, Cai et al. 2020), the answers to soft class targets,
and neighbouring values towards each other. Inputs are shifted at random at every step, and large
pictures are optimised at half their resolution first (as DeepInversion does on ImageNet).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from gaprune.calibration.generators.draws import to_network
from gaprune.calibration.inversion.augment import moved
from gaprune.calibration.inversion.batchnorm_statistics import Pool, Watch, has_batchnorm
from gaprune.calibration.inversion.impressions import (
    check_differentiable,
    check_movable,
    draw_targets,
    miss,
    variation,
)
from gaprune.errors import InputError
from gaprune.models.input_spec import InputSpec
from gaprune.models.macs import activation_bytes

INVERSION = "inverted inputs"  # in messages
LARGE = 96  # pixels: from this height and width on, pictures begin at half the resolution
LAST_RATE = 0.05  # of the first
SMALL_PART = 2 / 3  # of the steps, at half the resolution

Progress = Callable[[int, int], None]
"""(steps done, steps in all), over all batches."""


@dataclass(frozen=True)
class Inversion:
    """How inputs are made.

    Attributes:
        steps: Adam steps on every batch.
        learning_rate: first step length, as a fraction of the unit range; it falls to a twentieth of
            that along a cosine.
        batch: inputs that have the remembered statistics together; 64 or more make sense.
        statistics: weight of the mismatch in nats per channel (`Remembered.mismatch`).
        classes: weight of the cross-entropy to the targets, in nats per input.
        smoothness: weight of the mean absolute difference between neighbours.
        jitter: largest shift at a step, as a fraction of the axis; what leaves comes in opposite.
        mirror: whether images are mirrored, half the steps, as most are in training.
        seconds: begin no further batch that would end later, and take fewer steps on the first
            where it must; None is no limit. With a limit the result depends on the machine's speed.
        memory: bytes that the activations of one pass may take; a batch goes through in parts.
    """

    steps: int = 150
    learning_rate: float = 0.02
    batch: int = 128
    statistics: float = 100.0
    classes: float = 1.0
    smoothness: float = 1.0
    jitter: float = 1 / 16
    mirror: bool = True
    seconds: float | None = None
    memory: float = 1e9


def invert(
    model: nn.Module,
    spec: InputSpec,
    starts: Tensor,
    generator: torch.Generator,
    how: Inversion | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Optimise inputs towards the statistics that a network remembers, and soft targets.

    Args:
        model: the dense network in evaluation mode, parameters frozen; it is not changed.
        spec: kind and range of the inputs; token ids cannot be optimised.
        starts: where the optimisation begins, `[N, *spec.shape]` in the unit range, floating.
        generator: draws targets and shifts.
        how: lengths and weights of the optimisation.
        progress: told after every step.

    Returns:
        `[N', *spec.shape]` as the network takes them, detached. N' is N, or fewer whole batches
        where `how.seconds` ended the work; the first batch is always made.

    Raises:
        InputError: token inputs, a network without BatchNorm statistics or without gradients.
    """
    check_movable(spec, INVERSION)
    if not has_batchnorm(model):
        raise InputError(
            "calibration inputs: only a network with BatchNorm (with running statistics) can be inverted; "
            "use --calibration impressions"
        )
    how = how or Inversion()
    work = _Work(model, spec, how, generator, _stages(model, spec, how.steps))
    batches = starts.tensor_split(math.ceil(len(starts) / how.batch))
    made: list[Tensor] = []
    began, longest, total = time.monotonic(), 0.0, how.steps * len(batches)
    for batch in batches:
        start = time.monotonic()
        left = None if how.seconds is None else how.seconds - (start - began)
        if made and left is not None and left < longest:
            break
        report = partial(_tell, progress, len(made) * how.steps, total, how.steps)
        made.append(work.descend(batch, left, report))
        longest = max(longest, time.monotonic() - start)
    _tell(progress, total, total, 0, 1.0)
    return to_network(spec, torch.cat(made))


class _Stage(NamedTuple):
    """Steps at one resolution: `size` pixels, or None for the network's own."""

    size: tuple[int, int] | None
    steps: int
    cost: int  # of one step; only ratios matter


@dataclass
class _Pace:
    """How much of the work on a batch is behind: by steps, or by time where that runs out first."""

    total: int
    seconds: float | None
    done: int = 0
    began: float = field(default_factory=time.monotonic)

    def fraction(self) -> float:
        """Return it, from 0 to 1."""
        timed = 0.0
        if self.seconds is not None:
            timed = (time.monotonic() - self.began) / max(self.seconds, 1e-9)
        return min(1.0, max(self.done / self.total, timed))


@dataclass(frozen=True)
class _Work:
    """What all batches have in common, and the work on one."""

    model: nn.Module
    spec: InputSpec
    how: Inversion
    generator: torch.Generator
    stages: Sequence[_Stage]

    def descend(
        self, starts: Tensor, seconds: float | None, report: Callable[[float], None]
    ) -> Tensor:
        """Optimise one batch, from `[n, *shape]` in the unit range to the same."""
        ends = list(accumulate(stage.steps * stage.cost for stage in self.stages))
        pace = _Pace(ends[-1], seconds)
        inputs, targets = starts, None
        for stage, end in zip(self.stages, ends, strict=True):
            if stage.size is not None:
                inputs = functional.interpolate(inputs, stage.size, mode="area")
            elif inputs.shape != starts.shape:
                inputs = functional.interpolate(inputs, starts.shape[-2:], mode="bilinear")
            parts = self._parts(inputs)
            if targets is None:
                targets = draw_targets(self._answers(parts), self.generator)
            adam = torch.optim.Adam(parts, self.how.learning_rate)
            with Watch(self.model) as watch:
                pool = self._survey(parts, watch)
                while True:  # a step at least, however little time there is
                    adam.param_groups[0]["lr"] = self.how.learning_rate * _cooled(pace.fraction())
                    self._gradients(parts, targets, watch, pool)
                    adam.step()
                    _clip(parts)
                    pace.done += stage.cost
                    report(pace.fraction())
                    if pace.fraction() >= end / pace.total:
                        break
            inputs = torch.cat([part.detach() for part in parts])
        return inputs

    def _parts(self, inputs: Tensor) -> list[Tensor]:
        """Cut a batch so that one part at a time fits into memory."""
        need = len(inputs) * activation_bytes(self.model, to_network(self.spec, inputs[:1]))
        parts = inputs.tensor_split(min(len(inputs), math.ceil(need / self.how.memory)))
        return [part.clone().requires_grad_() for part in parts]

    @torch.no_grad()
    def _answers(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([self.model(to_network(self.spec, part)) for part in parts])

    @torch.no_grad()
    def _survey(self, parts: Sequence[Tensor], watch: Watch) -> Pool:
        """Take the moments of all parts, so that each can be seen as a part of the whole."""
        pool = Pool([len(part) for part in parts])
        for number, part in enumerate(parts if len(parts) > 1 else ()):
            self.model(to_network(self.spec, part))
            pool.join(number, watch.take()[0])
        return pool

    def _gradients(
        self, parts: Sequence[Tensor], targets: Tensor, watch: Watch, pool: Pool
    ) -> None:
        """Fill the gradients of all parts with those of the loss of the whole batch."""
        how, count = self.how, len(targets)
        values = count * parts[0][0].numel()
        for number, (part, wanted) in enumerate(
            zip(parts, targets.split([len(part) for part in parts]), strict=True)
        ):
            outputs = self.model(to_network(self.spec, self._moved(part)))
            check_differentiable(outputs, INVERSION)
            moments, remembered = watch.take()
            loss = how.statistics * remembered.mismatch(pool.join(number, moments))
            loss = loss + how.classes / count * miss(outputs, wanted)
            loss = loss + how.smoothness / values * variation(part, self.spec)
            (part.grad,) = torch.autograd.grad(loss, part)

    def _moved(self, inputs: Tensor) -> Tensor:
        how = self.how
        return moved(inputs, self.spec, how.jitter, self.generator, mirror=how.mirror)


def _stages(model: nn.Module, spec: InputSpec, steps: int) -> list[_Stage]:
    """Plan the resolutions: half of it first, for large pictures that the network takes so."""
    height, width = spec.shape[-2:] if spec.kind == "image" else (0, 0)
    size = height // 2, width // 2
    if steps < 2 or min(height, width) < LARGE or not _takes(model, spec, size):
        return [_Stage(None, steps, 1)]
    small = round(SMALL_PART * steps)
    return [_Stage(size, small, 1), _Stage(None, steps - small, 4)]


@torch.no_grad()
def _takes(model: nn.Module, spec: InputSpec, size: tuple[int, int]) -> bool:
    weight = next(model.parameters())
    blank = torch.full((1, *spec.shape), 0.5, dtype=weight.dtype, device=weight.device)
    wanted = model(to_network(spec, blank)).shape
    try:
        found = model(to_network(spec, functional.interpolate(blank, size))).shape
    except Exception:  # noqa: BLE001 - a network raises anything at all on another size
        return False
    return bool(found == wanted)


def _cooled(fraction: float) -> float:
    return max(LAST_RATE, (1 + math.cos(math.pi * fraction)) / 2)


@torch.no_grad()
def _clip(parts: Sequence[Tensor]) -> None:
    for part in parts:
        part.clamp_(0, 1)


def _tell(progress: Progress | None, before: int, total: int, steps: int, part: float) -> None:
    if progress is not None:
        progress(before + int(part * steps), total)
