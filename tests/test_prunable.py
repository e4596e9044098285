"""Which parameters are found, and every reason for refusing a network."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, prune

from gaprune.errors import InputError
from gaprune.masks.supermask import masked_weights
from gaprune.models.prunable import check_prunable, check_structure, find_prunable


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
    "linear.weight",
    "conv1.weight",
    "conv2.weight",
    "conv3.weight",
    "up1.weight",
    "up2.weight",
    "up3.weight",
    "packed.in_proj_weight",
    "packed.out_proj.weight",
    "unpacked.q_proj_weight",
    "unpacked.k_proj_weight",
    "unpacked.v_proj_weight",
    "unpacked.out_proj.weight",
]


def test_finds_layer_weights() -> None:
    """Linear, convolution and attention weights are found in order of registration, no others."""
    model = EveryLayer()
    found = find_prunable(model)
    assert list(found) == WEIGHTS
    assert all(found[name] is model.get_parameter(name) for name in found)


class Special(nn.Conv2d):
    """A subclass counts as its base."""


def empty_first() -> nn.Module:
    """Return a network whose first weight has no elements."""
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    model[0].weight = nn.Parameter(torch.zeros(0, 2))
    return model


ALL_EXTRA = ("scale", "bilinear.weight", "linear.bias", "embedding.weight", "norm.weight")


@pytest.mark.parametrize(
    ("model", "extra", "expected"),
    [
        (nn.Sequential(nn.ReLU(), Special(1, 2, 3)), (), ["1.weight"]),
        (nn.Linear(2, 2), (), ["weight"]),
        (empty_first(), (), ["1.weight"]),
        (nn.LSTM(2, 2), ["weight_hh_l0"], ["weight_hh_l0"]),
        (nn.LSTM(2, 2), "weight_hh_l0", ["weight_hh_l0"]),
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
    assert list(find_prunable(model, extra)) == expected


def test_unknown_extra_name() -> None:
    """A name that is no parameter is refused, with the nearest ones."""
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with pytest.raises(InputError, match=r"'0.bais'; nearest .*: 0\.bias"):
        find_prunable(model, ["0.bais"])
    with pytest.raises(InputError, match=r"no parameter '1.running_mean'"):
        find_prunable(model, ["1.running_mean"])


@pytest.mark.parametrize("model", [nn.ReLU(), nn.BatchNorm1d(3), nn.Bilinear(2, 2, 2)])
def test_nothing_prunable(model: nn.Module) -> None:
    """A network without prunable weights is refused and told how to name others."""
    with pytest.raises(InputError, match="prune_also"):
        find_prunable(model)


class TiedDecoder(nn.Module):
    """An embedding whose weight is also that of the output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 4)
        self.decoder = nn.Linear(4, 6, bias=False)
        self.decoder.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        hidden: Tensor = self.embedding(ids)
        logits: Tensor = self.decoder(hidden.mean(1))
        return logits


def test_tied_parameters_come_once() -> None:
    """A parameter under two names is found under the first, also when the second is asked for."""
    assert list(find_prunable(TiedDecoder())) == ["embedding.weight"]
    assert list(find_prunable(TiedDecoder(), ["decoder.weight"])) == ["embedding.weight"]


