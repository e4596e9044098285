"""Run a network: in batches, with tensors replaced, with several weight sets, deterministically."""

from __future__ import annotations

import inspect
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, func, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from gaprune.models.layer_kinds import qualified_name
from gaprune.models.subnormal_numbers import subnormals_as_zero

CHUNK = 64  # inputs per forward pass: activations stay in the cache, memory stays bounded
ENTRIES = 1 << 22  # most input values per forward pass; reduces the batch of large inputs
TOKENS = 1 << 12  # most tokens per forward pass: a transformer holds thousands of values for each
GPU_CHUNK = 512  # small networks are limited by kernel launches there


@torch.no_grad()
def batched_forward(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return the network's outputs `[N, …]`, computed batch by batch."""
    # map adds no Python frame between here and the model; a comprehension does before Python 3.12.
    return torch.cat(list(map(model, split_batches(inputs))))


def functional_call(
    model: nn.Module,
    replaced: Mapping[str, Tensor],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
) -> Any:  # noqa: ANN401 - whatever the network returns
    """Run a network with some parameters or buffers replaced, wherever it uses them.

    `torch.func.functional_call` swaps a tensor once for every name. In a module that is registered
    under two names the second swap would store the replacement in the network for good.
    """
    by_id = {}
    for name, tensor in replaced.items():
        path, _, leaf = name.rpartition(".")
        by_id[id(getattr(model.get_submodule(path), leaf))] = tensor
    places = {
        qualified_name(path, leaf): by_id[id(tensor)]
        for path, module in model.named_modules()  # every module once
        for leaf, tensor in chain(module._parameters.items(), module._buffers.items())
        if id(tensor) in by_id
    }
    return func.functional_call(model, places, args, dict(kwargs or {}), tie_weights=False)  # noqa: TID251


@torch.no_grad()
def functional_forward(model: nn.Module, replaced: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    """Return the outputs `[N, …]` with some parameters or buffers replaced, batch by batch."""
    named = {f"model.{name}": tensor for name, tensor in replaced.items()}
    outputs: Tensor = functional_call(_Batched(model), named, (inputs,))
    return outputs


class _Batched(nn.Module):
    """Splits inputs into batches inside one `functional_call`: tensors are replaced only once."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.cat(list(map(self.model, split_batches(inputs))))


@torch.no_grad()
def vmap_forward(model: nn.Module, replaced: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    """Return the outputs `[G, N, …]` on inputs `[N, …]` under G sets of replaced tensors `[G, …]`.

    Raises:
        RuntimeError: `torch.func.vmap` cannot batch this network (a tensor is changed in place, or
            a branch depends on values).
    """

    def call(tensors: dict[str, Tensor], batch: Tensor) -> Tensor:
        outputs: Tensor = functional_call(model, tensors, (batch,))
        return outputs

    with warnings.catch_warnings():
        # torch warns about operations that it runs one by one; results are the same
        warnings.filterwarnings("ignore", "There is a performance drop")
        batched = func.vmap(call, in_dims=(0, None))
        parts = [batched(dict(replaced), batch) for batch in split_batches(inputs)]
    return torch.cat(parts, dim=1)


def split_batches(inputs: Tensor) -> Sequence[Tensor]:
    """Split inputs `[N, …]` into views of `forward_batch_size` inputs; the last may be smaller."""
    batches: Sequence[Tensor] = inputs.split(forward_batch_size(inputs))
    return batches


def forward_batch_size(inputs: Tensor) -> int:
    """Return how many inputs one forward pass takes, by their size, dtype and device only."""
    most = CHUNK if inputs.device.type == "cpu" else GPU_CHUNK
    entries = TOKENS if inputs.dtype == torch.int64 else ENTRIES
    return max(1, min(most, entries // max(1, inputs[:1].numel())))


def relative_difference(outputs: Tensor, expected: Tensor) -> float:
    """Return the largest difference, relative to the largest expected output.

    Networks whose sums have another order, such as exported ones, differ by rounding.
    """
    scale = float(expected.double().abs().max())
    difference = float((outputs.double() - expected.double()).abs().max())
    return difference / scale if scale else difference


def rounding_tolerance(dtype: torch.dtype) -> float:
    """Return the relative difference up to which outputs of a dtype are equal but for rounding."""
    return math.sqrt(torch.finfo(dtype).eps) / 4  # 9e-5 in float32, 8e-3 in float16


@contextmanager
def standard_torch() -> Iterator[None]:
    """Use torch as it is by default, whatever the caller has set; a decorator of entry points.

    Inside, tensors are float32 on the CPU unless stated, nothing is cast automatically, and
    gradients can be computed. Only subnormal numbers are computed with as zeros, which is faster.
    """
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.enter_context(subnormals_as_zero())
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        # entered only where needed: it slows every operation
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.callback(torch.set_default_dtype, dtype)
        torch.set_default_dtype(torch.float32)
        yield


def free_batch(model: nn.Module) -> tuple[Any, ...]:
    """Return `dynamic_shapes` for torch.export: the first axis of the one input is free."""
    first: Any = {0: torch.export.Dim.DYNAMIC}
    parameters = inspect.signature(model.forward).parameters.values()
    takes_any = next(iter(parameters)).kind is inspect.Parameter.VAR_POSITIONAL
    return ((first,),) if takes_any else (first,)


@contextmanager
def deterministic(device: str | torch.device) -> Iterator[None]:
    """Make a GPU compute the same bits every time inside the block; the CPU needs nothing.

    Uses torch's deterministic kernels (torch warns about operations that have none), full float32
    instead of TF32, and unfused attention, whose fused kernels add in varying order.
    """
    if torch.device(device).type == "cpu":
        yield
        return
    # torch reads this once, before its first cuBLAS kernel (see its notes on reproducibility)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    backends: Any = torch.backends  # torch does not annotate these switches
    memory: Any = torch.utils.deterministic
    kernels = (backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul)
    precisions = [kernel.fp32_precision for kernel in kernels]
    strict = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = memory.fill_uninitialized_memory
    try:
        for kernel in kernels:
            kernel.fp32_precision = "ieee"
        torch.use_deterministic_algorithms(True, warn_only=not strict or warn_only)
        memory.fill_uninitialized_memory = False  # costs time and changes no result
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for kernel, precision in zip(kernels, precisions, strict=True):
            kernel.fp32_precision = precision
        torch.use_deterministic_algorithms(strict, warn_only=warn_only)
        memory.fill_uninitialized_memory = fill
