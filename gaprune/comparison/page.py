"""A comparison as its report takes it, and the report of one that lies on the disk."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gaprune.comparison.rows import Line, Row, summarise
from gaprune.comparison.store import CONFIG, IDENTITY, REPORT, TABLE, read_rows, replace_file
from gaprune.comparison.tables import effort_text, needs_text, notes
from gaprune.errors import GapruneError, InputError
from gaprune.outcome.run_directory import writing
from gaprune.report import Contest, Contestant, Score, comparison_page

_FACTS = ("target", "weights_sha256", "train", "test", "preset", "scope", "objective", "probes")
_VERSIONS = ("gaprune", "torch")


def page_of(rows: Sequence[Row], caption: str, folder: Path) -> str:
    """Return the report of some rows.

    Args:
        rows: of one target.
        caption: what their figures are, in a sentence.
        folder: that they lie in, with `comparison.json` and `config.toml` where there is one.
    """
    dense = next((row.dense_accuracy for row in rows if row.dense_accuracy is not None), None)
    lines = summarise(rows)
    labelled = any(row.accuracy is not None for row in rows)
    return comparison_page(
        Contest(
            target=rows[0].target,
            measure="accuracy" if labelled else "agreement with the dense network",
            caption=caption,
            dense=dense,
            methods=[_contestant(line) for line in lines],
            notes=notes(lines),
            config=_text(folder / CONFIG),
            facts=_facts(folder),
            folder=folder.name,
        )
    )


def write_page(folder: str | Path) -> Path:
    """Make the report of a comparison anew, of all rows that its last command asked for.

    Raises:
        InputError: the folder holds no comparison, or none with rows.
        GapruneError: it cannot be written.
    """
    place = Path(folder).expanduser().resolve()
    rows = _asked(read_rows(place), _text(place / CONFIG))
    if not rows:
        raise InputError(f"comparison: {folder} holds no rows yet; gaprune compare makes them")
    caption = _text(place / TABLE).partition("\n")[0] or f"{rows[0].target}, in %."
    with writing(folder, GapruneError):
        replace_file(place / REPORT, page_of(rows, caption, place))
    return place / REPORT


def _asked(rows: list[Row], config: str) -> list[Row]:
    """Return the rows at the sparsities and seeds that were asked for last, if that is known."""
    try:
        stated = tomllib.loads(config)
    except ValueError:
        return rows
    for name, field in (("sparsity", "sparsity"), ("seeds", "seed")):
        wanted = stated.get(name)
        if isinstance(wanted, list):
            rows = [row for row in rows if getattr(row, field) in wanted]
    return rows


def _contestant(line: Line) -> Contestant:
    return Contestant(
        name=line.method,
        needs=needs_text(line.needs),
        trains=line.needs.training,
        scores={
            sparsity: Score(cell.score, cell.low, cell.high, cell.seeds)
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
