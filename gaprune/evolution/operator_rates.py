"""How often each operator is used: those that make better children are used more often."""

from __future__ import annotations

from collections.abc import Mapping

import torch

FLOOR = 0.02  # no operator dies out: it may be needed later
MEMORY = 0.9  # of the running success rate, per child


class OperatorRates:
    """Probability matching over the success of children (Goldberg 1990).

    Args:
        start: operator → first probability; they add up to 1.
        adaptive: False keeps the first probabilities.

    Attributes:
        success: operator → running rate of children that beat their better parent.
    """

    def __init__(self, start: Mapping[str, float], *, adaptive: bool) -> None:
        self._start = dict(start)
        self.success = dict.fromkeys(start, 0.5)
        self._adaptive = adaptive

    @property
    def probabilities(self) -> dict[str, float]:
        """Operator → current probability; adaptive ones never fall below `FLOOR`."""
        if not self._adaptive:
            return dict(self._start)
        credit = {name: part * self.success[name] for name, part in self._start.items()}
        total = sum(credit.values())
        floor = min(FLOOR, 1 / len(credit))
        free = 1 - floor * len(credit)
        return {name: floor + free * part / total for name, part in credit.items()}

    def draw(self, generator: torch.Generator) -> str:
        """Draw an operator."""
        table = self.probabilities
        chances = torch.tensor(list(table.values()), dtype=torch.float64)
        return list(table)[int(torch.multinomial(chances, 1, generator=generator))]

    def credit(self, name: str, *, improved: bool) -> None:
        """Record whether a child made with this operator beat its better parent."""
        if name in self.success:
            self.success[name] = max(
                0.01, MEMORY * self.success[name] + (1 - MEMORY) * float(improved)
            )
