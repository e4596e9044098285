"""Criteria that run the network on inputs: each against an independent oracle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from criterion_networks import CASES, VECTOR, network_of, seeded, tiny, tiny_calibration
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from gaprune.criteria import CRITERIA, DenseNetwork, score
from gaprune.criteria.activations import input_energies
from gaprune.criteria.gradients import TAYLOR_BATCH, pseudo_label_loss
from gaprune.criteria.weights_only import lamp_scores
from gaprune.masks.supermask import Layout, global_mask, layer_counts
from gaprune.models.input_spec import InputSpec


def mean_loss(
    network: DenseNetwork, flat: Tensor, calibration: Tensor, temperature: float = 1.0
) -> Tensor:
    """Return the mean cross-entropy at other weights against the dense network's own classes."""
    labels = network.model(calibration).argmax(1)
    logits = functional_call(network.model, network.layout.split(flat), (calibration,))
    return functional.cross_entropy(logits / temperature, labels)


def test_snip_is_the_slope_of_a_gate() -> None:
    """|∂L/∂c| by central differences of a gate c on each weight, over more than one batch."""
    network, calibration = tiny(), tiny_calibration(300)
    scores = score("snip", network, calibration, seeded())
    step = 1e-5 * torch.eye(network.layout.total, dtype=torch.float64)
    slopes = [
        mean_loss(network, network.flat * (1 + gate), calibration)
        - mean_loss(network, network.flat * (1 - gate), calibration)
        for gate in step
    ]
    torch.testing.assert_close(scores, (torch.stack(slopes) / 2e-5).abs().float())


def test_grasp_is_weight_times_hessian_times_gradient() -> None:
    """Weight · Hg with the Hessian written out, at the paper's temperature, in two batches."""
    network, calibration = tiny(), tiny_calibration(300)

    def loss(flat: Tensor) -> Tensor:
        return mean_loss(network, flat, calibration, 200.0)

    slope = torch.func.grad(loss)
    hessian, gradient = torch.func.jacrev(slope)(network.flat), slope(network.flat)
    scores = score("grasp", network, calibration, seeded())
    expected = (network.flat * (hessian @ gradient)).float()
    torch.testing.assert_close(scores, expected, atol=1e-12, rtol=1e-4)


def test_taylor_averages_the_squares_of_mini_batches() -> None:
    """(w·g)² of each mini-batch's mean loss, weighted by how many calibration inputs it holds."""
    network, calibration = tiny(), tiny_calibration(2 * TAYLOR_BATCH + 8)
    expected = torch.zeros_like(network.flat)
    for start in range(0, len(calibration), TAYLOR_BATCH):
        batch = calibration[start : start + TAYLOR_BATCH]
        gradient = torch.func.grad(lambda flat, x=batch: mean_loss(network, flat, x))(network.flat)
        expected += len(batch) / len(calibration) * (network.flat * gradient) ** 2
    scores = score("taylor", network, calibration, seeded())
    torch.testing.assert_close(scores, expected.float())


@pytest.mark.parametrize("shape", [(6, 1), (6,), (6, 2, 5)])
def test_other_outputs_are_treated_as_regression(shape: tuple[int, ...]) -> None:
    """The loss of a regressor has its outputs as gradient: it vanishes only where they do."""
    outputs = torch.randn(shape, generator=seeded())
    torch.testing.assert_close(torch.func.grad(pseudo_label_loss)(outputs), outputs)


AFFINE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(4, 3), (4,)),
    "linear on sequences": (lambda: nn.Linear(4, 3), (5, 4)),
    "conv1d": (lambda: nn.Conv1d(2, 3, 3, padding=1, stride=2), (2, 8)),
    "conv2d": (lambda: nn.Conv2d(2, 3, (3, 2), padding=1, dilation=2), (2, 6, 7)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, bias=False), (4, 6, 6)),
    "circular": (lambda: nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), (2, 5, 5)),
    "conv3d": (lambda: nn.Conv3d(1, 2, 2), (1, 3, 4, 3)),
    "transposed": (lambda: nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1), (2, 4, 4)),
}


