"""Compare evolved masks with fine-tuned pruning: what does it cost to have no data?

python scripts/benchmark.py

The same as `gaprune compare`, for a network and data that are in Python already.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gaprune
from gaprune.models.zoo.mnist import test_set, train_set

TARGET, SPARSITIES = "mnist-mlp", (0.9, 0.98)
METHODS = ("evolved", "magnitude", "lamp", "imp-linear")
INPUTS = gaprune.InputOptions((1, 28, 28), kind="image", range=(0, 1))


def main(folder: str | Path = "runs/benchmark-example", **options: Any) -> gaprune.Comparison:
    """Print one line a method; rows, a table, plots and a page lie in the folder.

    Args:
        folder: of the comparison; a stopped one goes on there.
        options: further ones of `gaprune.compare`, such as `epochs=0.5`.
    """
    model = gaprune.load_target(TARGET).model
    found = gaprune.compare(
        model,
        sparsity=SPARSITIES,
        methods=METHODS,
        inputs=INPUTS,
        train=train_set(),
        test=test_set(),
        out=folder,
        **options,
    )
    for row in found.rows:
        told = "–" if row.accuracy is None else f"{row.accuracy:.2%}"
        given = "labels" if row.needs.labels else row.needs.data
        print(f"{row.method:12} {row.sparsity:.0%} removed: {told:>7}  (it was given: {given})")
    print(f"page: {folder}/report.html")
    return found


if __name__ == "__main__":
    main()
