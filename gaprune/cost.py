"""What a pass through a network costs, in work and memory, and the batch that suits it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

SMALLEST_BATCH, LARGEST_BATCH = 32, 256
STEP_WORK = 1e9  # multiply-adds of one forward pass in a gradient step: some 50 ms on one core


@torch.no_grad()
def macs_per_input(model: nn.Module, example: Tensor) -> int:
    """Count the multiply-adds of a forward pass on one input `[1, …]`."""
    with FlopCounterMode(display=False) as counter:
        model(example)
    return int(counter.get_total_flops()) // 2


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
