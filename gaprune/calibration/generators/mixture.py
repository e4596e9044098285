"""Fresh inputs from several generators, each with its share of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gaprune.calibration.affinity import shares as shares_of
from gaprune.calibration.generators.draws import to_network
from gaprune.calibration.generators.token_sequences import LIKE_TEXT, is_ranked
from gaprune.calibration.parse import PROCEDURAL, available_generators
from gaprune.models.input_spec import InputSpec

NEGLIGIBLE = 0.01  # a generator with a smaller share of the batch is left out


@dataclass(frozen=True)
class GeneratorMixture:
    """Generators and their shares: new inputs at every call.

    Attributes:
        spec: what one input looks like.
        shares: generator name → share of a batch; they add up to 1.
        dtype: what the network computes in (token ids stay int64).
    """

    spec: InputSpec
    shares: Mapping[str, float]
    dtype: torch.dtype

    def draw_unit(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw `[count, *spec.shape]` in the unit range; each generator's number is random."""
        table = available_generators(self.spec)
        chances = torch.tensor(list(self.shares.values()), dtype=torch.float64)
        drawn = torch.multinomial(chances, count, replacement=True, generator=generator)
        counts = drawn.bincount(minlength=len(chances)).tolist()
        batches = [
            table[name](self.spec, many, generator)
            for name, many in zip(self.shares, counts, strict=True)
            if many
        ]
        return torch.cat(batches)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw `[count, *spec.shape]` as the network takes them."""
        return to_network(self.spec, self.draw_unit(count, generator), self.dtype)

    @property
    def description(self) -> str:
        """The generators and their shares in words."""
        named = ", ".join(f"{name} {part:.0%}" for name, part in self.shares.items())
        if not is_ranked(self.spec) or set(LIKE_TEXT).isdisjoint(self.shares):
            return named
        return f"{named} (ids ranked and framed as the network's tokenizer has them)"


def mix_generators(
    names: Sequence[str], affinity: Mapping[str, float], validation: str | None
) -> dict[str, float]:
    """Return the share of each generator in a batch.

    `procedural` stands for all generators but the validation inputs's, weighted by the teacher's affinity;
    every other name takes an equal part beside it.

    Args:
        names: what the user asked for; nothing means `procedural`.
        affinity: mutual information of every procedural generator, in nats.
        validation: the generator that judges and therefore must not select.
    """
    likely: dict[str, float] = {}
    if PROCEDURAL in names or not names:
        likely = shares_of({key: value for key, value in affinity.items() if key != validation})
        likely = {key: part for key, part in likely.items() if part >= NEGLIGIBLE}
    return share_out(names, likely)


def share_out(names: Sequence[str], likely: Mapping[str, float]) -> dict[str, float]:
    """Return the share of each generator in a batch, every name an equal part.

    Args:
        names: what the user asked for; nothing means `procedural`.
        likely: generators and shares that `procedural` stands for; they need not add up.
    """
    names = list(dict.fromkeys(names)) or [PROCEDURAL]
    shares: dict[str, float] = {}
    for name in names:
        parts = likely if name == PROCEDURAL else {name: 1.0}
        whole = sum(parts.values())
        for key, part in parts.items():
            shares[key] = shares.get(key, 0.0) + part / whole / len(names)
    return shares
