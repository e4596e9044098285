"""Blocks that a network runs one after the other, as the layers of a transformer."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gaprune.models.layer_kinds import qualified_name


class BlockCall(NamedTuple):
    """What a block is called with: the first argument is what the block before it returned."""

    arguments: tuple[Any, ...]
    named: dict[str, Any]

    def run(self, block: nn.Module) -> BlockCall:
        """Return what the next block is called with."""
        return self.after(block(*self.arguments, **self.named))

    def after(self, output: object) -> BlockCall:
        """Return what the next block is called with, given what this one returned."""
        hidden = output[0] if isinstance(output, tuple) else output
        return BlockCall((hidden, *self.arguments[1:]), self.named)

    def is_same(self, other: BlockCall) -> bool:
        """Tell whether another call has the same objects as arguments."""
        if len(self.arguments) != len(other.arguments) or self.named.keys() != other.named.keys():
            return False
        pairs = [*zip(self.arguments, other.arguments, strict=True)]
        pairs += [(value, other.named[name]) for name, value in self.named.items()]
        return all(a is b for a, b in pairs)


class _Reached(BaseException):  # an event, which a network does not handle as an error
    """The first block is reached."""

    def __init__(self, call: BlockCall) -> None:
        super().__init__()
        self.call = call


def sequential_blocks(model: nn.Module, example: Tensor) -> tuple[str, ...]:
    """Return the names of the blocks with the most parameters, in order; empty if there are none.

    These are modules of one class and no common parameters, in a list or sequence. Each is called
    once; it takes what the one before it returned and otherwise what the first one takes.
    """
    stacks = [
        (name, stack)
        for name, stack in model.named_modules()
        if isinstance(stack, (nn.ModuleList, nn.Sequential)) and _is_uniform(stack)
    ]
    stacks.sort(key=lambda item: -sum(p.numel() for p in item[1].parameters()))
    for name, stack in stacks:
        if _is_chain(model, stack, example):
            return tuple(qualified_name(name, child) for child, _ in stack.named_children())
    return ()


def first_call(model: nn.Module, first: nn.Module, inputs: Tensor) -> BlockCall:
    """Return what the network calls its first block with; the blocks do not run."""

    def stop(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        raise _Reached(BlockCall(arguments, named))

    hook = first.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        model(inputs)
    except _Reached as reached:
        return reached.call
    finally:
        hook.remove()
    raise AssertionError("the first block is called: `sequential_blocks` has seen it")


def _is_uniform(stack: nn.Module) -> bool:
    blocks = list(stack.children())
    parameters = [id(p) for block in blocks for p in block.parameters()]
    return (
        len(blocks) > 1
        and len({type(block) for block in blocks}) == 1
        and all(any(block.children()) for block in blocks)
        and len(set(parameters)) == len(parameters)
    )


def _is_chain(model: nn.Module, stack: nn.Module, example: Tensor) -> bool:
    blocks = list(stack.children())
    calls = _calls(model, blocks, example)
    if [block for block, _, _ in calls] != blocks:
        return False
    first = calls[0][1]
    if not first.arguments or not isinstance(first.arguments[0], Tensor):
        return False
    for (_, call, output), (_, following, _) in pairwise(calls):
        if not call.after(output).is_same(following):
            return False
    with torch.no_grad():
        last = first
        for block in blocks:
            last = last.run(block)
    return torch.equal(last.arguments[0], calls[-1][1].after(calls[-1][2]).arguments[0])


def _calls(
    model: nn.Module, blocks: list[nn.Module], example: Tensor
) -> list[tuple[nn.Module, BlockCall, object]]:
    calls: list[tuple[nn.Module, BlockCall, object]] = []

    def record(
        block: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: object
    ) -> None:
        calls.append((block, BlockCall(arguments, named), output))

    with ExitStack() as hooks, torch.no_grad():
        for block in blocks:
            hooks.enter_context(block.register_forward_hook(record, with_kwargs=True))
        model(example)
    return calls
