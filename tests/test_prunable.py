"""Which parameters are prunable, and every reason for refusing a network."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from gaprune.errors import InputError
from gaprune.models.prunable import (
    check_prunable,
    check_structure,
    find_prunable,
    parts_left_as_they_are,
)


class EveryLayer(nn.Module):
    """One of each layer, prunable or not."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.linear = nn.Linear(4, 3)
        self.conv1 = nn.Conv1d(2, 3, 3)
        self.conv2 = nn.Conv2d(2, 3, 3)
        self.conv3 = nn.Conv3d(2, 3, 3, bias=False)
        self.up1 = nn.ConvTranspose1d(2, 3, 3)
        self.up2 = nn.ConvTranspose2d(2, 3, 3)
        self.up3 = nn.ConvTranspose3d(2, 3, 3)
        self.packed = nn.MultiheadAttention(4, 2)
        self.unpacked = nn.MultiheadAttention(4, 2, kdim=3, vdim=2)
        self.bilinear = nn.Bilinear(2, 2, 2)
        self.norm = nn.BatchNorm2d(3)
        self.layer_norm = nn.LayerNorm(4)
        self.recurrent = nn.LSTM(4, 3)
        self.scale = nn.Parameter(torch.ones(3))


WEIGHTS = [
    *(f"{layer}.weight" for layer in ("linear", "conv1", "conv2", "conv3", "up1", "up2", "up3")),
    *("packed.in_proj_weight", "packed.out_proj.weight"),
    *(f"unpacked.{part}_proj_weight" for part in "qkv"),
    *("unpacked.out_proj.weight", "bilinear.weight"),
    *("recurrent.weight_ih_l0", "recurrent.weight_hh_l0"),
]


class Special(nn.Conv2d):
    """A subclass counts as its base."""


def empty_first() -> nn.Module:
    """Return a network whose first weight has no elements."""
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    model[0].weight = nn.Parameter(torch.zeros(0, 2))
    return model


LAYER = nn.Linear(3, 3)
ALL_EXTRA = ("scale", "linear.bias", "embedding.weight", "norm.weight")


@pytest.mark.parametrize(
    ("model", "extra", "expected"),
    [
        (EveryLayer(), (), WEIGHTS),
        (nn.Sequential(nn.ReLU(), Special(1, 2, 3)), (), ["1.weight"]),
        (nn.Linear(2, 2), (), ["weight"]),
        (empty_first(), (), ["1.weight"]),
        (nn.Sequential(LAYER, nn.Tanh(), LAYER), (), ["0.weight"]),  # the same layer twice
        (nn.GRUCell(2, 2), ["bias_hh"], ["weight_ih", "weight_hh", "bias_hh"]),
        (nn.GRUCell(2, 2), "bias_hh", ["weight_ih", "weight_hh", "bias_hh"]),
        (nn.Linear(2, 2).half(), (), ["weight"]),
        (nn.Linear(2, 2).bfloat16(), (), ["weight"]),
        (nn.Linear(2, 2).double(), (), ["weight"]),
        (
            EveryLayer(),
            ALL_EXTRA,
            [n for n, _ in EveryLayer().named_parameters() if n in (*WEIGHTS, *ALL_EXTRA)],
        ),
    ],
)
def test_names_of_prunable_parameters(
    model: nn.Module, extra: list[str], expected: list[str]
) -> None:
    """Subclasses count, empty weights do not, extra names join in order of registration."""
    weights = find_prunable(model, extra)
    assert list(weights) == expected
    assert all(weights[name] is model.get_parameter(name) for name in weights)


def test_unknown_extra_name() -> None:
    """A name that is no parameter is refused, with the nearest ones."""
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    for name, message in (("0.bais", r"'0.bais'.* 0\.bias"), ("1.running_mean", "running_mean")):
        with pytest.raises(InputError, match=message):
            find_prunable(model, [name])


@pytest.mark.parametrize("model", [nn.ReLU(), nn.BatchNorm1d(3), nn.EmbeddingBag(2, 2)])
def test_nothing_prunable(model: nn.Module) -> None:
    """A network without prunable weights is refused; the error names `prune_also`."""
    with pytest.raises(InputError, match="prune_also"):
        find_prunable(model)


def _net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def _with(change: Callable[[nn.Sequential], object]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model = _net()
        change(model)
        return model

    return build


def _with_weight(make: Callable[[], Tensor]) -> Callable[[], nn.Module]:
    parameter = nn.Parameter(make(), requires_grad=False)
    return _with(lambda m: m[0].register_parameter("weight", parameter))


def _quantised_layer() -> nn.Module:
    quantise: Callable[..., nn.Module] = torch.ao.quantization.quantize_dynamic
    return quantise(_net(), {nn.Linear}, dtype=torch.qint8)


def _quantised_buffer(model: nn.Module) -> None:
    packed = torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.qint8)
    model.register_buffer("packed", packed)


