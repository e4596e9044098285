"""Prune a network and log the search to MLflow (pip install mlflow).

python scripts/log_to_mlflow.py; mlflow ui
"""

from __future__ import annotations

import importlib
from typing import Any

import gaprune
from gaprune.records import Generation

TARGET, SPARSITY, FOLDER = "mnist-mlp", 0.95, "runs/mlflow-example"
INPUTS = gaprune.InputOptions((1, 28, 28), kind="image", range=(0, 1))


def main(**settings: Any) -> None:
    """Log every generation as a step, the result as metrics and the report as an artifact.

    Args:
        settings: further arguments of `gaprune.prune`, such as `seed=1`.
    """
    mlflow: Any = importlib.import_module("mlflow")

    def log(record: Generation) -> None:
        figures = {"best": record.best, "mean": record.mean, "validation": record.validation}
        mlflow.log_metrics(figures, step=record.generation)

    with mlflow.start_run(run_name=f"{TARGET} {SPARSITY}"):
        mlflow.log_params({"target": TARGET, "sparsity": SPARSITY})
        model = gaprune.load_target(TARGET).model
        result = gaprune.prune(
            model, sparsity=SPARSITY, inputs=INPUTS, on_generation=log, out=FOLDER, **settings
        )
        mlflow.log_metrics(
            {"agreement": result.validation_agreement, "sparsity": result.actual_sparsity}
        )
        mlflow.log_artifact(f"{FOLDER}/report.html")


if __name__ == "__main__":
    main()
