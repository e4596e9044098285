"""What a pass through a network costs, in work and memory, and the batch that suits it."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

SMALLEST_BATCH, LARGEST_BATCH = 32, 256
_LAST = "\U0010ffff"  # after all names
STEP_WORK = 1e9  # multiply-adds of one forward pass in a gradient step: some 50 ms on one core


@torch.no_grad()
def macs_per_input(model: nn.Module, example: Tensor) -> int:
    """Count the multiply-adds of a forward pass on one input `[1, …]`."""
    counter = _Operations()
    with counter:
        model(example)
    return counter.flops // 2


@torch.no_grad()
def macs_by_weight(
    model: nn.Module, example: Tensor, weights: Mapping[str, Tensor]
) -> tuple[int, dict[str, int]]:
    """Count the multiply-adds of a forward pass on one input, and those of each weight among them.

    A weight is known by its memory, so it is found however `forward` uses it.

    Args:
        model: the network.
        example: one input `[1, …]`.
        weights: parameters of the model by name.

    Returns:
        All, and name → its own; 0 for one that is not used.
    """
    counter = _Operations(weights)
    with counter:
        model(example)
    return counter.flops // 2, {name: counter.own[name] // 2 for name in weights}


class _Operations(TorchDispatchMode):
    """Adds up torch's own formulas, as its `FlopCounterMode` does, which takes 1.6 s to begin."""

    def __init__(self, weights: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops: int = 0
        self.own: Counter[str] = Counter()
        self._starts = sorted((one.data_ptr(), name) for name, one in (weights or {}).items())
        self._bytes = {name: one.nbytes for name, one in (weights or {}).items()}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here; to validation against it, torch would import its compiler."""
        return False

    def __torch_dispatch__(
        self,
        operation: Any,  # noqa: ANN401 - torch's own types of operations are private
        _types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        named, formula = kwargs or {}, _formula_of(operation)
        if formula is None:  # what torch composes of others is counted in its parts
            with self:
                found = operation.decompose(*args, **named)
            if found is not NotImplemented:
                return found
        output = operation(*args, **named)
        if formula is not None:
            flops = formula(*args, **named, out_val=output)
            self.flops += flops
            if self._starts:
                self.own.update(dict.fromkeys(self._used(args), flops))
        return output

    def _used(self, args: Sequence[Any]) -> set[str]:
        """Return the weights whose memory the arguments lie in."""
        found = set()
        for one in args:
            if isinstance(one, Tensor) and one.layout == torch.strided:
                place = bisect_right(self._starts, (one.data_ptr(), _LAST)) - 1
                start, name = self._starts[place]
                if place >= 0 and one.data_ptr() < start + self._bytes[name]:
                    found.add(name)
        return found


def _formula_of(operation: Any) -> Callable[..., int] | None:  # noqa: ANN401
    found: Callable[..., int] | None = flop_registry.get(operation._overloadpacket)  # noqa: SLF001
    return found


def suitable_batch(macs: int) -> int:
    """Return the power of two, from 32 to 256, whose forward pass costs at most `STEP_WORK`.

    It depends on the network alone, not on the machine, so that a seed means the same everywhere.
    """
    batch = LARGEST_BATCH
    while batch > SMALLEST_BATCH and batch * macs > STEP_WORK:
        batch //= 2
    return batch


def activation_bytes(
    model: nn.Module, example: Tensor, leaves: Mapping[str, Tensor] | None = None
) -> int:
    """Return the memory that one input `[1, …]` takes between a forward and a backward pass.

    Args:
        model: the network.
        example: one input; floating ones are differentiated.
        leaves: parameters by name that are differentiated too, and take the model's own's place.
    """
    taken = leaves or {}
    state = model.state_dict(keep_vars=True)
    own = {tensor.data_ptr() for tensor in (*state.values(), *taken.values())}
    held: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            held[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor), torch.enable_grad():
        inputs = example.detach()
        if inputs.is_floating_point():
            inputs.requires_grad_()
        output = functional_call(model, dict(taken), (inputs,))
    del output  # until here nothing that is held can have given its address to another tensor
    return max(1, sum(held.values()))
