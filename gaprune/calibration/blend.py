"""Which generators' inputs look like the training data? A network with BatchNorm remembers.

The statistics of a blend of inputs are the blend of their moments, so the shares that come nearest
to the remembered statistics (`Remembered.mismatch`) are found without another forward pass. What
remains says how far procedural calibration inputs are from the domain: some 0.01 nats per channel for strokes
shown to a network trained on digits, several times that for any blend shown to one trained on
photographs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gaprune.calibration.generators.draws import InputGenerator, to_network
from gaprune.calibration.generators.mixture import NEGLIGIBLE
from gaprune.calibration.inversion.batchnorm_statistics import Remembered, Watch
from gaprune.models.input_spec import InputSpec

SAMPLE = 256  # inputs per generator
CHUNK = 64  # inputs per forward pass
STEPS, RATE = 400, 0.1
EVENNESS = 0.003  # nats per nat of entropy: near equals share alike, so that calibration inputs stay diverse


Keep = Callable[[Callable[[], Tensor]], Tensor]
"""What makes a tensor → the tensor, made or read from where it was kept."""


class Blend(NamedTuple):
    """Generators and their shares, largest first, and what stays between them and the domain.

    Attributes:
        shares: generator → share; they add up to 1, and negligible ones are left out.
        mismatch: of the blend, in nats per channel.
        alone: of every generator by itself.
    """

    shares: dict[str, float]
    mismatch: float
    alone: dict[str, float]


class Survey:
    """What the BatchNorms of a network see of every generator, next to what they remember.

    Args:
        model: a network with BatchNorm in evaluation mode.
        spec: what it takes.
        generators: name → generator, at least one.
        generator: draws the inputs that are shown.
        dtype: what the network computes in.
        keep: what keeps the moments of the generators, float64 `[generators, 2, channels]`.

    Raises:
        InputError: the forward pass meets no BatchNorm with running statistics.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: InputSpec,
        generators: Mapping[str, InputGenerator],
        generator: torch.Generator,
        dtype: torch.dtype = torch.float32,
        keep: Keep = lambda make: make(),
    ) -> None:
        device = next(model.parameters(), torch.empty(0)).device

        def shown(draw: InputGenerator, count: int, own: torch.Generator) -> Tensor:
            return to_network(spec, draw(spec, count, own), dtype).to(device)

        def make() -> Tensor:
            found = (
                _moments(model, shown(draw, SAMPLE, generator)) for draw in generators.values()
            )
            return torch.stack(list(found)).cpu()

        table = keep(make).to(device)
        self._moments = dict(zip(generators, table, strict=True))
        any_input = shown(next(iter(generators.values())), 1, torch.Generator().manual_seed(0))
        self._remembered = _remembered(model, any_input)
        self._found: dict[tuple[str, ...], Blend] = {}

    def blend(self, names: Iterable[str] | None = None) -> Blend:
        """Find the shares whose statistics come nearest to the remembered ones.

        Args:
            names: the generators that may take part, at least one; None means all.
        """
        chosen = tuple(self._moments if names is None else names)
        if chosen not in self._found:
            self._found[chosen] = self._fit(chosen)
        return self._found[chosen]

    @torch.enable_grad()  # whatever the caller has switched off
    def _fit(self, names: tuple[str, ...]) -> Blend:
        shown, remembered = [self._moments[name] for name in names], self._remembered
        table = torch.stack(shown)
        logits = torch.zeros(len(shown), dtype=torch.float64, device=table.device)
        logits.requires_grad_()
        adam = torch.optim.Adam([logits], RATE)
        for _ in range(STEPS):
            shares = logits.softmax(0)
            entropy = -torch.xlogy(shares, shares).sum()
            loss = remembered.mismatch(_mix(shares, table)) - EVENNESS * entropy
            (logits.grad,) = torch.autograd.grad(loss, logits)
            adam.step()
        shares = logits.detach().softmax(0)
        shares = torch.where(shares < NEGLIGIBLE, 0.0, shares)
        shares /= shares.sum()
        found = sorted(zip(names, shares.tolist(), strict=True), key=lambda item: -item[1])
        alone = {
            name: float(remembered.mismatch(moments))
            for name, moments in zip(names, shown, strict=True)
        }
        largest_first = {name: share for name, share in found if share}
        return Blend(largest_first, float(remembered.mismatch(_mix(shares, table))), alone)


def _mix(shares: Tensor, table: Tensor) -> Tensor:
    """Return the moments `[2, channels]` of a blend of rows `[generators, 2, channels]`."""
    return (shares.view(-1, 1, 1) * table).sum(0)


@torch.no_grad()
def _moments(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return the moments of all inputs, float64 `[2, channels]`."""
    parts = inputs.split(CHUNK)
    total: Tensor | float = 0.0
    with Watch(model) as watch:
        for part in parts:
            model(part)
            total = total + watch.take()[0].double() * (len(part) / len(inputs))
    assert isinstance(total, Tensor)
    return total


@torch.no_grad()
def _remembered(model: nn.Module, inputs: Tensor) -> Remembered:
    """Return what the moments should be, in the order in which a forward pass meets the norms."""
    with Watch(model) as watch:
        model(inputs)
        return Remembered(*(values.double() for values in watch.take()[1]))
