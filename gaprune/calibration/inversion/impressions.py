"""Class impressions: inputs optimised until the teacher predicts given soft targets.

Zero-shot knowledge distillation (Nayak et al. 2019, section 3.2) draws the targets from Dirichlet
distributions. Here their concentrations vary, and every input starts from a procedural one. For
networks without class outputs the target is the teacher's output for another input. In vision
transformers, which have no BatchNorm to match, the patches of an input are made to differ.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from gaprune.calibration.generators.random_draws import draw_log_uniform, to_network
from gaprune.calibration.inversion.adam import AdamSteps
from gaprune.calibration.inversion.augment import moving_axes
from gaprune.calibration.inversion.patch_diversity import attention_outputs, similarity_entropy
from gaprune.errors import InputError
from gaprune.models.input_spec import InputSpec

MIN_CONCENTRATION, MAX_CONCENTRATION = 0.02, 2.0  # nearly one-hot … nearly uniform
SHARING_CLASSES = 10  # with more classes, the concentration falls: as few of them share the weight


STEPS, LEARNING_RATE = 60, 0.05  # of Adam; the rate is a fraction of the unit range
SMOOTHNESS = 0.005  # weight of the total variation, per pair of neighbours
DIVERSITY = 1.0  # weight of the entropy of patch similarities, per layer of attention
BATCH = 256  # inputs whose targets are drawn together
VALUES = 1 << 20  # input values optimised together, in 256 to 1,024 inputs: small steps cost time


def impressions(
    model: nn.Module, spec: InputSpec, starts: Tensor, generator: torch.Generator
) -> Tensor:
    """Optimise inputs from `starts` towards soft targets that `generator` draws.

    Starts and results are `[N, *spec.shape]` in the unit range, results detached.

    Raises:
        InputError: token inputs, or a network that passes no gradients to its inputs.
    """
    check_continuous(spec, "impressions")
    with torch.no_grad():
        drawn = [
            draw_targets(model(to_network(spec, batch)), generator) for batch in starts.split(BATCH)
        ]
    size = min(4 * BATCH, max(BATCH, VALUES // max(1, starts[:1].numel())))
    pairs = zip(starts.split(size), torch.cat(drawn).split(size), strict=True)
    return torch.cat([_optimised(model, spec, batch, targets) for batch, targets in pairs])


def _optimised(model: nn.Module, spec: InputSpec, starts: Tensor, targets: Tensor) -> Tensor:
    inputs = starts.clone().requires_grad_()
    adam = AdamSteps([inputs])
    with attention_outputs(model, spec) as patches:
        for _ in range(STEPS):
            patches.clear()
            outputs = model(to_network(spec, inputs))
            check_differentiable(outputs, "impressions")
            loss = target_loss(outputs, targets)
            loss = loss + SMOOTHNESS * total_variation(inputs, spec)
            for layer in patches:
                loss = loss - DIVERSITY * similarity_entropy(layer)
            adam.step(torch.autograd.grad(loss, inputs), LEARNING_RATE)
            with torch.no_grad():
                # Projected gradient descent: the network never sees values outside the range.
                inputs.clamp_(0, 1)
    return inputs.detach()


def soft_targets(count: int, classes: int, generator: torch.Generator) -> Tensor:
    """Draw class distributions of random concentration, float32 `[count, classes]`."""
    concentration = draw_log_uniform(
        generator, count, 1, low=MIN_CONCENTRATION, high=MAX_CONCENTRATION
    )
    concentration *= min(1.0, SHARING_CLASSES / classes)
    # A normalised row of gamma draws is a Dirichlet draw. torch cannot draw gammas from a
    # generator, NumPy can.
    seed = int(torch.randint(2**62, (), generator=generator))
    gammas = np.random.default_rng(seed).standard_gamma(concentration.expand(count, classes))
    weights = torch.from_numpy(gammas).clamp_min(torch.finfo(torch.float32).tiny)
    return (weights / weights.sum(1, keepdim=True)).float()


def draw_targets(outputs: Tensor, generator: torch.Generator) -> Tensor:
    """Draw soft targets for logits, a permutation of the rows for other outputs `[N, …]`."""
    if _are_logits(outputs):
        return soft_targets(len(outputs), outputs.shape[1], generator).to(outputs)
    return outputs[torch.randperm(len(outputs), generator=generator)]


def target_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the distance of outputs from their targets, summed over inputs.

    Cross-entropy in nats for logits `[N, classes]`, else the squared error divided by the variance
    of the targets.
    """
    if _are_logits(outputs):
        return -(targets * functional.log_softmax(outputs, dim=1)).sum()
    return (outputs - targets).square().sum() / targets.var().clamp_min(1e-12)


def total_variation(inputs: Tensor, spec: InputSpec) -> Tensor:
    """Return the sum of absolute differences of neighbours along the spatial or time axes."""
    total = inputs.new_zeros(())
    for axis in moving_axes(spec):
        total = total + inputs.diff(dim=axis).abs().sum()
    return total


def check_continuous(spec: InputSpec, method: str) -> None:
    """Raise an `InputError` for inputs that gradients cannot optimise: token ids."""
    if spec.kind == "tokens":
        raise InputError(
            f"calibration inputs: {method} need continuous inputs, but token ids are discrete; "
            "use --calibration=procedural"
        )


def check_differentiable(outputs: Tensor, method: str) -> None:
    """Raise an `InputError` if no gradients reach the inputs of a network from its outputs."""
    if not outputs.requires_grad:
        raise InputError(
            f"calibration inputs: {method} need a network that passes gradients to its inputs, and "
            "this one does not; use --calibration=procedural"
        )


def _are_logits(outputs: Tensor) -> bool:
    return outputs.ndim == 2 and outputs.shape[1] >= 2
