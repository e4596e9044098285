"""The page of one run: what is shown of it, in the order in which it is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gaprune.errors import GapruneError
from gaprune.formatting import number, percent
from gaprune.io.atomic import write_file, writing
from gaprune.io.run_files import REPORT
from gaprune.report.classes import losses, pairs
from gaprune.report.curves import (
    density_plot,
    front_chart,
    method_plot,
    method_scores,
    search_charts,
)
from gaprune.report.headline import counts, headline, own_name
from gaprune.report.input_samples import shown
from gaprune.report.mask_images import first_layer, portraits
from gaprune.report.reading import RunFiles, read_run
from gaprune.report.render import render

MOST_LAYERS = 300  # rows of the table of layers


def write_report(folder: str | Path, *, name: str | None = None) -> Path:
    """Make `report.html` of the other files of a finished run; one that is there is replaced.

    Args:
        folder: of the run.
        name: what the folder is called in the page; without, its own name.

    Returns:
        The path of the page.

    Raises:
        InputError: there is no finished run.
        GapruneError: the page cannot be written.
    """
    place = Path(folder).expanduser().resolve()
    text = report_of(place, name=name)
    page = place / REPORT
    with writing(folder, GapruneError):
        write_file(page, text)
    return page


def report_of(folder: Path, *, name: str | None = None) -> str:
    """Return the page of a finished run as text.

    Raises:
        InputError: there is no finished run.
    """
    run = read_run(folder)
    top = headline(run)
    confusion = run.report_data.get("confusion")
    sections = {
        "methods": method_plot(run),
        "search": search_charts(run),
        "front": front_chart(run),
        "shown": shown(run),
        "density": density_plot(run),
        "first": first_layer(run),
        "portraits": portraits(run),
        "pairs": pairs(confusion),
        "losses": losses(confusion),
    }
    return render(
        "run.html",
        {
            "title": f"{top.title}: gaprune report",
            "top": top,
            **sections,
            "method_rows": [(name, *map(percent, scores)) for name, *scores in method_scores(run)],
            "layers": _layers(run),
            "provenance": run.record["provenance"],
            "facts": _facts(run),
            "command": run.report_data.get("command"),
            "folder": name or folder.name,
            "config": run.config,
            "versions": dict(run.record.get("versions") or {}),
        },
    )


def _layers(run: RunFiles) -> dict[str, Any]:
    listed = run.record["layers"]
    beside = {
        name: kept
        for name, kept in (run.report_data.get("kept") or {}).items()
        if len(kept) == len(listed) and name != run.record["method"]
    }
    rows = [
        (
            str(layer["name"]),
            [number(layer["total"]), number(layer["kept"]), _share(layer["kept"], layer)]
            + [_share(kept[place], layer) for kept in beside.values()],
        )
        for place, layer in enumerate(listed[:MOST_LAYERS])
    ]
    total, kept = counts(run.record)
    whole = {"total": total, "kept": kept}
    sums = [number(total), number(kept), _share(kept, whole)]
    sums += [_share(sum(counts), whole) for counts in beside.values()]
    head = ["weights", "kept", f"density, {own_name(run.record)}", *beside]
    return {"head": head, "rows": rows, "sums": sums, "more": len(listed) - len(rows)}


def _share(kept: int, layer: Mapping[str, Any]) -> str:
    return percent(kept / max(1, layer["total"]), 2)


def _facts(run: RunFiles) -> list[tuple[str, str]]:
    """Return what identifies the run, in pairs; what an older run does not say is left out."""
    record, provenance = run.record, run.record["provenance"]
    pairs_of = [
        ("target", record["target"]),
        ("where it came from", record.get("origin")),
        ("weights, SHA-256", record.get("weights_sha256")),
        ("method", record["method"]),
        ("preset", record.get("preset")),
        ("the mask was made by", record.get("made_by")),
        ("seed", record.get("seed")),
        ("search calibration inputs, SHA-256", provenance.get("sha256")),
        ("validation, SHA-256", provenance.get("validation_sha256")),
    ]
    return [(name, str(value)) for name, value in pairs_of if value is not None]
