"""Statistics and features of the dense network, and forward passes that are compared to them.

One-pass repair: while a pruned network runs, hooks measure each site's statistics and correct them
to the dense network's before later layers see the values. Feature matching (Romero et al. 2015,
section 2.2) compares norm outputs entry by entry: statistics can agree where features do not, and
the loss on the outputs alone tells early layers little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gaprune.criteria.batching import real_tokens
from gaprune.models.forward import functional_call
from gaprune.repair.channel_statistics import (
    ChannelStatistics,
    channel_statistics,
    pool_statistics,
)
from gaprune.repair.repair_sites import RepairSites

MEMORY = 1 << 27  # bytes that the largest activation of a chunk may take; about four are alive
MIN_CHUNK = 16  # inputs: fewer give a poor estimate of the variance

StatisticsByName = Mapping[str, ChannelStatistics]
Visit = Callable[[str, nn.Module, Tensor], Tensor | None]
"""(module name, module, the tensor that its rule corrects) → replacement; None keeps it."""
VisitCounted = Callable[[str, nn.Module, Tensor, Tensor], Tensor | None]
"""The same with a further argument: the values of that tensor that count, without padding."""


class DenseFeature(NamedTuple):
    """The output of one norm in the dense network, and the scale of differences from it.

    Attributes:
        scale: 1 ÷ the mean channel variance, a scalar of at least float32; 0 where the values are
            constant, since a difference from them has no unit.
    """

    values: Tensor  # `[N, …]`
    scale: Tensor


@dataclass(frozen=True, eq=False)
class DenseStatistics:
    """What the dense network computes from given inputs, measured once.

    Attributes:
        inputs: `[N, …]`; chunk i of n holds every n-th input from the i-th on.
        chunks: for every chunk: module name → dense statistics.
        features: module name → dense feature; filled only where features are matched, and all
            inputs form one chunk.
    """

    sites: RepairSites  # where statistics are measured
    inputs: Tensor = field(repr=False)
    outputs: Tensor = field(repr=False)  # of the dense network, `[N, …]`
    chunks: tuple[StatisticsByName, ...] = field(repr=False)
    features: Mapping[str, DenseFeature] = field(default_factory=dict, repr=False)

    @cached_property
    def pooled(self) -> dict[str, ChannelStatistics]:
        """Module name → dense statistics over all inputs."""
        return pool_chunks(self.chunks)

    def by_chunk(self) -> Iterator[tuple[Tensor, StatisticsByName]]:
        """Yield the inputs of every chunk with the dense statistics on them."""
        yield from zip(_strided(self.inputs, len(self.chunks)), self.chunks, strict=True)


@torch.no_grad()
def measure_dense(
    model: nn.Module,
    sites: RepairSites,
    inputs: Tensor,
    chunk: int | None = None,
    *,
    features: bool = False,
) -> DenseStatistics:
    """Run the dense network on inputs `[N, …]` and record its statistics at every site.

    `chunk` is the largest number of inputs per forward pass; None takes as many as `MEMORY` allows,
    at least `MIN_CHUNK`. `features` also records the outputs at `sites.features`; it needs a single
    chunk.
    """
    # Statistics are exact over one chunk, so chunks are as large as memory allows.
    size = max(MIN_CHUNK, MEMORY // max(1, sites.width)) if chunk is None else chunk
    outputs, chunks, recorded = [], [], dict[str, DenseFeature]()
    for part in _strided(inputs, -(-len(inputs) // size)):
        measured: dict[str, ChannelStatistics] = {}
        record = partial(_record_feature, sites, recorded)
        with (
            _site_hooks(model, sites, partial(_record_statistics, sites, measured)),
            _output_hooks(model, sites.features if features else (), record),
        ):
            outputs.append(model(part))
        chunks.append(measured)
    return DenseStatistics(sites, inputs, _restored(outputs), tuple(chunks), recorded)


def repaired_outputs(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    dense: DenseStatistics,
    errors: dict[str, Tensor] | None = None,
) -> Tensor:
    """Return the outputs `[N, …]` of a pruned network that is repaired on the same inputs.

    Every site is corrected by the statistics of the chunk that passes it, so repair and outputs
    cost one forward pass together. Differentiable: gradients reach `weights` also through the
    statistics.

    `weights` are masked parameters that replace those of the dense `model`, by qualified name.
    `errors` is filled with module name → feature error behind the corrections.
    """
    outputs, errors = [], {} if errors is None else errors
    for inputs, statistics in dense.by_chunk():
        with (
            correct_sites(model, dense.sites, statistics),
            feature_errors(model, dense.features) as chunk_errors,
        ):
            outputs.append(functional_call(model, dict(weights), (inputs,)))
        errors |= chunk_errors
    return _restored(outputs)


@contextmanager
def correct_sites(
    model: nn.Module,
    sites: RepairSites,
    dense: StatisticsByName,
    strength: float = 1.0,
) -> Iterator[dict[str, ChannelStatistics]]:
    """While open, every forward pass of `model` is repaired by the statistics of its own batch.

    `strength` is the fraction of every correction that is applied; 0 only measures. Yields module
    name → statistics measured before each correction, filled during the forward pass.
    """
    measured: dict[str, ChannelStatistics] = {}

    def correct(name: str, module: nn.Module, values: Tensor, counted: Tensor) -> Tensor | None:
        if name not in dense:  # the forward pass branches differently on these inputs
            return None
        _record_statistics(sites, measured, name, module, values, counted)
        if strength == 0:
            return None
        # The site is corrected before later sites are measured, as in the repaired network.
        factor, shift = sites.rules[name].correct(module, dense[name], measured[name])
        corrected = (values * factor + shift).to(values.dtype)
        return corrected if strength == 1 else torch.lerp(values, corrected, strength)

    with _site_hooks(model, sites, correct):
        yield measured


@contextmanager
def feature_errors(
    model: nn.Module, dense: Mapping[str, DenseFeature]
) -> Iterator[dict[str, Tensor]]:
    """While open, measure the distance of a candidate's next forward pass from dense features.

    ‖pruned − dense‖² ÷ (entries · mean channel variance of the dense feature): about 2 where both
    have the same spread and are unrelated. Half precision is compared in float32. Yields module
    name → a differentiable scalar, filled during the forward pass.
    """
    errors: dict[str, Tensor] = {}

    def compare(name: str, _module: nn.Module, values: Tensor) -> None:
        feature = dense[name]
        difference = values.to(feature.scale.dtype) - feature.values.to(feature.scale.dtype)
        errors[name] = difference.square().mean() * feature.scale

    with _output_hooks(model, dense, compare):
        yield errors


def pool_chunks(chunks: Sequence[StatisticsByName]) -> dict[str, ChannelStatistics]:
    """Pool the statistics of several chunks, module by module."""
    return {
        name: pool_statistics([chunk[name] for chunk in chunks if name in chunk])
        for name in chunks[0]
    }


def _record_statistics(
    sites: RepairSites,
    measured: dict[str, ChannelStatistics],
    name: str,
    module: nn.Module,
    _values: Tensor,
    counted: Tensor,
) -> None:
    measured[name] = channel_statistics(counted, sites.rules[name].channels(module, counted.ndim))


def _record_feature(
    sites: RepairSites,
    recorded: dict[str, DenseFeature],
    name: str,
    module: nn.Module,
    values: Tensor,
) -> None:
    values = values.detach()
    spread = channel_statistics(values, sites.rules[name].channels(module, values.ndim)).var.mean()
    # `tiny` is the smallest normal number: 1 ÷ spread stays finite.
    varies = spread > torch.finfo(spread.dtype).tiny
    scale = torch.where(varies, 1 / spread, torch.zeros_like(spread))
    # A copy: an in-place ReLU or sum that follows may overwrite the output.
    recorded[name] = DenseFeature(values.clone(), scale)


@contextmanager
def _output_hooks(
    model: nn.Module, names: Iterable[str], visit: Callable[[str, nn.Module, Tensor], None]
) -> Iterator[None]:
    """Pass the output of every named module to `visit`, in order of execution."""

    def after(name: str, module: nn.Module, _args: object, output: object) -> None:
        if isinstance(output, Tensor):
            visit(name, module, output)

    with ExitStack() as hooks:
        for name in names:
            hook = partial(after, name)
            hooks.enter_context(model.get_submodule(name).register_forward_hook(hook))
        yield


@contextmanager
def _site_hooks(model: nn.Module, sites: RepairSites, visit: VisitCounted) -> Iterator[None]:
    """Pass the corrected tensor of every site to `visit`, in order of execution."""
    is_real: Tensor | None = None

    def begin(_model: nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal is_real
        is_real = real_tokens(sites.padding, args[0])

    def visit_site(name: str, module: nn.Module, values: Tensor) -> Tensor | None:
        counted = values
        fits = is_real is not None and values.shape[:-1] == is_real.shape
        if fits and min(sites.rules[name].channels(module, values.ndim)) > 1:
            counted = values[is_real].unsqueeze(0)
        return visit(name, module, values, counted)

    with ExitStack() as hooks:
        if sites.padding is not None:
            # first, as other hooks may replace ids by other arguments
            hooks.enter_context(model.register_forward_pre_hook(begin, prepend=True))
        for name, rule in sites.rules.items():
            module = model.get_submodule(name)
            if rule.at_input:
                before = partial(_on_input, visit_site, name)
                hooks.enter_context(module.register_forward_pre_hook(before, with_kwargs=True))
            else:
                after = partial(_on_output, visit_site, name)
                hooks.enter_context(module.register_forward_hook(after))
        yield


def _on_input(
    visit: Visit, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    # The input may be passed by keyword; forward receives everything by position.
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
    # Attention returns (outputs, attention weights); only the outputs are corrected.
    values, *rest = output if isinstance(output, tuple) else (output,)
    changed = visit(name, module, values)
    changed = values if changed is None else changed
    return (changed, *rest) if isinstance(output, tuple) else changed


def _strided(inputs: Tensor, count: int) -> list[Tensor]:
    # Every count-th input: chunks of a sorted data set then have similar statistics.
    return [inputs[start::count] for start in range(count)]


def _restored(outputs: Sequence[Tensor]) -> Tensor:
    """Put the outputs of strided chunks back in order."""
    joined = torch.cat(list(outputs))
    order = torch.cat(_strided(torch.arange(len(joined)), len(outputs)))
    return joined[order.argsort().to(joined.device)]
