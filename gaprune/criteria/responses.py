"""How a network responds: the inputs of its layers, and how strongly their outputs affect it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gaprune.criteria.batching import batch_size, batches, real_tokens
from gaprune.criteria.layer_inputs import (
    InputMoments,
    WeightShape,
    can_unfold,
    outputs_first,
    unfold,
)
from gaprune.models.forward import functional_call
from gaprune.models.macs import activation_bytes
from gaprune.models.network import DenseNetwork

COLUMNS_PER_INPUT = 64  # columns of a layer per input of a channel, for its covariance
FEWEST_COLUMNS, MOST_COLUMNS = 2**13, 2**15
FEWEST_INPUTS = 64
ACTIVATIONS = 8e9  # most bytes of activations of all inputs together; further inputs are not used
FISHER_BATCH = 16  # inputs per squared gradient of a weight: more squares, less variance


@dataclass
class LayerResponse:
    """Moments of a layer's inputs, and the Fisher information of its outputs, `[channels]`.

    This is the mean over inputs of Σ (∂ log p(y|x)/∂z)² over positions.
    """

    moments: InputMoments
    information: Tensor


@dataclass
class Responses:
    """Layers by the name of their weight; the Fisher information of all other weights."""

    layers: dict[str, LayerResponse]
    information: dict[str, Tensor]


def measure_responses(
    network: DenseNetwork, calibration: Tensor | None, generator: torch.Generator
) -> Responses:
    """Run the network on the calibration inputs once and measure how it responds.

    y is drawn from a Gaussian of unit variance around the outputs, even if these are logits: for a
    saturated softmax a thousand logits hardly matter. Only the first calibration inputs are used if
    activations are large.
    """
    example = next(batches(network, calibration, 1))
    shapes = unfoldable(network, example)
    leaves = {name: weight.detach().requires_grad_() for name, weight in network.weights.items()}
    bytes_per_input = activation_bytes(network.model, example, leaves)
    size = batch_size(bytes_per_input, copies=2)  # activations and their gradients
    others = {name: leaf for name, leaf in leaves.items() if name not in shapes}
    if others:
        size = min(size, FISHER_BATCH)
    assert calibration is not None  # `batches` has checked it
    inputs = calibration[: max(FEWEST_INPUTS, int(ACTIVATIONS // bytes_per_input))]
    recorder = Recorder(shapes, example.device, generator)
    information = {name: torch.zeros_like(weight) for name, weight in others.items()}
    sources = [*others.values(), recorder.origin]
    with layer_hooks(network, recorder.record), torch.enable_grad():
        for batch in batches(network, inputs, size):
            recorder.share = len(batch) / len(inputs)
            recorder.is_real = real_tokens(network.inputs.padding, batch)
            outputs = functional_call(network.model, others, (batch,))
            # −log p(y|x) up to a constant has the gradient (outputs − y) = noise
            noise = torch.randn(outputs.shape, generator=generator, device=generator.device)
            loss = (outputs * noise.to(outputs)).sum()
            if loss.requires_grad:
                *gradients, _ = torch.autograd.grad(loss, sources, materialize_grads=True)
                for name, gradient in zip(others, gradients, strict=True):
                    information[name] += gradient.square() / len(inputs)
    layers = {}
    for name in shapes:
        weight = network.weights[name]
        if not recorder.moments[name].count:  # forward chose other layers for all inputs
            information[name] = torch.zeros_like(weight)
            continue
        channels = len(outputs_first(network.layer_of(name), weight))
        # an output that does not affect the network's outputs has no gradient at all
        fisher = recorder.information.get(name, weight.new_zeros(channels))
        layers[name] = LayerResponse(recorder.moments[name], fisher / len(inputs))
    return Responses(layers, information)


def unfoldable(network: DenseNetwork, example: Tensor) -> dict[str, WeightShape]:
    """Return the shape of each weight whose inputs can be unfolded, in the order of the calls."""
    shapes: dict[str, set[WeightShape | None]] = {}

    def record(name: str, module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        unfolds = (
            isinstance(output, Tensor)
            and len(args) == 1
            and unfold(module, args[0], output) is not None
        )
        shapes.setdefault(name, set()).add(WeightShape.of(module) if unfolds else None)

    with layer_hooks(network, record), torch.no_grad():
        network.model(example)
    return {
        name: shape
        for name, uses in shapes.items()
        for shape in uses
        if len(uses) == 1 and shape is not None
    }


@contextmanager
def layer_hooks(
    network: DenseNetwork, record: Callable[[str, nn.Module, tuple[Any, ...], Any], Any]
) -> Iterator[None]:
    """Call `record(weight name, module, inputs, output)` for every call of an unfoldable layer."""
    names = {id(network.model.get_parameter(name)): name for name in network.weights}

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], Any]:
        return lambda module, args, output: record(name, module, args, output)

    with ExitStack() as hooks:
        for module in network.model.modules():
            # a computed weight (of a parametrisation) is no parameter and is not looked up here
            weight = dict(module.named_parameters(recurse=False)).get("weight")
            if can_unfold(module) and id(weight) in names:
                hooks.enter_context(module.register_forward_hook(hook(names[id(weight)])))
        yield


class Recorder:
    """Records moments of layers' inputs and gradients of their outputs while the network runs."""

    def __init__(
        self, shapes: dict[str, WeightShape], device: torch.device, generator: torch.Generator
    ) -> None:
        self.moments = {name: InputMoments(shape) for name, shape in shapes.items()}
        self.information: dict[str, Tensor] = {}
        self.share = 1.0  # this batch's fraction of all inputs
        self.is_real: Tensor | None = None  # of the positions of this batch, see `real_tokens`
        self.origin = torch.zeros((), device=device, requires_grad=True)
        self._generator = generator

    def add_moments(
        self, name: str, module: nn.Module, args: tuple[Any, ...], output: Tensor
    ) -> None:
        """Add the inputs of one call to the moments."""
        if name in self.moments:
            patches = unfold(module, args[0].detach(), output)
            assert patches is not None  # as in `unfoldable`
            moments = self.moments[name]
            positions = self._draw_positions(moments.shape, patches)
            if self.is_real is not None and patches.shape[:-1] == self.is_real.shape:
                positions = positions[self.is_real.to(positions.device).flatten()[positions]]
            if len(positions):
                moments.add(patches, positions)

    def record(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Record one call. The output is made to depend on `origin`, a zero with a gradient."""
        if name not in self.moments:
            return output
        self.add_moments(name, module, args, output)
        if not output.requires_grad:
            output = output + self.origin.to(output.dtype)
        channel = output.ndim - self.moments[name].shape.axes
        output.register_hook(lambda gradient: self._add(name, gradient, channel))
        return output

    def _draw_positions(self, shape: WeightShape, patches: Tensor) -> Tensor:
        """Draw positions without replacement, in ascending order."""
        positions = math.prod(patches.shape[: -shape.axes])
        columns = min(max(FEWEST_COLUMNS, COLUMNS_PER_INPUT * shape.size), MOST_COLUMNS)
        count = math.ceil(columns * self.share)
        if count >= positions:
            return torch.arange(positions, device=patches.device)
        device = self._generator.device
        drawn = torch.randperm(positions, generator=self._generator, device=device)[:count]
        return drawn.sort().values.to(patches.device)

    def _add(self, name: str, gradient: Tensor, channel: int) -> None:
        others = [axis for axis in range(gradient.ndim) if axis != channel]
        squares = gradient.float().square()
        sums = squares.sum(others) if others else squares
        self.information[name] = self.information.get(name, 0) + sums
