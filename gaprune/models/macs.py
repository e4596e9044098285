"""What a forward pass costs: multiply-adds, memory, and the batch size that suits the network."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from gaprune.models.forward import functional_call

SMALLEST_BATCH, LARGEST_BATCH = 32, 256
STEP_MACS = 1e9  # most multiply-adds per forward pass of a gradient step: about 50 ms on one core
# FLOPs of products for which torch has no formula, from their arguments and output
_PRODUCTS: dict[Any, Callable[..., int]] = {
    torch.ops.aten.dot: lambda left, _, **__: 2 * left.numel(),
    torch.ops.aten.mv: lambda matrix, _, **__: 2 * matrix.numel(),
    torch.ops.aten.addmv: lambda _, matrix, *__, **___: 2 * matrix.numel(),
    torch.ops.aten._grouped_mm: lambda left, right, *_, **__: 2 * left.numel() * right.shape[-1],  # noqa: SLF001 # experts
    torch.ops.aten._trilinear: lambda left, weight, *_, **__: 2 * len(left) * weight.numel(),  # noqa: SLF001 # of nn.Bilinear
}
_AFTER_ALL_NAMES = "\U0010ffff"


def macs_per_input(model: nn.Module, example: Tensor) -> int:
    """Count the multiply-adds of a forward pass on one input `[1, …]`."""
    return macs_by_weight(model, example, {})[0]


@torch.no_grad()
def macs_by_weight(
    model: nn.Module, example: Tensor, weights: Mapping[str, Tensor]
) -> tuple[int, dict[str, int]]:
    """Count the multiply-adds of a forward pass on one input `[1, …]`: in total, and by weight.

    A weight is recognised by its memory, so it is counted however `forward` uses it.
    """
    counter = _FlopCounter(weights)
    with _unfused(), counter:
        model(example)
    # torch counts a multiply-add as two operations
    return counter.flops // 2, {name: counter.by_weight[name] // 2 for name in weights}


@contextmanager
def _unfused() -> Iterator[None]:
    """Run attention and recurrent layers as single products: torch counts no fused operation."""
    backends: Any = torch.backends  # its settings have types of their own
    before = backends.mha.get_fastpath_enabled(), backends.mkldnn.enabled, backends.cudnn.enabled
    try:
        backends.mha.set_fastpath_enabled(False)
        backends.mkldnn.enabled = backends.cudnn.enabled = False
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        backends.mha.set_fastpath_enabled(before[0])
        backends.mkldnn.enabled, backends.cudnn.enabled = before[1:]


class UncompiledDispatchMode(TorchDispatchMode):
    """A mode that does not import torch's compiler."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False: nothing is compiled, and with True torch would import its compiler."""
        return False


class _FlopCounter(UncompiledDispatchMode):
    """Sums up torch's own FLOP formulas. Its `FlopCounterMode` does too, but takes 1.6 s to start.

    Operations with `weights` are also counted separately.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops: int = 0
        self.by_weight: Counter[str] = Counter()
        # start addresses in order, for a binary search
        self._starts = sorted((weight.data_ptr(), name) for name, weight in weights.items())
        self._bytes = {name: weight.nbytes for name, weight in weights.items()}

    def __torch_dispatch__(
        self,
        operation: Any,  # noqa: ANN401 - torch's own types of operations are private
        _types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        named = kwargs or {}
        packet = operation._overloadpacket  # noqa: SLF001 # the key of torch's own registry
        formula: Callable[..., int] | None = flop_registry.get(packet) or _PRODUCTS.get(packet)
        if formula is None:  # a composite operation is counted by its parts
            with self:
                result = operation.decompose(*args, **named)
            if result is not NotImplemented:
                return result
        output = operation(*args, **named)
        if formula is not None:
            flops = formula(*args, **named, out_val=output)
            self.flops += flops
            if self._starts:
                self.by_weight.update(dict.fromkeys(self._weights_among(args), flops))
        return output

    def _weights_among(self, args: Sequence[Any]) -> set[str]:
        """Return the names of the weights whose memory the arguments lie in."""
        names = set()
        for tensor in args:
            if isinstance(tensor, Tensor) and tensor.layout == torch.strided:
                address = tensor.data_ptr()
                index = bisect_right(self._starts, (address, _AFTER_ALL_NAMES)) - 1
                start, name = self._starts[index]  # the last weight that starts at or before
                if index >= 0 and address < start + self._bytes[name]:
                    names.add(name)
        return names


def suitable_batch(macs: int) -> int:
    """Return the largest power of two from 32 to 256 whose forward pass costs at most `STEP_MACS`.

    It depends on the network alone, not on the machine, so a seed means the same everywhere.
    """
    batch = LARGEST_BATCH
    while batch > SMALLEST_BATCH and batch * macs > STEP_MACS:
        batch //= 2
    return batch


def activation_bytes(
    model: nn.Module, example: Tensor, leaves: Mapping[str, Tensor] | None = None
) -> int:
    """Return the memory that one input `[1, …]` needs between a forward and a backward pass.

    The input, if floating, and `leaves`, which replace parameters, are differentiated.
    """
    replaced = dict(leaves or {})
    state = (*model.state_dict(keep_vars=True).values(), *replaced.values())
    own_memory = {tensor.data_ptr() for tensor in state}
    saved: dict[int, int] = {}

    def record(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own_memory:
            # by address: two operations may save the same tensor
            saved[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    # autograd passes every tensor that it keeps for the backward pass to the hook
    with saved_tensors_hooks(record, lambda tensor: tensor), torch.enable_grad():
        inputs = example.detach()
        if inputs.is_floating_point():
            inputs.requires_grad_()
        output = functional_call(model, replaced, (inputs,))
    # Until here the graph was alive, so no two saved tensors can have had the same address.
    del output
    return max(1, sum(saved.values()))
