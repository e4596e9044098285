"""How inputs pass through a network: in chunks, with tensors replaced, several sets at once."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

CHUNK = 64  # inputs per forward pass: activations stay in the cache, memory stays bounded
ENTRIES = 1 << 22  # values of the inputs of a forward pass, where single ones are large
GPU_CHUNK = 512  # a small network takes as long to start as to run there


@torch.no_grad()
def functional_forward(model: nn.Module, replaced: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
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
        return batched_forward(self.model, inputs)


@torch.no_grad()
def vmap_forward(model: nn.Module, replaced: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
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
        parts = [vmap(one, in_dims=(0, None))(stacked, batch) for batch in split_batches(inputs)]
    return torch.cat(parts, dim=1)


@torch.no_grad()
def batched_forward(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return the dense network's outputs `[N, …]`, computed in chunks."""
    return torch.cat([model(batch) for batch in split_batches(inputs)])


def split_batches(inputs: Tensor) -> Sequence[Tensor]:
    """Return inputs `[N, …]` as they pass: in views of `chunk_size` of them, and the rest."""
    found: Sequence[Tensor] = inputs.split(forward_batch_size(inputs))
    return found


def forward_batch_size(inputs: Tensor) -> int:
    """Return how many of such inputs pass at once."""
    most = CHUNK if inputs.device.type == "cpu" else GPU_CHUNK
    return max(1, min(most, ENTRIES // max(1, inputs[:1].numel())))


@contextmanager
def deterministic(device: str | torch.device) -> Iterator[None]:
    """Let a GPU give equal bits for equal tasks inside the block, and float32 mean float32.

    Deterministic kernels are taken where torch has them (it warns where it has not), and none
    rounds float32 to TF32; attention is computed plainly, since its fused kernels add in any order.
    On the CPU nothing changes.
    """
    if torch.device(device).type == "cpu":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as torch's notes ask for
    backends: Any = torch.backends  # torch annotates none of these switches
    memory: Any = torch.utils.deterministic
    kernels = (backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul)
    bits = [one.fp32_precision for one in kernels]
    strict = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    fills = memory.fill_uninitialized_memory
    try:
        for one in kernels:
            one.fp32_precision = "ieee"
        torch.use_deterministic_algorithms(True, warn_only=not strict or warns)
        memory.fill_uninitialized_memory = False  # costs time, changes nothing
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for one, before in zip(kernels, bits, strict=True):
            one.fp32_precision = before
        torch.use_deterministic_algorithms(strict, warn_only=warns)
        memory.fill_uninitialized_memory = fills
