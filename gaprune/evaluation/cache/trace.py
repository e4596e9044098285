"""Cut a network before its prunable layers, so that a forward pass can begin at any of them.

It is traced once (`torch.fx`). Where that fails, or the trace does not answer as the network does,
there are no cuts and nothing changes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from gaprune.evaluation.cache.staged_forward import Cut, Held, Leg, Pass, Stages, Step

GRAIN = 1 / 16  # of the time of a pass: cuts that lie closer are not worth two places in memory
TRIED = 4  # inputs on which a trace is compared with the network


def cut_up(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    kept: Mapping[str, Tensor],
    inputs: Tensor,
    most: float,
) -> Stages | None:
    """Trace a network and cut it before its prunable layers.

    Args:
        model: frozen, in evaluation mode; stays as it is.
        weights: its prunable parameters by name, in the order of the layout.
        kept: a candidate's in their place, with which the trace is tried.
        inputs: a batch `[N, …]` to try it on.
        most: bytes per input that may be held at a cut.

    Returns:
        The stages, or None where the network cannot be traced, the trace gives other bits than the
        network, or there is nothing to cut.
    """
    try:
        with warnings.catch_warnings(), _as_it_was(model):
            warnings.simplefilter("ignore")  # whether the trace is right is tried below
            steps = _steps_of(model)
        stages = Stages(
            model, steps, _cuts_of(model, weights, steps), _seconds(model, steps, inputs)
        )
        cuts = _tried(_spread(stages), kept, inputs[:TRIED], most)
    except Exception:  # noqa: BLE001 - whatever the code of a user's network raises when traced
        return None
    return replace(stages, cuts=cuts) if cuts else None


@torch.no_grad()
def _seconds(model: nn.Module, steps: tuple[Step, ...], inputs: Tensor) -> tuple[float, ...]:
    """Measure every step, with all weights; the first pass takes longer than the others."""
    timed = Pass(Stages(model, steps, (), ()))
    timed([Leg(inputs), Leg(inputs)], _forget)
    return 0.0, *timed.seconds


def _spread(stages: Stages) -> Stages:
    """Leave out cuts that save hardly more than the one before."""
    chosen: list[Cut] = []
    for cut in stages.cuts:
        before = stages.share(chosen[-1]) if chosen else 0.0
        if stages.share(cut) - before >= GRAIN:
            chosen.append(cut)
    return replace(stages, cuts=tuple(chosen))


def _tried(
    stages: Stages, kept: Mapping[str, Tensor], inputs: Tensor, most: float
) -> tuple[Cut, ...]:
    """Return the cuts from which a pass gives the bits of the network; none, if no pass does."""
    with torch.no_grad():
        expected = functional_call(stages.model, dict(kept), (inputs,))
    found: list[tuple[Cut, Held]] = []
    outputs = stages.run(
        kept, [Leg(inputs, hold=stages.cuts)], lambda _, cut, held: found.append((cut, held))
    )
    if not _equal(outputs, expected):
        return ()
    small = [(cut, held) for cut, held in found if held.size <= most * len(inputs)]
    return tuple(
        begin[0]
        for begin in small
        if _equal(stages.run(kept, [Leg(inputs, begin=begin)], _forget), expected)
    )


def _forget(_: Leg, __: Cut, ___: Held) -> None:
    pass


def _equal(a: Any, b: Any) -> bool:  # noqa: ANN401 - a user's network may return anything
    """Tell whether both are tensors of the same type, shape and bits."""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return False
    bits = [one.contiguous().reshape(-1).view(torch.uint8) for one in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*bits)


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """Take off what tracing puts on a network: tensors that it came upon become attributes."""
    before = set(vars(model))
    try:
        yield
    finally:
        for name in set(vars(model)) - before:
            delattr(model, name)


def _steps_of(model: nn.Module) -> tuple[Step, ...]:
    nodes = list(fx.Tracer().trace(model).nodes)
    if [node.op for node in nodes].count("placeholder") != 1 or nodes[0].op != "placeholder":
        raise ValueError("one input, first")
    places = {node: place for place, node in enumerate(nodes)}
    dies: dict[int, list[fx.Node]] = {}
    for node in nodes:
        if node.users:
            dies.setdefault(max(places[user] for user in node.users), []).append(node)
    return tuple(
        Step(node, _CALLS[node.op](node, model), tuple(dies.get(place, ())))
        for place, node in enumerate(nodes)
    )


def _cuts_of(
    model: nn.Module, weights: Mapping[str, Tensor], steps: Sequence[Step]
) -> tuple[Cut, ...]:
    """Return a cut before every step that reads a layer for the first time."""
    order = {id(model.get_parameter(name)): index for index, name in enumerate(weights, 1)}
    last = {node: place for place, step in enumerate(steps) for node in step.dies}
    found, depth = [], 0
    for place, step in enumerate(steps):
        deepest = max((order.get(one, 0) for one in _reads(model, step.node)), default=0)
        if deepest > depth:
            before = (one.node for one in steps[1:place])
            live = tuple(node for node in before if last.get(node, 0) >= place)
            found += [Cut(place, depth, live)] if depth else []
            depth = deepest
    return tuple(found)


def _reads(model: nn.Module, node: fx.Node) -> list[int]:
    """Return the ids of the parameters that a step reads."""
    if node.op == "call_module":
        return [id(one) for one in model.get_submodule(str(node.target)).parameters()]
    if node.op == "get_attr":
        return [id(_attribute(model, str(node.target)))]
    return []


def _attribute(model: nn.Module, name: str) -> Any:  # noqa: ANN401 - a parameter or a buffer
    owner, _, leaf = name.rpartition(".")
    return getattr(model.get_submodule(owner), leaf)


def _call_function(node: fx.Node, _: nn.Module) -> Callable[[dict[fx.Node, Any]], Any]:
    target: Any = node.target
    return _with_arguments(node, lambda args, kwargs: target(*args, **kwargs))


def _call_method(node: fx.Node, _: nn.Module) -> Callable[[dict[fx.Node, Any]], Any]:
    name = str(node.target)
    return _with_arguments(node, lambda args, kwargs: getattr(args[0], name)(*args[1:], **kwargs))


def _call_module(node: fx.Node, model: nn.Module) -> Callable[[dict[fx.Node, Any]], Any]:
    module = model.get_submodule(str(node.target))
    return _with_arguments(node, lambda args, kwargs: module(*args, **kwargs))


def _get_attr(node: fx.Node, model: nn.Module) -> Callable[[dict[fx.Node, Any]], Any]:
    _attribute(model, str(node.target))  # one that tracing alone has put there is gone
    return lambda _: _attribute(model, str(node.target))


def _output(node: fx.Node, _: nn.Module) -> Callable[[dict[fx.Node, Any]], Any]:
    return _with_arguments(node, lambda args, _: args[0])


def _placeholder(_: fx.Node, __: nn.Module) -> Callable[[dict[fx.Node, Any]], Any]:
    return lambda _: None  # never called: inputs are given


_CALLS = {
    "placeholder": _placeholder,
    "call_function": _call_function,
    "call_method": _call_method,
    "call_module": _call_module,
    "get_attr": _get_attr,
    "output": _output,
}


def _with_arguments(
    node: fx.Node, call: Callable[[Any, Any], Any]
) -> Callable[[dict[fx.Node, Any]], Any]:
    """Look a step's arguments up among the values before it."""

    def run(values: dict[fx.Node, Any]) -> Any:  # noqa: ANN401 - whatever the step returns
        args = fx.node.map_arg(node.args, values.__getitem__)
        return call(args, fx.node.map_arg(node.kwargs, values.__getitem__))

    return run
