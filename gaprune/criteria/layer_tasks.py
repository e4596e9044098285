"""Work on one layer after the other: on the moments of its inputs, by tasks that workers can run.

Networks whose matrices take much memory run block by block, with the activations of one block at a
time. Then workers measure the inputs of a block, each on some of the inputs, beside the work on the
layers of the block before it. How the work is divided does not depend on the workers, so neither
does its result.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import accumulate
from math import ceil
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_map

from gaprune.criteria.batching import batch_size, batches, largest_input, real_tokens
from gaprune.criteria.layer_inputs import InputMoments, WeightShape
from gaprune.criteria.responses import Recorder, layer_hooks, unfoldable
from gaprune.models.blocks import BlockCall, first_call, sequential_blocks
from gaprune.models.network import DenseNetwork
from gaprune.models.time_limit import check_time

MATRICES = 2**28  # bytes of the matrices that are measured in one pass through the network
COPIES = 6  # memory of a pass without gradients, in sizes of the largest activation
SHARDS = 8  # parts of the calibration inputs that workers pass through a block

Run = Callable[[Sequence[Any]], Sequence[Any]]
_RUN: ContextVar[Run | None] = ContextVar("run", default=None)


@contextmanager
def layer_tasks_on(run: Run) -> Iterator[None]:
    """Let workers, which hold the dense network, run the tasks of layers inside the block."""
    token = _RUN.set(run)
    try:
        yield
    finally:
        _RUN.reset(token)


def run_tasks(network: DenseNetwork, tasks: Sequence[Any]) -> Sequence[Any]:
    """Run tasks with `run(network)`, here or on the workers of `layer_tasks_on`."""
    if (run := _RUN.get()) is not None:
        return run(tasks)
    results = []
    for task in tasks:
        check_time()
        results.append(task.run(network))
    return results


def work_on_layers(
    network: DenseNetwork,
    calibration: Tensor,
    generator: torch.Generator,
    make_task: Callable[[str, InputMoments], Any],
) -> Iterator[tuple[str, Any]]:
    """Yield the name of each weight whose inputs can be unfolded, and what its task returns.

    `make_task(name, moments)` makes the task from the moments of its inputs.
    """
    example = next(batches(network, calibration, 1))
    shapes = unfoldable(network, example)
    sources = shared_inputs(network, example, shapes)
    left = {name: shapes[name] for name in network.weights if sources.get(name) == name}
    blocks: tuple[str, ...] = ()
    if sum(shape.matrix_bytes for shape in left.values()) > MATRICES:
        blocks = sequential_blocks(network.model, example)
    inside = {
        block: {name: left.pop(name) for name in list(left) if name.startswith(f"{block}.")}
        for block in blocks
    }

    def make_tasks(moments: Mapping[str, InputMoments]) -> tuple[list[str], list[Any]]:
        # a layer that `example` reaches may get no other input, where forward chooses by its input
        measured = {name for name, of_inputs in moments.items() if of_inputs.count}
        names = [name for name, source in sources.items() if source in measured]
        # the longest first, so that workers finish together
        names.sort(key=lambda name: -network.weights[name].numel() * shapes[name].size)
        return names, [make_task(name, moments[sources[name]]) for name in names]

    with torch.no_grad():
        size = batch_size(largest_input(network.model, example), COPIES)
    while left:
        bytes_so_far = accumulate(shape.matrix_bytes for shape in left.values())
        count = max(1, sum(total <= MATRICES for total in bytes_so_far))
        group = {name: left.pop(name) for name in list(left)[:count]}
        recorder = Recorder(group, example.device, generator)
        with layer_hooks(network, recorder.add_moments), torch.no_grad():
            for batch in batches(network, calibration, size):
                recorder.share = len(batch) / len(calibration)
                recorder.is_real = real_tokens(network.inputs.padding, batch)
                network.model(batch)
        names, tasks = make_tasks(recorder.moments)
        del recorder
        yield from zip(names, run_tasks(network, tasks), strict=True)
    if inside:
        parts = calibration.split(min(size, ceil(len(calibration) / SHARDS)))
        yield from _block_by_block(network, parts, inside, make_tasks, generator)


def shared_inputs(network: DenseNetwork, example: Tensor, names: Collection[str]) -> dict[str, str]:
    """Return for each of some weights the first one that multiplies the same tensors, or itself."""
    keys: dict[str, list[object]] = {}
    seen = []  # tensors are kept, so that their ids stay theirs

    def record(name: str, module: nn.Module, args: tuple[Any, ...], _output: object) -> None:
        if name in names:
            seen.append(args)
            unfolds = isinstance(module, _ConvNd)  # into columns of its own
            keys.setdefault(name, []).extend([name] if unfolds else map(id, args))

    with layer_hooks(network, record), torch.no_grad():
        network.model(example)
    first: dict[tuple[object, ...], str] = {}
    return {name: first.setdefault(tuple(key), name) for name, key in keys.items()}


@dataclass(frozen=True, eq=False)
class BlockPass:
    """Runs a block and measures the inputs of its layers."""

    block: str
    calls: tuple[BlockCall, ...]
    are_real: tuple[Tensor | None, ...]  # positions of each call, see `real_tokens`
    shapes: dict[str, WeightShape]  # of the weights that are measured
    share: float  # the calls' fraction of all calls
    seed: int

    def run(self, network: DenseNetwork) -> Passed:
        """Return the calls of the next block, and the moments by weight."""
        generator = torch.Generator().manual_seed(self.seed)
        recorder = Recorder(self.shapes, network.device, generator)
        recorder.share = self.share / len(self.calls)
        block = network.model.get_submodule(self.block)
        calls = []
        with layer_hooks(network, recorder.add_moments), torch.no_grad():
            for call, recorder.is_real in zip(self.calls, self.are_real, strict=True):
                calls.append(_on(call, network.device).run(block))
        return Passed(tuple(calls), recorder.moments)


class Passed(NamedTuple):
    """The result of a `BlockPass`."""

    calls: tuple[BlockCall, ...]
    moments: dict[str, InputMoments]


def _block_by_block(
    network: DenseNetwork,
    parts: Sequence[Tensor],
    inside: Mapping[str, dict[str, WeightShape]],
    make_tasks: Callable[[Mapping[str, InputMoments]], tuple[list[str], list[Any]]],
    generator: torch.Generator,
) -> Iterator[tuple[str, Any]]:
    """Do the work of `work_on_layers` on blocks: name → shapes of the weights to measure.

    The activations of all inputs between two blocks are stored.
    """
    first = network.model.get_submodule(next(iter(inside)))
    with torch.no_grad():
        calls = [first_call(network.model, first, part.to(network.device)) for part in parts]
    real = [real_tokens(network.inputs.padding, part) for part in parts]
    starts = range(min(SHARDS, len(calls)))
    shards = [tuple(calls[begin::SHARDS]) for begin in starts]
    are_real = [tuple(real[begin::SHARDS]) for begin in starts]
    del calls
    names: list[str] = []
    work: list[Any] = []
    for block, shapes in inside.items():
        seeds = torch.randint(2**62, (len(shards),), generator=generator).tolist()
        passes = [
            BlockPass(block, shard, is_real, shapes, len(shard) / len(parts), seed)
            for shard, is_real, seed in zip(shards, are_real, seeds, strict=True)
        ]
        results = run_tasks(network, [*work, *passes])
        yield from zip(names, results[: len(work)], strict=True)
        first_part, *others = results[len(work) :]
        shards = [passed.calls for passed in (first_part, *others)]
        moments = first_part.moments
        for passed in others:
            for name, part in passed.moments.items():
                moments[name].merge(part)
        names, work = make_tasks(moments)
        del results, passes, first_part, others
    yield from zip(names, run_tasks(network, work), strict=True)


def _on(call: BlockCall, device: torch.device) -> BlockCall:
    moved = tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, tuple(call))
    return BlockCall(*moved)
