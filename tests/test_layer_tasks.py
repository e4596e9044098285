"""Layers one after the other: blocks of networks, moments of their inputs, and workers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from criterion_networks import network_of, seeded
from test_attention_heads import language_model
from torch import Tensor, nn

from gaprune.criteria import layer_tasks, score
from gaprune.criteria.allocation import (
    DECAY,
    best_densities,
    fisher_wanda_rows,
    layer_damages,
)
from gaprune.criteria.layer_inputs import InputMoments, WeightShape
from gaprune.criteria.layer_tasks import layer_tasks_on, shared_inputs, work_on_layers
from gaprune.criteria.swaps import one_shot_mask
from gaprune.evaluation.objectives import token_divergence
from gaprune.models.blocks import sequential_blocks
from gaprune.models.forward import functional_forward
from gaprune.models.input_spec import InputSpec
from gaprune.models.network import DenseNetwork
from gaprune.workers import WorkerOptions, open_workers

IDS = torch.randint(20, (11, 12), generator=seeded())
LANGUAGE_MODELS = {
    "LlamaForCausalLM": "layers",
    "GPT2LMHeadModel": "h",
    "OPTForCausalLM": "layers",
    "BertForMaskedLM": "layer",
}


def llama() -> DenseNetwork:
    """Return a language model of two blocks."""
    spec = InputSpec((12,), "tokens", vocabulary=20)
    network = network_of(lambda: language_model("LlamaForCausalLM"), spec)
    kept = {name: weight for name, weight in network.weights.items() if "proj" in name}
    return DenseNetwork(network.model, kept, network.layout.of(kept), spec)


@pytest.fixture
def by_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every network block by block."""
    monkeypatch.setattr(layer_tasks, "MATRICES", 0)


class MomentsOf:
    """A task that returns moments."""

    def __init__(self, name: str, moments: InputMoments) -> None:
        self.name, self.moments = name, moments

    def run(self, _: DenseNetwork) -> tuple[Tensor, int]:
        """Return the Gram matrix of the inputs and their number."""
        return self.moments.gram(), self.moments.count


def matrices(network: DenseNetwork) -> dict[str, tuple[Tensor, int]]:
    """Return the Gram matrices of all layers' inputs."""
    return dict(work_on_layers(network, IDS, seeded(1), MomentsOf))


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_layers_of_transformers_are_blocks(name: str) -> None:
    """The layers of decoders and encoders are found, in order."""
    model = network_of(
        lambda: language_model(name), InputSpec((12,), "tokens", vocabulary=20)
    ).model
    blocks = sequential_blocks(model, IDS[:1])
    assert [block.split(".")[-2:] for block in blocks] == [
        [LANGUAGE_MODELS[name], str(index)] for index in range(2)
    ]


def test_blocks_of_vision_transformers_are_found() -> None:
    """Those of timm are a sequence."""
    timm = pytest.importorskip("timm")
    sizes = {"img_size": 32, "depth": 2, "embed_dim": 24, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", **sizes).eval()
    assert sequential_blocks(model, torch.rand(1, 3, 32, 32)) == ("blocks.0", "blocks.1")


class Skipping(nn.Module):
    """The second block takes more than what the first one returns."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(2)])

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.blocks[1](self.blocks[0](inputs) + inputs)
        return outputs


def test_other_networks_have_no_blocks() -> None:
    """Blocks whose inputs are not the outputs of the one before are none."""
    assert sequential_blocks(Skipping(), torch.ones(1, 4)) == ()


def test_moments_of_parts_are_those_of_all() -> None:
    """Merged moments are those of the inputs together, whatever their means."""
    columns = torch.randn(30, 5, generator=seeded()) + 3
    shape = WeightShape(1, 1, 5, 3, 2)
    whole, merged = InputMoments(shape), InputMoments(shape)
    whole.add(columns, torch.arange(30))
    for part in ((columns[:7]), columns[7:] + 0):
        other = InputMoments(shape)
        other.add(part, torch.arange(len(part)))
        merged.merge(other)
    assert merged.count == whole.count
    torch.testing.assert_close(merged.gram(), whole.gram())
    torch.testing.assert_close(merged.covariance(), whole.covariance(), rtol=1e-4, atol=1e-5)


def test_block_by_block_measures_what_whole_passes_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every layer's matrix is that of passes through the whole network."""
    network = llama()
    expected = matrices(network)
    monkeypatch.setattr(layer_tasks, "MATRICES", 0)
    found = matrices(network)
    assert found.keys() == expected.keys() == network.weights.keys()
    for name, (gram, count) in found.items():
        assert count == expected[name][1] == IDS.numel()
        torch.testing.assert_close(gram, expected[name][0], rtol=1e-4, atol=1e-6)


def test_layers_of_the_same_input_share_its_moments() -> None:
    """Queries, keys and values multiply the same tensor, as do gate and up."""
    network = llama()
    sources = shared_inputs(network, IDS[:1], network.weights)
    groups = {name.split(".")[-2]: source.split(".")[-2] for name, source in sources.items()}
    assert groups == {
        **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "q_proj"),
        **dict.fromkeys(("gate_proj", "up_proj"), "gate_proj"),
        "o_proj": "o_proj",
        "down_proj": "down_proj",
    }


