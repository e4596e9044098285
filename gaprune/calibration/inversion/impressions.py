"""Class impressions: inputs optimised until the teacher answers with wanted soft targets.

Zero-shot knowledge distillation (Nayak et al. 2019, section 3.2): targets come from Dirichlet
distributions, here of many concentrations, and every input starts from a procedural picture. For
networks without class outputs the target is the teacher's own answer on other inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from gaprune.calibration.generators.draws import log_uniform, to_network
from gaprune.errors import InputError
from gaprune.models.input_spec import InputSpec

IMPRESSIONS = "impressions"  # in messages
SHARING_CLASSES = 10
LOWEST_CONCENTRATION, HIGHEST_CONCENTRATION = 0.02, 2.0  # nearly one-hot … nearly uniform


@dataclass(frozen=True)
class Recipe:
    """How impressions are made.

    Attributes:
        steps: Adam steps on the inputs.
        rate: step length, as a fraction of the unit range.
        smoothness: weight of the total-variation prior, per neighbouring pair.
        batch: inputs optimised together.
    """

    steps: int = 60
    rate: float = 0.05
    smoothness: float = 0.005
    batch: int = 256


def impressions(
    model: nn.Module,
    spec: InputSpec,
    starts: Tensor,
    generator: torch.Generator,
    recipe: Recipe | None = None,
) -> Tensor:
    """Optimise inputs towards soft targets.

    Args:
        model: the dense network in evaluation mode, parameters frozen.
        spec: kind and range of the inputs; token ids cannot be optimised.
        starts: where the optimisation begins, `[N, *spec.shape]` in the unit range.
        generator: draws the targets.
        recipe: lengths and weights of the optimisation.

    Returns:
        `[N, *spec.shape]` in the unit range, detached.

    Raises:
        InputError: token inputs, or a network without gradients.
    """
    check_movable(spec, IMPRESSIONS)
    recipe = recipe or Recipe()
    batches = starts.split(recipe.batch)
    return torch.cat([_optimise(model, spec, batch, generator, recipe) for batch in batches])


def soft_targets(count: int, classes: int, generator: torch.Generator) -> Tensor:
    """Draw distributions over classes `[count, classes]`, each of its own concentration.

    The concentrations are those of ten classes at most: of a thousand, as few share the weight.
    """
    concentration = log_uniform(
        generator, count, 1, low=LOWEST_CONCENTRATION, high=HIGHEST_CONCENTRATION
    )
    concentration *= min(1.0, SHARING_CLASSES / classes)
    seed = int(torch.randint(2**62, (), generator=generator))
    gammas = np.random.default_rng(seed).standard_gamma(concentration.expand(count, classes))
    shares = torch.from_numpy(gammas).clamp_min(torch.finfo(torch.float32).tiny)
    return (shares / shares.sum(1, keepdim=True)).float()


def draw_targets(outputs: Tensor, generator: torch.Generator) -> Tensor:
    """Draw what the teacher should answer: soft targets, or its own outputs dealt anew.

    Args:
        outputs: its answers at the start, `[N, …]`.
        generator: decides.
    """
    if _by_class(outputs):
        return soft_targets(len(outputs), outputs.shape[1], generator).to(outputs)
    return outputs[torch.randperm(len(outputs), generator=generator)]


def miss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return how far answers are from their targets, summed over inputs.

    Cross-entropy in nats for logits `[N, classes]`, else squared error in units of the variance.
    """
    if _by_class(outputs):
        return -(targets * functional.log_softmax(outputs, dim=1)).sum()
    return (outputs - targets).square().sum() / targets.var().clamp_min(1e-12)


def variation(inputs: Tensor, spec: InputSpec) -> Tensor:
    """Sum of absolute differences between neighbours along the spatial or time axes."""
    total = inputs.new_zeros(())
    for axis in moving_axes(spec):
        total = total + inputs.diff(dim=axis).abs().sum()
    return total


def moving_axes(spec: InputSpec) -> tuple[int, ...]:
    """Return the axes along which an input may be shifted, counted from the last."""
    return {"image": (-1, -2), "signal": (-1,)}.get(spec.kind, ())


def check_movable(spec: InputSpec, what: str) -> None:
    """Refuse inputs that cannot be optimised.

    Raises:
        InputError: token ids.
    """
    if spec.kind == "tokens":
        raise InputError(
            f"calibration inputs: {what} need inputs that can be moved a little, token ids cannot; "
            "use --calibration procedural"
        )


def check_differentiable(outputs: Tensor, what: str) -> None:
    """Refuse a network that passes no gradients to its inputs, which ask for some here.

    Raises:
        InputError: `outputs` carry no gradient.
    """
    if not outputs.requires_grad:
        raise InputError(
            f"calibration inputs: {what} need a network that passes gradients to its inputs, and this one does "
            "not; use --calibration procedural"
        )


def _by_class(outputs: Tensor) -> bool:
    return outputs.ndim == 2 and outputs.shape[1] >= 2


def _optimise(
    model: nn.Module, spec: InputSpec, starts: Tensor, generator: torch.Generator, recipe: Recipe
) -> Tensor:
    inputs = starts.clone().requires_grad_()
    with torch.no_grad():
        targets = draw_targets(model(to_network(spec, starts)), generator)
    adam = torch.optim.Adam([inputs], recipe.rate)
    for _ in range(recipe.steps):
        outputs = model(to_network(spec, inputs))
        check_differentiable(outputs, IMPRESSIONS)
        loss = miss(outputs, targets) + recipe.smoothness * variation(inputs, spec)
        (inputs.grad,) = torch.autograd.grad(loss, inputs)
        adam.step()
        with torch.no_grad():
            inputs.clamp_(0, 1)
    return inputs.detach()
