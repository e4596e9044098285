"""The dense network's statistics on given inputs, and forwards that are matched to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gaprune.errors import InputError
from gaprune.repair.features import Feature, compared
from gaprune.repair.moments import Moments, measure, pool
from gaprune.repair.sites import Sites

MEMORY = 1 << 27  # bytes that the largest activation of a chunk may take; some four live at once
MIN_CHUNK = 16  # inputs: fewer say little about a spread

Visit = Callable[[str, nn.Module, Tensor], Tensor | None]
"""(name, module, the tensor that its kind matches) → what to go on with, or None for the same."""


@dataclass(frozen=True, eq=False)
class Anchors:
    """Inputs with what the dense network makes of them, computed once.

    Attributes:
        sites: where it was measured.
        inputs: `[N, …]`; chunk i of n is every n-th from the i-th on.
        outputs: of the dense network, `[N, …]`.
        chunks: per chunk: module name → dense moments there.
        features: module name → what the dense network puts out there, where that is compared and
            all inputs passed at once.
    """

    sites: Sites
    inputs: Tensor = field(repr=False)
    outputs: Tensor = field(repr=False)
    chunks: tuple[Mapping[str, Moments], ...] = field(repr=False)
    features: Mapping[str, Feature] = field(default_factory=dict, repr=False)

    @cached_property
    def moments(self) -> dict[str, Moments]:
        """Module name → dense moments over all inputs."""
        return join(self.chunks)


@torch.no_grad()
def anchor(model: nn.Module, sites: Sites, inputs: Tensor, chunk: int | None = None) -> Anchors:
    """Show inputs to the dense network and note the statistics at every site.

    Args:
        model: the dense network; it stays as it is.
        sites: what `survey` found in it.
        inputs: `[N, …]` as the network takes them, on its device.
        chunk: inputs per forward, at most; None takes as many as `MEMORY` allows, at least
            `MIN_CHUNK`. Moments are exact over one chunk.

    Raises:
        InputError: no inputs, or a chunk below 1.
    """
    if len(inputs) == 0 or (chunk is not None and chunk < 1):
        raise InputError(
            f"calibration inputs: repair shows them in chunks of at least 1, got {len(inputs)} calibration inputs"
            + ("" if chunk is None else f" and a chunk of {chunk}")
        )
    fits = max(MIN_CHUNK, MEMORY // max(1, sites.width)) if chunk is None else chunk
    count = -(-len(inputs) // fits)
    outputs, chunks = [], []
    for part in _strided(inputs, count):
        found: dict[str, Moments] = {}
        with _visited(model, sites, partial(_note, sites, found)):
            outputs.append(model(part))
        chunks.append(found)
    return Anchors(sites, inputs, _restored(outputs), tuple(chunks))


def repaired_outputs(
    model: nn.Module,
    kept: Mapping[str, Tensor],
    anchors: Anchors,
    apart: dict[str, Tensor] | None = None,
) -> Tensor:
    """Return what a pruned network answers after repair on the same inputs, `[N, …]`.

    Every site is corrected by the statistics of the chunk that passes it, so that this costs one
    forward. Differentiable: gradients reach `kept` also through those statistics.

    Args:
        model: the dense network; it stays as it is.
        kept: parameters that replace its own, by qualified name (`masked_weights`).
        anchors: from `anchor` on the same network.
        apart: takes how far the features behind the corrections are from those of `anchors`.
    """
    outputs, own = [], {} if apart is None else apart
    for part, moments in chunks_of(anchors):
        with (
            aligned(model, anchors.sites, moments),
            compared(model, anchors.features) as found,
        ):
            outputs.append(functional_call(model, dict(kept), (part,)))
        own |= found
    return _restored(outputs)


@contextmanager
def aligned(
    model: nn.Module,
    sites: Sites,
    moments: Mapping[str, Moments],
    found: dict[str, Moments] | None = None,
    share: float = 1.0,
) -> Iterator[None]:
    """While open, every forward of `model` is repaired by the statistics of its own batch.

    Args:
        model: the network; its hooks are gone afterwards, all else is never touched.
        sites: where to repair.
        moments: module name → dense moments, on the same inputs or on others of their kind.
        found: takes what was measured before each correction, by module name.
        share: of every correction that is made; 0 measures alone.
    """
    own = {} if found is None else found

    def correct(name: str, module: nn.Module, values: Tensor) -> Tensor | None:
        if name not in moments:  # forward takes another way on these inputs
            return None
        _note(sites, own, name, module, values)
        if share == 0:
            return None
        factor, shift = sites.kinds[name].correct(module, moments[name], own[name])
        matched = (values * factor + shift).to(values.dtype)
        return matched if share == 1 else torch.lerp(values, matched, share)

    with _visited(model, sites, correct):
        yield


def chunks_of(anchors: Anchors) -> Iterator[tuple[Tensor, Mapping[str, Moments]]]:
    """Yield the inputs of each chunk with the dense moments on them."""
    parts = _strided(anchors.inputs, len(anchors.chunks))
    yield from zip(parts, anchors.chunks, strict=True)


def join(chunks: Sequence[Mapping[str, Moments]]) -> dict[str, Moments]:
    """Pool the moments of several chunks, module by module."""
    return {name: pool([chunk[name] for chunk in chunks if name in chunk]) for name in chunks[0]}


def _note(
    sites: Sites, found: dict[str, Moments], name: str, module: nn.Module, values: Tensor
) -> None:
    found[name] = measure(values, sites.kinds[name].channels(module, values.ndim))


@contextmanager
def _visited(model: nn.Module, sites: Sites, visit: Visit) -> Iterator[None]:
    """Show the matched tensor of every site to `visit`, in order of execution."""
    handles = []
    try:
        for name, kind in sites.kinds.items():
            module = model.get_submodule(name)
            if kind.at_input:
                hook = partial(_on_input, visit, name)
                handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
            else:
                handles.append(module.register_forward_hook(partial(_on_output, visit, name)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _on_input(
    visit: Visit, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    values, *rest = [*args, *kwargs.values()]
    changed = visit(name, module, values)
    return (values if changed is None else changed, *rest), {}


def _on_output(
    visit: Visit,
    name: str,
    module: nn.Module,
    _args: tuple[Any, ...],
    output: Any,  # noqa: ANN401
) -> Any:  # noqa: ANN401 - attention returns its weights beside the tensor
    values, *rest = output if isinstance(output, tuple) else (output,)
    changed = visit(name, module, values)
    changed = values if changed is None else changed
    return (changed, *rest) if isinstance(output, tuple) else changed


def _strided(inputs: Tensor, count: int) -> list[Tensor]:
    """Split to views of every `count`-th input: a sorted set gives chunks that are alike."""
    return [inputs[start::count] for start in range(count)]


def _restored(outputs: Sequence[Tensor]) -> Tensor:
    """Put the outputs of strided chunks back in order."""
    joined = torch.cat(list(outputs))
    order = torch.cat(_strided(torch.arange(len(joined)), len(outputs)))
    return joined[order.argsort().to(joined.device)]
