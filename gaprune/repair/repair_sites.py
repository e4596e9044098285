"""Where a network can be repaired without changing a prunable weight, and by which rule.

A rule describes how one type of module is corrected. The sites of a network are found by running it
once.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from gaprune.repair.channel_statistics import ChannelStatistics, std_ratio

STATISTICS = "statistics"  # BatchNorm running statistics: inputs get the dense mean and variance
BIAS = "bias"  # of linear, convolution and attention layers: the dense ratio of mean to spread
NORM = "norm"  # weight and bias of layer and group norms: outputs get the dense statistics
EXAMPLES = 2  # a norm without running statistics rejects a single vector

Axes = Callable[[Any, int], tuple[int, ...]]
"""(module, rank of the corrected tensor) → its channel axes."""
Correction = tuple[Tensor, Tensor]
"""Factor and shift per channel: x → factor · x + shift, broadcast against the corrected tensor."""


@dataclass(frozen=True)
class RepairRule:
    """How one type of module is repaired.

    Attributes:
        correct: (module, dense statistics, pruned statistics) → correction.
        fold: (module, factor, shift), both float64 → values of the leaves with which the module
            applies that correction itself.
    """

    part: str  # `STATISTICS`, `BIAS` or `NORM`
    leaves: tuple[str, ...]  # the module's parameters and buffers that repair changes
    missing: str  # the reason to report for a module that lacks them
    at_input: bool  # whether the module's first input is corrected, or its output
    channels: Axes
    correct: Callable[[Any, ChannelStatistics, ChannelStatistics], Correction]
    fold: Callable[[Any, Tensor, Tensor], dict[str, Tensor]]


def repair_rule(module: nn.Module) -> RepairRule | None:
    """Return how a module is repaired, or None where no rule applies."""
    return next((rule for types, rule in _RULES.items() if isinstance(module, types)), None)


def _match_output(
    _module: nn.Module,
    dense: ChannelStatistics,
    pruned: ChannelStatistics,
    limit: Tensor | None = None,
) -> Correction:
    factor = std_ratio(dense, pruned, limit)
    return factor, dense.mean - factor * pruned.mean


def _match_input(
    norm: _NormBase, dense: ChannelStatistics, pruned: ChannelStatistics
) -> Correction:
    assert norm.running_var is not None
    # A larger factor would need a running variance below 0.
    limit = ((norm.running_var + norm.eps) / norm.eps).sqrt()
    return _match_output(norm, dense, pruned, limit)


def _fold_statistics(norm: _NormBase, factor: Tensor, shift: Tensor) -> dict[str, Tensor]:
    """With r = σp/σd: variance ← r²·(variance + ε) − ε, mean ← μp − (μd − mean)·r.

    The denominator √(variance + ε) is then exactly r times its old value.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    # BatchNorm computes (x − mean) ÷ √(var + ε): the correction of its input is folded into both.
    ratio, mean, var = 1 / factor.view(-1), norm.running_mean.double(), norm.running_var.double()
    return {
        "running_mean": (mean - shift.view(-1)) * ratio,
        "running_var": (ratio**2 * var + (ratio**2 - 1) * norm.eps).clamp_min(0),
    }


def _match_mean_ratio(
    _layer: nn.Module, dense: ChannelStatistics, pruned: ChannelStatistics
) -> Correction:
    """Shift the mean to μd · σp/σd, which keeps the position of 0 relative to the distribution.

    A bias cannot restore the spread. With the dense mean itself (bias correction, Nagel et al.
    2019, section 4.2) a distribution that pruning has narrowed moves to one side of a ReLU's
    threshold, which costs more than it gains.
    """
    return torch.ones_like(pruned.mean), dense.mean / std_ratio(dense, pruned) - pruned.mean


def _fold_bias(leaf: str, layer: nn.Module, _factor: Tensor, shift: Tensor) -> dict[str, Tensor]:
    bias = layer.get_parameter(leaf)
    return {leaf: bias + shift.view_as(bias)}


def _fold_affine(norm: nn.Module, factor: Tensor, shift: Tensor) -> dict[str, Tensor]:
    weight, bias = norm.get_parameter("weight"), norm.get_parameter("bias")
    # factor · (weight · x + bias) + shift, as one affine map.
    factor, shift = factor.view_as(bias), shift.view_as(bias)
    return {"weight": factor * weight, "bias": factor * bias + shift}


