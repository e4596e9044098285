"""How a network responds: the inputs of its layers, and how strongly their outputs move it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gaprune.criteria.layer_inputs import Moments, Shape, is_layer, unfold
from gaprune.criteria.network import batches, fitting
from gaprune.models.macs import activation_bytes
from gaprune.models.network import DenseNetwork

COLUMNS_PER_INPUT = 64  # of a layer, that the covariance of a channel's inputs is taken from
FEWEST_COLUMNS, MOST_COLUMNS = 2**13, 2**15
FEWEST_INPUTS = 64
SHOWN = 8e9  # bytes of activations of all calibration inputs; what goes beyond is not shown
UNSEEN_BATCH = (
    16  # calibration inputs behind one squared gradient of a weight: more squares, less chance
)


@dataclass
class Response:
    """What one layer's weight multiplies, and how much each of its channels matters.

    Attributes:
        moments: of its inputs.
        information: mean over calibration inputs of Σ (∂ log p(y|x)/∂z)² over positions, `[channels]`.
    """

    moments: Moments
    information: Tensor


@dataclass
class Responses:
    """The layers by the name of their weight; the Fisher information of all other weights."""

    layers: dict[str, Response] = field(default_factory=dict)
    information: dict[str, Tensor] = field(default_factory=dict)


def respond(
    network: DenseNetwork, calibration: Tensor | None, generator: torch.Generator
) -> Responses:
    """Show the calibration inputs to the network once, and measure.

    y is drawn from a Gaussian of unit variance around the outputs (a common scale would change no
    ranking), also where these are logits: a softmax that is sure of its answer says that a thousand
    logits hardly matter. Parameters, buffers and hooks of the network stay as they are.

    Args:
        network: the dense network.
        calibration inputs: `[N, ...]`; the first ones of a network whose activations are large.
        generator: draws positions and answers.

    Raises:
        InputError: there are no calibration inputs.
    """
    example = next(batches(network, calibration, 1))
    called = _called(network, example)
    leaves = {name: weight.detach().requires_grad_() for name, weight in network.weights.items()}
    per_input = activation_bytes(network.model, example, leaves)
    size = fitting(per_input, passes=2)
    unseen = {name: leaf for name, leaf in leaves.items() if name not in called}
    if unseen:
        size = min(size, UNSEEN_BATCH)
    shown = (
        None if calibration is None else calibration[: max(FEWEST_INPUTS, int(SHOWN // per_input))]
    )
    count = 0 if shown is None else len(shown)
    watch = _Watch(called, example.device, generator)
    found = {name: torch.zeros_like(weight) for name, weight in unseen.items()}
    sources = [*unseen.values(), watch.origin]
    with _hooked(network, watch.note), torch.enable_grad():
        for batch in batches(network, shown, size):
            watch.share = len(batch) / count
            outputs = functional_call(network.model, unseen, (batch,))
            loss = _surprise(outputs, generator)
            if loss.requires_grad:
                *gradients, _ = torch.autograd.grad(loss, sources, materialize_grads=True)
                for name, gradient in zip(unseen, gradients, strict=True):
                    found[name] += gradient.square() / count
    layers = {
        name: Response(
            watch.moments[name],
            # an output that moves nothing has no gradient at all
            watch.information.get(name, network.weights[name].new_zeros(len(network.weights[name])))
            / count,
        )
        for name in called
    }
    return Responses(layers, found)


def _surprise(outputs: Tensor, generator: torch.Generator) -> Tensor:
    """Return −log p(y|x) up to a constant, summed over the batch, y drawn from a Gaussian there."""
    noise = torch.randn(outputs.shape, generator=generator, device=generator.device)
    return (outputs * noise.to(outputs)).sum()


def _called(network: DenseNetwork, example: Tensor) -> dict[str, Shape]:
    """Return the weights whose inputs can be unfolded wherever they are used, by name."""
    shapes: dict[str, set[Shape | None]] = {}

    def note(name: str, module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        known = (
            isinstance(output, Tensor)
            and len(args) == 1
            and unfold(module, args[0], output) is not None
        )
        shapes.setdefault(name, set()).add(Shape.of(module) if known else None)

    with _hooked(network, note), torch.no_grad():
        network.model(example)
    return {
        name: shape
        for name, found in shapes.items()
        for shape in found
        if len(found) == 1 and shape is not None
    }


Note = Callable[[str, nn.Module, tuple[Any, ...], Any], Any]


@contextmanager
def _hooked(network: DenseNetwork, note: Note) -> Iterator[None]:
    """Let `note` see every call of a layer with a prunable weight, under that weight's name."""
    names = {id(network.model.get_parameter(name)): name for name in network.weights}

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], Any]:
        return lambda module, args, output: note(name, module, args, output)

    handles = []
    for module in network.model.modules():
        # a computed weight (as by a parametrization) is no parameter, and not found here
        weight = dict(module.named_parameters(recurse=False)).get("weight")
        if is_layer(module) and id(weight) in names:
            handles.append(module.register_forward_hook(hook(names[id(weight)])))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Watch:
    """Gathers moments and gradients of the layers' outputs while the network runs.

    Args:
        called: the layers, by the name of their weight.
        device: of the network.
        generator: draws positions.
    """

    def __init__(
        self, called: dict[str, Shape], device: torch.device, generator: torch.Generator
    ) -> None:
        self.moments = {name: Moments(shape) for name, shape in called.items()}
        self.information: dict[str, Tensor] = {}
        self.share = 1.0  # of the calibration inputs, in this batch
        self.origin = torch.zeros((), device=device, requires_grad=True)
        self._generator = generator

    def note(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Gather from one call; the output is made to depend on `origin`, a zero."""
        if name not in self.moments:
            return output
        moments, inputs = self.moments[name], args[0].detach()
        patches = unfold(module, inputs, output)
        assert patches is not None  # as in the first call
        moments.add(patches, self._pick(moments.shape, patches))
        if not output.requires_grad:
            output = output + self.origin.to(output.dtype)
        channel = output.ndim - moments.shape.axes
        output.register_hook(lambda gradient: self._add(name, gradient, channel))
        return output

    def _pick(self, shape: Shape, patches: Tensor) -> Tensor:
        """Draw the positions to look at, without replacement."""
        positions = math.prod(patches.shape[: -shape.axes])
        wanted = min(max(FEWEST_COLUMNS, COLUMNS_PER_INPUT * shape.size), MOST_COLUMNS)
        quota = math.ceil(wanted * self.share)
        if quota >= positions:
            return torch.arange(positions, device=patches.device)
        device = self._generator.device
        picked = torch.randperm(positions, generator=self._generator, device=device)[:quota]
        return picked.sort().values.to(patches.device)

    def _add(self, name: str, gradient: Tensor, channel: int) -> None:
        others = [axis for axis in range(gradient.ndim) if axis != channel]
        squares = gradient.float().square()
        found = squares.sum(others) if others else squares
        self.information[name] = self.information.get(name, 0) + found
