"""Text networks that take ids alone: attention mask from the padding, one vector per text."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gaprune.errors import InputError, unknown_name
from gaprune.models.sources.outputs import describe_outputs, select_output

HIDDEN = "last_hidden_state"


def mask_of(tokens: Tensor, padding: int | None) -> Tensor:
    """Return the attention mask of token ids `[N, L]`: int64, 1 for tokens, 0 for padding.

    A row of nothing but padding attends to itself: a softmax over nothing would be NaN.
    """
    if padding is None:
        return tokens.new_ones(tokens.shape)
    is_token = tokens != padding
    return (is_token | ~is_token.any(dim=1, keepdim=True)).to(tokens.dtype)


def take_ids(model: nn.Module, padding: int | None, positions: int | None = None) -> nn.Module:
    """Make a network of transformers accept ids `[N, L]` alone, in place.

    Calls with keywords, as transformers' own tokenisers prepare them, stay as they are. `padding`
    is None if all ids are tokens. With `positions`, a causal language model that is called with ids
    alone returns the logits of so many tokens of each text, evenly spaced, the last one included.
    """
    takes_mask = "attention_mask" in inspect.signature(model.forward).parameters
    # a hook, not a wrapper module: parameters keep the names of the checkpoint
    hook = partial(_ids_hook, padding, takes_mask, positions)
    model.register_forward_pre_hook(hook, with_kwargs=True)
    return model


def _ids_hook(
    padding: int | None,
    takes_mask: bool,  # noqa: FBT001 - bound by `take_ids`
    positions: int | None,
    model: nn.Module,
    inputs: tuple[Any, ...],
    keywords: dict[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if len(inputs) != 1 or keywords:
        return inputs, keywords
    named = {"input_ids": inputs[0]}
    if takes_mask:
        named["attention_mask"] = mask_of(inputs[0], padding)
    if positions is not None and positions < (length := inputs[0].shape[1]):
        kept = torch.arange(1, positions + 1, device=inputs[0].device) * length // positions - 1
        named["logits_to_keep"] = kept
    return (), named


def pool_tokens(model: nn.Module, pooling: str) -> nn.Module:
    """Make a network return one vector per text, pooled from its last hidden states, in place.

    Raises:
        InputError: `pooling` is not in `POOLINGS`. Running the network raises it if there are no
            hidden states `[N, L, features]`.
    """
    if pooling not in POOLINGS:
        raise unknown_name("output", pooling, POOLINGS)
    model.register_forward_hook(partial(_pooling_hook, pooling), with_kwargs=True)
    return model


def _pooling_hook(
    pooling: str, model: nn.Module, inputs: object, keywords: Mapping[str, Any], outputs: object
) -> Tensor:
    hidden = select_output(outputs, HIDDEN)
    if not isinstance(hidden, Tensor) or hidden.ndim != 3:
        raise InputError(f"output: {pooling!r} pools [N, L, features]; {describe_outputs(outputs)}")
    mask = keywords.get("attention_mask")
    return POOLINGS[pooling](hidden, hidden.new_ones(hidden.shape[:2]) if mask is None else mask)


def _mean_of_tokens(hidden: Tensor, mask: Tensor) -> Tensor:
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1).clamp_min(1)


# Strategies MEAN and CLS of Reimers & Gurevych 2019, section 3.
POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": _mean_of_tokens,
    "cls": lambda hidden, _mask: hidden[:, 0],
}
