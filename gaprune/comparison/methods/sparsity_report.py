"""How sparse a network is, layer by layer: from masks, or from the zeros of a live module."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gaprune.errors import InputError
from gaprune.models.prunable import PRUNABLE_LAYERS
from gaprune.records import LayerCount


@dataclass(frozen=True)
class SparsityReport:
    """How many weights every layer keeps.

    Attributes:
        layers: in the order of the masks, or of the module.
    """

    layers: tuple[LayerCount, ...]

    @property
    def total(self) -> int:
        """All weights."""
        return sum(layer.total for layer in self.layers)

    @property
    def kept(self) -> int:
        """Weights that stay."""
        return sum(layer.kept for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """The fraction of all weights that is gone; 0 where there are none."""
        return _gone(self.total, self.kept)

    def rows(self) -> list[dict[str, Any]]:
        """Return `name`, `total`, `kept` and `sparsity` of every layer as plain data."""
        return [
            {**vars(layer), "sparsity": _gone(layer.total, layer.kept)} for layer in self.layers
        ]


def report_of_masks(masks: Mapping[str, Tensor]) -> SparsityReport:
    """Count bool masks, parameter name → true where the weight stays."""
    return _report(masks.items())


@torch.no_grad()
def report_of_module(model: nn.Module, names: Sequence[str] | None = None) -> SparsityReport:
    """Count the weights of a live network that are not zero.

    Weights under a supermask (`gaprune.attach`), another parametrisation or
    `torch.nn.utils.prune` count as the network uses them. A tied weight counts once.

    Args:
        model: any network; stays as it is.
        names: qualified names of the parameters to count; all weights of `PRUNABLE_LAYERS` without.

    Raises:
        InputError: a name that is no parameter of the network.
    """
    return _report(_layer_weights(model) if names is None else _named(model, names))


def _gone(total: int, kept: int) -> float:
    return 1 - kept / total if total else 0.0


def _report(tensors: Iterable[tuple[str, Tensor]]) -> SparsityReport:
    return SparsityReport(
        tuple(LayerCount(name, t.numel(), int(t.count_nonzero())) for name, t in tensors)
    )


def _layer_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    seen = set()
    for path, module in model.named_modules():
        for kind, leaves in PRUNABLE_LAYERS.items():
            for leaf in leaves if isinstance(module, kind) else ():
                stored = _stored(module, leaf)
                if stored is not None and id(stored) not in seen:
                    seen.add(id(stored))
                    yield f"{path}.{leaf}".lstrip("."), getattr(module, leaf)


def _named(model: nn.Module, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    modules = dict(model.named_modules(remove_duplicate=False))
    for name in names:
        path, _, leaf = name.rpartition(".")
        value = getattr(modules.get(path), leaf, None)
        if not isinstance(value, Tensor):
            known = ", ".join(key for key, _ in model.named_parameters())
            raise InputError(f"names: {name!r} is no parameter of the network; it has {known}")
        yield name, value


def _stored(module: nn.Module, leaf: str) -> object:
    """Return the tensor that holds a parameter's values, also where another one is shown."""
    if parametrize.is_parametrized(module, leaf):
        return module.parametrizations[leaf].original  # type: ignore[index,union-attr]
    return getattr(module, f"{leaf}_orig", getattr(module, leaf))
