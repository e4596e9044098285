"""Every kind of prunable weight, layers left whole, and stated fractions of some layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gaprune import InputOptions, prune
from gaprune.config import make_settings
from gaprune.criteria import CRITERIA, score
from gaprune.errors import InputError
from gaprune.masks.budget import keep_total, uniform_counts, with_layer_sparsity
from gaprune.masks.supermask import Layout, global_mask, layer_counts
from gaprune.models.layer_kinds import weight_axes
from gaprune.models.patterns import searched_layout, units_of
from gaprune.models.prunable import find_prunable, parameters_left_whole
from gaprune.models.target import Target, target_from_module
from gaprune.runs.result import Result
from gaprune.runs.warnings import coverage_warning


class Conv1D(nn.Module):
    """The linear layer of GPT-2, as in transformers."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return x·W + b."""
        return torch.addmm(self.bias, x, self.weight)


Conv1D.__module__ = "transformers.pytorch_utils"


class TinyExperts(nn.Module):
    """A mean of experts, one matrix each."""

    def __init__(self, *, is_transposed: bool = False) -> None:
        super().__init__()
        self.is_transposed = is_transposed
        self.up_proj = nn.Parameter(torch.randn(3, 8, 4).mT.contiguous().mT)
        if is_transposed:
            self.up_proj = nn.Parameter(torch.randn(3, 4, 8))
        self.bias = nn.Parameter(torch.zeros(3, 2, 8))

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean over experts and biases `[N, 8]`."""
        weight = self.up_proj if self.is_transposed else self.up_proj.mT
        return (x @ weight).mean(0) + self.bias.mean((0, 1))


class Scaled(nn.Module):
    """A layer of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.bias = nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        """Return x·W + b."""
        return x @ self.weight + self.bias


class TiedModel(nn.Module):
    """A language model whose output head is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 4)
        self.block = nn.Linear(4, 4)
        self.head = nn.Linear(4, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits of the last token."""
        outputs: Tensor = self.head(self.block(self.embedding(tokens)).tanh()[:, -1])
        return outputs


class UntiedModel(TiedModel):
    """The same with a head of its own, named as in transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 11)

    def get_output_embeddings(self) -> nn.Module:
        """Return the head."""
        return self.head


class Recurrent(nn.Module):
    """An LSTM and a small head."""

    def __init__(self, proj_size: int = 0) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 8, 2, batch_first=True, bidirectional=True, proj_size=proj_size)
        self.fc = nn.Linear(2 * (proj_size or 8), 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return the classes of sequences `[N, T, 4]`."""
        outputs: Tensor = self.fc(self.lstm(x)[0][:, -1])
        return outputs


def target_of(model: nn.Module, *shape: int, **options: Any) -> Target:
    """Return a target that takes inputs in −1 to 1."""
    return target_from_module(model, inputs=InputOptions(shape=shape, range=(-1, 1)), **options)


