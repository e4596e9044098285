"""Layers one after the other: blocks of networks, moments of their inputs, and workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch
from criterion_networks import network_of, seeded
from criterion_networks import tiny as two_layers
from test_attention_heads import language_model
from torch import Tensor, nn

from gaprune.criteria import layer_tasks, score
from gaprune.criteria.allocation import block_wanda_rows
from gaprune.criteria.layer_inputs import InputMoments, WeightShape
from gaprune.criteria.layer_tasks import layer_tasks_on, shared_inputs, work_on_layers
from gaprune.criteria.swaps import one_shot_mask
from gaprune.models.blocks import sequential_blocks
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


def test_blocks_that_cost_more_keep_more() -> None:
    """Counts follow the damage of blocks; rows of a layer keep equally many weights."""
    network = llama()

    def damage(weights: Mapping[str, Tensor]) -> float:
        return 10.0 if all(".layers.0." in name for name in weights) else 1.0

    scores = block_wanda_rows(network, IDS, 0.5, damage)
    masks = network.layout.split(one_shot_mask(scores, network.layout, 0.5))
    kept = {name: int(mask.sum()) for name, mask in masks.items()}
    assert sum(kept.values()) == network.layout.total // 2
    for name, mask in masks.items():
        if ".layers.0." in name:
            assert kept[name] > kept[name.replace(".0.", ".1.")]
        rows = mask.sum(1)
        assert int(rows.max() - rows.min()) <= 1
    with pytest.raises(LookupError):
        block_wanda_rows(two_layers(), torch.rand(5, 4).double(), 0.5, damage)


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
