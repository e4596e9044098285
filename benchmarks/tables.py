"""Write the tables of README and documentation from saved rows of the benchmarks.

    python -m benchmarks.tables                                    # write all tables
    python -m benchmarks.tables --check                            # exit code 1 if a page differs
    python -m benchmarks.tables --add FILE... --machine "2 cores"  # save rows, write all tables

A page has a table between `<!-- table: NAME -->` and `<!-- end of table -->`. benchmarks/rows holds
the rows. FILE is what `--json` of a benchmark printed, or a rows.jsonl of its folder; see
benchmarks/saved_rows.py for what its rows replace. A row that was not measured does not appear,
except in the table of other tools, which says why.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks import generalisation, peers, price_of_no_data, quality
from benchmarks.peer_tools import TOOLS
from benchmarks.quality import NO_DATA, UNLABELLED, Case
from benchmarks.real.methods import METHODS, ONE_SHOT
from benchmarks.saved_rows import (
    DOMAINS,
    FIELDS,
    LANGUAGE,
    PEERS,
    PRICE,
    QUALITY,
    REAL,
    STAMP,
    Saved,
    add_rows,
    load_rows,
    read_rows,
)
from gaprune.comparison.rows import MethodRequirements, markdown, summarise
from gaprune.comparison.rows import Row as ComparisonRow
from gaprune.errors import InputError
from gaprune.formatting import MISSING
from gaprune.models.zoo import ZOO

ROOT = Path(__file__).resolve().parents[1]
TABLE = re.compile(r"(<!-- table: (?P<name>[\w-]+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
NETWORKS = {
    "resnet20": "ResNet-20, CIFAR-10",
    "crepe-tiny": "CREPE tiny, pitch of tones",
    "crepe-full": "CREPE full, pitch of tones",
    "efficientnet-lite0": "EfficientNet-Lite0, photographs",
    "minilm": "MiniLM, sentence pairs (rank correlation)",
    "minilm-half": "MiniLM, half of them; calibrated on the others' sentences",
}
"""Real networks in the order of the tables."""
LABELS = NETWORKS | {
    "fashion-mlp": "784-250-100-10, Fashion-MNIST",
    "digits-vectors": "64-128-64-10, 8×8 digits as vectors",
}
"""Names of networks in the README."""
README_CASES = (
    ("mnist-mlp", 0.95, NO_DATA),
    ("mnist-mlp", 0.98, NO_DATA),
    ("mnist-mlp", 0.98, UNLABELLED),
    ("mnist-cnn", 0.98, NO_DATA),
    ("fashion-mlp", 0.98, "none"),
    ("fashion-mlp", 0.98, "256"),
    ("digits-vectors", 0.9, "none"),
    ("resnet20", 0.7, "strict"),
    ("resnet20", 0.9, "strict"),
    ("crepe-full", 0.9, "strict"),
    ("minilm", 0.7, "strict"),
)
FEWEST = "16"  # inputs: networks with such a row are in `few_inputs_table`
ONE_SHOTS = ("magnitude", "lamp", "erk", "wanda", "synflow", "correlation")  # of `frozen_table`


class Gain(NamedTuple):
    """A row of the README; accuracies as fractions."""

    dense: float
    pruned: float
    one_shot: tuple[str, float] | None  # the best one, None if none was measured
    data: str


def results_table(saved: Saved) -> list[str]:
    """Return the table of the README."""
    lines = [
        "| network | removed | dense | pruned | gain over the best one-shot | data it was given |",
        "|---|---|---|---|---|---|",
    ]
    for network, sparsity, method in README_CASES:
        find: Callable[[Saved, str, float, str], Gain | None] = _quality_gain
        if method in generalisation.GIVEN:
            find = _domain_gain
        elif network in NETWORKS:
            find = _real_gain
        row = find(saved, network, sparsity, method)
        if row is None:
            continue
        gain = MISSING
        if row.one_shot is not None:
            name, best = row.one_shot
            gain = f"{_points(row.pruned - best)} ({name} {100 * best:.2f})"
        lines.append(
            f"| {LABELS.get(network, network)} | {100 * sparsity:g} % | {100 * row.dense:.2f} "
            f"| **{100 * row.pruned:.2f}** | {gain} | {row.data} |"
        )
    return [*lines, "", _caption([*saved[QUALITY], *saved[REAL], *saved[DOMAINS]])]


def _points(difference: float) -> str:
    return f"{100 * difference:+.2f}".replace("-", "−")


def _quality_rows(saved: Saved) -> list[quality.Row]:
    names = FIELDS[QUALITY]
    return [quality.Row(**{name: row[name] for name in names}) for row in saved[QUALITY]]


def _quality_gain(saved: Saved, network: str, sparsity: float, method: str) -> Gain | None:
    rows, case = _quality_rows(saved), Case(network, sparsity, method, 0)
    accuracy = quality.median_accuracy(case, rows)
    if accuracy is None:
        return None
    dense = ZOO[network].dense_accuracy
    data = "none" if method == NO_DATA else method
    return Gain(dense, accuracy, quality.best_one_shot(case, rows), data)


def _real_gain(saved: Saved, network: str, sparsity: float, method: str) -> Gain | None:
    scores = {
        row["method"]: row["score"]
        for row in saved[REAL]
        if (row["network"], row["sparsity"], row["seed"]) == (network, sparsity, 0)
    }
    if method not in scores:
        return None
    dense = next(row["dense"] for row in saved[REAL] if row["network"] == network)
    measured = [(name, scores[name]) for name in ONE_SHOT if name in scores]
    best = max(measured, key=lambda pair: pair[1], default=None)
    return Gain(dense, scores[method], best, "none")


def _domain_rows(saved: Saved) -> list[generalisation.Row]:
    names = FIELDS[DOMAINS]
    return [generalisation.Row(**{name: row[name] for name in names}) for row in saved[DOMAINS]]


def _domain_gain(saved: Saved, network: str, sparsity: float, data: str) -> Gain | None:
    rows = [
        row
        for row in _domain_rows(saved)
        if (row.network, row.sparsity, row.data) == (network, sparsity, data)
    ]
    accuracies = [row.accuracy for row in rows if row.accuracy is not None]
    if not accuracies:
        return None
    shots = [(r.best_one_shot, r.best_one_shot_accuracy) for r in rows]
    best = [(name, value) for name, value in shots if name is not None and value is not None]
    middle = sorted(best, key=lambda pair: pair[1])[len(best) // 2] if best else None
    given = "none" if data == "none" else f"{data} unlabelled inputs"
    return Gain(rows[0].dense or 0.0, median(accuracies), middle, given)


def few_inputs_table(saved: Saved) -> list[str]:
    """Return what a number of unlabelled inputs gains."""
    rows = _domain_rows(saved)
    given = [data for data in generalisation.GIVEN if data != "labels"]
    lines = [f"| network | removed | {' | '.join(given)} |", "|---" * (2 + len(given)) + "|"]
    for row in (row for row in rows if (row.data, row.seed) == (FEWEST, 0)):
        gains = [_domain_gain(saved, row.network, row.sparsity, data) for data in given]
        cells = [f"{100 * gain.pruned:.2f}" if gain else MISSING for gain in gains]
        label = LABELS.get(row.network, row.network)
        lines.append(f"| {label} | {100 * row.sparsity:g} % | {' | '.join(cells)} |")
    return [*lines, "", _caption(saved[DOMAINS])]


def domains_table(saved: Saved) -> list[str]:
    """Return accuracies on several domains by the data that the search was given."""
    rows = _domain_rows(saved)
    given = [data for data in generalisation.GIVEN if any(row.data == data for row in rows)]
    heads = ["network", "removed", "dense", "domain fit", "best one-shot", *given]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for network, sparsity in dict.fromkeys((row.network, row.sparsity) for row in rows):
        gains = {data: _domain_gain(saved, network, sparsity, data) for data in given}
        known = next(gain for gain in gains.values() if gain is not None)
        fits = [
            row.domain_fit
            for row in rows
            if (row.network, row.data) == (network, "none") and row.domain_fit is not None
        ]
        shot = MISSING if known.one_shot is None else f"{100 * known.one_shot[1]:.2f}"
        cells = [f"{100 * gain.pruned:.2f}" if gain else MISSING for gain in gains.values()]
        lines.append(
            f"| {network} | {100 * sparsity:g} % | {100 * known.dense:.2f} "
            f"| {f'{median(fits):.2f}' if fits else MISSING} | {shot} | {' | '.join(cells)} |"
        )
    return [*lines, "", _caption(saved[DOMAINS])]


def quality_table(saved: Saved) -> list[str]:
    """Return the table of `benchmarks.quality`."""
    lines, _ = quality.table(quality.CASES, _quality_rows(saved))
    return [*lines, "", _caption(saved[QUALITY])]


def unlabelled_table(saved: Saved) -> list[str]:
    """Return what unlabelled images gain."""
    lines = ["| network | removed | no data | unlabelled images |", "|---|---|---|---|"]
    rows = _quality_rows(saved)
    for case in quality.CASES:
        if case.method != UNLABELLED:
            continue
        without = quality.median_accuracy(Case(case.target, case.sparsity, NO_DATA, 0), rows)
        images = quality.median_accuracy(case, rows)
        if without is not None and images is not None:
            lines.append(
                f"| {case.target} | {100 * case.sparsity:g} % | {100 * without:.2f} "
                f"| {100 * images:.2f} |"
            )
    return [*lines, "", _caption(saved[QUALITY])]


def real_table(saved: Saved) -> list[str]:
    """Return the scores on real networks: one column per measured method."""
    rows = [row for row in saved[REAL] if row["seed"] == 0]
    if not rows:
        return [_caption(rows)]
    methods = [name for name in METHODS if any(row["method"] == name for row in rows)]
    lines = [
        f"| network | removed | dense | {' | '.join(methods)} |",
        "|---" * (3 + len(methods)) + "|",
    ]
    for network, label in NETWORKS.items():
        for sparsity in sorted({row["sparsity"] for row in rows if row["network"] == network}):
            scores = {
                row["method"]: row["score"]
                for row in rows
                if (row["network"], row["sparsity"]) == (network, sparsity)
            }
            dense = next(row["dense"] for row in rows if row["network"] == network)
            cells = [_cell(scores, name) for name in methods]
            lines.append(
                f"| {label} | {100 * sparsity:g} % | {100 * dense:.2f} | {' | '.join(cells)} |"
            )
    return [*lines, "", _caption(rows)]


def _cell(scores: Mapping[str, float], name: str) -> str:
    if name not in scores:
        return MISSING
    text = f"{100 * scores[name]:.2f}"
    return f"**{text}**" if scores[name] == max(scores.values()) else text


def frozen_table(saved: Saved) -> list[str]:
    """Return mnist-mlp pruned without data by the search and by one-shot criteria."""
    rows = _quality_rows(saved)
    cases = [case for case in quality.CASES if (case.target, case.method) == ("mnist-mlp", NO_DATA)]
    lines = [
        f"| method | {' | '.join(f'{100 * case.sparsity:g} %' for case in cases)} |",
        "|---" * (1 + len(cases)) + "|",
    ]
    for name in ("", *ONE_SHOTS):
        named = [replace(case, method=f"{NO_DATA}: {name}" if name else NO_DATA) for case in cases]
        accuracies = [quality.median_accuracy(case, rows) for case in named]
        cells = [MISSING if value is None else f"{100 * value:.2f}" for value in accuracies]
        label = name or "**gaprune: evolved masks**"
        if set(cells) != {MISSING}:
            lines.append(f"| {label} | {' | '.join(cells)} |")
    return [*lines, "", _caption(saved[QUALITY])]


def price_table(saved: Saved) -> list[str]:
    """Return every method on every network of `benchmarks.price_of_no_data`."""
    lines = []
    for case in price_of_no_data.CASES:
        rows = [row for row in saved[PRICE] if row["case"] == case.name]
        if rows:
            training = case.training
            caption = (
                f"**{case.name}**, {case.epochs:g} epochs per training step, "
                f"{training.optimiser} at rate {training.learning_rate:g}, {training.decay}."
            )
            summaries = summarise(_comparison_row(row) for row in rows)
            text = markdown(summaries, rows[0]["dense_accuracy"], caption)
            lines += [text, _caption(rows), ""]
    return lines[:-1] or [_caption([])]


def _comparison_row(row: Mapping[str, Any]) -> ComparisonRow:
    needs = MethodRequirements(**row["needs"])
    names = [name for name in FIELDS[PRICE] if name not in ("case", "needs")]
    return ComparisonRow(needs=needs, **{name: row[name] for name in names})


def training_table(saved: Saved) -> list[str]:
    """Return the search beside the methods that train, on mnist-mlp."""
    wanted = (
        ("mnist-mlp", "evolved", "evolved masks, no weight changed", "none"),
        ("mnist-mlp", "distilled", "fine-tuned on generated inputs", "none"),
        ("mnist-mlp", "imp", "iterative magnitude pruning, linear steps, Adam", "labels"),
        ("mnist-mlp-sgd", "imp:cubic", "the same in cubic steps, SGD", "labels"),
        ("mnist-mlp-sgd", "imp:long", "the same with three times as many epochs, SGD", "labels"),
    )
    lines = ["| method | data | 95 % | 98 % |", "|---|---|---|---|"]
    used = []
    for case, method, label, data in wanted:
        rows = [row for row in saved[PRICE] if (row["case"], row["method"]) == (case, method)]
        cells = []
        for sparsity in (0.95, 0.98):
            scores = [row["accuracy"] for row in rows if row["sparsity"] == sparsity]
            cells.append(f"{100 * median(scores):.2f}" if scores else MISSING)
        given = "none" if data == "none" else "60,000 images with labels"
        if rows:
            lines.append(f"| {label} | {given} | {' | '.join(cells)} |")
            used += rows
    return [*lines, "", _caption(used)]


def peers_table(saved: Saved) -> list[str]:
    """Return what other tools make of the same networks, and below why figures are missing.

    Of several seeds, it is the row with the median accuracy.
    """
    seeds: dict[tuple[str, str, float], list[peers.Row]] = {}
    for saved_row in saved[PEERS]:
        row = peers.Row(**{name: saved_row[name] for name in FIELDS[PEERS]})
        seeds.setdefault((row.network, row.tool, row.sparsity), []).append(row)
    rows = [
        sorted(same, key=lambda row: row.accuracy or 0)[len(same) // 2] for same in seeds.values()
    ]
    lines = [f"| {' | '.join(peers.HEADS)} |", "|---" * len(peers.HEADS) + "|"]
    notes: dict[str, list[str]] = {}
    for network in peers.CASES:
        for tool in TOOLS:
            for row in rows:
                if (row.network, row.tool) != (network, tool):
                    continue
                if row.note:
                    notes.setdefault(row.note, []).append(f"{network}, {tool}")
                else:
                    lines.append(f"| {' | '.join(peers.cells(row))} |")
    reasons = [f"- {'; '.join(names)}: {note}" for note, names in notes.items()]
    return [*lines, "", *reasons, *([""] if reasons else []), _caption(saved[PEERS])]


def language_table(saved: Saved) -> list[str]:
    """Return the perplexity of pruned language models, beside that of the dense one."""
    rows = saved[LANGUAGE]
    lines = [
        "| removed | method | text it was given | perplexity | ÷ dense | s | peak GB |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['sparsity']} | {row['method']} | {row['calibration']} | {row['perplexity']:,.1f} "
        f"| {row['perplexity'] / row['dense']:.2f} | {row['seconds']:.0f} "
        f"| {row['peak_mb'] / 1000:.1f} |"
        for row in sorted(rows, key=lambda row: (row["sparsity"], row["perplexity"]))
    ]
    scored = sorted({(row["text"], row["dense"]) for row in rows})
    dense = [f"Scored text: {text}; the dense network has {value:.2f}." for text, value in scored]
    return [*lines, "", *dense, "", _caption(rows)]


def _caption(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return version, seeds and machine of rows."""
    versions, machines = ({row[name] for row in rows} for name in STAMP)
    seeds = sorted({row["seed"] for row in rows})
    if not rows:
        return "*Not measured yet.*"
    counted = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
    return f"*gaprune {'; '.join([*sorted(versions), counted, *sorted(machines)])}.*"


