"""Masks scored on real data of several domains, against the best one-shot mask there.

    python -m benchmarks.generalisation --data DIR              # everything; hours on two cores
    python -m benchmarks.generalisation --only digits-vectors   # one network, two minutes
    python -m benchmarks.generalisation --only fashion-mlp --given none 32 --seeds 0 --data DIR

Fashion-MNIST comes from `DIR/fashion` (the IDX files of Debian's package dataset-fashion-mnist),
ResNet-20 and its images from `DIR/cifar10`; the other networks need no files. Networks that no
package holds are trained once, seeded, and kept beside the rows. Test data steers nothing. `data`
is what the search was given: none, 16 to 1,024 unlabelled training inputs, all of them (16,384 at
most), or labels: one epoch of fine-tuning after magnitude pruning.

Two tables answer: is the returned mask worse on real data than the best one-shot mask? And do
agreements on the validation inputs rank one-shot masks as real data does (Spearman)?
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.table import Table

import gaprune
from benchmarks.isolated_process import run_isolated
from benchmarks.networks.real_network import data_path
from benchmarks.networks.resnet20 import MEAN, STD, ResNet20
from benchmarks.networks.trained import TRAINED, Data, open_trained
from benchmarks.real.settings import SETTINGS
from benchmarks.row_store import RowStore, check_names
from gaprune.calibration.samples import Samples
from gaprune.cli.console import stdout
from gaprune.comparison import ComparisonData, ComparisonSpec, compare_target
from gaprune.errors import GapruneError, InputError
from gaprune.evaluation.labelled import zoo_test, zoo_train
from gaprune.io.serialization import to_json
from gaprune.io.weights import apply_state, load_state
from gaprune.models.input_spec import InputOptions
from gaprune.models.target import Target, load_target, target_from_module

DEFAULT_FOLDER = Path("runs/generalisation")
MOST = 16384  # unlabelled inputs
GIVEN = ("none", "16", "32", "64", "256", "1024", "all", "labels")
TOLERANCE = 0.005  # of accuracy: how much worse than the best one-shot mask a result may be


@dataclass(frozen=True)
class Case:
    """A network, the sparsities at which it is pruned, and settings besides the defaults."""

    sparsities: tuple[float, ...]
    settings: dict[str, Any] = field(default_factory=dict)


CASES = {
    "mnist-mlp": Case((0.95, 0.98)),
    "lenet": Case((0.95,)),
    "mnist-cnn": Case((0.99,)),
    "fashion-mlp": Case((0.95, 0.98)),
    "fashion-cnn": Case((0.95, 0.98)),
    "fashion-resnet": Case((0.9,)),
    "digits-vectors": Case((0.8, 0.9)),
    "digits-images": Case((0.9, 0.95)),
    "breast-cancer": Case((0.9, 0.95)),
    "resnet20": Case((0.9,), SETTINGS["resnet20"]),
}


@dataclass(frozen=True)
class Row:
    """One search; accuracies are measured on real test data after the masks were fixed."""

    network: str
    sparsity: float
    method: str
    data: str
    seed: int
    accuracy: float | None = None
    dense: float | None = None
    best_one_shot: str | None = None  # by accuracy on real data
    best_one_shot_accuracy: float | None = None
    validation: float | None = None  # agreement of the returned mask on the validation inputs
    domain_fit: float | None = None
    spearman: float | None = None  # of one-shot masks: validation agreement and accuracy
    seconds: float | None = None
    note: str = ""


def open_network(name: str, data: Path | None, cache: Path) -> tuple[Target, Data]:
    """Return a network with its training and test data; ResNet-20 has test data only."""
    if name in TRAINED:
        return open_trained(name, data, cache)
    if name != "resnet20":
        target = load_target(name)
        train, test = zoo_train(target), zoo_test(target)
        assert train is not None
        assert test is not None
        return target, Data(train, test)
    model = ResNet20()
    apply_state(model, load_state(data_path(data, "cifar10", "resnet20.safetensors")))
    options = InputOptions(shape=(3, 32, 32), kind="image", mean=MEAN, std=STD)
    with np.load(data_path(data, "cifar10", "test2000.npz"), allow_pickle=False) as file:
        images, labels = torch.from_numpy(file["images"]), torch.from_numpy(file["labels"])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    inputs = (images.permute(0, 3, 1, 2).float() / 255 - mean) / std
    test = Samples(inputs, labels.long(), "CIFAR-10 test images")
    return target_from_module(model, inputs=options, name=name), Data(
        test.take(torch.arange(0)), test
    )


def measure(key: Row, data: Path | None, cache: Path) -> Row:
    """Prune once and return the row; a row that cannot be measured says why."""
    values = {
        name: getattr(key, name) for name in ("network", "sparsity", "method", "data", "seed")
    }
    try:
        target, samples = open_network(key.network, data, cache)
        if key.data != "none" and not len(samples.train.inputs):
            return Row(**values, note="no training inputs in the data folder")
        if key.data == "labels":
            return _fine_tuned(values, target, samples)
        return _searched(values, target, samples)
    except GapruneError as error:
        return Row(**values, note=str(error))


def _searched(values: dict[str, Any], target: Target, data: Data) -> Row:
    case, started = CASES[values["network"]], time.monotonic()
    settings = {**case.settings, "seed": values["seed"]}
    if values["data"] != "none":
        count = MOST if values["data"] == "all" else int(values["data"])
        order = data.train.random_order(torch.Generator().manual_seed(values["seed"]))
        settings["calibration"] = data.train.inputs[order[:count]]
    result = gaprune.prune(
        target.model,
        sparsity=values["sparsity"],
        inputs=_options(target),
        test=(data.test.inputs, data.test.labels),
        progress=False,
        **settings,
    )
    scores = {name: score for name, score in result.baselines.items() if name != "random"}
    best = max(scores, key=lambda name: scores[name].accuracy or 0.0)
    return Row(
        **values,
        accuracy=result.accuracy,
        dense=result.dense_accuracy,
        best_one_shot=best,
        best_one_shot_accuracy=scores[best].accuracy,
        validation=result.validation_agreement,
        domain_fit=result.provenance.domain_fit,
        spearman=_spearman(
            [score.agreement for score in scores.values()],
            [score.accuracy or 0.0 for score in scores.values()],
        ),
        seconds=round(time.monotonic() - started, 1),
    )


def _options(target: Target) -> InputOptions:
    spec = target.inputs
    if spec.mean != (0.0,) * len(spec.mean):
        return InputOptions(spec.shape, kind=spec.kind, mean=spec.mean, std=spec.std)
    return InputOptions(spec.shape, kind=spec.kind, range=(spec.low, spec.high))


def _fine_tuned(values: dict[str, Any], target: Target, data: Data) -> Row:
    started = time.monotonic()
    spec = ComparisonSpec((values["sparsity"],), ("imp:direct",), (values["seed"],), epochs=1.0)
    table = compare_target(target, spec, data=ComparisonData(data.train, data.test))
    row = table.rows[0]
    return Row(
        **values,
        accuracy=row.score,
        dense=table.dense_accuracy,
        seconds=round(time.monotonic() - started, 1),
        note=row.error or "",
    )


def _spearman(first: Sequence[float], second: Sequence[float]) -> float:
    ranks = [torch.tensor(values).argsort().argsort().double() for values in (first, second)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


def keys_of(options: argparse.Namespace) -> list[Row]:
    """Return the requested rows without figures."""
    check_names(("only", options.only, CASES), ("given", options.given, GIVEN))
    return [
        Row(name, sparsity, "imp:direct" if given == "labels" else "evolved", given, seed)
        for name, case in CASES.items()
        if name in (options.only or CASES)
        for sparsity in options.sparsity or case.sparsities
        for given in options.given or GIVEN
        for seed in (options.seeds[:1] if given == "labels" else options.seeds)
    ]


def show(rows: Sequence[Row]) -> None:
    """Print accuracies as medians over seeds, and the returned masks against one-shot masks."""
    accuracies = Table("network", "sparsity", "dense", "one-shot", *GIVEN, title="accuracy in %")
    pairs = {(row.network, row.sparsity): row.dense for row in rows if row.accuracy is not None}
    behind = []
    for (network, sparsity), dense in pairs.items():
        own = [r for r in rows if (r.network, r.sparsity) == (network, sparsity)]
        cells = []
        for given in GIVEN:
            found = [r.accuracy for r in own if r.data == given and r.accuracy is not None]
            cells.append(f"{100 * median(found):.2f}" if found else "")
        best = [r.best_one_shot_accuracy for r in own if r.data == "none"]
        one_shot = median([value for value in best if value is not None] or [0.0])
        accuracies.add_row(
            network, f"{sparsity:g}", f"{100 * (dense or 0):.2f}", f"{100 * one_shot:.2f}", *cells
        )
        behind += [
            f"{r.network} {r.sparsity:g} {r.data}, seed {r.seed}: {100 * r.accuracy:.2f} against "
            f"{100 * r.best_one_shot_accuracy:.2f} ({r.best_one_shot})"
            for r in own
            if r.accuracy is not None
            and r.best_one_shot_accuracy is not None
            and r.accuracy < r.best_one_shot_accuracy - TOLERANCE
        ]
    console = stdout()
    console.print(accuracies)
    searched = [row for row in rows if row.best_one_shot_accuracy is not None]
    console.print(
        f"{len(behind)} of {len(searched)} searches returned a mask more than "
        f"{100 * TOLERANCE:g} points worse than the best one-shot mask on real data"
    )
    for text in behind:
        console.print(f"  {text}")
    ranks = [row.spearman for row in searched if row.spearman is not None and row.data == "none"]
    if ranks:
        console.print(f"one-shot masks, validation against real data: Spearman {median(ranks):.2f}")
    for note in dict.fromkeys(f"{row.network} {row.data}: {row.note}" for row in rows if row.note):
        console.print(f"not measured: {note}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the requested rows; 0 if any has an accuracy, 1 if none has, 2 for wrong usage."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="folder with fashion/ and cifar10/"
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="NETWORK", help=", ".join(CASES))
    parser.add_argument("--given", nargs="+", default=[], metavar="DATA", help=", ".join(GIVEN))
    parser.add_argument("--sparsity", nargs="+", type=float, default=[], metavar="S")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N")
    parser.add_argument("--rows", type=Path, default=DEFAULT_FOLDER, metavar="DIR")
    parser.add_argument("--json", action="store_true", help="print only rows, as JSON")
    options = parser.parse_args(arguments)
    try:
        keys, store = keys_of(options), RowStore(options.rows)
    except InputError as error:
        print(f"generalisation: error: {error}", file=sys.stderr)
        return 2
    rows = []
    for key in keys:
        named = {name: getattr(key, name) for name in ("network", "sparsity", "data", "seed")}
        stored = store.find(**named)
        if stored is None:
            row = run_isolated(measure, key, options.data, options.rows)
            stored = store.add(asdict(row))
            print(to_json(stored), file=sys.stderr, flush=True)
        rows.append(Row(**stored))
    if options.json:
        print(to_json([asdict(row) for row in rows], indent=1))
    else:
        show(rows)
    return 0 if any(row.accuracy is not None for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
