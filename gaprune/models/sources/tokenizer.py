"""Token networks that take ids alone: the attention mask from the padding, one vector per text."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from gaprune.errors import InputError, unknown_name
from gaprune.models.sources.outputs import describe_outputs, select_output

HIDDEN = "last_hidden_state"


def mask_of(tokens: Tensor, padding: int | None) -> Tensor:
    """Return the attention mask of token ids `[N, L]`: int64, 1 where a token is, 0 where padding.

    A row of nothing but padding attends to itself: a softmax over nothing would be NaN.
    """
    if padding is None:
        return tokens.new_ones(tokens.shape)
    there = tokens != padding
    return (there | ~there.any(dim=1, keepdim=True)).to(tokens.dtype)


def take_ids(model: nn.Module, padding: int | None) -> nn.Module:
    """Let a network of transformers take ids `[N, L]` alone, in place; the mask is made of them.

    Calls with keywords, as transformers' own tokenisers prepare them, pass as they are.

    Args:
        model: the network; it is returned too.
        padding: the id that stands for nothing, or None where all ids are tokens.
    """
    masked = "attention_mask" in inspect.signature(model.forward).parameters
    hook = partial(_named, padding if masked else None, masked)
    model.register_forward_pre_hook(hook, with_kwargs=True)
    return model


def _named(
    padding: int | None,
    masked: bool,  # noqa: FBT001 - bound by `take_ids`
    model: nn.Module,
    inputs: tuple[Any, ...],
    keywords: dict[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return what forward takes instead of `inputs`: a pre-hook, once the first two are bound."""
    if len(inputs) != 1 or keywords:
        return inputs, keywords
    (tokens,) = inputs
    named = {"input_ids": tokens}
    if masked:
        named["attention_mask"] = mask_of(tokens, padding)
    return (), named


def pool_tokens(model: nn.Module, pooling: str) -> nn.Module:
    """Let a network return one vector per text, pooled from its last hidden states, in place.

    Args:
        model: the network; it is returned too.
        pooling: a key of `POOLINGS`.

    Raises:
        InputError: an unknown pooling. Once pooled, running the network raises it where there are
            no hidden states `[N, L, features]`.
    """
    if pooling not in POOLINGS:
        raise unknown_name("output", pooling, POOLINGS)
    model.register_forward_hook(partial(_pooled, pooling), with_kwargs=True)
    return model


def _pooled(
    pooling: str, model: nn.Module, inputs: object, keywords: Mapping[str, Any], outputs: object
) -> Tensor:
    """Return `[N, features]`: a forward hook, once `pooling` is bound."""
    hidden = select_output(outputs, HIDDEN)
    if not isinstance(hidden, Tensor) or hidden.ndim != 3:
        raise InputError(f"output: {pooling!r} pools [N, L, features]; {describe_outputs(outputs)}")
    mask = keywords.get("attention_mask")
    return POOLINGS[pooling](hidden, hidden.new_ones(hidden.shape[:2]) if mask is None else mask)


def mean_of_tokens(hidden: Tensor, mask: Tensor) -> Tensor:
    """Average over the tokens that are there (Reimers & Gurevych 2019, section 3, MEAN)."""
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1).clamp_min(1)


def first_token(hidden: Tensor, mask: Tensor) -> Tensor:
    """Return the first token's state (Reimers & Gurevych 2019, section 3, CLS)."""
    return hidden[:, 0]


POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": mean_of_tokens,
    "cls": first_token,
}