def mlp() -> nn.Sequential:
    """Return layers of 32, 64 and 24 weights."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3, bias=False)
    )


def pruned(model: nn.Module, *shape: int, **options: Any) -> Result:
    """Prune half of a network in one short search."""
    stated = {"sparsity": 0.5, "calibration_count": 16, "validation_count": 16, **options}
    inputs = InputOptions(shape=shape, range=(-1, 1))
    return prune(model, inputs=inputs, generations=2, steps=1, population=4, offspring=4, **stated)


@pytest.mark.parametrize(
    ("model", "extra", "ignore", "expected"),
    [
        (Recurrent(), (), "lstm", ["fc.weight"]),
        (Recurrent(4), (), ("*_l0*", "LSTM.weight_hr*", "Linear"), 4),
        (nn.Sequential(Conv1D(4, 4), Scaled()), (), (), ["0.weight"]),
        (nn.Sequential(Conv1D(4, 4), Scaled()), "Scaled.weight", (), ["0.weight", "1.weight"]),
        (nn.Sequential(Conv1D(4, 4), Scaled()), "1.weight", "*", ["1.weight"]),
        (nn.Sequential(TinyExperts(), nn.Linear(8, 2)), (), (), ["0.up_proj", "1.weight"]),
        (nn.Sequential(nn.EmbeddingBag(5, 4), nn.Linear(4, 2)), "EmbeddingBag", "1", ["0.weight"]),
        (TiedModel(), (), (), ["block.weight"]),
        (UntiedModel(), (), (), ["block.weight"]),
        (TiedModel(), "head", (), ["embedding.weight", "block.weight"]),
    ],
)
def test_names_globs_and_types_choose_parameters(
    model: nn.Module, extra: Sequence[str], ignore: Sequence[str], expected: list[str] | int
) -> None:
    """A full name in `prune_also` is stronger than a pattern of `ignore`."""
    names = list(find_prunable(model, extra, ignore))
    assert (len(names) if isinstance(expected, int) else names) == expected


@pytest.mark.parametrize(("extra", "ignore"), [((), "fc9"), (("0.bias",), ("0.bias",))])
def test_patterns_that_fit_nothing_or_contradict(
    extra: Sequence[str], ignore: Sequence[str]
) -> None:
    """Both are refused in the name of the option."""
    with pytest.raises(InputError, match=r"^ignore:"):
        find_prunable(mlp(), extra, ignore)


@pytest.mark.slow
def test_every_weight_of_a_recurrent_network_is_searched() -> None:
    """The budget holds, each matrix loses weights, and no criterion fails."""
    result = pruned(Recurrent(), 5, 4)
    assert result.actual_sparsity == pytest.approx(0.5, abs=1e-3)
    assert len(result.masks) == 9
    assert set(CRITERIA) <= set(result.baselines)


def transposed_pair() -> tuple[Target, Target]:
    """Return a `Conv1D` and the `Linear` that computes the same."""
    linear, other = nn.Linear(12, 8), Conv1D(8, 12)
    with torch.no_grad():
        other.weight.copy_(linear.weight.T)
        other.bias.copy_(linear.bias)
    ours, theirs = (target_of(nn.Sequential(layer), 12) for layer in (other, linear))
    return ours, theirs


@pytest.mark.parametrize(
    "criterion", ["magnitude", "erk", "wanda", "wanda-rows", "lamp-wanda", "correlation"]
)
def test_transposed_linear_layers_are_scored_like_linear_ones(criterion: str) -> None:
    """The scores of `Conv1D` are those of `Linear`, transposed."""
    inputs, generator = torch.randn(64, 12) @ torch.randn(12, 12), torch.Generator()
    ours, theirs = (
        target.layout.split(score(criterion, target, inputs, generator))["0.weight"]
        for target in transposed_pair()
    )
    assert torch.allclose(ours.T, theirs)


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_transposed_linear_layers_are_compensated_like_linear_ones(pattern: str) -> None:
    """The mask by swaps and the fitted weights of `Conv1D` are those of `Linear`."""
    stated: dict[str, Any] = {"method": "swaps", "sparsity": 0.5, "pattern": pattern}
    stated |= {"compensate": True, "calibration_count": 64, "validation_count": 16}
    inputs = InputOptions(shape=(12,), range=(-1, 1))
    ours, theirs = (prune(target.model, inputs=inputs, **stated) for target in transposed_pair())
    assert torch.equal(ours.masks["0.weight"].T, theirs.masks["0.weight"])
    models = (ours.compensated_model(), theirs.compensated_model(), theirs.pruned_model())
    fitted, expected, masked = (model.get_parameter("0.weight") for model in models if model)
    assert torch.allclose(fitted.T, expected, atol=1e-5)
    assert not torch.equal(expected, masked)


def test_bilinear_layers_see_both_inputs() -> None:
    """Wanda scores by the norm of the products of the two inputs."""

    class Squared(nn.Bilinear):
        def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
            return super().forward(x, x if y is None else y)

    target, x = target_of(Squared(4, 4, 2), 4), torch.randn(16, 4)
    norms = torch.einsum("ni,nj->nij", x, x).square().sum(0).sqrt()
    scores = target.layout.split(score("wanda-rows", target, x, torch.Generator()))["weight"]
    expected = (target.weights["weight"].abs() * norms).flatten(1).argsort(1).argsort(1) + 1
    assert torch.equal((scores.flatten(1) * 16).round().long(), expected)


@pytest.mark.parametrize(
    ("model", "name", "rows", "inputs"),
    [
        (Conv1D(8, 4), "weight", (1,), 0),
        (TinyExperts(), "up_proj", (0, 1), 2),
        (TinyExperts(is_transposed=True), "up_proj", (0, 2), 1),
        (nn.Linear(4, 8), "weight", (0,), 1),
        (nn.ConvTranspose1d(4, 8, 3), "weight", (1,), 0),
        (nn.LSTMCell(4, 8), "weight_ih", (0,), 1),
    ],
)
def test_rows_and_inputs_of_weights(
    model: nn.Module, name: str, rows: tuple[int, ...], inputs: int
) -> None:
    """Rows are outputs, of one expert; inputs are the axis that N:M patterns group."""
    kind = weight_axes(model, name)
    assert (kind.rows, kind.inputs) == (rows, inputs)


@pytest.mark.parametrize("model", [Conv1D(8, 4), TinyExperts(), TinyExperts(is_transposed=True)])
def test_patterns_follow_the_inputs(model: nn.Module) -> None:
    """2:4 keeps two of four inputs, and a block of 1x4 all inputs of an output of one expert."""
    target = target_of(model, 4)
    (name,) = target.layout.names
    inputs = weight_axes(model, name).inputs
    scores = torch.randn(target.layout.total)
    layout = searched_layout(target, make_settings({"pattern": "2:4"}))
    assert layout.n_of_m is not None
    mask = layout.n_of_m.mask(scores, layout.slices, layout.shapes)
    assert set(target.layout.split(mask)[name].sum(inputs).flatten().tolist()) == {2}
    blocks = units_of(target, make_settings({"pattern": "1x4", "sparsity": 0.5}))
    assert blocks is not None
    assert blocks.layout.total == target.layout.total // 4
    units = torch.arange(blocks.layout.total) % 2 == 0
    kept = target.layout.split(blocks.weight_mask(units))[name].sum(inputs)
    assert set(kept.flatten().tolist()) == {0, 4}
    assert torch.equal(
        blocks.unit_mean(scores).sort().values,
        target.layout.split(scores)[name].mean(inputs).flatten().sort().values,
    )


@pytest.mark.parametrize("scope", ["allocated", "global", "layer"])
@pytest.mark.parametrize("pattern", ["unstructured", "2x2"])
def test_stated_fractions_hold_within_the_exact_budget(scope: str, pattern: str) -> None:
    """The stated layers lose exactly that much, every mask of the search included."""
    fractions = {"0": 0.25, "4.weight": 0}
    result = pruned(mlp(), 4, layer_sparsity=fractions, scope=scope, pattern=pattern)
    kept = {layer.name: layer.kept / layer.total for layer in result.layers}
    assert kept["0.weight"] == 0.75
    assert kept["4.weight"] == 1
    # 16 of 32 blocks: 6 and 2 whole ones, and 8 of the last layer, of which 4 are half as large
    assert result.kept == (60 if pattern == "unstructured" else 56)


def test_ignored_layers_take_no_part_in_the_budget() -> None:
    """Half of the other weights go, and the ignored ones are bit-identical."""
    model = mlp()
    result = pruned(model, 4, ignore=("0", "*.bias"))
    assert list(result.masks) == ["2.weight", "4.weight"]
    assert result.kept == 44
    assert torch.equal(result.state_dict()["0.weight"], model.state_dict()["0.weight"])


LAYOUT = Layout(("a", "b"), ((10,), (30,)))


@pytest.mark.parametrize(
    ("fractions", "sparsity", "counts"),
    [({"a": 0.5}, 0.5, [5, 15]), ({"a": 0}, 0.5, [10, 10]), ({"b": 0.9}, 0.75, [7, 3])],
)
def test_counts_of_fixed_layers(
    fractions: dict[str, float], sparsity: float, counts: list[int]
) -> None:
    """Equal density and one ranking both respect them."""
    layout = with_layer_sparsity(LAYOUT, fractions)
    assert uniform_counts(layout, sparsity) == counts
    mask = global_mask(torch.rand(40), layout, keep_total(layout, sparsity))
    assert layer_counts(mask, layout) == counts


@pytest.mark.parametrize(
    ("fractions", "sparsity", "figures"),
    [({"b": 0.9}, 0.5, "13.*20.*0.675"), ({"b": 0}, 0.5, "31.*20.*0.225"), ({"a": 0.97}, 0.5, "0")],
)
def test_impossible_fractions(fractions: dict[str, float], sparsity: float, figures: str) -> None:
    """They are refused with what is possible."""
    with pytest.raises(InputError, match=f"layer_sparsity.*{figures}"):
        keep_total(with_layer_sparsity(LAYOUT, fractions), sparsity)


@pytest.mark.parametrize(
    "options",
    [
        {"pattern": "2:4"},
        {"pattern": "channel"},
        {"budget": "macs"},
        {"max_drop": 0.1},
        {"pareto": True},
        {"layer_sparsity": {"1": 0.5}},
        {"layer_sparsity": {"0.bias": 0.5}},
        {"layer_sparsity": {"0": 1.5}},
    ],
)
def test_fractions_that_do_not_fit(options: dict[str, Any]) -> None:
    """Other budgets, layers without prunable weights, and fractions outside 0 to 1."""
    with pytest.raises(InputError, match=r"^layer_sparsity"):
        pruned(mlp(), 4, **{"layer_sparsity": {"0": 0.5}, **options})


def test_a_run_warns_about_a_network_that_is_mostly_left_whole() -> None:
    """The largest parameters are named; ignored ones are left whole on purpose."""
    model = nn.Sequential(Scaled(), nn.Linear(4, 2))
    text = coverage_warning(target_of(model, 4))
    assert text is not None
    assert "--prune-also=0.weight" in text
    assert coverage_warning(target_of(model, 4, ignore=("Scaled", "*.bias"))) is None
    assert coverage_warning(target_of(mlp(), 4)) is None
    assert parameters_left_whole(model, ["1.weight"], "*.bias") == {"0.weight": 16}
