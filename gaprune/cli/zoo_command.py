"""`gaprune zoo`: the bundled reference networks."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from gaprune.cli import common_options as common


def zoo_command(*, as_json: Annotated[bool, common.ROWS] = False) -> None:
    """List the bundled networks.

    Prints the number of parameters and of prunable weights, and the accuracy on the test set.

    Example: gaprune zoo
    """
    from gaprune.cli.console import add_row, stdout, table
    from gaprune.formatting import percent
    from gaprune.io.serialization import to_json
    from gaprune.models.target import load_target
    from gaprune.models.zoo import ZOO

    rows: list[dict[str, Any]] = []
    for name, entry in ZOO.items():
        target = load_target(name)  # counted in the loaded network, not written down twice
        parameters = sum(parameter.numel() for parameter in target.model.parameters())
        counts = {"name": name, "parameters": parameters, "prunable": target.layout.total}
        texts = {"dense_accuracy": entry.dense_accuracy, "description": entry.description}
        rows.append(counts | texts)
    if as_json:
        typer.echo(to_json(rows, indent=2))
        return
    heads = ("network", "parameters", "prunable", "accuracy", "description")
    networks = table(*heads, left=["description"])
    for row in rows:
        cells = [row["name"], f"{row['parameters']:,}", f"{row['prunable']:,}"]
        add_row(networks, [*cells, percent(row["dense_accuracy"]), row["description"]])
    stdout().print(networks)
