"""The dense network must be a fixed function of each input; a few passes tell whether it is."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gaprune.errors import InputError
from gaprune.models.forward import functional_call
from gaprune.models.forward_hooks import BufferCopies, buffer_names, owner
from gaprune.models.layer_kinds import DTYPES, is_quantised
from gaprune.models.macs import UncompiledDispatchMode

TRIED = 3  # inputs of the check
REPEATS = 16  # passes of a network that draws random numbers in Python: they may matter rarely
EXTREMES = (0.0, 1.0)  # in place of torch's random numbers: each drops, keeps or skips everything
NUDGE = 4  # roundings by which weights are changed to measure how rounding grows
GROWTH = 16  # of such a difference, still taken for rounding
INTEGER_ROUNDING = 0.05  # of 8-bit layers, whose scale may be that of the whole batch
_MAX_LISTED = 3
_OBSERVES = "observer_enabled"  # a flag of torch's fake-quantisation modules


class _Trial(NamedTuple):
    model: nn.Module
    inputs: Tensor  # `[TRIED, …]`
    first: Tensor  # outputs of the first two
    written: Collection[str]  # buffers that a pass has changed


@torch.no_grad()
def make_fixed(model: nn.Module, inputs: Tensor, check: Callable[[object], Tensor]) -> None:
    """Check that a network is a fixed function of each input, and keep it one, in place.

    Buffers that it writes in evaluation mode have the values of the checkpoint at the begin of
    every later pass, and observers of quantisation are off.

    Args:
        model: in evaluation mode.
        inputs: `[TRIED, …]`.
        check: returns the outputs of the network on two inputs, or raises InputError if they
            cannot be compared.

    Raises:
        InputError: it draws random numbers, changes its parameters or mixes the inputs of a batch.
        Exception: the network does not accept the inputs.
    """
    before = buffer_names(model)
    observers = [name for name in before if name.rpartition(".")[2] == _OBSERVES]
    copies, sums = BufferCopies(before, observers), _checksums(model)
    hooks = copies.attach(model)
    try:
        _check(_Trial(model, inputs, check(model(inputs[:2])), copies.written))
    finally:
        for hook in hooks:
            hook.remove()
    if changed := [name for name, value in _checksums(model).items() if value != sums[name]]:
        raise InputError(
            f"model: its forward pass changes the parameter {changed[0]!r} in evaluation mode, so "
            "that it answers differently each time; write to it in training mode only"
        )
    new = set(buffer_names(model)) - set(before)
    for name in new:
        delattr(*owner(model, name))
    # a module that writes to one of its buffers may write to the others on other inputs
    modules = {name.rpartition(".")[0] for name in copies.written}
    written = {name for name in before if name.rpartition(".")[0] in modules}
    if names := {*written, *new, *observers}:
        BufferCopies(sorted(names), observers).attach(model)


def _check(trial: _Trial) -> None:
    device = trial.inputs.device
    torch_state, python_state = _torch_state(device), _python_state()
    _check_repeats(trial, 1)
    if _python_state() != python_state:
        _check_repeats(trial, REPEATS)
    if _torch_state(device) != torch_state:
        for value in EXTREMES:
            with _Drawing(value, device):
                _check_repeats(trial, 1)
    _check_batches(trial)


def _check_repeats(trial: _Trial, repeats: int) -> None:
    model, inputs, first, _ = trial
    for _ in range(repeats):
        difference = _difference(first, model(inputs[:2]))
        if difference > _rounding(trial):
            names = [name for name, module in model.named_modules() if module.training]
            layers = f" (in training mode after eval(): {_listed(names)})" if names else ""
            raise InputError(
                "model: two passes of the dense network over the same inputs differ by "
                f"{difference:.1%} of its output{layers}, and candidates are compared with it; "
                "make it a fixed function in evaluation mode: F.dropout(x, p, "
                "training=self.training), and samples drawn with a generator seeded in forward"
            )


def _check_batches(trial: _Trial) -> None:
    model, inputs, first, _ = trial
    expected = first[:1]
    for batch, index in ((inputs[:1], 0), (inputs[[2, 0, 1]], 1)):
        try:
            outputs = model(batch)
        except Exception as error:  # user code raises any type
            raise InputError(
                f"model: it takes a batch of 2 inputs and refuses a batch of {len(batch)} "
                f"({type(error).__name__}: {error}){_remedy(trial)}"
            ) from error
        shape = [len(batch), *first.shape[1:]]
        got = list(getattr(outputs, "shape", ()))
        if got != shape:
            raise InputError(
                f"model: its output has shape {list(first.shape)} for a batch of 2 inputs and "
                f"{got} for a batch of {len(batch)}, where {shape} is expected: "
                "the size of an output must not depend on the batch; return one output per input"
            )
        difference = _difference(expected, outputs[index : index + 1])
        if difference > _rounding(trial) and difference > GROWTH * _growth(trial):
            raise InputError(
                f"model: its output for an input differs by {difference:.1%} with the other inputs "
                f"of the batch, and every input must be answered on its own{_remedy(trial)}"
            )


def _remedy(trial: _Trial) -> str:
    """Return what may mix the inputs of a batch in this network, and the way out."""
    otherwise = "the batch must be the first axis of every operation"
    return "; " + next(_causes(trial.model, sorted(trial.written)), otherwise)


def _causes(model: nn.Module, written: Sequence[str]) -> Iterator[str]:
    modules = list(model.named_modules())
    norms = [n for n, m in modules if isinstance(m, _BatchNorm) and m.running_mean is None]
    if norms:
        yield (
            f"BatchNorm {_listed(norms)} keeps no running statistics: build it with "
            "track_running_stats=True and load a checkpoint that holds them"
        )
    if training := [name for name, module in modules if module.training]:
        yield f"{_listed(training)} is in training mode after eval(): let train(False) reach it"
    if written:
        yield f"forward writes to {_listed(written)} also in evaluation mode"
    if mixed := [name for name, module in modules if getattr(module, "batch_first", None) is False]:
        yield (
            f"{_listed(mixed)} takes time as its first axis: build it with batch_first=True, or "
            "transpose the inputs in forward"
        )


class _Drawing(UncompiledDispatchMode):
    """Replaces what torch's random operations return by one value."""

    def __init__(self, value: float, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.value, self.device = value, device

    def __torch_dispatch__(
        self,
        operation: Any,  # noqa: ANN401 - torch's own types of operations are private
        _types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        if torch.Tag.nondeterministic_seeded not in operation.tags:
            return operation(*args, **(kwargs or {}))
        state = _torch_state(self.device)
        outputs = operation(*args, **(kwargs or {}))
        if _torch_state(self.device) != state:  # attention without dropout draws nothing
            for output in outputs if isinstance(outputs, tuple) else (outputs,):
                if isinstance(output, Tensor):
                    output.fill_(self.value)
        return outputs


def _torch_state(device: torch.device) -> tuple[bytes, ...]:
    """Return the states of torch's default generators."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return tuple(state.numpy().tobytes() for state in states)


def _python_state() -> tuple[object, ...]:
    """Return the states of the default generators of Python and NumPy."""
    numpy: Any = np.random.get_state()  # noqa: NPY002 - what networks use
    return random.getstate(), numpy[1].tobytes(), numpy[2:]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_LISTED} more" if names[_MAX_LISTED:] else ""
    return ", ".join(repr(name) for name in islice(names, _MAX_LISTED)) + more


def _difference(expected: Tensor, outputs: Tensor) -> float:
    """Return the norm of the difference, relative to that of the expected outputs."""
    if outputs.shape != expected.shape:
        return math.inf
    norm = float(expected.double().norm())
    difference = float((outputs.double() - expected.double()).norm())
    # NaN is no small difference
    return difference / norm if difference > 0 and norm else math.inf if difference else 0.0


def _rounding(trial: _Trial) -> float:
    """Return the relative difference that a deep network may have by rounding."""
    if any(map(is_quantised, trial.model.modules())):
        return INTEGER_ROUNDING
    return math.sqrt(torch.finfo(trial.first.dtype).eps)


def _growth(trial: _Trial) -> float:
    """Return how far weights that are changed by a few roundings move the outputs.

    Rounding may flip a step, as of fake quantisation, or grow from layer to layer.
    """
    model, inputs, first, _ = trial
    generator = torch.Generator().manual_seed(0)
    nudged = {}
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point():
            signs = torch.rand(parameter.shape, generator=generator, device="cpu") < 0.5
            step = NUDGE * torch.finfo(parameter.dtype).eps
            factors = 1 + step * (2 * signs.to(parameter.dtype) - 1)
            nudged[name] = parameter * factors.to(parameter.device)
    return _difference(first, functional_call(model, nudged, (inputs[:2],)))


def _checksums(model: nn.Module) -> dict[str, object]:
    """Return a number per parameter that changes if it is written; copies would need memory."""
    return {
        name: parameter.detach().sum(dtype=torch.float64).item()
        if parameter.dtype in DTYPES
        else parameter.detach().reshape(-1).view(torch.uint8).sum().item()
        for name, parameter in model.named_parameters()
    }
