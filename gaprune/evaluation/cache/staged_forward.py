"""A network in steps, so that a forward pass can begin at a cut between two of them.

Masks that agree on the first layers give the same values behind these, bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

_PLAIN = (torch.Size, int, float, bool, str, type(None), torch.dtype, torch.device)


class Cut(NamedTuple):
    """A place where a forward pass can begin.

    Attributes:
        place: the step that comes next.
        depth: how many layers, in the order of the layout, what lies before may depend on.
        live: what the steps behind read of those before.
    """

    place: int
    depth: int
    live: tuple[fx.Node, ...]


class Held(NamedTuple):
    """What was there at a cut.

    Attributes:
        values: of its live nodes.
        versions: of those that are tensors, as torch counts changes in place.
    """

    values: dict[fx.Node, Any]
    versions: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes of its tensors, with what they are views of."""
        places = {_place(one): one.untyped_storage().nbytes() for one in self._tensors}
        return sum(places.values())

    @property
    def is_intact(self) -> bool:
        """Whether nothing has been written into it since."""
        return self.versions == _versions(self.values.values())

    def may_stay(self, own: set[int]) -> bool:
        """Tell whether it is plain values, unchanged since and in none of the places given."""
        plain = all(isinstance(one, (Tensor, *_PLAIN)) for one in self.values.values())
        return plain and self.is_intact and all(_place(one) not in own for one in self._tensors)

    @property
    def _tensors(self) -> list[Tensor]:
        return [one for one in self.values.values() if isinstance(one, Tensor)]


class Leg(NamedTuple):
    """One batch on its way through the network.

    Attributes:
        inputs: `[N, …]`.
        row: of the first of them among all.
        begin: a cut and what was held there for the same inputs and for masks with the same first
            layers; None begins with the inputs.
        hold: cuts behind that, where values are to be held.
    """

    inputs: Tensor
    row: int = 0
    begin: tuple[Cut, Held] | None = None
    hold: tuple[Cut, ...] = ()


class Step(NamedTuple):
    """One operation of the network.

    Attributes:
        node: it, in the trace.
        call: from the values of the nodes before it to its own.
        dies: nodes that are read here for the last time.
    """

    node: fx.Node
    call: Callable[[dict[fx.Node, Any]], Any]
    dies: tuple[fx.Node, ...]


Keep = Callable[[Leg, Cut, Held], None]


@dataclass(frozen=True, eq=False)
class Stages:
    """A traced network, step by step.

    Attributes:
        model: the network itself; nothing in it is copied.
        steps: of its forward pass.
        cuts: where it can begin, in order.
        seconds: of each step, measured once; what lies before a cut is what that saves.
    """

    model: nn.Module
    steps: tuple[Step, ...]
    cuts: tuple[Cut, ...]
    seconds: tuple[float, ...]

    @torch.no_grad()
    def run(self, kept: Mapping[str, Tensor], legs: Sequence[Leg], keep: Keep) -> Tensor:
        """Return the outputs of all legs, one behind the other.

        Args:
            kept: parameters that replace the network's own, by name.
            legs: batches.
            keep: is given what is held of what may be, as it is there.
        """
        replaced = {f"model.{name}": tensor for name, tensor in kept.items()}
        own = {_place(one) for one in (*kept.values(), *(leg.inputs for leg in legs))}

        def keep_own(leg: Leg, cut: Cut, held: Held) -> None:
            if held.may_stay(own):
                keep(leg, cut, held)

        outputs: Tensor = functional_call(Pass(self), replaced, (legs, keep_own))
        return outputs

    def share(self, cut: Cut) -> float:
        """Return the part of a pass that beginning at a cut saves."""
        return sum(self.seconds[: cut.place]) / sum(self.seconds)


class Pass(nn.Module):
    """A module around the network, so that its parameters can be replaced.

    Attributes:
        seconds: of the CPU, for every step that the last leg took.
    """

    def __init__(self, stages: Stages) -> None:
        super().__init__()
        self.model, self._steps = stages.model, stages.steps
        self.seconds: list[float] = []

    def forward(self, legs: Sequence[Leg], keep: Keep) -> Tensor:
        """Return the outputs of all legs, `[N, …]`."""
        return torch.cat([self._walk(leg, keep) for leg in legs])

    def _walk(self, leg: Leg, keep: Keep) -> Tensor:
        steps, hold = self._steps, {cut.place: cut for cut in leg.hold}
        first, values, held = 1, dict[fx.Node, Any](), list[tuple[Cut, Held]]()
        if leg.begin is not None:
            first, values = leg.begin[0].place, dict(leg.begin[1].values)
        values[steps[0].node] = leg.inputs
        self.seconds = []
        for place in range(first, len(steps)):
            if place in hold:
                live = {node: values[node] for node in hold[place].live}
                held.append((hold[place], Held(live, _versions(live.values()))))
            started = time.thread_time()
            values[steps[place].node] = steps[place].call(values)
            self.seconds.append(time.thread_time() - started)
            for node in steps[place].dies:
                del values[node]
        for cut, one in held:
            keep(leg, cut, one)
        outputs: Tensor = values[steps[-1].node]
        return outputs


def _versions(values: Iterable[object]) -> tuple[int, ...]:
    return tuple(one._version for one in values if isinstance(one, Tensor))  # noqa: SLF001 - torch has no other name for it


def _place(tensor: Tensor) -> int:
    """Return where its memory begins, also if it is a view of a part."""
    return tensor.untyped_storage().data_ptr()
