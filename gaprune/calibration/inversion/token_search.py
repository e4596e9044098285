"""Token sequences for which the outputs of a network differ.

Token ids are discrete, so gradients cannot optimise them directly. Single tokens are replaced where
the gradient promises the largest increase of the spread of the outputs (first-order substitution,
HotFlip, Ebrahimi et al. 2018, section 3); a round is kept only if the spread really grows. A causal
language model needs no search: it writes texts itself (`self_text`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gaprune.errors import InputError
from gaprune.models.input_spec import InputSpec, vocabulary_embeddings

Spread = Callable[[Tensor, Tensor], Tensor]
"""(outputs, other outputs) → distance of each output from the others."""
Progress = Callable[[int, int], None]
"""(rounds done, total rounds), over all batches."""


@dataclass(frozen=True)
class TokenSearchOptions:
    """Lengths of the search.

    Attributes:
        seconds: time limit for all sequences, or None. With a limit the result depends on the
            speed of the machine.
    """

    rounds: int = 30  # substitutions tried per sequence
    shortlist: int = 8  # the substitute is drawn from this many best ids of the vocabulary
    batch: int = 64  # sequences whose outputs are compared with each other
    seconds: float | None = None


def diversify(
    model: nn.Module,
    spec: InputSpec,
    starts: Tensor,
    generator: torch.Generator,
    options: TokenSearchOptions,
    progress: Progress = lambda _done, _total: None,
) -> Tensor:
    """Replace tokens so that the outputs for the sequences of a batch differ more.

    `starts` and the result are int64 ids `[N, *spec.shape]`; the spread of a batch is never smaller
    than at its start. `generator` draws positions and substitutes.

    Raises:
        InputError: no embedding of the ids, or a network that passes no gradients to it.
    """
    with torch.no_grad():
        example = model(starts[:2])
    has_classes = example.ndim == 2 and example.shape[1] > 1
    spread = information if has_classes else decorrelation
    search = _Search(model, spec, spread, options, generator)
    batches, begin, improved = starts.split(options.batch), time.monotonic(), []
    total = options.rounds * len(batches)
    for number, batch in enumerate(batches):
        seconds = None
        if options.seconds is not None:  # the remaining batches share the remaining time
            remaining = options.seconds - (time.monotonic() - begin)
            seconds = remaining / (len(batches) - number)

        def report(rounds: int, done: int = number * options.rounds) -> None:
            progress(done + rounds, total)

        improved.append(search.improve(batch, seconds, report))
    progress(total, total)
    return torch.cat(improved)


def information(outputs: Tensor, others: Tensor) -> Tensor:
    """Return KL(p ‖ mean p of the others) in nats for each row of logits `[N, C]`.

    The mean over a batch with itself is the mutual information of input and class.
    """
    log_p = functional.log_softmax(outputs.flatten(1), dim=1)
    log_mean = functional.log_softmax(others.flatten(1), dim=1).logsumexp(0)
    log_mean = log_mean - torch.log(torch.tensor(float(len(others)), dtype=log_mean.dtype))
    return (log_p.exp() * (log_p - log_mean)).sum(1)


def decorrelation(outputs: Tensor, others: Tensor) -> Tensor:
    """Return 1 − mean squared cosine of each row of `[N, …]` to the others, around their mean."""
    mean = others.flatten(1).mean(0)
    rows = functional.normalize(outputs.flatten(1) - mean, dim=1)
    other_rows = functional.normalize(others.flatten(1) - mean, dim=1)
    return 1 - (rows @ other_rows.T).square().mean(1)


def spread_of(outputs: Tensor, spread: Spread) -> float:
    """Return the mean spread of the outputs `[N, …]` of a batch."""
    return float(spread(outputs, outputs).mean())


@dataclass(frozen=True)
class _Search:
    model: nn.Module
    spec: InputSpec
    spread: Spread
    options: TokenSearchOptions
    generator: torch.Generator

    def improve(self, ids: Tensor, seconds: float | None, report: Callable[[int], None]) -> Tensor:
        """Try `rounds` substitutions in every sequence; keep those that increase the spread."""
        end = None if seconds is None else time.monotonic() + seconds
        outputs = self._outputs(ids)
        best = spread_of(outputs, self.spread)
        for done in range(self.options.rounds):
            if end is not None and time.monotonic() >= end:
                break
            new_ids = self._substitute(ids)
            new_outputs = self._outputs(new_ids)
            better = self.spread(new_outputs, outputs) > self.spread(outputs, outputs)
            mixed = torch.where(_like(better, outputs), new_outputs, outputs)
            value = spread_of(mixed, self.spread)
            # Each gain is measured against the old batch; together they may be a loss.
            if value > best:
                best, outputs = value, mixed
                ids = torch.where(_like(better, ids), new_ids, ids)
            report(done + 1)
        return ids

    @torch.no_grad()
    def _outputs(self, ids: Tensor) -> Tensor:
        outputs: Tensor = self.model(ids)
        return outputs

    def _substitute(self, ids: Tensor) -> Tensor:
        """Replace one token of every sequence by one of the most promising."""
        table, gradient = self._embedding_gradient(ids)
        flat, slopes = ids.flatten(1), gradient.flatten(1, -2)
        rows = torch.arange(len(flat))
        positions = torch.randint(flat.shape[1], (len(flat),), generator=self.generator)
        # First-order gain of id v: gradient · (table[v] − table[present]); the last is a constant.
        gains = slopes[rows, positions] @ table.T
        gains[rows, flat[rows, positions]] = -torch.inf
        best = gains.topk(min(self.options.shortlist, gains.shape[1] - 1), dim=1).indices
        drawn = torch.randint(best.shape[1], (len(flat),), generator=self.generator)
        changed = flat.clone()
        changed[rows, positions] = best[rows, drawn]
        return changed.view_as(ids)

    def _embedding_gradient(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embedding `[vocabulary, d]` and ∂spread/∂embedded `[*ids.shape, d]`."""
        recorded: list[tuple[Tensor, Tensor]] = []

        def record(layer: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor | None:
            assert isinstance(layer, nn.Embedding)
            if recorded or output.shape[:-1] != ids.shape:
                return None  # positions and segments have embeddings of their own
            leaf = output.detach().requires_grad_()
            recorded.append((layer.weight.detach(), leaf))
            return leaf  # replaces the layer's output, so that the gradient reaches the leaf

        with ExitStack() as hooks, torch.enable_grad():
            for layer in vocabulary_embeddings(self.model, self.spec.vocabulary):
                hooks.enter_context(layer.register_forward_hook(record))
            outputs = self.model(ids)
            value = self.spread(outputs, outputs.detach()).sum()
        if not recorded or not value.requires_grad:
            raise InputError(
                "calibration inputs: a token search needs an nn.Embedding of the whole vocabulary "
                "with gradients from the outputs to it; use --calibration=procedural"
            )
        table, leaf = recorded[0]
        (gradient,) = torch.autograd.grad(value, leaf)
        return table, gradient


def _like(rows: Tensor, other: Tensor) -> Tensor:
    """Return values per row `[N]` as a view that broadcasts against `[N, …]`."""
    return rows.view(-1, *[1] * (other.ndim - 1))
