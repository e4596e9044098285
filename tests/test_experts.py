"""Pattern `expert`: whole experts are removed from a mixture, and no token is routed to them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from search_cases import seeded
from torch import Tensor, nn

from gaprune import InputOptions, Result, export, prune, prune_target
from gaprune.config import make_settings
from gaprune.criteria import find_criterion
from gaprune.errors import InputError
from gaprune.masks.units import ChannelUnits
from gaprune.models.expert_routing import find_experts, remove_experts
from gaprune.models.mac_cost import kept_macs
from gaprune.models.patterns import searched_layout, units_of
from gaprune.models.sources.optional_packages import import_extra
from gaprune.models.target import Target, load_target

EXPERTS, CHOSEN, LENGTH = 5, 2, 8
SIZES: dict[str, Any] = {
    "vocab_size": 20,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 12,
    "moe_intermediate_size": 12,
    "max_position_embeddings": LENGTH,
    "num_experts_per_tok": CHOSEN,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
DEEPSEEK = {
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 0,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
# Class → the number of experts in its configuration, and more settings.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "MixtralForCausalLM": ("num_local_experts", {}),
    "OlmoeForCausalLM": ("num_experts", {}),
    "Qwen3MoeForCausalLM": ("num_experts", {"head_dim": 8, "norm_topk_prob": True}),
    "DeepseekV3ForCausalLM": ("n_routed_experts", DEEPSEEK),
    "GptOssForCausalLM": ("num_local_experts", {"head_dim": 8}),
}
QUICK = ("MixtralForCausalLM", "DeepseekV3ForCausalLM")  # softmax, and sigmoid with a bias
PATTERN: dict[str, Any] = {"pattern": "expert", "sparsity": 0.4}
SMALL = {**PATTERN, "calibration_count": 8, "validation_count": 4}


def saved(folder: Path, family: str = "MixtralForCausalLM", **settings: Any) -> Path:
    """Write a small network with random weights, large enough that its choices are clear."""
    count, more = FAMILIES[family]
    network = getattr(import_extra("transformers", "hf", "test"), family)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = network(network.config_class(**{**SIZES, count: EXPERTS, **more, **settings}))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 0.4)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    """Return a Mixtral as a target; tests must not change it."""
    return load_target(f"hf:{saved(tmp_path_factory.mktemp('mixtral'))}")


def texts(count: int = 6) -> Tensor:
    """Return token ids `[count, LENGTH]`."""
    return torch.randint(1, SIZES["vocab_size"], (count, LENGTH), generator=seeded(1))


def units(target: Target) -> ChannelUnits:
    """Return one unit per expert."""
    found = units_of(target, make_settings(PATTERN))
    assert isinstance(found, ChannelUnits)
    return found


def masks_of(target: Target, removed: list[int]) -> dict[str, Tensor]:
    """Return masks without these experts of every layer."""
    flat = torch.ones(units(target).layout.total, dtype=torch.bool)
    for part in units(target).layout.slices:
        flat[part][removed] = False
    return target.layout.split(units(target).weight_mask(flat))


@pytest.mark.parametrize("removed", [[0], [2, 4], [0, 1, 3]])
def test_a_masked_network_is_the_smaller_one_bit_for_bit(
    target: Target, removed: list[int]
) -> None:
    """Routers choose among the experts that are left, as if there had never been others."""
    masked, compact = target.masked_copy(masks_of(target, removed)), copy.deepcopy(target.model)
    index = torch.tensor([number for number in range(EXPERTS) if number not in removed])
    layers = find_experts(compact)
    remove_experts(compact, {layer.experts: index for layer in layers})
    rows = [len(compact.get_parameter(f"{layer.router}.weight")) for layer in layers]
    assert rows == [len(index)] * 2
    outputs = masked(texts())
    assert torch.equal(outputs, compact(texts()))
    assert not torch.allclose(outputs, target.model(texts()), atol=1e-2)


def test_no_token_is_routed_to_a_removed_expert(target: Target) -> None:
    """And the gates of each token add up to 1."""
    removed = [1, 4]
    masked = target.masked_copy(masks_of(target, removed))
    calls: list[tuple[Tensor, Tensor]] = []
    for layer in find_experts(masked):
        masked.get_submodule(layer.experts).register_forward_pre_hook(
            lambda _module, args: calls.append(args[1:])
        )
    masked(texts())
    for chosen, gates in calls:
        assert not torch.isin(chosen, torch.tensor(removed)).any()
        torch.testing.assert_close(gates.sum(1), torch.ones(len(gates)))
    assert len(calls) == SIZES["num_hidden_layers"]


def test_masks_of_single_weights_change_no_routing(target: Target) -> None:
    """An expert with few weights is still chosen; so are all if too few have weights."""
    name = next(iter(units(target).layout.names))
    router = target.model.get_submodule(find_experts(target.model)[0].router)
    hidden = torch.randn(30, SIZES["hidden_size"], generator=seeded())
    for count in (1, 0):
        masked = copy.deepcopy(target.model)
        for weight in masked.get_submodule(name).parameters():
            weight.data[:4].flatten(1)[:, count:] = 0
        changed = masked.get_submodule(find_experts(masked)[0].router)
        torch.testing.assert_close(changed(hidden), router(hidden))


def test_reap_is_the_mean_part_of_an_expert_in_the_output(target: Target) -> None:
    """Computed from the definition, with the matrices of each expert."""
    sums = torch.zeros(2, 2, EXPERTS)
    for number, layer in enumerate(find_experts(target.model)):
        experts = target.model.get_submodule(layer.experts)

        def record(
            module: Any,  # noqa: ANN401 - of transformers
            args: tuple[Tensor, ...],
            number: int = number,
        ) -> None:
            for hidden, chosen, gates in zip(*args, strict=True):
                for expert, gate in zip(chosen.tolist(), gates, strict=True):
                    gated, up = (module.gate_up_proj[expert] @ hidden).chunk(2)
                    output = module.down_proj[expert] @ (nn.functional.silu(gated) * up)
                    sums[:, number, expert] += torch.stack([gate * output.norm(), torch.tensor(1)])

        handle = experts.register_forward_pre_hook(record)
        target.model(texts())
        handle.remove()
    criterion = find_criterion("reap").for_units
    assert criterion is not None
    scores = criterion(target, texts(), units(target))
    torch.testing.assert_close(scores, (sums[0] / sums[1].clamp_min(1)).flatten())


@pytest.fixture(scope="module")
def searched(target: Target) -> Result:
    """Return the result of a short search."""
    limits = {"generations": 1, "steps": 1, "initial_criteria": ["reap", "magnitude"]}
    return prune_target(target, make_settings({**SMALL, **limits}))


def test_a_search_keeps_as_many_experts_in_every_layer(searched: Result, target: Target) -> None:
    """It starts from one-shot masks of experts, kept weights are unchanged, the rest is whole."""
    assert set(searched.baselines) == {"reap", "magnitude"}
    for name, mask in searched.masks.items():
        rows = mask.flatten(1)
        is_expert = name.rpartition(".")[0] in units(target).layout.names
        assert int(rows.all(1).sum()) == (3 if is_expert else len(mask))
        assert torch.equal(rows.any(1), rows.all(1))
    state, dense = searched.state_dict(), target.model.state_dict()
    assert all(torch.equal(state[n][m], dense[n][m]) for n, m in searched.masks.items())
    assert kept_macs(target, searched.masks) == searched.macs["dense"]  # tokens go to others


def test_every_choice_of_a_one_shot_run_is_the_best_of_its_scores(target: Target) -> None:
    """In each layer the experts with the highest scores stay."""
    result = prune_target(target, make_settings({**SMALL, "method": "magnitude"}))
    for name in units(target).layout.names:
        matrices = [weight for key, weight in target.weights.items() if key.startswith(name)]
        sums = torch.cat([weight.flatten(1) for weight in matrices], 1).abs().double().sum(1)
        kept = result.masks[f"{name}.down_proj"].flatten(1).any(1)
        assert sums[kept].min() > sums[~kept].max()


@pytest.mark.parametrize(
    "family", [pytest.param(f, marks=[pytest.mark.slow] * (f not in QUICK)) for f in FAMILIES]
)
def test_transformers_opens_the_smaller_network(family: str, tmp_path: Path) -> None:
    """With the number of experts in its configuration; it generates, and outputs are the same."""
    dense = load_target(f"hf:{saved(tmp_path / 'dense', family)}")
    result = prune_target(dense, make_settings({**SMALL, "method": "reap"}))
    export(result, "hf", tmp_path / "exported")
    transformers = import_extra("transformers", "hf", "test")
    smaller = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "exported", attn_implementation="eager"
    )
    assert getattr(smaller.config, FAMILIES[family][0]) == 3
    with torch.no_grad():
        expected, outputs = result.pruned_model()(texts()), smaller(texts()).logits
    torch.testing.assert_close(outputs, expected, atol=1e-4, rtol=1e-4)
    assert smaller.generate(texts()[:, :2], max_new_tokens=3, do_sample=False).shape[1] > 2
    again = load_target(f"hf:{tmp_path / 'exported'}")
    assert {layer.count for layer in find_experts(again.model)} == {3}


def test_formats_with_zeros_are_refused(searched: Result, tmp_path: Path) -> None:
    """A router would choose experts of zeros."""
    for name in ("dense", "sparse", "onnx", "compact"):
        with pytest.raises(InputError, match=r"^format"):
            export(searched, name, tmp_path / name)


@pytest.mark.parametrize(
    ("settings", "argument"),
    [
        ({"sparsity": 0.8}, "sparsity"),  # one expert, and each token takes two
        ({"sparsity": 0.5}, "sparsity"),  # two and a half
        ({"sparsity": 0.45}, "sparsity"),  # two and a quarter
        ({"scope": "global"}, "scope"),
        ({"budget": "macs"}, "budget"),
        ({"max_drop": 0.1}, "max_drop"),
        ({"compensate": True}, "compensate"),
        ({"layer_sparsity": {"*": 0.2}}, "layer_sparsity"),
        ({"method": "conditional"}, "method"),
        ({"method": "swaps"}, "method"),
    ],
)
def test_what_no_mixture_can_do_is_an_error(
    target: Target, settings: dict[str, Any], argument: str
) -> None:
    """Before anything is computed."""
    with pytest.raises(InputError, match=f"^{argument}"):
        prune_target(target, make_settings({**SMALL, **settings}))


def test_networks_without_such_experts_are_refused(tmp_path: Path) -> None:
    """None at all, a layer that is left whole, or experts that are chosen in groups."""
    inputs = InputOptions(range=(0, 1))
    with pytest.raises(InputError, match=r"^pattern"):
        prune(nn.Linear(4, 2), inputs=inputs, **PATTERN)
    partly = load_target(f"hf:{saved(tmp_path / 'a')}", ignore=["*.0.mlp.experts.down_proj"])
    with pytest.raises(InputError, match=r"^ignore"):
        searched_layout(partly, make_settings(PATTERN))
    groups = saved(tmp_path / "b", "DeepseekV3ForCausalLM", n_group=2, n_routed_experts=6)
    with pytest.raises(InputError, match=r"^pattern"):
        searched_layout(load_target(f"hf:{groups}"), make_settings({**PATTERN, "sparsity": 0.5}))
