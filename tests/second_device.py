# ruff: noqa: ANN401 - torch hands over functions and arguments of any type
"""A second device on a machine that has one: tensors that computations may not mix with others.

Inside `second_device()` tensors that are put on `FAR` are computed on by the CPU, but say that they
are elsewhere. As with a GPU, operations refuse tensors of both devices (but for numbers and
indices), `numpy` refuses them, and a CPU generator draws nothing there. Torch's name for tensors
without values, `meta`, is used: autograd runs for that device in this thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

HERE, FAR = torch.device("cpu"), torch.device("meta")
_ATEN: Any = torch.ops.aten
_MAKERS = {torch.tensor, torch.as_tensor}
_MOVES = {_ATEN._to_copy.default, _ATEN.copy_.default}
_INDEXED = {
    _ATEN.index.Tensor,
    _ATEN.index_put_.default,
    _ATEN.index_put.default,
    _ATEN._index_put_impl_.default,
}


class Far(Tensor):
    """A tensor of the second device; `held` are its values."""

    held: Tensor

    def __new__(cls, held: Tensor) -> Self:
        """Make it look like `held`, elsewhere."""
        one: Self = Tensor._make_wrapper_subclass(
            cls, held.size(), held.stride(), held.storage_offset(), dtype=held.dtype, device=FAR
        )
        one.held = held
        return one

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def data_ptr(self) -> int:
        """Return where the values are: two tensors of one memory show it there as well."""
        return self.held.data_ptr()

    def tolist(self) -> Any:
        """Return the values, as every device gives them."""
        return self.held.tolist()

    @property
    def is_meta(self) -> bool:  # type: ignore[override]
        """Say that there are values."""
        return False

    @classmethod
    def __torch_dispatch__(  # type: ignore[override] # as torch calls it
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Compute with the values."""
        return _compute(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return _compute(func, args, kwargs or {})


class _Made(TorchFunctionMode):
    """Python's numbers become tensors without any operation that `_Mode` sees, so here before."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        stated = kwargs or {}
        if func in _MAKERS and stated.get("device") is not None:
            return func(*args, **{**stated, "device": HERE}).to(stated["device"])
        if func is torch.unravel_index and isinstance(args[0], Far):  # makes such numbers inside
            return tuple(map(Far, func(args[0].held, *args[1:], **stated)))
        return func(*args, **stated)


@contextmanager
def second_device() -> Iterator[torch.device]:
    """Give the machine a second device while the block is open."""
    with _Made(), _Mode():  # type: ignore[no-untyped-call]
        yield FAR


def _compute(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
    far = any(isinstance(one, Far) for one in tensors)
    near = [one for one in tensors if not isinstance(one, Far) and one.ndim]
    if far and func not in _MOVES and near and not (func in _INDEXED and isinstance(args[0], Far)):
        raise RuntimeError(f"Expected all tensors to be on the same device ({func})")
    if func is _ATEN.copy_.default:
        far = isinstance(args[0], Far)
    if kwargs.get("device") is not None:
        far = torch.device(kwargs["device"]) == FAR
        kwargs = {**kwargs, "device": HERE}
    if far and kwargs.get("generator") is not None:
        raise RuntimeError(f"Expected a {FAR} generator, got one of the CPU ({func})")
    own = {id(one.held): one for one in tensors if isinstance(one, Far)}
    plain_args, plain = tree_map(
        lambda one: one.held if isinstance(one, Far) else one, (args, dict(kwargs))
    )
    found = func(*plain_args, **plain)
    if not far:
        return found
    return tree_map(  # what was changed in place is the same tensor afterwards
        lambda one: own.get(id(one), Far(one)) if isinstance(one, Tensor) else one, found
    )
