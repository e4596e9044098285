"""Attention heads are removed as a whole, with their queries, keys, values and what reads them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from gaprune.models.channel_groups import ChannelGraph
from gaprune.models.channel_removal import masked_equivalent, remove_channels
from gaprune.models.sources.optional_packages import import_extra
from gaprune.models.sources.outputs import choose_output
from gaprune.models.sources.tokenizer import take_ids

HEADS, WIDTH = 4, 6


class Joined(nn.Module):
    """Queries, keys and values from one layer, as in vision transformers of timm."""

    def __init__(self, *, fused: bool) -> None:
        super().__init__()
        self.num_heads, self.attn_dim = HEADS, HEADS * WIDTH
        self.qkv, self.proj = nn.Linear(10, 3 * self.attn_dim), nn.Linear(self.attn_dim, 5)
        self.fused = fused

    def forward(self, tokens: Tensor) -> Tensor:
        batch, length, _ = tokens.shape
        qkv = self.qkv(tokens).reshape(batch, length, 3, self.num_heads, WIDTH)
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            heads = functional.scaled_dot_product_attention(queries, keys, values)
        else:
            weights = (queries @ keys.transpose(-2, -1) * WIDTH**-0.5).softmax(-1)
            heads = weights @ values
        out: Tensor = self.proj(heads.transpose(1, 2).reshape(batch, length, self.attn_dim))
        return out


def language_model(name: str, **sizes: Any) -> nn.Module:
    """Return a small network of transformers that takes ids."""
    transformers = import_extra("transformers", "hf", "test")
    model_class = getattr(transformers, name)
    common = {"vocab_size": 20, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    common |= {"intermediate_size": 16, "max_position_embeddings": 12, **sizes}
    model = model_class(model_class.config_class(**common)).eval()
    model.config.use_cache = False
    return choose_output(take_ids(model, None), "logits")


@pytest.mark.parametrize("fused", [False, True])
def test_a_head_goes_with_its_queries_keys_and_values(fused: bool) -> None:
    """The smaller network computes what the whole one does if nothing reads that head."""
    torch.manual_seed(0)
    model, example = Joined(fused=fused).eval(), torch.randn(1, 7, 10)
    graph = ChannelGraph.trace(model, example)
    (group,) = graph.groups
    assert len(group.channels) == HEADS
    assert {len(sets.outputs) for sets in group.channels} == {3 * WIDTH}
    removed = 2
    smaller = remove_channels(model, example, {"qkv": [removed * WIDTH]})
    assert isinstance(smaller, Joined)
    expected = copy.deepcopy(model)
    with torch.no_grad():
        expected.proj.weight[:, removed * WIDTH : (removed + 1) * WIDTH] = 0
        torch.testing.assert_close(smaller(example), expected(example))
    assert (smaller.num_heads, smaller.attn_dim) == (HEADS - 1, (HEADS - 1) * WIDTH)
    assert smaller.qkv.out_features == 3 * (HEADS - 1) * WIDTH


@pytest.mark.parametrize(
    ("make", "heads"),
    [
        (lambda: language_model("LlamaForCausalLM", num_key_value_heads=4), 4),
        (lambda: language_model("LlamaForCausalLM", num_key_value_heads=2), 2),
        (lambda: language_model("BertForSequenceClassification"), 4),
        (lambda: language_model("OPTForCausalLM", ffn_dim=16, word_embed_proj_dim=24), 4),
    ],
    ids=["rotary", "grouped queries", "bert", "opt"],
)
def test_heads_of_transformers(make: Callable[[], nn.Module], heads: int) -> None:
    """Query heads that share keys and values go together; the widths of MLPs stay removable."""
    torch.manual_seed(0)
    model, example = make(), torch.randint(20, (1, 9))
    graph = ChannelGraph.trace(model, example)
    attention = [g for g in graph.groups if len(g.layers) == 3]  # queries, keys and values
    assert [len(group.channels) for group in attention] == [heads, heads]
    sixteen = [group for group in graph.groups if len(group.channels) == 16]
    assert len(sixteen) == 2
    layer, channel = attention[0].channels[1].outputs[0]
    smaller = remove_channels(model, example, {layer: [channel]})
    whole = model.get_parameter(f"{layer}.weight")
    assert len(smaller.get_parameter(f"{layer}.weight")) == len(whole) * (heads - 1) // heads


def test_heads_of_gpt2() -> None:
    """Heads and widths of its transposed linear layers go, and the rest computes the same."""
    torch.manual_seed(0)
    model = language_model("GPT2LMHeadModel", n_inner=16)
    example = torch.randint(20, (1, 9))
    graph = ChannelGraph.trace(model, example)
    assert [len(group.channels) for group in graph.groups] == [4, 16, 4, 16]
    attention, mlp = (graph.groups[index].layers[0] for index in (0, 1))
    removed = {attention: [7], mlp: [2, 3]}
    smaller = remove_channels(model, example, removed)
    assert smaller.get_parameter(f"{attention}.weight").shape == (24, 3 * 18)
    assert smaller.get_parameter(f"{mlp}.weight").shape == (24, 14)
    with torch.no_grad():
        expected = masked_equivalent(model, example, removed)(example)
        torch.testing.assert_close(smaller(example), expected)