def test_masking_the_first_name_masks_every_use() -> None:
    """A masked forward by the first name equals one where the shared tensor itself is zeroed."""
    model = TiedDecoder()
    ids = torch.tensor([[0, 3], [5, 1]])
    (name,) = found = find_prunable(model)
    mask = torch.rand(6, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    masked = functional_call(model, masked_weights(found, {name: mask}), (ids,))
    table = model.embedding.weight.detach() * mask
    assert torch.equal(masked, table[ids].mean(1) @ table.T)


def test_a_module_used_twice_is_masked_at_both_places() -> None:
    """A layer that is registered under two names counts once and is masked in both places."""
    layer = nn.Linear(3, 3, bias=False)
    model = nn.Sequential(layer, nn.Tanh(), layer)
    assert list(find_prunable(model)) == ["0.weight"]
    mask = torch.eye(3, dtype=torch.bool)
    inputs = torch.ones(1, 3)
    diagonal = layer.weight.detach() * mask
    expected = torch.tanh(inputs @ diagonal.T) @ diagonal.T
    masked = functional_call(
        model, masked_weights(find_prunable(model), {"0.weight": mask}), (inputs,)
    )
    torch.testing.assert_close(masked, expected)


@pytest.mark.parametrize("dims", [{}, {"kdim": 3, "vdim": 2}])
def test_masked_attention_equals_zeroed_attention(dims: dict[str, int]) -> None:
    """Attention projections that are masked by name act as if zeroed in place."""
    model = nn.MultiheadAttention(4, 2, batch_first=True, **dims).eval()
    model.requires_grad_(False)  # torch rounds attention otherwise where a weight has the flag
    query, key, value = (torch.rand(2, 3, dims.get(d, 4)) for d in ("", "kdim", "vdim"))
    found = find_prunable(model)
    masked = {name: weight.detach() * (weight > 0) for name, weight in found.items()}
    zeroed = copy.deepcopy(model)
    for name, weight in masked.items():
        zeroed.get_parameter(name).data.copy_(weight)
    assert len(found) == (4 if dims else 2)
    with torch.no_grad():
        output = functional_call(model, masked, (query, key, value))[0]
        assert torch.equal(output, zeroed(query, key, value)[0])
        assert not torch.equal(output, model(query, key, value)[0])


def test_the_search_changes_nothing() -> None:
    """Looking for weights leaves values, modes and gradients as they are."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout())
    before = copy.deepcopy(model.state_dict())
    find_prunable(model, ["0.bias"])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def _with(change: Callable[[nn.Sequential], object]) -> nn.Module:
    model = _net()
    change(model)
    return model


_prune: Callable[..., nn.Module] = prune.random_unstructured


def _net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def _quietly(build: Callable[[], nn.Module]) -> nn.Module:
    with warnings.catch_warnings():  # torch announces the end of these interfaces
        warnings.simplefilter("ignore")
        return build()


def _dynamic_quantised() -> nn.Module:
    quantise: Callable[..., nn.Module] = torch.ao.quantization.quantize_dynamic
    return _quietly(lambda: quantise(_net(), {nn.Linear}, dtype=torch.qint8))


def _stripped_pruned() -> nn.Module:
    """Return a pruned layer whose hook is lost, as after rebuilding it by hand."""
    model = _with(lambda m: prune.identity(m[0], "weight"))
    model.get_submodule("0")._forward_pre_hooks.clear()
    return model


def _of_dtype(dtype: torch.dtype) -> nn.Module:
    model = _net()
    model[0].weight = nn.Parameter(torch.ones(2, 3).to(dtype), requires_grad=False)
    return model


def _sparse() -> nn.Module:
    model = _net()
    model[0].weight = nn.Parameter(torch.eye(2, 3).to_sparse())
    return model


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "pruned": (
        lambda: _with(lambda m: _prune(m[0], "weight", 0.5)),
        r"layer '0' .*already pruned.*prune\.remove\(module, 'weight'\)",
    ),
    "pruned bias, twice": (
        lambda: _with(lambda m: [_prune(m[0], "bias", 0.5) for _ in "12"]),
        r"layer '0' .*already pruned.*prune\.remove\(module, 'bias'\)",
    ),
    "pruned, hook lost": (_stripped_pruned, r"already pruned.*prune\.remove\(module, 'weight'\)"),
    "parametrised": (
        lambda: _with(lambda m: parametrizations.orthogonal(m[0])),
        r"layer '0' .*parametrised.*remove_parametrizations\(module, 'weight'\)",
    ),
    "weight norm": (
        lambda: _quietly(lambda: _with(lambda m: nn.utils.weight_norm(m[0]))),
        r"layer '0' .*weight normalisation.*remove_weight_norm\(module, 'weight'\)",
    ),
    "spectral norm": (
        lambda: _quietly(lambda: _with(lambda m: nn.utils.spectral_norm(m[0]))),
        r"layer '0' .*spectral normalisation.*remove_spectral_norm\(module, 'weight'\)",
    ),
    "quantised layer": (_dynamic_quantised, "layer '0' .*quantised.*before quantising"),
    "TorchScript": (
        lambda: _quietly(lambda: torch.jit.script(_net())),
        "the network .*TorchScript.*Python module",
    ),
    "lazy": (
        lambda: nn.Sequential(nn.ReLU(), nn.LazyLinear(2)),
        "parameter '1.weight' is lazy.*run the network once",
    ),
    "lazy buffer": (
        lambda: nn.Sequential(nn.Linear(2, 2), nn.LazyBatchNorm1d(affine=False)),
        "buffer '1.running_mean' is lazy",
    ),
    "meta": (lambda: nn.Linear(2, 2, device="meta"), "parameter 'weight' is on the meta device"),
    "int8": (lambda: _of_dtype(torch.int8), "parameter '0.weight' is torch.int8, an integer"),
    "float8": (lambda: _of_dtype(torch.float8_e4m3fn), "parameter '0.weight' is torch.float8_e4m3"),
    "complex": (lambda: _of_dtype(torch.complex64), "parameter '0.weight' is torch.complex64"),
    "sparse": (_sparse, r"parameter '0.weight' is stored as torch.sparse_coo.*to_dense"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_structure_that_cannot_be_pruned(case: str) -> None:
    """A network whose weights cannot be read and replaced is refused, with the way out."""
    build, message = REFUSED[case]
    for entry in (check_structure, check_prunable, find_prunable):
        with pytest.raises(InputError, match=message):
            entry(build())


def test_quantised_buffer() -> None:
    """Packed weights that a hand-written layer keeps in a buffer are noticed."""
    model = nn.Linear(2, 2)
    packed = _quietly_quantised(torch.ones(2, 2))
    model.register_buffer("packed", packed)
    with pytest.raises(InputError, match=r"'packed' .*torch.qint8"):
        find_prunable(model)


def _quietly_quantised(tensor: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["0.weight", "0.bias", "1.weight"])
def test_parameters_must_be_finite(name: str, value: float) -> None:
    """NaN and Inf in any parameter, prunable or not, are refused by name and counted."""
    model = _net()
    model.get_parameter(name).data.view(-1)[0] = value
    nan = int(math.isnan(value))
    counted = f"{nan} of its . .*NaN and {1 - nan} "
    with pytest.raises(InputError, match=f"'{name}' .*finite.* {counted}"):
        find_prunable(model)
    check_structure(model)  # the structure alone is sound


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_buffers_must_be_finite(value: float) -> None:
    """NaN and +Inf in a buffer, such as a BatchNorm statistic, are refused by name."""
    model = _net()
    model.get_buffer("1.running_var")[1] = value
    with pytest.raises(InputError, match=r"buffer '1.running_var'"):
        find_prunable(model)


def test_attention_masks_may_hold_minus_infinity() -> None:
    """A causal mask of −Inf in a buffer is sound, and so are buffers of integers."""
    model = nn.Linear(2, 2)
    model.register_buffer("causal", torch.full((3, 3), -torch.inf).triu(1))
    model.register_buffer("steps", torch.tensor(3))
    assert list(find_prunable(model)) == ["weight"]


def test_not_a_module() -> None:
    """Something else than a module is refused by its type."""
    with pytest.raises(InputError, match="got dict"):
        find_prunable({"weight": torch.ones(2)})  # type: ignore[arg-type]