# Named functions: a rule must be picklable.
def _axis_1(_module: nn.Module, _rank: int) -> tuple[int, ...]:
    return (1,)


def _last_axis(_module: nn.Module, rank: int) -> tuple[int, ...]:
    return (rank - 1,)


def _axis_before_space(module: _ConvNd, rank: int) -> tuple[int, ...]:
    return (rank - len(module.kernel_size) - 1,)


def _normalized_axes(module: nn.LayerNorm, rank: int) -> tuple[int, ...]:
    return tuple(range(rank - len(module.normalized_shape), rank))


_NO_STATISTICS = "keeps no running statistics; it normalises by the statistics of its input"
_NO_AFFINE = "has no weight and bias into which a scale and a shift could be written"
_NO_BIAS = "has no bias into which a shift could be written, and no norm follows it"


def _bias_rule(channels: Axes, leaf: str = "bias") -> RepairRule:
    fold = partial(_fold_bias, leaf)
    return RepairRule(BIAS, (leaf,), _NO_BIAS, False, channels, _match_mean_ratio, fold)


def _norm_rule(channels: Axes) -> RepairRule:
    leaves = ("weight", "bias")
    return RepairRule(NORM, leaves, _NO_AFFINE, False, channels, _match_output, _fold_affine)


_RULES: dict[type[nn.Module], RepairRule | None] = {
    _NormBase: RepairRule(
        STATISTICS,
        ("running_mean", "running_var"),
        _NO_STATISTICS,
        at_input=True,
        channels=_axis_1,
        correct=_match_input,
        fold=_fold_statistics,
    ),
    # The output projection of an attention layer is never called itself: the attention's own
    # forward reads its weights, so the rule belongs to the attention module.
    NonDynamicallyQuantizableLinear: None,
    nn.MultiheadAttention: _bias_rule(_last_axis, "out_proj.bias"),
    nn.Linear: _bias_rule(_last_axis),
    _ConvNd: _bias_rule(_axis_before_space),
    nn.LayerNorm: _norm_rule(_normalized_axes),
    nn.GroupNorm: _norm_rule(_axis_1),
}


@dataclass(frozen=True)
class RepairSites:
    """The modules of a network that repair changes.

    Attributes:
        rules: qualified module name → how it is repaired, in order of execution.
        features: the norms among `rules` whose outputs are compared in feature matching.
    """

    rules: Mapping[str, RepairRule]
    skipped: tuple[str, ...]  # "name: reason", for modules that cannot be repaired
    width: int  # bytes of the largest activation, per input
    features: tuple[str, ...] = ()
    padding: int | None = None  # id of the tokens that fill up texts: their statistics do not count


@torch.no_grad()
def find_repair_sites(
    model: nn.Module,
    inputs: Tensor,
    frozen: Collection[str] = (),
    padding: int | None = None,
) -> RepairSites:
    """Run the network on the first two of its inputs `[N, …]` and list what can be repaired.

    `frozen` are the qualified names of parameters that keep their bits: the prunable ones.
    `padding` is the id of the tokens that fill up texts.
    """
    # Running statistics alone suffice where there are any; else biases and norms are corrected.
    batch_norms = (module for module in model.modules() if isinstance(module, _NormBase))
    has_statistics = any(norm.running_mean is not None for norm in batch_norms)
    parts = (STATISTICS,) if has_statistics else (BIAS, NORM)
    trace = _trace(model, inputs[:EXAMPLES])
    frozen_ids = {id(model.get_parameter(name)) for name in frozen}
    # A parameter that several modules share cannot fit the correction of each.
    uses = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    rules, reasons = dict[str, RepairRule](), dict[str, str]()
    # Modules by their first call; those that are never called come last.
    position = {name: index for index, name in enumerate(trace.calls)}
    modules = sorted(model.named_modules(), key=lambda pair: position.get(pair[0], len(position)))
    for name, module in modules:
        rule = repair_rule(module)
        if rule is None or rule.part not in parts:
            continue
        if reason := _obstacle(module, rule, trace.calls[name], frozen_ids, uses):
            reasons[name] = reason
        else:
            rules[name] = rule
    for name in list(_corrected_by_norms(model, trace, rules)):
        rules.pop(name, None)
        reasons.pop(name, None)
    skipped = tuple(f"{name}: {reason}" for name, reason in reasons.items())
    width = max(trace.sizes.values(), default=0)
    return RepairSites(rules, skipped, width, _features(rules, trace), padding)


