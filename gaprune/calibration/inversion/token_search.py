"""Token sequences on which a network's answers differ: ids cannot be moved a little, only replaced.

Sequences of random ids look alike to most networks. Single tokens are replaced where the gradient
promises more spread of the answers (first-order substitutions, Ebrahimi et al. 2018, HotFlip,
section 3), and a round counts only if the spread has really grown. A causal language model needs no
search: it writes sequences of its own (LLM-QAT, Liu et al. 2023, section 2.1).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gaprune.errors import InputError, unknown_name
from gaprune.models.input_spec import InputSpec, vocabulary_embeddings

Spread = Callable[[Tensor, Tensor], Tensor]
Progress = Callable[[int, int], None]
"""(rounds done, rounds in all), over all batches."""


@dataclass(frozen=True)
class TokenSearch:
    """How sequences are improved.

    Attributes:
        rounds: substitutions tried per sequence.
        shortlist: the substitute is drawn from so many best of the vocabulary.
        batch: sequences whose answers are spread together.
        spread: a key of `SPREADS`, or `auto`: `information` for outputs `[N, classes]`, else
            `decorrelation`.
        seconds: for all sequences; the search of a batch ends when its share is over, so the result
            depends on the machine's speed. None is no limit.
    """

    rounds: int = 30
    shortlist: int = 8
    batch: int = 64
    spread: str = "auto"
    seconds: float | None = None


def diversify(
    model: nn.Module,
    spec: InputSpec,
    starts: Tensor,
    generator: torch.Generator,
    how: TokenSearch | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Replace tokens so that the answers to the sequences of a batch differ more.

    Args:
        model: the dense network in evaluation mode, parameters frozen.
        spec: kind `tokens`, with the vocabulary.
        starts: int64 ids `[N, *spec.shape]`, for example `tokens.zipf_bursts`.
        generator: draws places and substitutes.
        how: lengths of the search.
        progress: told after every round.

    Returns:
        int64 ids `[N, *spec.shape]`; the spread of no batch is smaller than that of its start.

    Raises:
        InputError: other inputs, an unknown spread, no embedding of the ids, or a network that
            passes no gradients to it.
    """
    how = how or TokenSearch()
    if spec.kind != "tokens":
        raise InputError(
            f"calibration inputs: a token search needs inputs of kind tokens, got {spec.kind}"
        )
    with torch.no_grad():
        example = model(starts[:2])
    name = how.spread
    if name == "auto":
        name = "information" if example.ndim == 2 and example.shape[1] > 1 else "decorrelation"
    if name not in SPREADS:
        raise unknown_name("spread", name, [*SPREADS, "auto"])
    search = _Search(model, spec, SPREADS[name], how, generator)
    batches, began, made = starts.split(how.batch), time.monotonic(), []
    total = how.rounds * len(batches)
    for number, batch in enumerate(batches):
        left = None
        if how.seconds is not None:
            left = (how.seconds - (time.monotonic() - began)) / (len(batches) - number)
        made.append(search.improve(batch, left, partial(_tell, progress, number, how, total)))
    _tell(progress, len(batches), how, total, 0)
    return torch.cat(made)


@torch.no_grad()
def written(
    model: nn.Module, spec: InputSpec, starts: Tensor, generator: torch.Generator
) -> Tensor:
    """Let a causal language model write: each token is drawn from its own prediction.

    Args:
        model: answers ids `[N, L]` with logits `[N, L, vocabulary]` of the next token.
        spec: kind `tokens`, with the vocabulary.
        starts: int64 ids `[N, L]`, L at least 2; the first of each row is kept.
        generator: draws the tokens.

    Returns:
        int64 ids `[N, L]`.

    Raises:
        InputError: the network does not predict the next token from those before it.
    """
    if not writes(model, spec, starts[:1]):
        raise InputError(
            "calibration inputs: only a causal language model, with logits [N, length, vocabulary], writes "
            "sequences of its own; use --calibration procedural"
        )
    ids = starts.clone()
    for place in range(1, ids.shape[1]):
        chances = model(ids)[:, place - 1].float().softmax(1).cpu()
        drawn = torch.multinomial(chances, 1, generator=generator).squeeze(1)
        ids[:, place] = drawn.to(ids.device)
    return ids


@torch.no_grad()
def writes(model: nn.Module, spec: InputSpec, ids: Tensor) -> bool:
    """Say whether outputs `[N, L, vocabulary]` depend on the ids `[N, L]` up to their place only.

    It is tried on the last id, so L must be at least 2.
    """
    if spec.kind != "tokens" or ids.ndim != 2 or ids.shape[1] < 2:
        return False
    outputs = model(ids)
    if outputs.shape != (*ids.shape, spec.vocabulary):
        return False
    other = ids.clone()
    other[:, -1] = (other[:, -1] + 1) % spec.vocabulary
    changed = model(other)
    same = torch.isclose(changed, outputs, rtol=1e-4, atol=1e-5)  # -inf forbids a token
    return bool(same[:, :-1].all() and not same[:, -1].all())


