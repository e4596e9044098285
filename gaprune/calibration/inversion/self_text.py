"""Texts that a causal language model writes itself, token after token.

As calibration inputs they serve as well as real text for some criteria (LLM-QAT, Liu et al. 2023,
section 2.1; self-calibration, Williams et al. 2025). Several temperatures make them varied, and
those that the model itself finds least likely are left out, as are the most likely ones, which
repeat themselves.
"""

from __future__ import annotations

import inspect
import math

import torch
from torch import Tensor, nn

from gaprune.models.input_spec import InputSpec

TEMPERATURES = (0.7, 1.0, 1.3)
TOO_UNLIKELY, TOO_LIKELY = 0.2, 0.05  # fractions that are left out, by their perplexity


def all_logits(model: nn.Module, ids: Tensor) -> Tensor:
    """Return the logits `[N, L, vocabulary]` of a language model for every one of ids `[N, L]`.

    Networks of transformers return those of fewer positions when they are called with ids alone.
    """
    outputs: Tensor = model(input_ids=ids) if _chooses_positions(model) else model(ids)
    return outputs


def _chooses_positions(model: nn.Module) -> bool:
    return "logits_to_keep" in inspect.signature(model.forward).parameters


@torch.no_grad()
def is_causal_language_model(model: nn.Module, spec: InputSpec, ids: Tensor) -> bool:
    """Return whether outputs `[N, L, vocabulary]` depend on previous and present ids only.

    The test changes the last of the ids `[N, L]`, so L must be at least 2.
    """
    if spec.kind != "tokens" or ids.ndim != 2 or ids.shape[1] < 2:
        return False
    outputs = all_logits(model, ids)
    if not isinstance(outputs, Tensor) or outputs.shape != (*ids.shape, spec.vocabulary):
        return False
    changed_ids = ids.clone()
    changed_ids[:, -1] = (changed_ids[:, -1] + 1) % spec.vocabulary
    # isclose takes equal infinities as close: -inf forbids a token.
    same = torch.isclose(all_logits(model, changed_ids), outputs, rtol=1e-4, atol=1e-5)
    return bool(same[:, :-1].all() and not same[:, -1].all())


def num_drafts(count: int) -> int:
    """Return how many texts to write so that `count` stay; see `keep_likely`."""
    return math.ceil(count / (1 - TOO_UNLIKELY - TOO_LIKELY))


@torch.no_grad()
def first_words(model: nn.Module, start: int, count: int, generator: torch.Generator) -> Tensor:
    """Return the first two ids `[count, 2]` of texts: the start token, and what may follow it.

    Half of the second ids are the model's most likely ones, each once; the others are drawn.
    """
    starts = torch.full((count, 1), start, device=next(model.parameters()).device)
    probabilities = all_logits(model, starts[:1])[0, -1].float().softmax(0).cpu()
    likely = probabilities.topk(min(count // 2, len(probabilities))).indices
    drawn = torch.multinomial(
        probabilities, count - len(likely), replacement=True, generator=generator
    )
    words = torch.cat([likely, drawn])[torch.randperm(count, generator=generator)]
    return torch.cat([starts, words.unsqueeze(1).to(starts.device)], dim=1)


@torch.no_grad()
def write_texts(
    model: nn.Module, starts: Tensor, length: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Continue texts; return int64 ids `[N, length]`, and nats per token `[N]`.

    Args:
        model: maps ids `[N, L]` to logits of the next token (`is_causal_language_model`); one of
            transformers remembers the keys and values of earlier tokens.
        starts: the first ids of each text, `[N, S]`, S below `length`.
        length: tokens of each text.
        generator: draws the tokens, at `TEMPERATURES` in turn; the surprise is that at 1.
    """
    ids, new, past = starts, starts, None
    heat = torch.tensor(TEMPERATURES)[torch.arange(len(ids)) % len(TEMPERATURES)].unsqueeze(1)
    surprise = torch.zeros(len(ids))
    remembers = _chooses_positions(model)
    while ids.shape[1] < length:
        if remembers:  # forward itself, since hooks of the target leave one tensor of the outputs
            outputs = model.forward(
                input_ids=new, past_key_values=past, use_cache=True, logits_to_keep=1
            )
            logits, past = outputs.logits[:, -1], outputs.past_key_values
        else:
            logits = model(ids)[:, -1]
        logits = logits.float().cpu()
        tokens = torch.multinomial((logits / heat).softmax(1), 1, generator=generator)
        surprise -= logits.log_softmax(1).gather(1, tokens).squeeze(1)
        new = tokens.to(ids.device)
        ids = torch.cat([ids, new], dim=1)
    return ids, surprise / (length - starts.shape[1])


def keep_likely(ids: Tensor, surprise: Tensor) -> Tensor:
    """Return texts `[N, L]` in their order without the least and the most likely ones."""
    order = surprise.argsort(stable=True)
    first, last = int(TOO_LIKELY * len(ids)), len(ids) - int(TOO_UNLIKELY * len(ids))
    return ids[order[first:last].sort().values]
