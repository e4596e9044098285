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
from gaprune.calibration.inversion.self_text import (
    TEMPERATURES,
    first_words,
    is_causal_language_model,
    keep_likely,
    num_drafts,
    write_texts,
)
from gaprune.calibration.inversion.token_search import TokenSearchOptions, diversify
from gaprune.calibration.samples import Samples
from gaprune.callbacks import Observer
from gaprune.errors import InputError
from gaprune.models.target import Target

INVERTING = "inverting the network"  # names of the tasks whose progress is reported
WRITING, VARYING = "writing texts", "varying sequences"
ROWS = 64  # texts written together
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
        """Make token sequences; a causal language model writes them (`self_text`).

        For other networks, tokens are replaced until the outputs differ.

        Raises:
            InputError: the network neither writes nor passes gradients to an embedding of the ids.
        """
        model, spec, example = self.target.model, self.target.inputs, self.target.example()
        if is_causal_language_model(model, spec, example):
            return self.self_text(count, seconds)
        most = TokenSearchOptions.batch
        rows = self._rows(example, most, least=2, copies=COPIES_OF_OUTPUTS)
        options = TokenSearchOptions(batch=rows, seconds=seconds)
        report = partial(self.observer.progress, VARYING)

        def vary(starts: Tensor, draws: torch.Generator) -> Tensor:
            return diversify(model, spec, starts, draws, options, report)

        inputs = self._make_or_read(count, {"form": "varied", **asdict(options)}, vary)
        source = "sequences varied until the answers differ, started from"
        return Samples(inputs, None, f"{len(inputs)} {source} {self.mixture.description}")

    def self_text(self, count: int, seconds: float | None) -> Samples:
        """Let a causal language model write texts; a time limit may leave fewer than `count`.

        Texts begin with the start token of its tokenizer, or where it is not known with the first
        tokens of starting points.

        Raises:
            InputError: the network is no causal language model.
        """
        target, example = self.target, self.target.example()
        if not is_causal_language_model(target.model, target.inputs, example):
            raise InputError(
                "calibration inputs: self-text needs a causal language model, which maps ids "
                "[N, L] to logits [N, L, vocabulary]; use --calibration=procedural"
            )
        rows = self._rows(example, ROWS, least=1, copies=1)
        start = target.inputs.text and target.inputs.text.start
        heat = ", ".join(map(str, TEMPERATURES))
        facts = {"form": "written", "rows": rows, "seconds": seconds, "start": start, "heat": heat}
        inputs = self._make_or_read(count, facts, partial(self._write, rows, seconds, start))
        begin = self.mixture.description if start is None else "its start token"
        source = f"{len(inputs)} texts of the network itself at temperatures {heat}, begun with "
        return Samples(inputs, None, f"{source}{begin}, without the least and most likely ones")

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
        self,
        rows: int,
        seconds: float | None,
        start: int | None,
        points: Tensor,
        draws: torch.Generator,
    ) -> Tensor:
        """Write texts as long as `points` `[N, L]`, in batches, until the time is over."""
        model, count = self.target.model, num_drafts(len(points))
        if start is None:
            starts = points[:, :1].repeat(2, 1)[:count]
        else:
            starts = first_words(model, start, count, draws)
        written: list[tuple[Tensor, Tensor]] = []
        begin, longest, done = time.monotonic(), 0.0, 0
        for batch in starts.split(rows):
            before = time.monotonic()
            # No batch begins that would probably end too late.
            if written and seconds is not None and before - begin + longest > seconds:
                break
            written.append(write_texts(model, batch, points.shape[1], draws))
            longest, done = max(longest, time.monotonic() - before), done + len(batch)
            self.observer.progress(WRITING, done, len(starts))
        ids, surprise = map(torch.cat, zip(*written, strict=True))
        return keep_likely(ids, surprise)[: len(points)]
