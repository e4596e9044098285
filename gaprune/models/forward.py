"""How inputs pass through a network: in chunks, with tensors replaced, several sets at once."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

CHUNK = 64  # inputs per forward pass: activations stay in the cache, memory stays bounded
ENTRIES = 1 << 22  # values of the inputs of a forward pass, where single ones are large
GPU_CHUNK = 512  # a small network takes as long to start as to run there


@torch.no_grad()
def forward(model: nn.Module, replaced: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    """Return the network's outputs `[N, …]` with some of its tensors replaced, in chunks."""
    named = {f"model.{name}": tensor for name, tensor in replaced.items()}
    outputs: Tensor = functional_call(_Chunked(model), named, (inputs,))
    return outputs


class _Chunked(nn.Module):
    """Passes inputs in chunks: a network's tensors are replaced once and not for each of them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        """Return all outputs `[N, …]`."""
        return answers(self.model, inputs)


@torch.no_grad()
def forward_many(model: nn.Module, replaced: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    """Return the outputs `[G, N, …]` of one network with G sets of tensors in place of its own.

    Args:
        model: stays as it is.
        replaced: qualified name → the G tensors that take its place one after the other, stacked.
        inputs: `[N, …]`, the same for all.

    Raises:
        RuntimeError: torch cannot compute this network for several sets at once (`torch.func.vmap`:
            a tensor changed in place, a branch on values).
    """

    def one(tensors: dict[str, Tensor], batch: Tensor) -> Tensor:
        outputs: Tensor = functional_call(model, tensors, (batch,))
        return outputs

    stacked = dict(replaced)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")  # one by one inside torch
        parts = [vmap(one, in_dims=(0, None))(stacked, batch) for batch in chunks(inputs)]
    return torch.cat(parts, dim=1)


@torch.no_grad()
def answers(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return the dense network's outputs `[N, …]`, computed in chunks."""
    return torch.cat([model(batch) for batch in chunks(inputs)])


def chunks(inputs: Tensor) -> Sequence[Tensor]:
    """Return inputs `[N, …]` as they pass: in views of `chunk_size` of them, and the rest."""
    found: Sequence[Tensor] = inputs.split(chunk_size(inputs))
    return found


def chunk_size(inputs: Tensor) -> int:
    """Return how many of such inputs pass at once."""
    most = CHUNK if inputs.device.type == "cpu" else GPU_CHUNK
    return max(1, min(most, ENTRIES // max(1, inputs[:1].numel())))
