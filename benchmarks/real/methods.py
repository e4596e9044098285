"""Methods of the benchmark on real networks, as settings of gaprune."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gaprune.config import EVOLVED
from gaprune.criteria import CRITERIA

REPAIR = {"repair": True}
ONE_SHOT = (
    *("magnitude", "lamp", "wanda", "wanda-rows", "lamp-wanda", "lamp-wanda-rows"),
    *("snip", "synflow", "correlation", "swaps", "correlation-swaps"),
)
REPAIRED = ("magnitude", "lamp", "lamp-wanda", "correlation", "correlation-swaps")
SEARCH_ONLY = frozenset(  # settings that one-shot criteria ignore
    {
        "initial_criteria",
        "population",
        "offspring",
        "steps",
        "learning_rate",
        "batch",
        "batch_cache",
        "clip",
        "density_search",
        "warmup",
        "statistics_loss",
        "feature_loss",
        "generations",
        "evaluations",
        "seconds",
        "stagnation",
        "patience",
    }
)


@dataclass(frozen=True)
class Method:
    """One way to prune.

    Attributes:
        method: `Settings.method`: the search, or a one-shot criterion.
        settings: settings that replace those of the network.
        proxied: whether the calibration inputs are unrelated real inputs.
    """

    method: str = EVOLVED
    settings: Mapping[str, Any] = field(default_factory=dict)
    proxied: bool = False

    @property
    def searches(self) -> bool:
        """Whether the method is the search."""
        return self.method == EVOLVED

    @property
    def repairs(self) -> bool:
        """Whether statistics and biases are corrected after pruning."""
        return bool(self.settings.get("repair"))

    @property
    def looks(self) -> bool:
        """Whether the pruned network depends on the calibration inputs."""
        return self.searches or self.repairs or CRITERIA[self.method].needs_inputs


METHODS: dict[str, Method] = {
    "strict": Method(),
    "repair": Method(settings={**REPAIR, "repair_in_loop": True}),
    "proxy": Method(proxied=True),
    **{name: Method(name) for name in ONE_SHOT},
    **{f"{name}-repair": Method(name, REPAIR) for name in REPAIRED},
}


def usable_settings(settings: Mapping[str, Any], *, searches: bool) -> dict[str, Any]:
    """Return settings without those that a one-shot criterion ignores, unless a run searches."""
    return {name: value for name, value in settings.items() if searches or name not in SEARCH_ONLY}
