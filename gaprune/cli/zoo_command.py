"""`gaprune zoo`: the reference networks that come with the package."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from gaprune.cli import common_options as outputs
from gaprune.cli.console import add_row, stdout, table
from gaprune.formatting import percent
from gaprune.io.serialization import to_json
from gaprune.models.target import load_target
from gaprune.models.zoo import ZOO


def zoo_command(
    *,
    as_json: Annotated[bool, outputs.ROWS] = False,
) -> None:
    """List the networks that come with gaprune.

    Prints their parameters, those that can be pruned, and the accuracy on the test set.

    Example: gaprune zoo
    """
    rows = [describe(name) for name in ZOO]
    if as_json:
        typer.echo(to_json(rows, indent=2))
        return
    shown = table("network", "parameters", "prunable", "accuracy", "description")
    shown.columns[-1].justify = "left"
    for row in rows:
        counts = [f"{row['parameters']:,}", f"{row['prunable']:,}"]
        cells = [row["name"], *counts, percent(row["dense_accuracy"]), row["description"]]
        add_row(shown, cells)
    stdout().print(shown)


def describe(name: str) -> dict[str, Any]:
    """Return a network's row: name, parameters, prunable weights, dense accuracy, description."""
    target, entry = load_target(name), ZOO[name]
    return {
        "name": name,
        "parameters": sum(parameter.numel() for parameter in target.model.parameters()),
        "prunable": target.layout.total,
        "dense_accuracy": entry.dense_accuracy,
        "description": entry.description,
    }
