"""The page of a run, `report.html`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gaprune.errors import GapruneError, InputError
from gaprune.formatting import number, percent
from gaprune.io.atomic import write_file, writing
from gaprune.io.run_files import REPORT
from gaprune.report.classes import class_accuracies, confusion_matrices
from gaprune.report.curves import (
    density_plot,
    front_chart,
    method_plot,
    method_scores,
    other_densities,
    search_charts,
)
from gaprune.report.headline import headline, network_name, weight_counts
from gaprune.report.input_samples import sample_groups
from gaprune.report.mask_images import density_maps, first_layer_images
from gaprune.report.next_steps import next_steps
from gaprune.report.reading import RunFiles, read_run
from gaprune.report.render import render

MAX_LAYERS = 300  # rows of the table of layers


def write_report(folder: str | Path, *, final: Path | None = None) -> Path:
    """Write `report.html` from the other files of a finished run and return its path.

    `final` is the absolute path of the directory that the files will be moved to; None: they stay.

    Raises:
        InputError: there is no finished run.
        GapruneError: the page can't be written.
    """
    path = Path(folder).expanduser().resolve()
    # Render before writing: a failure keeps the older page.
    try:
        text = report_of(path, final=final)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"run: {folder} holds values that no run writes ({type(error).__name__}: {error}); "
            "prune again"
        ) from error
    with writing(folder, GapruneError):
        write_file(path / REPORT, text)
    return path / REPORT


def report_of(folder: Path, *, final: Path | None = None) -> str:
    """Return the page of a finished run as HTML; raise InputError if there is none."""
    run = read_run(folder)
    top = headline(run)
    record, confusion = run.record, run.report_data.get("confusion")
    provenance = record["provenance"]
    # These values tell two runs apart, so they are printed in full.
    facts = {
        "target": record["target"],
        "source": record.get("origin"),
        "weights, SHA-256": record.get("weights_sha256"),
        "method": record["method"],
        "preset": record.get("preset"),
        "origin of the mask": record.get("made_by"),
        "seed": record.get("seed"),
        "calibration inputs, SHA-256": provenance.get("sha256"),
        "validation inputs, SHA-256": provenance.get("validation_sha256"),
    }
    content = {
        "title": f"{top.title}: gaprune report",
        "top": top,
        "methods": method_plot(run),
        "search": search_charts(run),
        "front": front_chart(run),
        "samples": sample_groups(run),
        "density": density_plot(run),
        "first_layer": first_layer_images(run),
        "density_maps": density_maps(run),
        "matrices": confusion_matrices(confusion),
        "accuracies": class_accuracies(confusion),
        "method_rows": [(name, *map(percent, scores)) for name, *scores in method_scores(run)],
        "layers": _layers(run),
        "provenance": provenance,
        "facts": [(key, str(value)) for key, value in facts.items() if value is not None],
        "command": run.report_data.get("command"),
        "steps": next_steps(run, final or folder.resolve()),
        "config": run.config,
        "versions": dict(record.get("versions") or {}),
    }
    return render("run.html", content)


def _layers(run: RunFiles) -> dict[str, Any]:
    """Return the table of layers: weights, kept, density, and the densities of other methods."""
    layers, others = run.record["layers"], other_densities(run)
    total, keep_count = weight_counts(run.record)
    all_layers = {"total": total, "kept": keep_count}

    def cells(layer: Mapping[str, int], counts: list[int]) -> list[str]:
        densities = [percent(count / max(1, layer["total"])) for count in (layer["kept"], *counts)]
        return [number(layer["total"]), number(layer["kept"]), *densities]

    rows = [
        (str(layer["name"]), cells(layer, [counts[index] for counts in others.values()]))
        for index, layer in enumerate(layers[:MAX_LAYERS])
    ]
    return {
        "head": ["weights", "kept", f"density, {network_name(run.record)}", *others],
        "rows": rows,
        "sums": cells(all_layers, [sum(counts) for counts in others.values()]),
        "more": len(layers) - len(rows),
    }
