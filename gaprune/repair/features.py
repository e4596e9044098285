"""How far what norms put out is from the dense network's, entry by entry, on the same inputs.

Moments can agree where features do not, and outputs alone say little about the layers far before
them: a step that also matches features (Romero et al. 2015, section 2.2) hears about each layer
from near by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gaprune.repair.moments import measure
from gaprune.repair.sites import Sites

Visit = Callable[[str, nn.Module, Tensor], None]
"""(name, module, what it puts out): looks at it before anything else can change it in place."""


class Feature(NamedTuple):
    """What the dense network puts out at one norm, and the unit of differences from it.

    Attributes:
        values: `[N, …]`.
        scale: 1 ÷ the mean over channels of their variance, a scalar of at least float32; 0 where
            they are constants, which have no unit to measure in.
    """

    values: Tensor
    scale: Tensor


@contextmanager
def noted(model: nn.Module, sites: Sites) -> Iterator[dict[str, Feature]]:
    """While open, keep what the dense network's next forward puts out at `sites.features`.

    Yields:
        Module name → feature, filled on the way.
    """
    found: dict[str, Feature] = {}

    def keep(name: str, module: nn.Module, values: Tensor) -> None:
        values = values.detach()
        spread = measure(values, sites.kinds[name].channels(module, values.ndim)).var.mean()
        moves = spread > torch.finfo(spread.dtype).tiny
        scale = torch.where(moves, 1 / spread, torch.zeros_like(spread))
        found[name] = Feature(values.clone(), scale)  # a ReLU or a sum may write into it

    with _shown(model, sites.features, keep):
        yield found


@contextmanager
def compared(model: nn.Module, dense: Mapping[str, Feature]) -> Iterator[dict[str, Tensor]]:
    """While open, measure how far a candidate's next forward is from the dense features.

    ‖pruned − dense‖² ÷ (entries · mean over channels of the dense variance): about 2 where both
    are as spread and have nothing to do with each other. Half precision is compared in float32.

    Args:
        model: the network; its hooks are gone afterwards, all else is never touched.
        dense: from `noted` on the same inputs.

    Yields:
        Module name → a differentiable scalar, filled on the way.
    """
    found: dict[str, Tensor] = {}

    def compare(name: str, _module: nn.Module, values: Tensor) -> None:
        feature = dense[name]
        apart = values.to(feature.scale.dtype) - feature.values.to(feature.scale.dtype)
        found[name] = apart.square().mean() * feature.scale

    with _shown(model, dense, compare):
        yield found


@contextmanager
def _shown(model: nn.Module, names: Iterable[str], visit: Visit) -> Iterator[None]:
    """Show what the named modules put out to `visit`, in order of execution."""

    def after(name: str, module: nn.Module, _args: object, output: object) -> None:
        if isinstance(output, Tensor):
            visit(name, module, output)

    handles = []
    try:
        for name in names:
            module = model.get_submodule(name)
            handles.append(module.register_forward_hook(partial(after, name)))
        yield
    finally:
        for handle in handles:
            handle.remove()
