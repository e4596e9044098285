"""Inverted inputs, class impressions and token sequences of a target, cached on disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
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


@dataclass(frozen=True)
class Synthesis:
    """Makes inputs of a target."""

    target: Target
    mixture: GeneratorMixture  # draws the starting points
    generator: torch.Generator
    observer: Observer  # receives progress and warnings

    def impressions(self, count: int, seconds: float | None) -> Samples:
        """Make class impressions, or token sequences (see `sequences`)."""
        target = self.target
        if target.inputs.kind == "tokens":
            return self.sequences(count, seconds)
        starts = self.mixture.draw_unit(count, self.generator).to(target.device, target.dtype)
        unit = impressions(target.model, target.inputs, starts, self.generator).cpu()
        source = f"{count} class impressions, started from {self.mixture.description}"
        return Samples(to_network(target.inputs, unit, target.dtype), None, source)

    def inverted(self, count: int, options: InversionOptions) -> Samples:
        """Invert a target with BatchNorm; a time limit may leave fewer than `count` inputs.

        Raises:
            InputError: the network cannot be inverted.
        """
        model, spec, dtype = self.target.model, self.target.inputs, self.target.dtype
        report = partial(self.observer.progress, INVERTING)

        def make(starts: Tensor, draws: torch.Generator) -> Tensor:
            return invert(model, spec, starts.to(dtype), draws, options, report)

        inputs = self._make_or_read(count, asdict(options), make)
        origin = f"inverted from BatchNorm, started from {self.mixture.description}"
        return Samples(inputs, None, f"{len(inputs)} inputs {origin}")

    def sequences(self, count: int, seconds: float | None) -> Samples:
        """Make token sequences.

        A causal language model continues the first tokens of starting points; a time limit may
        leave fewer than `count`. For other networks, tokens are replaced until the outputs differ.

        Raises:
            InputError: the network neither writes nor passes gradients to an embedding of the ids.
        """
        model, spec, example = self.target.model, self.target.inputs, self.target.example()
        if is_causal_language_model(model, spec, example):
            rows = self._rows(example, ROWS, least=1, copies=1)
            facts: dict[str, Any] = {"form": "written", "rows": rows, "seconds": seconds}
            inputs = self._make_or_read(count, facts, partial(self._write, rows, seconds))
            source = "sequences written by the network, first token from"
        else:
            most = TokenSearchOptions.batch
            rows = self._rows(example, most, least=2, copies=COPIES_OF_OUTPUTS)
            options = TokenSearchOptions(batch=rows, seconds=seconds)
            report = partial(self.observer.progress, VARYING)

            def vary(starts: Tensor, draws: torch.Generator) -> Tensor:
                return diversify(model, spec, starts, draws, options, report)

            inputs = self._make_or_read(count, {"form": "varied", **asdict(options)}, vary)
            source = "sequences varied until the answers differ, started from"
        return Samples(inputs, None, f"{len(inputs)} {source} {self.mixture.description}")

    def _make_or_read(self, count: int, options: Mapping[str, Any], make: Maker) -> Tensor:
        """Make inputs on the CPU, or read those made for the same weights, options and seed."""
        target = self.target
        # One draw from the generator in either case, so that a cache hit changes no later draw.
        seed = int(torch.randint(2**62, (), generator=self.generator))

        def compute() -> Tensor:
            draws = torch.Generator().manual_seed(seed)
            return make(self.mixture.draw_unit(count, draws).to(target.device), draws).cpu()

        facts = {
            "network": repr(target.model),  # equal weights can belong to different modules
            "inputs": target.inputs.facts(),
            "device": str(target.device),
            "starts": list(self.mixture.shares.items()),  # the order of the generators matters
            "count": count,
            "seed": seed,
            "how": dict(options),
        }
        return cached(cache_key(target.weights_sha256, facts), compute, self.observer.warning)

    @torch.no_grad()
    def _rows(self, example: Tensor, most: int, *, least: int, copies: int) -> int:
        """Return for how many sequences `copies` of the outputs fit into memory."""
        outputs: Tensor = self.target.model(example)
        needed = copies * outputs.numel() * outputs.element_size()
        return max(least, min(most, int(MEMORY // needed)))

    def _write(
        self, rows: int, seconds: float | None, starts: Tensor, draws: torch.Generator
    ) -> Tensor:
        """Continue the first token of each start `[N, L]`, in batches, until the time is over."""
        batches: list[Tensor] = []
        begin, longest, done = time.monotonic(), 0.0, 0
        for batch in starts.split(rows):
            start = time.monotonic()
            # No batch begins that would probably end too late.
            if batches and seconds is not None and start - begin + longest > seconds:
                break
            batches.append(sample_sequences(self.target.model, batch, draws))
            longest, done = max(longest, time.monotonic() - start), done + len(batch)
            self.observer.progress(WRITING, done, len(starts))
        return torch.cat(batches)
