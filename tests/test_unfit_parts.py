"""Parts that nobody wants pruned are left as they are, from the search to every file."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import gaprune
from gaprune.io.weights import load_state, tensors_of
from gaprune.models.input_spec import InputOptions
from gaprune.models.target import target_from_module, trainable_copy
from gaprune.runs.warnings import network_warnings

FEW: dict[str, Any] = {"sparsity": 0.5, "calibration_count": 32, "validation_count": 32}


class Fourier(nn.Module):
    """A Fourier neural operator: complex weights beside real ones."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.skip, self.out = (
            nn.Conv1d(*sizes, 1) for sizes in ((1, 4), (4, 4), (4, 1))
        )
        self.modes = nn.Parameter(torch.randn(4, 4, 3, dtype=torch.cfloat))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.lift(inputs)
        mixed = torch.einsum("bix,iox->box", torch.fft.rfft(hidden)[..., :3], self.modes)
        low = torch.fft.irfft(mixed, n=inputs.shape[-1])
        outputs: Tensor = self.out(functional.gelu(low + self.skip(hidden)))
        return outputs


class Indexed(nn.Module):
    """A table of indices that is a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.order = nn.Parameter(torch.arange(6).flip(0), requires_grad=False)
        self.last = nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.last(inputs[:, self.order])
        return outputs


class Scaled(nn.Linear):
    """A layer with state that is no tensor."""

    scale = 1.0

    def get_extra_state(self) -> dict[str, float]:
        return {"scale": self.scale}

    def set_extra_state(self, state: dict[str, float]) -> None:
        self.scale = state["scale"]

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) * self.scale


def scaled() -> nn.Module:
    """Return a network with extra state that is not the default."""
    net = nn.Sequential(Scaled(6, 5), nn.ReLU(), nn.Linear(5, 3))
    net[0].scale = 3.0  # type: ignore[assignment]
    return net


def scripted() -> nn.Module:
    """Return a network with a scripted layer."""
    return nn.Sequential(torch.jit.script(nn.Linear(6, 5)), nn.ReLU(), nn.Linear(5, 3))


def partly_quantised() -> nn.Module:
    """Return a network with a quantised layer."""
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    quantise: Callable[..., nn.Module] = torch.ao.quantization.quantize_dynamic
    return quantise(net, {"0"}, dtype=torch.qint8)


CASES = {
    "complex": (Fourier, (1, 8)),
    "integer": (Indexed, (6,)),
    "extra state": (scaled, (6,)),
    "TorchScript": (scripted, (6,)),
    "quantised": (partly_quantised, (6,)),
}


@pytest.mark.filterwarnings("ignore")  # torch announces the end of some of these interfaces
@pytest.mark.parametrize("case", CASES)
def test_the_rest_is_pruned_and_every_file_is_written(case: str, tmp_path: Path) -> None:
    """The network gets a result; its state fits the user's network, its files hold the tensors."""
    build, shape = CASES[case]
    net = build().eval()
    before = copy.deepcopy(net.state_dict())
    run = gaprune.prune(
        net, inputs=InputOptions(shape=shape, range=(-1, 1)), method="magnitude", **FEW
    )
    assert any("left as they are" in text for text in network_warnings(run.target))
    state = run.state_dict()
    for name in before.keys() - run.masks.keys():
        if isinstance(before[name], Tensor):
            assert torch.equal(before[name], state[name])
    pruned = run.pruned_model()
    net.load_state_dict(state)
    inputs = torch.rand(3, *shape)
    assert torch.equal(net(inputs), pruned(inputs))
    gaprune.save_run(run, tmp_path / "run")
    stored = load_state(tmp_path / "run" / "pruned.safetensors")
    assert stored.keys() == tensors_of(state).keys()
    for name in ("dense", "sparse"):
        gaprune.export(run, name, tmp_path / name)
    trainable_copy(net)


def test_complex_weights_take_part_in_every_criterion() -> None:
    """A search with all one-shot criteria, its gradient steps and repair accept them."""
    torch.manual_seed(0)
    run = gaprune.prune(
        Fourier(),
        inputs=InputOptions(shape=(1, 8), range=(-1, 1)),
        generations=1,
        steps=2,
        repair=True,
        initial_criteria=["magnitude", "synflow", "wanda", "snip", "correlation"],
        **FEW,
    )
    assert {"synflow", "correlation"} <= run.baselines.keys()


def test_copies_have_the_extra_state() -> None:
    """The pruned copy has the extra state of the network, not that of a new one."""
    target = target_from_module(scaled(), inputs=InputOptions(shape=(6,)))
    masks = {name: torch.ones_like(weight).bool() for name, weight in target.weights.items()}
    assert target.masked_copy(masks).get_submodule("0").scale == 3.0