def test_damages_are_divergences_of_the_outputs() -> None:
    """Those of layers whose smallest weights are removed alone, to second order."""
    network, texts = llama(), torch.randint(20, (50, 12), generator=seeded())
    removed = {name: w.abs() < 0.3 * w.abs().mean() for name, w in network.weights.items()}
    damages = layer_damages(network, removed, texts, seeded())
    dense = network.model(texts).flatten(0, 1)
    exact = {}
    for name, weight in network.weights.items():
        outputs = functional_forward(network.model, {name: weight * ~removed[name]}, texts)
        exact[name] = float(token_divergence(outputs.flatten(0, 1), dense)) * texts.numel()
    assert damages.keys() == exact.keys()
    total = sum(exact.values())
    assert sum(damages.values()) == pytest.approx(total, rel=0.2)
    for name, damage in damages.items():
        assert damage == pytest.approx(exact[name], rel=0.5, abs=0.05 * total)


def test_no_exchange_between_layers_lowers_the_damage() -> None:
    """Densities minimise the sum of the layers' damages and keep as many weights in all."""
    damages = torch.tensor([3.0, 0.2, 0.2, 5e-9, 800.0], dtype=torch.float64)
    sizes = torch.tensor([40.0, 40.0, 10.0, 5.0, 5.0], dtype=torch.float64)
    best = best_densities(damages, sizes, 0.4)
    assert float(best @ sizes) == pytest.approx(40)
    assert best[3:].tolist() == pytest.approx([0.2, 0.7])  # no layer leaves its bounds
    costs = damages * (-DECAY * (best - 0.4)).exp()
    gains = (DECAY * costs / sizes)[:3]  # of one more weight
    assert gains.tolist() == pytest.approx([float(gains[0])] * 3)


def test_rows_of_a_layer_keep_equally_many_weights() -> None:
    """Counts follow the layers' damages, and all rows of a layer have the same."""
    network = llama()
    scores = fisher_wanda_rows(network, IDS, IDS, 0.5, seeded())
    masks = network.layout.split(one_shot_mask(scores, network.layout, 0.5))
    assert sum(int(mask.sum()) for mask in masks.values()) == network.layout.total // 2
    assert len({round(float(mask.float().mean()), 1) for mask in masks.values()}) > 1
    for mask in masks.values():
        rows = mask.sum(1)
        assert int(rows.max() - rows.min()) <= 1


@pytest.mark.usefixtures("by_blocks")
def test_swaps_of_a_language_model_keep_the_budget() -> None:
    """Whatever counts they start from, they keep as many weights in all as the density says."""
    network = llama()
    mask = one_shot_mask(score("swaps", network, IDS, seeded(), 0.4), network.layout, 0.4)
    assert int(mask.sum()) == round(0.4 * network.layout.total)


@pytest.mark.slow  # it starts Ray
@pytest.mark.usefixtures("by_blocks", "ray_session")
def test_two_actors_find_the_same_masks() -> None:
    """Workers refine the layers of blocks; the scores are the same bit for bit."""
    network = llama()
    expected = score("swaps", network, IDS, seeded(), 0.5)
    kinds: set[str] = set()
    with open_workers(network, WorkerOptions(2)) as workers:

        def run(tasks: Sequence[object]) -> Sequence[object]:
            kinds.update(type(task).__name__ for task in tasks)
            return workers.run(tasks)

        with layer_tasks_on(run):
            spread = score("swaps", network, IDS, seeded(), 0.5)
    assert torch.equal(spread, expected)
    assert kinds == {"BlockPass", "RefineLayer"}
    mask = one_shot_mask(spread, network.layout, 0.5)
    assert int(mask.sum()) == network.layout.total // 2
