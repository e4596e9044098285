"""Hooks on a private copy of a network, so that its parameters keep the names of the checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gaprune.models.arguments import ArgumentRows
from gaprune.models.layer_kinds import qualified_name


class BufferCopies:
    """Gives every forward pass copies of some buffers, so that the network keeps its own.

    A network may write to buffers in evaluation mode: running means, counters, observers of
    quantisation. With copies every pass begins with the values of the checkpoint.

    Attributes:
        names: qualified names of the buffers, also of those that a pass registers.
        zeroed: those of them that are 0 during a pass.
        written: those that a pass has written to.
    """

    def __init__(self, names: Sequence[str], zeroed: Sequence[str] = ()) -> None:
        self.names, self.zeroed = tuple(names), frozenset(zeroed)
        self.written: set[str] = set()
        self._passes: list[list[tuple[str, Any, Any, bool]]] = []

    def attach(self, model: nn.Module) -> tuple[RemovableHandle, RemovableHandle]:
        """Use copies in all later passes of a network and of its copies."""
        return (
            model.register_forward_pre_hook(self.replace),
            model.register_forward_hook(self.restore, always_call=True),  # also after an error
        )

    def replace(self, model: nn.Module, _args: object) -> None:
        """Put the copies in place."""
        replaced = []
        for name in self.names:
            module, leaf = owner(model, name)
            original = copied = module._buffers.get(leaf)
            existed = leaf in module._buffers
            if original is not None:
                copied = torch.zeros_like(original) if name in self.zeroed else original.clone()
                module._buffers[leaf] = copied
            replaced.append((name, original, copied, existed))
        self._passes.append(replaced)

    def restore(self, model: nn.Module, _args: object, _output: object) -> None:
        """Put the network's own buffers back."""
        # In reverse: a module that is registered under two names was replaced twice.
        for name, original, copied, existed in reversed(self._passes.pop()):
            module, leaf = owner(model, name)
            if module._buffers.get(leaf) is not copied or not _unchanged(original, copied):
                self.written.add(name)
            if existed:
                module._buffers[leaf] = original
            else:
                module._buffers.pop(leaf, None)


def buffer_names(model: nn.Module) -> list[str]:
    """Return the names of all buffers, each under all names of its modules; None counts as one."""
    return [
        qualified_name(path, leaf)
        for path, module in model.named_modules(remove_duplicate=False)
        if not isinstance(module, torch.jit.ScriptModule)  # its buffers cannot be exchanged
        for leaf in module._buffers
    ]


def _unchanged(original: Tensor | None, copied: Tensor | None) -> bool:
    if original is None or copied is None or original.layout != torch.strided:
        return original is None or copied is None or original.shape == copied.shape
    # a write of equal values counts too: the next one may have others
    written = not copied.is_inference() and copied._version > 0
    return not written and original.shape == copied.shape and torch.equal(original, copied)


def flatten_pictures(_model: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Turn pictures `[N, C, H, W]` into vectors, as a pre-hook of a network that takes vectors."""
    return (args[0].flatten(1), *args[1:])


def without_added_hooks(model: nn.Module) -> nn.Module:
    """Remove the hooks of a private copy from it, in place; a chosen output stays chosen."""
    for hooks in (model._forward_pre_hooks, model._forward_hooks):
        for key, hook in list(hooks.items()):
            added = isinstance(hook, ArgumentRows) or hook is flatten_pictures
            if added or isinstance(getattr(hook, "__self__", 0), BufferCopies):
                del hooks[key]
                model._forward_pre_hooks_with_kwargs.pop(key, None)
                model._forward_hooks_always_called.pop(key, None)
    return model


def owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Return the module of a qualified name, and the last part of the name."""
    path, _, leaf = name.rpartition(".")
    return model.get_submodule(path), leaf
