"""New inputs from several generators, each with its share of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gaprune.calibration.generators.random_draws import to_network
from gaprune.calibration.generators.token_sequences import LIKE_TEXT, SENTENCES, is_ranked
from gaprune.calibration.parse import available_generators
from gaprune.models.input_spec import InputSpec

MIN_SHARE = 0.01  # generators with a smaller share of the batch are left out


@dataclass(frozen=True)
class GeneratorMixture:
    """Generators and their shares: new inputs at every call."""

    spec: InputSpec  # what the network takes
    shares: Mapping[str, float]  # generator → share of a batch; they add up to 1
    dtype: torch.dtype  # what the network computes in (token ids stay int64)

    def draw_unit(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw `[count, *spec.shape]` in the unit range, ordered by generator."""
        table = available_generators(self.spec)
        shares = torch.tensor(list(self.shares.values()), dtype=torch.float64)
        # Multinomial: a fixed split would give small batches the same generators every time.
        sources = torch.multinomial(shares, count, replacement=True, generator=generator)
        counts = sources.bincount(minlength=len(shares)).tolist()
        batches = [
            table[name](self.spec, size, generator)
            for name, size in zip(self.shares, counts, strict=True)
            if size
        ]
        return torch.cat(batches)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw `[count, *spec.shape]` as the network takes them."""
        return to_network(self.spec, self.draw_unit(count, generator), self.dtype)

    @property
    def description(self) -> str:
        """The generators and their shares, for people."""
        text = ", ".join(f"{name} {share:.0%}" for name, share in self.shares.items())
        if not is_ranked(self.spec) or {*LIKE_TEXT, SENTENCES}.isdisjoint(self.shares):
            return text
        return f"{text} (ids ranked and framed as the network's tokenizer has them)"
