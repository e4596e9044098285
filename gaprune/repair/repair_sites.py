"""Finds where a network can be repaired, and where it cannot, by running it once."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from gaprune.repair.repair_rules import BIAS, NORM, STATISTICS, RepairRule, repair_rule

EXAMPLES = 2  # a norm without running statistics rejects a single vector


@dataclass(frozen=True)
class RepairSites:
    """The modules of a network that repair changes.

    Attributes:
        rules: qualified module name → how it is repaired, in order of execution.
        skipped: "name: reason", for modules that cannot be repaired.
        width: bytes of the largest activation, per input.
        features: the norms among `rules` whose outputs are compared in feature matching.
    """

    rules: Mapping[str, RepairRule]
    skipped: tuple[str, ...]
    width: int
    features: tuple[str, ...] = ()


@torch.no_grad()
def find_repair_sites(
    model: nn.Module,
    inputs: Tensor,
    frozen: Collection[str] = (),
) -> RepairSites:
    """Run the network on its first two inputs and list what can be repaired.

    Args:
        model: in evaluation mode; it is not changed.
        inputs: `[N, …]`, at least one.
        frozen: qualified names of parameters that keep their bits: the prunable ones.
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
    return RepairSites(
        rules, skipped, max(trace.sizes.values(), default=0), _features(rules, trace)
    )


@dataclass
class _Trace:
    """One forward pass.

    Attributes:
        calls: how often each module was called, in order of the first call.
        norm_after: module name → the norm that takes its output.
        sizes: module name → bytes of its output, per input.
    """

    calls: Counter[str] = field(default_factory=Counter)
    norm_after: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)


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

    handles = []
    try:
        for name, module in model.named_modules():
            handles.append(module.register_forward_hook(partial(after, name)))
            if isinstance(module, (_NormBase, nn.LayerNorm, nn.GroupNorm)):
                handles.append(module.register_forward_pre_hook(partial(before, name)))
        model(inputs)
    finally:
        for handle in handles:
            handle.remove()
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
        return "is not used by forward"
    if calls > 1:
        return f"is used {calls} times by one forward pass; one correction cannot fit every use"
    return None
