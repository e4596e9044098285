"""Inverted inputs, class impressions and token sequences of a target, cached on disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from gaprune.calibration.disk_cache import cache_key, cached
from gaprune.calibration.generators.mixture import GeneratorMixture
from gaprune.calibration.generators.random_draws import to_network
from gaprune.calibration.inversion.batchnorm import InversionOptions, invert
from gaprune.calibration.inversion.impressions import impressions
from gaprune.calibration.inversion.token_search import (
    TokenSearchOptions,
    diversify,
    is_causal_language_model,
    sample_sequences,
)
from gaprune.calibration.samples import Samples
from gaprune.callbacks import Observer
from gaprune.models.target import Target

INVERTING = "inverting the network"  # names of the tasks whose progress is reported
WRITING, VARYING = "writing sequences", "varying sequences"
ROWS = 32  # sequences written together
MEMORY = 5e8  # bytes for the outputs of one pass
COPIES_OF_OUTPUTS = 6  # that a token search holds at a time

Maker = Callable[[Tensor, torch.Generator], Tensor]
"""(starts in the unit range, or ids; generator) → inputs as the network takes them."""


def impression_samples(
    target: Target,
    mixture: GeneratorMixture,
    count: int,
    generator: torch.Generator,
    seconds: float | None,
    observer: Observer,
) -> Samples:
    """Make class impressions, or token sequences (see `sequence_samples`).

    Args:
        target: the network.
        mixture: draws the starting points.
        count: how many.
        generator: draws starts and targets.
        seconds: time limit for token sequences, or None.
        observer: receives progress and warnings.
    """
    if target.inputs.kind == "tokens":
        return sequence_samples(target, mixture, count, generator, seconds, observer)
    starts = mixture.draw_unit(count, generator).to(target.device, target.dtype)
    unit = impressions(target.model, target.inputs, starts, generator).cpu()
    source = f"{count} class impressions, started from {mixture.description}"
    return Samples(to_network(target.inputs, unit, target.dtype), None, source)


def inverted_samples(
    target: Target,
    mixture: GeneratorMixture,
    count: int,
    generator: torch.Generator,
    options: InversionOptions,
    observer: Observer,
) -> Samples:
    """Invert a target with BatchNorm; a time limit may leave fewer than `count` inputs.

    Raises:
        InputError: the network cannot be inverted.
    """

    def make(starts: Tensor, draws: torch.Generator) -> Tensor:
        return invert(
            target.model,
            target.inputs,
            starts.to(target.dtype),
            draws,
            options,
            lambda done, total: observer.progress(INVERTING, done, total),
        )

    inputs = _make_or_read(target, mixture, count, generator, asdict(options), make, observer)
    source = f"{len(inputs)} inputs inverted from BatchNorm, started from {mixture.description}"
    return Samples(inputs, None, source)


def sequence_samples(
    target: Target,
    mixture: GeneratorMixture,
    count: int,
    generator: torch.Generator,
    seconds: float | None,
    observer: Observer,
) -> Samples:
    """Make token sequences.

    A causal language model continues the first tokens of starting points; a time limit may leave
    fewer than `count`. For other networks, tokens are replaced until the outputs differ.

    Raises:
        InputError: the network neither writes nor passes gradients to an embedding of the ids.
    """
    example = target.example()
    if is_causal_language_model(target.model, target.inputs, example):
        rows = _rows(target, example, ROWS, least=1, copies=1)

        def write(starts: Tensor, draws: torch.Generator) -> Tensor:
            return _write_within(target, starts, draws, rows, seconds, observer)

        make: Maker = write
        facts = {"form": "written", "rows": rows, "seconds": seconds}
        source = "sequences written by the network, first token from"
    else:
        rows = _rows(target, example, TokenSearchOptions.batch, least=2, copies=COPIES_OF_OUTPUTS)
        options = TokenSearchOptions(batch=rows, seconds=seconds)

        def vary(starts: Tensor, draws: torch.Generator) -> Tensor:
            return diversify(
                target.model,
                target.inputs,
                starts,
                draws,
                options,
                lambda done, total: observer.progress(VARYING, done, total),
            )

        make, facts = vary, {"form": "varied", **asdict(options)}
        source = "sequences varied until the answers differ, started from"
    inputs = _make_or_read(target, mixture, count, generator, facts, make, observer)
    return Samples(inputs, None, f"{len(inputs)} {source} {mixture.description}")


def _make_or_read(  # noqa: PLR0913, PLR0917 - everything that the inputs depend on
    target: Target,
    mixture: GeneratorMixture,
    count: int,
    generator: torch.Generator,
    options: Mapping[str, Any],
    make: Maker,
    observer: Observer,
) -> Tensor:
    """Make inputs on the CPU, or read those made for the same weights, options and seed."""
    # One draw from the generator in either case, so that a cache hit changes no later draw.
    seed = int(torch.randint(2**62, (), generator=generator))

    def compute() -> Tensor:
        draws = torch.Generator().manual_seed(seed)
        return make(mixture.draw_unit(count, draws).to(target.device), draws).cpu()

    facts = {
        "network": repr(target.model),  # equal weights can belong to different modules
        "inputs": target.inputs.facts(),
        "device": str(target.device),
        "starts": list(mixture.shares.items()),  # the order of the generators matters as well
        "count": count,
        "seed": seed,
        "how": dict(options),
    }
    return cached(cache_key(target.weights_sha256, facts), compute, observer.warning)


@torch.no_grad()
def _rows(target: Target, example: Tensor, most: int, *, least: int, copies: int) -> int:
    """Return for how many sequences `copies` of the outputs fit into memory."""
    outputs: Tensor = target.model(example)
    return max(least, min(most, int(MEMORY // (copies * outputs.numel() * outputs.element_size()))))


def _write_within(
    target: Target,
    starts: Tensor,
    draws: torch.Generator,
    rows: int,
    seconds: float | None,
    observer: Observer,
) -> Tensor:
    """Continue the first token of each start `[N, L]`, in batches, until the time is over."""
    batches: list[Tensor] = []
    begin, longest, done = time.monotonic(), 0.0, 0
    for batch in starts.split(rows):
        start = time.monotonic()
        # No batch begins that would probably end too late.
        if batches and seconds is not None and start - begin + longest > seconds:
            break
        batches.append(sample_sequences(target.model, batch, draws))
        longest, done = max(longest, time.monotonic() - start), done + len(batch)
        observer.progress(WRITING, done, len(starts))
    return torch.cat(batches)