_prune: Callable[..., nn.Module] = prune.random_unstructured
REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "pruned": (
        _with(lambda m: _prune(m[0], "weight", 0.5)),
        r"layer '0' .*prune\.remove\(module, 'weight'\)",
    ),
    "pruned bias, twice": (
        _with(lambda m: [_prune(m[0], "bias", 0.5) for _ in "12"]),
        r"layer '0' .*prune\.remove\(module, 'bias'\)",
    ),
    "pruned, hook lost": (
        _with(lambda m: prune.identity(m[0], "weight")._forward_pre_hooks.clear()),
        r"prune\.remove\(module, 'weight'\)",
    ),
    "parametrised": (
        _with(lambda m: parametrizations.orthogonal(m[0])),
        r"layer '0' .*remove_parametrizations\(module, 'weight'\)",
    ),
    "weight norm": (
        _with(lambda m: nn.utils.weight_norm(m[0])),
        r"layer '0' .*remove_weight_norm\(module, 'weight'\)",
    ),
    "spectral norm": (
        _with(lambda m: nn.utils.spectral_norm(m[0])),
        r"layer '0' .*remove_spectral_norm\(module, 'weight'\)",
    ),
    "quantised buffer": (_with(_quantised_buffer), r"'packed' .*torch.qint8"),
    "TorchScript": (lambda: torch.jit.script(_net()), "TorchScript"),
    "lazy": (lambda: nn.Sequential(nn.ReLU(), nn.LazyLinear(2)), "'1.weight' is lazy"),
    "lazy buffer": (
        lambda: nn.Sequential(nn.Linear(2, 2), nn.LazyBatchNorm1d(affine=False)),
        "buffer '1.running_mean' is lazy",
    ),
    "meta": (lambda: nn.Linear(2, 2, device="meta"), "'weight' .*meta device"),
    "sparse": (
        _with_weight(lambda: torch.eye(2, 3).to_sparse()),
        r"'0.weight' .*torch.sparse_coo.*to_dense",
    ),
    "dict": (lambda: {"weight": torch.ones(2)}, "got dict"),  # type: ignore[dict-item, return-value]
}


@pytest.mark.filterwarnings("ignore")  # torch announces the end of some of these interfaces
@pytest.mark.parametrize("case", REFUSED)
def test_structure_that_cannot_be_pruned(case: str) -> None:
    """A network whose weights cannot be read and replaced is refused; the error names the fix."""
    build, message = REFUSED[case]
    for check in (check_structure, check_prunable, find_prunable):
        with pytest.raises(InputError, match=message):
            check(build())


UNFIT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "quantised layer": (_quantised_layer, "layer '0' .*quantised"),
    "TorchScript layer": (
        lambda: nn.Sequential(torch.jit.script(_net())),
        "layer '0' .*TorchScript",
    ),
    "int8": (_with_weight(lambda: torch.ones(2, 3, dtype=torch.int8)), "'0.weight' .*torch.int8"),
    "float8": (
        _with_weight(lambda: torch.ones(2, 3).to(torch.float8_e4m3fn)),
        "'0.weight' .*torch.float8_e4m3",
    ),
    "complex": (
        _with_weight(lambda: torch.ones(2, 3, dtype=torch.complex64)),
        "'0.weight' .*torch.complex64",
    ),
}


@pytest.mark.filterwarnings("ignore")  # torch announces the end of some of these interfaces
@pytest.mark.parametrize("case", UNFIT)
def test_parts_that_are_left_as_they_are(case: str) -> None:
    """Beside an ordinary layer they are listed; alone, or named in `prune_also`, refused."""
    build, message = UNFIT[case]
    with pytest.raises(InputError, match=message):
        find_prunable(build())
    both = nn.Sequential(build(), nn.Linear(2, 2))
    check_structure(both)
    assert list(find_prunable(both)) == ["1.weight"]
    assert parts_left_as_they_are(both)
    unfit = [name for name, _ in both.named_parameters() if name.startswith("0.0.weight")]
    for name in unfit:
        with pytest.raises(InputError, match=rf"^prune_also: .*'{name}'"):
            find_prunable(both, [name])


@pytest.mark.parametrize(
    ("name", "value", "nan_count"),
    [
        ("0.weight", math.nan, 1),
        ("0.bias", math.inf, 0),
        ("1.weight", -math.inf, 0),
        ("1.running_var", math.nan, 1),
        ("1.running_var", math.inf, 0),
    ],
)
def test_values_must_be_finite(name: str, value: float, nan_count: int) -> None:
    """NaN and Inf in any parameter or buffer are refused by name and counted."""
    model = _net()
    model.state_dict()[name].view(-1)[0] = value
    count = f"{nan_count} .*NaN and {1 - nan_count} "
    with pytest.raises(InputError, match=f"'{name}' .*finite.* {count}"):
        find_prunable(model)
    check_structure(model)  # values do not matter here


def test_attention_masks_may_hold_minus_infinity() -> None:
    """A causal mask of −Inf in a buffer is valid, and so are buffers of integers."""
    model = nn.Linear(2, 2)
    model.register_buffer("causal", torch.full((3, 3), -torch.inf).triu(1))
    model.register_buffer("steps", torch.tensor(3))
    assert list(find_prunable(model)) == ["weight"]
