"""A comparison as its report takes it, and the report of one that lies on the disk."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gaprune.comparison.methods.method_registry import find_methods
from gaprune.comparison.rows import MethodSummary, Row, summarise
from gaprune.comparison.store import CONFIG, IDENTITY, REPORT, ROWS, TABLE, read_rows
from gaprune.comparison.tables import effort_text, needs_text, notes
from gaprune.errors import GapruneError, InputError
from gaprune.io.atomic import write_file, writing
from gaprune.pattern_names import UNSTRUCTURED, unit_name
from gaprune.report import (
    ComparisonPage,
    MethodScores,
    SparsityScore,
    comparison_page,
    write_report,
)

_FACTS = (
    "target",
    "weights_sha256",
    "train",
    "test",
    "preset",
    "scope",
    "objective",
    "calibration",
)
_VERSIONS = ("gaprune", "torch")


def page_of(rows: Sequence[Row], caption: str, folder: Path, removed: str = "weights") -> str:
    """Return the report of some rows.

    Args:
        rows: of one target.
        caption: what their figures are, in a sentence.
        folder: that they lie in, with `comparison.json` and `config.toml` where there is one.
        removed: what their sparsities are parts of, in words.
    """
    dense = next((row.dense_accuracy for row in rows if row.dense_accuracy is not None), None)
    lines = summarise(rows)
    labelled = any(row.accuracy is not None for row in rows)
    return comparison_page(
        ComparisonPage(
            target=rows[0].target,
            measure="accuracy" if labelled else "agreement with the dense network",
            caption=caption,
            dense=dense,
            methods=[_method_scores(line) for line in lines],
            notes=notes(lines),
            config=_text(folder / CONFIG),
            facts=_facts(folder),
            folder=folder.name,
            removed=removed,
        )
    )


def write_page(folder: str | Path) -> Path:
    """Make the report of a comparison anew, of all rows that its last command asked for.

    Raises:
        InputError: the folder holds no comparison, or none with rows.
        GapruneError: it cannot be written.
    """
    place = Path(folder).expanduser().resolve()
    config = _config(place)
    rows = _asked(read_rows(place), config)
    if not rows:
        raise InputError(f"comparison: {folder} holds no rows yet; gaprune compare makes them")
    pattern = str(config.get("pattern", UNSTRUCTURED))
    caption = _text(place / TABLE).partition("\n")[0] or f"{rows[0].target}, in %."
    caption += _stopped(rows, config, pattern)
    with writing(folder, GapruneError):
        write_file(place / REPORT, page_of(rows, caption, place, unit_name(pattern)))
    return place / REPORT


def make_report(folder: str | Path) -> Path:
    """Make `report.html` of a run that has ended or of a comparison anew, from its other files.

    Returns:
        The absolute path of the page.

    Raises:
        InputError: the folder holds neither.
        GapruneError: it cannot be written, or a file of the run is damaged.
    """
    comparison = (Path(folder).expanduser() / ROWS).is_file()
    return (write_page if comparison else write_report)(folder)


def _config(folder: Path) -> dict[str, Any]:
    """Return what was asked for last; empty where nobody wrote it down."""
    try:
        return tomllib.loads(_text(folder / CONFIG))
    except ValueError:
        return {}


def _stopped(rows: Sequence[Row], config: Mapping[str, Any], pattern: str) -> str:
    """Return which rows a comparison that was stopped has not made, as a sentence."""
    names, sparsities, seeds = (config.get(key) for key in ("methods", "sparsity", "seeds"))
    if not (isinstance(names, list) and isinstance(sparsities, list) and isinstance(seeds, list)):
        return ""
    try:
        chosen = find_methods(names, pattern)
    except GapruneError:  # a file of the user's that is there no more
        return ""
    there = {(row.method, row.seed, row.sparsity) for row in rows}
    missing: dict[str, int] = {}
    for method in chosen:
        own = seeds if method.seeded else seeds[:1]
        asked = {(method.name, seed, sparsity) for seed in own for sparsity in sparsities}
        if lacking := len(asked - there):
            missing[method.name] = lacking
    if not missing:
        return ""
    listed = ", ".join(f"{name} ({count})" for name, count in missing.items())
    return (
        f" It was stopped before its end; {sum(missing.values())} rows are missing: {listed}. The "
        "same command goes on."
    )


def _asked(rows: list[Row], config: Mapping[str, Any]) -> list[Row]:
    """Return the rows at the sparsities and seeds that were asked for last, if that is known."""
    for name, field in (("sparsity", "sparsity"), ("seeds", "seed")):
        wanted = config.get(name)
        if isinstance(wanted, list):
            rows = [row for row in rows if getattr(row, field) in wanted]
    return rows


def _method_scores(line: MethodSummary) -> MethodScores:
    return MethodScores(
        name=line.method,
        needs=needs_text(line.needs),
        trains=line.needs.training,
        scores={
            sparsity: SparsityScore(cell.score, cell.low, cell.high, cell.seeds)
            for sparsity, cell in line.cells.items()
        },
        effort=effort_text(line) if line.cells else "",
        seconds=line.seconds,
        error=line.error,
    )


def _facts(folder: Path) -> list[tuple[str, str]]:
    try:
        known: Any = json.loads(_text(folder / IDENTITY))
    except ValueError:
        return []
    if not isinstance(known, Mapping):
        return []
    return [(name, _words(known[name])) for name in (*_FACTS, *_VERSIONS) if known.get(name)]


def _words(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
