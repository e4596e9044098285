"""Prune a network and log the search to Weights & Biases (pip install wandb).

WANDB_MODE=offline python scripts/log_to_wandb.py
"""

from __future__ import annotations

import importlib
from typing import Any

import gaprune
from gaprune.records import Generation

TARGET, SPARSITY, FOLDER = "mnist-mlp", 0.95, "runs/wandb-example"
INPUTS = gaprune.InputOptions((1, 28, 28), kind="image", range=(0, 1))


def main(**settings: Any) -> None:
    """Log every generation as a step, the result as summary, the report as a page.

    Args:
        settings: further arguments of `gaprune.prune`, such as `seed=1`.
    """
    wandb: Any = importlib.import_module("wandb")

    with wandb.init(project="gaprune", config={"target": TARGET, "sparsity": SPARSITY}) as run:

        def log(record: Generation) -> None:
            figures = {"best": record.best, "mean": record.mean, "validation": record.validation}
            run.log(figures, step=record.generation)

        model = gaprune.load_target(TARGET).model
        result = gaprune.prune(
            model, sparsity=SPARSITY, inputs=INPUTS, on_generation=log, out=FOLDER, **settings
        )
        run.summary["agreement"] = result.validation_agreement
        run.log({"report": wandb.Html(f"{FOLDER}/report.html")})


if __name__ == "__main__":
    main()