TABLES: dict[str, Callable[[Saved], list[str]]] = {
    "results": results_table,
    "quality": quality_table,
    "unlabelled": unlabelled_table,
    "real-networks": real_table,
    "frozen-masks": frozen_table,
    "domains": domains_table,
    "few-inputs": few_inputs_table,
    "peers": peers_table,
    "price": price_table,
    "language-models": language_table,
    "training": training_table,
}


def with_tables(text: str, saved: Saved) -> str:
    """Return the text of a page with its tables written anew.

    Raises:
        InputError: a table that does not exist.
    """

    def rendered(match: re.Match[str]) -> str:
        if match["name"] not in TABLES:
            raise InputError(f"table: {match['name']} is none of {', '.join(TABLES)}")
        table = "\n".join(TABLES[match["name"]](saved))
        return f"{match[1]}\n{table}\n\n{match[3]}"

    return TABLE.sub(rendered, text)


def outdated_pages(saved: Saved) -> dict[Path, str]:
    """Return the pages whose tables differ from the rows, with the text that they should have."""
    paths = [
        *(ROOT / name for name in ("README.md", "benchmarks/README.md")),
        *sorted((ROOT / "docs").rglob("*.md")),
    ]
    pages = {path: path.read_text(encoding="utf-8") for path in paths}
    written = {path: with_tables(text, saved) for path, text in pages.items()}
    return {path: text for path, text in written.items() if text != pages[path]}


def main(arguments: Sequence[str] | None = None) -> int:
    """Save rows if there are any, then write or check the tables.

    Returns:
        0 if all pages have the tables of the rows, 1 if `--check` finds one that does not, 2 for
        wrong usage.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; name pages that differ"
    )
    parser.add_argument("--add", type=Path, nargs="+", default=[], metavar="FILE", help="new rows")
    parser.add_argument("--machine", default="", help='what measured them, such as "2 cores"')
    options = parser.parse_args(arguments)
    if options.add and not options.machine:
        parser.error("--add needs --machine")
    try:
        if options.add:
            add_rows([row for path in options.add for row in read_rows(path)], options.machine)
        pages = outdated_pages(load_rows())
    except InputError as error:
        parser.error(str(error))
    for path, text in pages.items():
        if options.check:
            name = path.relative_to(ROOT)
            print(f"{name}: run python -m benchmarks.tables", file=sys.stderr)
        else:
            path.write_text(text, encoding="utf-8")
    return 1 if options.check and pages else 0


if __name__ == "__main__":
    sys.exit(main())