@pytest.mark.parametrize("case", AFFINE)
def test_wanda_energy_is_the_squared_output_of_a_single_weight(case: str) -> None:
    """If one weight is 1 and all others 0, the output is the inputs that the weight multiplies."""
    build, shape = AFFINE[case]
    network = network_of(build, InputSpec(shape, "vector"), vectors=True)
    calibration = torch.randn(7, *shape, generator=seeded())
    energies = network.layout.flatten(input_energies(network, calibration))
    for index, energy in enumerate(energies):
        alone = torch.zeros(network.layout.total).index_fill_(0, torch.tensor(index), 1.0)
        output = functional_call(network.model, network.layout.split(alone), (calibration,))
        torch.testing.assert_close(energy, output.double().square().sum(), rtol=1e-5, atol=1e-5)


def test_wanda_energy_of_attention() -> None:
    """Input projections multiply the tokens, the output projection softmax(QKᵀ/√d)·V."""
    network, ids = CASES["attention"][0](), CASES["attention"][1]()
    energies, weights = input_energies(network, ids), network.weights
    hidden = weights["embedding.weight"][ids]
    columns = hidden.double().square().sum((0, 1))
    torch.testing.assert_close(
        energies["attention.in_proj_weight"], columns.expand(24, -1), rtol=1e-5, atol=0
    )
    projected = hidden @ weights["attention.in_proj_weight"].T
    q, k, v = (part.view(20, 5, 2, 4).transpose(1, 2) for part in projected.chunk(3, dim=-1))
    heads = ((q @ k.mT / 2).softmax(-1) @ v).transpose(1, 2).reshape(20, 5, 8)
    columns = heads.double().square().sum((0, 1))
    torch.testing.assert_close(
        energies["attention.out_proj.weight"], columns.expand(8, -1), rtol=1e-4, atol=0
    )
    counts = torch.bincount(ids.flatten(), minlength=11).double()
    torch.testing.assert_close(energies["embedding.weight"], counts[:, None].expand(-1, 8))


def test_wanda_balances_layers() -> None:
    """Weight times norm goes through LAMP; doubling all inputs changes nothing."""
    network = network_of(lambda: nn.Linear(4, 3, bias=False), VECTOR)
    calibration = torch.randn(9, 4, generator=seeded())
    scores = score("wanda", network, calibration, seeded())
    product = network.weights["weight"] * calibration.norm(dim=0)
    torch.testing.assert_close(scores, lamp_scores(product).flatten().float())
    assert torch.equal(scores, score("wanda", network, 2 * calibration, seeded()))


def two_layers(hidden: int) -> DenseNetwork:
    """Return 6 → hidden → 4 with a ReLU between."""
    return network_of(
        lambda: nn.Sequential(nn.Linear(6, hidden), nn.ReLU(), nn.Linear(hidden, 4)),
        InputSpec((6,), "vector"),
    )


def test_wanda_rows_keeps_the_same_number_in_every_row() -> None:
    """The best half of each row has the largest |w|·‖x‖, in layers of any scale."""
    network = two_layers(5)
    calibration = torch.randn(9, 6, generator=seeded())
    norms = calibration.norm(dim=0)
    scores = network.layout.split(score("wanda-rows", network, calibration, seeded()))
    product = (network.weights["0.weight"] * norms).abs()
    mask = scores["0.weight"] > 0.5
    assert mask.sum(1).tolist() == [3] * 5
    assert torch.equal(mask, product >= product.topk(3, dim=1).values[:, -1:])
    assert (scores["2.weight"] > 0.5).sum(1).tolist() == [3] * 4


@pytest.mark.parametrize("density", [0.07, 0.4, 0.9])
@pytest.mark.parametrize("name", ["lamp-wanda", "lamp-wanda-rows"])
def test_lamp_counts_and_inputs_rank(name: str, density: float) -> None:
    """At every density, LAMP decides each layer's count and the inputs decide which weights."""
    network = two_layers(50)
    calibration = torch.randn(9, 6, generator=seeded())
    layout, hidden = network.layout, network.model.get_submodule("0")(calibration).relu()
    order = {
        key: network.weights[key].abs() * inputs.norm(dim=0).sqrt()
        for key, inputs in (("0.weight", calibration), ("2.weight", hidden))
    }
    if name.endswith("rows"):
        order = layout.split(score("wanda-rows", network, calibration, seeded()))
    keep = round(density * layout.total)
    mask = global_mask(score(name, network, calibration, seeded()), layout, keep)
    counts = layer_counts(global_mask(score("lamp", network, None, seeded()), layout, keep), layout)
    assert layer_counts(mask, layout) == counts
    for (key, layer_mask), count in zip(layout.split(mask).items(), counts, strict=True):
        worst = order[key].flatten().topk(count).values[-1]
        assert bool((order[key][layer_mask] >= worst * (1 - 1e-5)).all())


