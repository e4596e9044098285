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

from gaprune.errors import InputError
from gaprune.inputs import InputSpec
from gaprune.probes.draws import log_uniform, to_network

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
    if spec.kind == "tokens":
        raise InputError(
            "probes: impressions need inputs that can be moved a little, token ids cannot; "
            "use --probes procedural"
        )
    recipe = recipe or Recipe()
    batches = starts.split(recipe.batch)
    return torch.cat([_optimise(model, spec, batch, generator, recipe) for batch in batches])


def soft_targets(count: int, classes: int, generator: torch.Generator) -> Tensor:
    """Draw distributions over classes `[count, classes]`, each of its own concentration."""
    concentration = log_uniform(
        generator, count, 1, low=LOWEST_CONCENTRATION, high=HIGHEST_CONCENTRATION
    )
    seed = int(torch.randint(2**62, (), generator=generator))
    gammas = np.random.default_rng(seed).standard_gamma(concentration.expand(count, classes))
    shares = torch.from_numpy(gammas).clamp_min(torch.finfo(torch.float32).tiny)
    return (shares / shares.sum(1, keepdim=True)).float()


def _optimise(
    model: nn.Module, spec: InputSpec, starts: Tensor, generator: torch.Generator, recipe: Recipe
) -> Tensor:
    inputs = starts.clone().requires_grad_()
    with torch.no_grad():
        outputs = model(to_network(spec, starts))
    by_class = outputs.ndim == 2 and outputs.shape[1] >= 2
    if by_class:
        targets = soft_targets(len(outputs), outputs.shape[1], generator).to(outputs.dtype)
    else:
        targets = outputs[torch.randperm(len(outputs), generator=generator)]
    adam = torch.optim.Adam([inputs], recipe.rate)
    for _ in range(recipe.steps):
        outputs = model(to_network(spec, inputs))
        if not outputs.requires_grad:
            raise InputError(
                "probes: impressions need a network that passes gradients to its inputs, and this "
                "one does not; use --probes procedural"
            )
        if by_class:
            miss = -(targets * functional.log_softmax(outputs, dim=1)).sum()
        else:
            miss = (outputs - targets).square().sum() / targets.var().clamp_min(1e-12)
        loss = miss + recipe.smoothness * _variation(inputs, spec)
        (inputs.grad,) = torch.autograd.grad(loss, inputs)
        adam.step()
        with torch.no_grad():
            inputs.clamp_(0, 1)
    return inputs.detach()


def _variation(inputs: Tensor, spec: InputSpec) -> Tensor:
    """Sum of absolute differences between neighbours along the spatial or time axes."""
    axes = {"image": (-1, -2), "signal": (-1,)}.get(spec.kind, ())
    total = inputs.new_zeros(())
    for axis in axes:
        total = total + inputs.diff(dim=axis).abs().sum()
    return total