def norms_behind(model: nn.Module, inputs: Tensor) -> dict[str, str]:
    """Return layer → the norm that takes its output, for one forward pass of inputs `[N, …]`."""
    with torch.no_grad():
        return _trace(model, inputs[:EXAMPLES]).norm_after


@dataclass
class _Trace:
    """One forward pass, by module name."""

    calls: Counter[str] = field(default_factory=Counter)  # number, in order of the first call
    norm_after: dict[str, str] = field(default_factory=dict)  # the norm that takes the output
    sizes: dict[str, int] = field(default_factory=dict)  # bytes of the output, per input


def _trace(model: nn.Module, inputs: Tensor) -> _Trace:
    trace = _Trace()
    # Weak references: an output that is freed must not be confused with a later tensor.
    outputs: dict[str, weakref.ref[Tensor]] = {}

    def before(norm: str, _module: nn.Module, args: tuple[Any, ...]) -> None:
        trace.norm_after |= {
            name: norm for name, output in outputs.items() if args and output() is args[0]
        }

    def after(name: str, _module: nn.Module, _args: object, output: object) -> None:
        trace.calls[name] += 1
        if isinstance(output, Tensor):
            outputs[name] = weakref.ref(output)
            # Used for the chunk size and to find the norms at the ends of blocks.
            size = output.numel() * output.element_size() // len(inputs)
            trace.sizes[name] = max(trace.sizes.get(name, 0), size)

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            hooks.enter_context(module.register_forward_hook(partial(after, name)))
            if isinstance(module, (_NormBase, nn.LayerNorm, nn.GroupNorm)):
                hooks.enter_context(module.register_forward_pre_hook(partial(before, name)))
        model(inputs)
    return trace


def _corrected_by_norms(
    model: nn.Module, trace: _Trace, rules: Mapping[str, RepairRule]
) -> Iterator[str]:
    """Yield the layers whose bias needs no repair, because a norm behind them corrects the shift.

    A BatchNorm that normalises by its input removes any shift; a layer or group norm corrects
    layers that have no bias.
    """
    for name, norm_name in trace.norm_after.items():
        layer, norm = model.get_submodule(name), model.get_submodule(norm_name)
        rule = repair_rule(layer)
        if rule is None or rule.part != BIAS:
            continue
        if isinstance(norm, _NormBase) or (norm_name in rules and None in _leaves(layer, rule)):
            yield name


def _features(rules: Mapping[str, RepairRule], trace: _Trace) -> tuple[str, ...]:
    """Return the norms whose outputs are no larger than the mean: those at the end of blocks.

    Norms inside bottlenecks are several times as large, and matching them as well gains nothing.
    """
    for part in (STATISTICS, NORM):
        norms = [name for name, rule in rules.items() if rule.part == part]
        sizes = {name: trace.sizes[name] for name in norms if name in trace.sizes}
        if sizes:
            total = sum(sizes.values())
            return tuple(name for name, size in sizes.items() if size * len(sizes) <= total)
    return ()


def _leaves(module: nn.Module, rule: RepairRule) -> list[Tensor | None]:
    return [attrgetter(leaf)(module) for leaf in rule.leaves]


def _obstacle(
    module: nn.Module,
    rule: RepairRule,
    calls: int,
    frozen_ids: Collection[int],
    uses: Mapping[int, int],
) -> str | None:
    """Return why a module cannot be repaired, or None."""
    leaves, names = _leaves(module, rule), " or ".join(rule.leaves)
    if any(leaf is None for leaf in leaves):
        return rule.missing
    if any(id(leaf) in frozen_ids for leaf in leaves):
        return f"its {names} is pruned, and pruned parameters keep their bits"
    if any(uses.get(id(leaf), 1) > 1 for leaf in leaves):
        return f"shares its {names} with another module"
    if calls == 0:
        return "forward does not use it"
    if calls > 1:
        return f"forward uses it {calls} times, and one correction cannot fit every use"
    return None
