"""The demonstration: a real network loses most of its weights, without data, beside baselines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from gaprune.callbacks import Observer
from gaprune.config import EVOLVED, make_settings
from gaprune.errors import GapruneError
from gaprune.evaluation.labelled import zoo_test
from gaprune.io.weights import load_state
from gaprune.models.target import load_target
from gaprune.models.zoo import ZOO
from gaprune.runs.prune import prune_target
from gaprune.runs.result import Result

TARGET = "mnist-mlp"
SPARSITIES = (0.95, 0.98)
FAST = {"generations": 2}
BEST_BASELINES = 4  # beside magnitude, which everybody knows


@dataclass(frozen=True)
class Demo:
    """What the demonstration found.

    Attributes:
        results: one per sparsity.
        compared: weights and other values whose bits were compared with the checkpoint.
    """

    results: tuple[Result, ...]
    compared: int

    @property
    def dense_accuracy(self) -> float | None:
        """Test accuracy before pruning."""
        return self.results[0].dense_accuracy

    @property
    def methods(self) -> list[str]:
        """Magnitude, the best other baselines at the highest sparsity, then the evolved masks."""
        scores = self.results[-1].baselines
        others = sorted(
            (name for name in scores if name != "magnitude"),
            key=lambda name: scores[name].accuracy or 0.0,
        )
        return ["magnitude", *others[-BEST_BASELINES:], EVOLVED]

    def accuracy(self, method: str, result: Result) -> float | None:
        """Return the test accuracy of one method in one result."""
        return result.accuracy if method == EVOLVED else result.baselines[method].accuracy

    def rows(self) -> list[dict[str, Any]]:
        """Return every method at every sparsity as plain data."""
        return [
            {
                "target": TARGET,
                "sparsity": result.sparsity,
                "method": method,
                "seed": result.settings["seed"],
                "accuracy": self.accuracy(method, result),
                "agreement": result.validation_agreement
                if method == EVOLVED
                else result.baselines[method].agreement,
            }
            for result in self.results
            for method in (*result.baselines, EVOLVED)
        ]


def run_demo(observer: Observer, settings: Mapping[str, Any]) -> Demo:
    """Prune `TARGET` to every one of `SPARSITIES` and compare the bits of what is left.

    Args:
        observer: told of progress.
        settings: fields of `Settings` beside the sparsity.

    Raises:
        KeyboardInterrupt: a search was interrupted: half a table shows nothing.
    """
    results, compared = [], 0
    for sparsity in SPARSITIES:
        observer.phase("demo", f"removing {sparsity:.0%} of the weights of {TARGET}")
        chosen = make_settings({**settings, "sparsity": sparsity})
        target = load_target(TARGET)
        result = prune_target(target, chosen, test=zoo_test(target), observer=observer)
        if result.stopped == "interrupted":
            raise KeyboardInterrupt
        compared += compare_bits(result)
        results.append(result)
    return Demo(tuple(results), compared)


def compare_bits(result: Result) -> int:
    """Compare a pruned zoo network with its checkpoint and return how many values were compared.

    Every kept weight and every value that cannot be pruned must be there bit for bit, and every
    other weight be 0.

    Raises:
        GapruneError: one is not, which would be a defect of gaprune.
    """
    dense = load_state(ZOO[result.target.name].checkpoint)
    compared = 0
    for name, pruned in result.state_dict().items():
        keep = result.masks.get(name, torch.ones_like(pruned, dtype=torch.bool))
        before, after = dense[name][keep], pruned[keep]
        same = torch.equal(before.view(torch.uint8), after.view(torch.uint8))
        if not same or pruned[~keep].any():
            raise GapruneError(f"{name}: the pruned network differs from the checkpoint")
        compared += len(after)
    return compared
