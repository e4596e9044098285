"""Compare evolved masks with every method, with and without fine-tuning on the training data.

    python -m benchmarks.price_of_no_data                        # everything; hours on two cores
    python -m benchmarks.price_of_no_data --only table:mnist-mlp # one table, about 40 minutes
    python -m benchmarks.price_of_no_data --only slimming        # or: clustering, minutes each
    python -m benchmarks.price_of_no_data --seeds 0 --json       # one seed, rows as JSON
    python -m benchmarks.price_of_no_data --sparsity 0.98        # one budget

Rows of the tables are written to runs/price-of-no-data as soon as they are known: a stopped
benchmark continues with the same command. Accuracy is measured on the 10,000 MNIST test images,
which no method uses.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from gaprune.comparison import ComparisonData, ComparisonSpec, Row, compare_target
from gaprune.comparison.context import ComparisonObserver
from gaprune.comparison.methods.iterative import SCHEDULES
from gaprune.comparison.methods.slimming import SlimmingOptions, slim
from gaprune.comparison.methods.training import TrainingOptions, from_labels
from gaprune.comparison.rows import markdown
from gaprune.evaluation.held_out import HeldOut
from gaprune.evaluation.labelled import zoo_test, zoo_train
from gaprune.exports.clustering import sweep_clusters
from gaprune.io.serialization import to_json
from gaprune.masks.budget import keep_total
from gaprune.masks.supermask import global_mask
from gaprune.models.macs import macs_per_input
from gaprune.models.target import Target, load_target

DEFAULT_FOLDER = Path("runs/price-of-no-data")
SPARSITIES = (0.9, 0.95, 0.98)
HELD_BACK = 5000  # training images that select the best epoch of a slimming round
CLUSTERS = (256, 128, 64, 40, 39, 32, 16, 12, 8, 6, 4, 3, 2)
PRUNED_FIRST = (0.5, 0.7)  # sparsities at which pruned networks are clustered


@dataclass(frozen=True)
class Case:
    """One table: a network, its methods, and the training of the methods that train."""

    name: str
    target: str
    methods: tuple[str, ...] = ("all",)
    epochs: float = 1.0
    training: TrainingOptions = field(default_factory=TrainingOptions)


TRAINED = (*(f"imp:{schedule}" for schedule in SCHEDULES), "distilled")
SGD = TrainingOptions("sgd", 0.1, decay="cosine")  # the best of those tried for long training
CASES = (
    Case("mnist-mlp", "mnist-mlp"),
    Case("mnist-mlp-sgd", "mnist-mlp", TRAINED, training=SGD),
    Case("lenet", "lenet", epochs=0.25),
    Case("mnist-cnn", "mnist-cnn", epochs=0.1),
)


class Part(NamedTuple):
    """The result of one part: rows and Markdown."""

    rows: list[dict[str, Any]]
    text: str


class Progress(ComparisonObserver):
    """Prints a line on stderr for every row."""

    def row(self, row: Row, done: int, total: int) -> None:
        """Print a finished row."""
        score = row.error if row.score is None else f"{row.score:.2%} in {row.seconds:.0f} s"
        report(f"{done}/{total} {row.target} {row.method} {row.sparsity} seed {row.seed}: {score}")


def report(text: str) -> None:
    """Write a line of progress."""
    print(text, file=sys.stderr, flush=True)


def compared(case: Case, seeds: Sequence[int], sparsities: Sequence[float], folder: Path) -> Part:
    """Run or continue one table."""
    target = load_target(case.target)
    table = compare_target(
        target,
        ComparisonSpec(sparsities, case.methods, seeds, epochs=case.epochs, training=case.training),
        data=ComparisonData(zoo_train(target), zoo_test(target)),
        out=folder / case.name,
        observer=Progress(),
    )
    training = (
        f"{case.training.optimiser} at rate {case.training.learning_rate:g}, {case.training.decay}"
    )
    caption = f"{table.caption} Epochs per training step: {case.epochs:g}, {training}."
    rows = [{"case": case.name, **row.record()} for row in table.rows]
    return Part(rows, markdown(table.summaries, table.dense_accuracy, caption))


def slimmed(seeds: Sequence[int]) -> Part:
    """Slim mobile-student in five rounds at width 0.95, one epoch of fine-tuning each."""
    target = load_target("mobile-student")
    rows = [row for seed in seeds for row in _rounds(target, seed)]
    names = ("seed", "round", "parameters", "macs", "channels", "before", "accuracy", "error")
    return Part(rows, _table("mobile-student, five rounds of slimming at width 0.95", names, rows))


def _rounds(target: Target, seed: int) -> Iterator[dict[str, Any]]:
    train, test = zoo_train(target), HeldOut(target, _some(zoo_test(target)))
    generator = torch.Generator().manual_seed(seed)
    samples = _some(train)
    order = samples.random_order(generator)
    training, selection = samples.take(order[HELD_BACK:]), samples.take(order[:HELD_BACK])
    yield {
        "target": target.name,
        "seed": seed,
        "round": 0,
        "parameters": sum(parameter.numel() for parameter in target.model.parameters()),
        "macs": macs_per_input(target.model, target.example()),
        "accuracy": test.dense.accuracy,
    }
    for step in slim(
        target, from_labels(training), SlimmingOptions(), generator, held_out=selection
    ):
        before, after = test.measure(step.compact).accuracy, test.measure(step.model).accuracy
        report(f"slimming, seed {seed}, round {step.number}: {before:.2%} → {after:.2%}")
        named = {"target": target.name, "seed": seed, "round": step.number, **asdict(step.after)}
        cost = {"error": step.error, "epochs": step.epochs}
        yield {**named, **cost, "before": before, "accuracy": after}


def clustered() -> Part:
    """Cluster the weights of four-layer, dense and pruned, into ever fewer values per layer."""
    target = load_target("four-layer")
    test = _some(zoo_test(target))
    rows = []
    for sparsity in (0.0, *PRUNED_FIRST):
        masks = None
        if sparsity:
            scores = target.layout.flatten(target.weights).abs()
            mask = global_mask(scores, target.layout, keep_total(target.layout, sparsity))
            masks = target.layout.split(mask)
        sweep = sweep_clusters(target, CLUSTERS, test, masks)
        named = {"target": target.name, "sparsity": sparsity, "dense": sweep.dense_accuracy}
        rows += [{**named, "of": sweep.dense_distinct, **row} for row in sweep.rows()]
        report(f"clustering at sparsity {sparsity}: {len(sweep.points)} points")
    names = ("sparsity", "clusters", "distinct", "of", "accuracy", "bits_per_weight", "compression")
    return Part(rows, _table("four-layer, k-means codebooks", names, rows))


PARTS: dict[str, Callable[[Sequence[int], Sequence[float], Path], Part]] = {
    **{f"table:{case.name}": partial(compared, case) for case in CASES},
    "slimming": lambda seeds, _sparsities, _folder: slimmed(seeds),
    "clustering": lambda _seeds, _sparsities, _folder: clustered(),
}


def _some(value: Any) -> Any:  # noqa: ANN401 - any data set
    assert value is not None  # zoo networks have their data
    return value


_IN_PERCENT = ("accuracy", "before")


def _table(title: str, names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    head = " | ".join(name.replace("_", " ") for name in names)
    lines = [f"| {' | '.join(_cell(name, row.get(name)) for name in names)} |" for row in rows]
    return "\n".join([title, "", f"| {head} |", "|---" * len(names) + "|", *lines]) + "\n"


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    if name in _IN_PERCENT:
        return f"{100 * value:.2f}"
    return f"{value:.3g}" if isinstance(value, float) else f"{value:,}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the selected parts and print their tables, or rows as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = f"parts with this text in their name: {', '.join(PARTS)}"
    parser.add_argument("--only", default="", metavar="TEXT", help=known)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sparsity", type=float, nargs="+", default=list(SPARSITIES))
    parser.add_argument("--out", type=Path, default=DEFAULT_FOLDER, help="folder of the rows")
    parser.add_argument("--json", action="store_true", help="print only rows, as JSON")
    options = parser.parse_args(arguments)
    chosen = [part for name, part in PARTS.items() if options.only in name]
    if not chosen:
        parser.error(f"no part matches --only {options.only!r}; {known}")
    torch.set_num_threads(1)
    results = [part(options.seeds, options.sparsity, options.out) for part in chosen]
    if options.json:
        print(to_json([row for part in results for row in part.rows], indent=1))
    else:
        print("\n".join(part.text for part in results))
        print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
