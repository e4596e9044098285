"""Compare evolved masks with fine-tuned pruning: what does missing data cost?

python scripts/benchmark.py

Equivalent to `gaprune compare`, for a network and data in memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gaprune
from gaprune.models.zoo.mnist import test_set, train_set

TARGET, SPARSITIES = "mnist-mlp", (0.9, 0.98)
METHODS = ("evolved", "magnitude", "lamp", "imp")
INPUTS = gaprune.InputOptions((1, 28, 28), kind="image", range=(0, 1))


def main(folder: str | Path = "runs/benchmark-example", **options: Any) -> gaprune.Comparison:
    """Print one line per method; write rows, a table, plots and a page into the folder.

    Args:
        folder: where the comparison is written; an interrupted one continues.
        options: further arguments of `gaprune.compare`, such as `epochs=0.5`.
    """
    model = gaprune.load_target(TARGET).model
    comparison = gaprune.compare(
        model,
        sparsity=SPARSITIES,
        methods=METHODS,
        inputs=INPUTS,
        train=train_set(),
        test=test_set(),
        out=folder,
        **options,
    )
    for row in comparison.rows:
        accuracy = "–" if row.accuracy is None else f"{row.accuracy:.2%}"
        data = "labels" if row.needs.labels else row.needs.data
        print(f"{row.method:12} {row.sparsity:.0%} removed: {accuracy:>7}  (data: {data})")
    print(f"page: {folder}/report.html")
    return comparison


if __name__ == "__main__":
    main()
