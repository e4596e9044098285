"""The dense network must be a fixed function of each input; buffers that it writes come back."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import gaprune
from gaprune.errors import InputError
from gaprune.models.forward import batched_forward
from gaprune.models.input_spec import InputOptions
from gaprune.models.target import Target, target_from_module

Change = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """Two linear layers; any function changes what is between them."""

    def __init__(self, change: Change | None = None) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.change = change
        self.calls = 0

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs)
        outputs: Tensor = self.last(
            torch.relu(hidden if self.change is None else self.change(self, hidden))
        )
        return outputs


class Keeps(nn.Module):
    """A layer that stays in training mode."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layer(inputs)
        return outputs

    def train(self, mode: bool = True) -> Keeps:
        return self


class Recurrent(nn.Module):
    """A recurrent layer that takes time first, fed batches first."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.last = nn.LSTM(4, 8), nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.last(self.lstm(inputs)[0][:, -1])
        return outputs


def _target(model: nn.Module, *shape: int) -> Target:
    return target_from_module(model, inputs=InputOptions(shape=shape or (6,)))


def _count_calls(net: Net, hidden: Tensor) -> Tensor:
    net.calls += 1
    return hidden * net.calls


def _skip_rarely(net: Net, hidden: Tensor) -> Tensor:
    return hidden if torch.rand(()) > 1e-3 else hidden * 0


def _write_parameter(net: Net, hidden: Tensor) -> Tensor:
    net.last.bias.data.add_(1e-6)
    return hidden


RANDOM: dict[str, Change] = {
    "dropout": lambda _, h: functional.dropout(h, 0.5),
    "rare dropout": lambda _, h: functional.dropout(h, 1e-3),
    "rare skip": _skip_rarely,
    "sampling": lambda _, h: h + torch.randn_like(h),
    "python": lambda _, h: h * random.random(),
    "state": _count_calls,
    "parameter": _write_parameter,
}


@pytest.mark.parametrize("case", RANDOM)
def test_networks_that_answer_differently_each_time(case: str) -> None:
    """Randomness, however rare, and state outside of buffers are refused."""
    with pytest.raises(InputError, match=r"^model: "):
        _target(Net(RANDOM[case]))


def test_random_numbers_that_change_nothing() -> None:
    """A network may draw random numbers that its output does not depend on."""

    def draws(net: Net, hidden: Tensor) -> Tensor:
        return hidden if float(torch.rand(())) >= 0 else hidden * 0

    assert _target(Net(draws)).layout.total == 72


MIXED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "time first": (Recurrent, (5, 4), "'lstm' .*batch_first"),
    "batch mean": (lambda: Net(lambda _, h: h - h.mean(0)), (6,), "batch"),
    "training mode": (
        lambda: nn.Sequential(nn.Linear(6, 4), Keeps(nn.BatchNorm1d(4))),
        (6,),
        "'1.* refuses a batch of 1 .*training mode|training mode",
    ),
    "no statistics": (
        lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4, track_running_stats=False)),
        (2, 9),
        "'1' .*track_running_stats=True",
    ),
    "pairs": (lambda: Net(lambda net, h: h @ h.T @ torch.ones(len(h), 8)), (6,), "batch"),
}


@pytest.mark.parametrize("case", MIXED)
def test_networks_that_mix_the_inputs_of_a_batch(case: str) -> None:
    """An output that depends on other inputs of the batch is refused, with what may cause it."""
    build, shape, message = MIXED[case]
    with pytest.raises(InputError, match=f"^model: .*{message}"):
        _target(build(), *shape)


class Returns(nn.Linear):
    """A linear layer whose output goes through any function."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__(6, 1)
        self.change = change

    def forward(self, inputs: Tensor) -> Tensor:
        return self.change(super().forward(inputs))


@pytest.mark.parametrize("change", [torch.squeeze, lambda x: x @ x.T])
def test_outputs_whose_size_depends_on_the_batch(change: Callable[[Tensor], Tensor]) -> None:
    """One input must give an output of the same shape as two."""
    with pytest.raises(InputError, match=r"\[2.* batch of 1"):
        _target(Returns(change))


class Writes(Net):
    """A network that writes to buffers in evaluation mode, and registers another."""

    seen: Tensor
    moving: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.register_buffer("moving", torch.ones(8))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs)
        outputs: Tensor = self.last(torch.relu(hidden * self.moving))
        self.seen += 1
        self.moving = 0.9 * self.moving + 0.1 * hidden.mean(0)
        self.register_buffer("latest", hidden)
        return outputs


def test_ordinary_networks_get_no_hook() -> None:
    """Buffers that are only read are not copied in every pass."""
    target = _target(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout()))
    assert not target.model._forward_hooks
    assert not target.model._forward_pre_hooks


def _equal(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_written_buffers_keep_the_values_of_the_checkpoint() -> None:
    """Every pass begins with them, also of copies; the pruned network writes again by itself."""
    net = Writes().eval()
    before, inputs = copy.deepcopy(net.state_dict()), torch.rand(200, 6)
    target = _target(net)
    outputs = batched_forward(target.model, inputs)
    for model in (
        target.model,
        copy.deepcopy(target.model),
        pickle.loads(pickle.dumps(target.model)),
    ):
        assert torch.equal(batched_forward(model, inputs), outputs)
        assert _equal(model.state_dict(), before)
    run = gaprune.prune(
        net,
        sparsity=0.5,
        generations=1,
        steps=2,
        calibration_count=32,
        validation_count=32,
        inputs=InputOptions(shape=(6,), range=(0, 1)),
    )
    state = run.state_dict()
    assert all(torch.equal(before[name], state[name]) for name in before if name not in run.masks)
    assert _equal(net.state_dict(), before)
    pruned = run.pruned_model()
    pruned(inputs)
    assert int(pruned.get_buffer("seen")) == 1


@pytest.mark.filterwarnings("ignore")  # torch announces the end of this interface
@pytest.mark.parametrize("qat", [True, False])
def test_observers_of_quantisation_are_off(qat: bool) -> None:
    """Scales and ranges that the user's data have calibrated stay bit for bit."""
    quantization: Any = torch.ao.quantization
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).train(qat)
    if qat:
        net.qconfig = quantization.get_default_qat_qconfig("fbgemm")
        quantization.prepare_qat(net, inplace=True)
    else:
        net.qconfig = quantization.get_default_qconfig("fbgemm")
        quantization.prepare(net, inplace=True)
    net(torch.rand(64, 6) * 6 - 3)
    net.eval()
    before = copy.deepcopy(net.state_dict())
    target = _target(net)
    target.model(torch.full((5, 6), 100.0))
    assert _equal(target.model.state_dict(), before)
    assert _equal(net.state_dict(), before)
