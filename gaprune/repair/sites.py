"""Where one network can be repaired, and where it cannot: found by running it once."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from gaprune.errors import unknown_name
from gaprune.repair.points import BIAS, NORM, PARTS, STATISTICS, Kind, kind_of

EXAMPLES = 2  # a norm without running statistics refuses a single vector


@dataclass(frozen=True)
class Sites:
    """The modules of a network that repair writes into.

    Attributes:
        kinds: qualified module name → how it is repaired, in order of execution.
        skipped: "name: why not", for modules of the wanted kinds that are left as they are.
        width: bytes of the largest activation, per input.
        features: the norms among `kinds` whose outputs can be compared with the dense network's.
    """

    kinds: Mapping[str, Kind]
    skipped: tuple[str, ...]
    width: int
    features: tuple[str, ...] = ()


@torch.no_grad()
def survey(
    model: nn.Module,
    inputs: Tensor,
    *,
    frozen: Collection[str] = (),
    parts: Sequence[str] | None = None,
) -> Sites:
    """Run the network on its first two inputs and list what can be repaired.

    Args:
        model: in evaluation mode; it stays as it is.
        inputs: `[N, …]`, at least one.
        frozen: parameters that keep their bits, by qualified name: the prunable ones.
        parts: keys of `PARTS`; None takes `default_parts`.

    Raises:
        InputError: an unknown part.
    """
    parts = default_parts(model) if parts is None else parts
    for part in parts:
        if part not in PARTS:
            raise unknown_name("parts", part, PARTS)
    course = _follow(model, inputs[:EXAMPLES])
    kept = {id(model.get_parameter(name)) for name in frozen}
    uses = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    kinds, complaints = dict[str, Kind](), dict[str, str]()
    for name, module in _in_order(model, course):
        kind = kind_of(module)
        if kind is None or kind.part not in parts:
            continue
        if complaint := _complaint(module, kind, kept, uses) or _misuse(course.calls[name]):
            complaints[name] = complaint
        else:
            kinds[name] = kind
    for name in list(_corrected_behind(model, course, kinds)):
        kinds.pop(name, None)
        complaints.pop(name, None)
    skipped = tuple(f"{name}: {why}" for name, why in complaints.items())
    return Sites(kinds, skipped, course.width, _features(kinds, course))


def default_parts(model: nn.Module) -> tuple[str, ...]:
    """Return the statistics alone where the network keeps any, else biases and norms."""
    norms = (module for module in model.modules() if isinstance(module, _NormBase))
    if any(norm.running_mean is not None for norm in norms):
        return (STATISTICS,)
    return (BIAS, NORM)


@dataclass
class _Course:
    """What one forward did: calls by module in order of the first, takers and bytes of outputs."""

    calls: Counter[str] = field(default_factory=Counter)
    taker: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """Bytes of the largest output, per input."""
        return max(self.sizes.values(), default=0)


def _follow(model: nn.Module, inputs: Tensor) -> _Course:
    course = _Course()
    outputs: dict[str, weakref.ref[Tensor]] = {}

    def before(taker: str, _norm: nn.Module, args: tuple[Any, ...]) -> None:
        course.taker |= {name: taker for name, ref in outputs.items() if args and ref() is args[0]}

    def after(name: str, _module: nn.Module, _args: object, output: object) -> None:
        course.calls[name] += 1
        if isinstance(output, Tensor):
            outputs[name] = weakref.ref(output)
            size = output.numel() * output.element_size() // len(inputs)
            course.sizes[name] = max(course.sizes.get(name, 0), size)

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
    return course


def _in_order(model: nn.Module, course: _Course) -> list[tuple[str, nn.Module]]:
    """Return the modules by their first call, those never called at the end."""
    place = {name: index for index, name in enumerate(course.calls)}
    return sorted(model.named_modules(), key=lambda pair: place.get(pair[0], len(place)))


def _corrected_behind(
    model: nn.Module, course: _Course, kinds: Mapping[str, Kind]
) -> Iterator[str]:
    """Yield the layers whose output goes into a norm that corrects what a bias could.

    A BatchNorm takes any shift away, by its own statistics or by repaired ones; a layer or group
    norm stands in where there is no bias.
    """
    for name, taker in course.taker.items():
        layer, norm = model.get_submodule(name), model.get_submodule(taker)
        kind = kind_of(layer)
        if kind is None or kind.part != BIAS:
            continue
        absorbs = isinstance(norm, _NormBase) and (taker in kinds or norm.running_mean is None)
        if absorbs or (taker in kinds and None in _leaves(layer, kind)):
            yield name


def _features(kinds: Mapping[str, Kind], course: _Course) -> tuple[str, ...]:
    """Return the norms whose outputs are no larger than their mean: what blocks put out.

    Those inside the bottlenecks are several times as large, and comparing them too gains nothing.
    """
    for part in (STATISTICS, NORM):
        norms = [name for name, kind in kinds.items() if kind.part == part]
        sizes = {name: course.sizes[name] for name in norms if name in course.sizes}
        if sizes:
            most = sum(sizes.values())
            return tuple(name for name, size in sizes.items() if size * len(sizes) <= most)
    return ()


def _leaves(module: nn.Module, kind: Kind) -> list[Tensor | None]:
    return [attrgetter(leaf)(module) for leaf in kind.leaves]


def _complaint(
    module: nn.Module, kind: Kind, kept: Collection[int], uses: Mapping[int, int]
) -> str | None:
    """Say why the leaves of a module cannot be written, or return None."""
    leaves = _leaves(module, kind)
    if any(leaf is None for leaf in leaves):
        return kind.missing
    if any(id(leaf) in kept for leaf in leaves):
        return f"its {' or '.join(kind.leaves)} is pruned, and pruned parameters keep their bits"
    if any(uses.get(id(leaf), 1) > 1 for leaf in leaves):
        return f"shares its {' or '.join(kind.leaves)} with another module"
    return None


def _misuse(calls: int) -> str | None:
    if calls == 1:
        return None
    if calls == 0:
        return "is not used by forward"
    return f"is used {calls} times by one forward, and one correction cannot fit them all"