def information(outputs: Tensor, others: Tensor) -> Tensor:
    """KL(p ‖ mean of the others' p) in nats for each row of logits `[N, C]`: sure, and different.

    Its mean over a batch with itself is the mutual information of input and class.
    """
    log_p = functional.log_softmax(outputs.flatten(1), dim=1)
    log_mean = functional.log_softmax(others.flatten(1), dim=1).logsumexp(0)
    log_mean = log_mean - torch.log(torch.tensor(float(len(others)), dtype=log_mean.dtype))
    return (log_p.exp() * (log_p - log_mean)).sum(1)


def decorrelation(outputs: Tensor, others: Tensor) -> Tensor:
    """1 − mean squared cosine of each row of `[N, …]` to the others, around their common mean."""
    mean = others.flatten(1).mean(0)
    ours = functional.normalize(outputs.flatten(1) - mean, dim=1)
    theirs = functional.normalize(others.flatten(1) - mean, dim=1)
    return 1 - (ours @ theirs.T).square().mean(1)


SPREADS: dict[str, Spread] = {"information": information, "decorrelation": decorrelation}
"""Name → how far each output is from a set of others; larger is better."""


def spread_of(outputs: Tensor, spread: Spread) -> float:
    """Return the mean spread of outputs `[N, …]` among themselves."""
    return float(spread(outputs, outputs).mean())


def _tell(
    progress: Progress | None, batches: int, how: TokenSearch, total: int, rounds: int
) -> None:
    if progress is not None:
        progress(batches * how.rounds + rounds, total)


@dataclass(frozen=True)
class _Search:
    model: nn.Module
    spec: InputSpec
    spread: Spread
    how: TokenSearch
    generator: torch.Generator

    def improve(self, ids: Tensor, seconds: float | None, report: Callable[[int], None]) -> Tensor:
        """Try `rounds` substitutions in every sequence; keep the rounds that spread the batch."""
        end = None if seconds is None else time.monotonic() + seconds
        outputs = self._answers(ids)
        best = spread_of(outputs, self.spread)
        for done in range(self.how.rounds):
            if end is not None and time.monotonic() >= end:
                break
            tried = self._substituted(ids)
            answers = self._answers(tried)
            gained = self.spread(answers, outputs) > self.spread(outputs, outputs)
            mixed = torch.where(gained.view(-1, *[1] * (outputs.ndim - 1)), answers, outputs)
            value = spread_of(mixed, self.spread)
            if value > best:  # gains against the old batch need not add up
                best, outputs = value, mixed
                ids = torch.where(gained.view(-1, *[1] * (ids.ndim - 1)), tried, ids)
            report(done + 1)
        return ids

    @torch.no_grad()
    def _answers(self, ids: Tensor) -> Tensor:
        outputs: Tensor = self.model(ids)
        return outputs

    def _substituted(self, ids: Tensor) -> Tensor:
        """Replace one token of every sequence by one of the most promising."""
        table, gradient = self._embedding_gradient(ids)
        flat, slope = ids.flatten(1), gradient.flatten(1, -2)
        rows = torch.arange(len(flat))
        place = torch.randint(flat.shape[1], (len(flat),), generator=self.generator)
        promise = slope[rows, place] @ table.T  # that of the present token is a constant
        promise[rows, flat[rows, place]] = -torch.inf
        best = promise.topk(min(self.how.shortlist, promise.shape[1] - 1), dim=1).indices
        drawn = torch.randint(best.shape[1], (len(flat),), generator=self.generator)
        changed = flat.clone()
        changed[rows, place] = best[rows, drawn]
        return changed.view_as(ids)

    def _embedding_gradient(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embedding `[vocabulary, d]` and ∂spread/∂embedded `[*ids.shape, d]`."""
        seen: list[tuple[Tensor, Tensor]] = []

        def listen(layer: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor | None:
            assert isinstance(layer, nn.Embedding)
            if seen or output.shape[:-1] != ids.shape:
                return None
            leaf = output.detach().requires_grad_()
            seen.append((layer.weight.detach(), leaf))
            return leaf

        hooks = [
            layer.register_forward_hook(listen)
            for layer in vocabulary_embeddings(self.model, self.spec.vocabulary)
        ]
        try:
            with torch.enable_grad():
                outputs = self.model(ids)
                value = self.spread(outputs, outputs.detach()).sum()
        finally:
            for hook in hooks:
                hook.remove()
        if not seen or not value.requires_grad:
            raise InputError(
                "calibration inputs: a token search needs an nn.Embedding of the whole vocabulary with "
                "gradients from the outputs to it; use --calibration procedural"
            )
        table, leaf = seen[0]
        (gradient,) = torch.autograd.grad(value, leaf)
        return table, gradient