def test_criteria_share_one_measurement_of_the_inputs() -> None:
    """Input norms are measured once per set of inputs, and again when the inputs change."""
    network = network_of(lambda: nn.Linear(4, 3, bias=False), VECTOR)
    passes = []
    network.model.register_forward_hook(lambda *_: passes.append(1))
    calibration = torch.randn(9, 4, generator=seeded())
    first = score("wanda", network, calibration, seeded())
    once = len(passes)
    assert once > 0
    score("lamp-wanda-rows", network, calibration, seeded())
    assert len(passes) == once
    calibration[:, 0] *= 3
    again = score("wanda", network, calibration, seeded())
    assert len(passes) == 2 * once
    assert not torch.equal(first, again)
    fresh = network_of(lambda: nn.Linear(4, 3, bias=False), VECTOR)
    assert torch.equal(again, score("wanda", fresh, calibration, seeded()))


class Encoder(nn.Module):
    """`[N, 5, 8]` → a transformer layer → attention with smaller keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.cross = nn.MultiheadAttention(8, 2, kdim=4, vdim=6, batch_first=True)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.layer(inputs)
        outputs: Tensor = self.cross(hidden, value=hidden[..., :6], key=hidden[..., :4])[0]
        return outputs


def test_wanda_measures_transformers() -> None:
    """Torch's fused inference path calls no submodule, so the measurement must not use it."""
    network = network_of(Encoder, InputSpec((5, 8), "signal"))
    calibration = torch.randn(3, 5, 8, generator=seeded())
    energies = input_energies(network, calibration)
    assert set(energies) == set(network.weights)
    hidden = network.model.get_submodule("layer")(calibration).double().square().sum((0, 1))
    value = energies["cross.v_proj_weight"]
    torch.testing.assert_close(value, hidden[:6].expand(8, -1), rtol=1e-4, atol=0)
    for name in ("snip", "grasp", "taylor", "wanda"):
        assert score(name, network, calibration, seeded()).isfinite().all()


def tied() -> nn.Module:
    """Return two linear layers that share one square weight."""
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    second.weight = first.weight
    return nn.Sequential(first, second)


def test_tied_weights_are_scored_once() -> None:
    """A shared matrix has one score per weight, and the inputs of both uses count."""
    network = network_of(tied, VECTOR)
    calibration = torch.randn(9, 4, generator=seeded())
    assert list(network.weights) == ["0.weight"]
    inner = calibration @ network.weights["0.weight"].T
    expected = calibration.square().sum(0) + inner.square().sum(0)
    energies = input_energies(network, calibration)["0.weight"]
    torch.testing.assert_close(energies, expected.double().expand(4, -1))
    for name in CRITERIA:
        assert score(name, network, calibration, seeded()).shape == (16,)


class PooledTokens(nn.Module):
    """Ids → embedding → linear → mean over the ids that are not 0 → logits: `[N, L]` → `[N, 3]`."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.hidden, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        is_real = (ids != 0).unsqueeze(-1)
        hidden = self.hidden(self.embedding(ids)).relu() * is_real
        logits: Tensor = self.head(hidden.sum(1) / is_real.sum(1))
        return logits


@pytest.mark.parametrize("criterion", ["wanda", "correlation", "swaps"])
def test_padding_does_not_count(criterion: str) -> None:
    """Texts that are filled up have the scores of the same texts without padding."""
    spec = InputSpec((5,), "tokens", vocabulary=11, padding=0)
    network = network_of(PooledTokens, spec)
    weights = {name: w for name, w in network.weights.items() if "embedding" not in name}
    network = DenseNetwork(network.model, weights, Layout.of(weights), spec)
    texts = torch.randint(1, 11, (40, 5), generator=seeded())
    padded = functional.pad(texts, (0, 7))
    plain, filled = (score(criterion, network, ids, seeded(3), 0.5) for ids in (texts, padded))
    torch.testing.assert_close(plain, filled)
    uncounted = replace(network, inputs=InputSpec((5,), "tokens", vocabulary=11))
    assert not torch.allclose(score(criterion, uncounted, padded, seeded(3), 0.5), plain)
