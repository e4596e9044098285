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
    """A tensor of the second device; `numbers` are its values."""

    numbers: Tensor

    def __new__(cls, numbers: Tensor) -> Self:
        """Return a tensor that looks like `numbers`, on `FAR`."""
        tensor: Self = Tensor._make_wrapper_subclass(
            cls,
            numbers.size(),
            numbers.stride(),
            numbers.storage_offset(),
            dtype=numbers.dtype,
            device=FAR,
        )
        tensor.numbers = numbers
        return tensor

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def data_ptr(self) -> int:
        """Return where the values are: two tensors of one memory show it there as well."""
        return self.numbers.data_ptr()

    def tolist(self) -> Any:
        """Return the values, as every device gives them."""
        return self.numbers.tolist()

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
            return tuple(map(Far, func(args[0].numbers, *args[1:], **stated)))
        return func(*args, **stated)


@contextmanager
def second_device() -> Iterator[torch.device]:
    """Give the machine a second device while the block is open."""
    with _Made(), _Mode():  # type: ignore[no-untyped-call]
        yield FAR


def _compute(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    far = any(isinstance(tensor, Far) for tensor in tensors)
    near = [tensor for tensor in tensors if not isinstance(tensor, Far) and tensor.ndim]
    if far and func not in _MOVES and near and not (func in _INDEXED and isinstance(args[0], Far)):
        raise RuntimeError(f"Expected all tensors to be on the same device ({func})")
    if func is _ATEN.copy_.default:
        far = isinstance(args[0], Far)
    if kwargs.get("device") is not None:
        far = torch.device(kwargs["device"]) == FAR
        kwargs = {**kwargs, "device": HERE}
    if far and kwargs.get("generator") is not None:
        raise RuntimeError(f"Expected a {FAR} generator, got one of the CPU ({func})")
    originals = {id(t.numbers): t for t in tensors if isinstance(t, Far)}
    plain_args, plain = tree_map(
        lambda leaf: leaf.numbers if isinstance(leaf, Far) else leaf, (args, dict(kwargs))
    )
    result = func(*plain_args, **plain)
    if not far:
        return result
    return tree_map(  # what was changed in place is the same tensor afterwards
        lambda leaf: originals.get(id(leaf), Far(leaf)) if isinstance(leaf, Tensor) else leaf,
        result,
    )
