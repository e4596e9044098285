"""Compare gaprune with other tools that prune channels without data.

    python -m benchmarks.peers --data DIR                                 # everything
    python -m benchmarks.peers --only mobile-student --tools gaprune folding --json

All tools get the same network, the same fraction of its multiply-adds (one counter for all) and the
same multiple for widths, and no data; accuracy is measured on test data that no tool sees. A pruned
network is timed in turn with the dense one on one thread, without the time of other processes:
quartiles of how many times as fast it is. The tools come from pip install 'gaprune[bench]'; a tool
that is missing or cannot prune a network is a row that says why. Rows are written to runs/peers as
soon as they are known: a stopped benchmark continues with the same command. ResNets need `cifar10/`
in DIR (benchmarks/networks).
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from itertools import product
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from torch import nn

from benchmarks.channel_methods import Case
from benchmarks.channels import CASES as ZOO_CASES
from benchmarks.networks import NETWORKS, RealNetwork
from benchmarks.networks.scoring import accuracy, outputs_of, same_class
from benchmarks.peer_tools import TOOLS
from benchmarks.row_store import VERSION, RowStore, check_names
from gaprune.cli.console import add_row, stdout, table
from gaprune.cli.stop_signals import SignalHandler
from gaprune.errors import GapruneError, InputError
from gaprune.evaluation.labelled import zoo_test
from gaprune.evaluation.latency import BATCHES, time_in_turn
from gaprune.evaluation.runtimes import EAGER, ONNX, RuntimeSubject, UnavailableError
from gaprune.formatting import MISSING, percent
from gaprune.io.serialization import to_json
from gaprune.models.input_spec import sample_inputs
from gaprune.models.macs import macs_per_input
from gaprune.models.onnx import save_onnx
from gaprune.models.target import Target, load_target
from gaprune.models.zoo import ZOO
from gaprune.workers.serial import torch_threads

DEFAULT_FOLDER = Path("runs/peers")
SPARSITY = 0.5  # fraction of the multiply-adds that is removed
FULL_WIDTH = 140  # columns of a table written to a file or a pipe
# What gaprune makes for itself, and for methods that look at inputs.
INVERTED = {
    "resnet20": {  # as in benchmarks/real/settings.py, whose inverted images are cached
        "calibration": ("inversion", "procedural"),
        "inversions": 512,
        "calibration_count": 512,
        "validation_count": 256,
    },
    "resnet56": {
        "calibration": ("inversion",),
        "inversions": 128,
        "calibration_count": 256,
        "validation_count": 128,
    },
}
CASES: dict[str, Case] = {
    **{name: replace(case, sparsity=SPARSITY) for name, case in ZOO_CASES.items()},
    # residual sums are worth more than the insides of blocks
    **{name: Case(SPARSITY, 8, each, "conditional-loss") for name, each in INVERTED.items()},
    "crepe-full": Case(SPARSITY, 16, {"calibration": ("procedural",), "calibration_count": 128}),
}


@dataclass(frozen=True)
class Row:
    """One network pruned by one tool.

    Attributes:
        params, macs: parameters, and multiply-adds for one input, of the pruned network.
        latency_torch, latency_onnx: batch size → milliseconds of one pass of the dense and the
            pruned network, medians, and quartiles of the speed-up.
        seconds: time of pruning, with what the tool generates.
        data: level of the inputs that it made for itself.
    """

    tool: str
    network: str
    sparsity: float  # fraction of the multiply-adds to remove
    seed: int
    width_multiple: int  # of the numbers of channels
    package: str = ""  # that does the work, with its version
    params: int | None = None
    macs: int | None = None
    accuracy: float | None = None
    dense: Mapping[str, float] = field(default_factory=dict)  # the dense network's figures
    latency_torch: Mapping[str, Any] = field(default_factory=dict)
    latency_onnx: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    data: str = ""
    note: str = ""  # why figures are missing, or empty
    version: str = VERSION  # of gaprune


def open_peer(name: str, data: Path | None) -> RealNetwork:
    """Return a real network, or one of the zoo with its test images.

    Raises:
        InputError: test data are missing.
        GapruneError: a package is missing.
    """
    if name not in ZOO:
        return NETWORKS[name](data)
    test = zoo_test(load_target(name))
    assert test is not None  # zoo networks have test images
    assert test.labels is not None
    images, labels = test.inputs, test.labels
    return RealNetwork(
        name=name,
        load=lambda: load_target(name),
        outputs=lambda model: outputs_of(model, images),
        grade=lambda outputs: accuracy(outputs, labels),
        agreement=same_class,
        test_count=len(labels),
        measure="top-1 on MNIST test images",
    )


class Dense(NamedTuple):
    """The dense network, and its size and score."""

    subject: RuntimeSubject
    figures: Mapping[str, float]


def _subject(target: Target, model: nn.Module, path: Path) -> RuntimeSubject:
    """Return a network to be timed, written to an ONNX file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter
        save_onnx(model, target, path)
    return RuntimeSubject(model, target, path)


def _size_and_score(network: RealNetwork, subject: RuntimeSubject) -> dict[str, Any]:
    model = subject.model
    assert model is not None
    return {
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "macs": macs_per_input(model, subject.target.example()),
        "accuracy": network.score(model),
    }


def _speed(dense: RuntimeSubject, pruned: RuntimeSubject, runtime: str) -> dict[str, Any]:
    """Return the latencies of a network, timed in turn with the dense one."""
    target, latency = dense.target, {}
    for batch in BATCHES:
        inputs = sample_inputs(target.inputs, batch, target.dtype)
        # other processes do not count: one thread computes, and waits for nothing but them
        subjects = [(runtime, dense), (runtime, pruned)]
        times = time_in_turn(subjects, inputs, clock=time.thread_time)
        ratios = [whole / part for whole, part in zip(*times, strict=True)]
        latency[str(batch)] = {
            "dense_ms": round(median(times[0]), 4),
            "ms": round(median(times[1]), 4),
            "speed_up": [round(ratio, 3) for ratio in quantiles(ratios)],
        }
    return latency


def pruned_row(row: Row, case: Case, target: Target) -> tuple[Row, nn.Module]:
    """Return a row with the costs of pruning, and the pruned network.

    Raises:
        GapruneError: the tool is not installed, or fails.
    """
    package, tool = TOOLS[row.tool]
    try:
        version = metadata.version(package)
    except metadata.PackageNotFoundError as error:
        raise GapruneError(f"{package} is not installed") from error
    started = time.perf_counter()
    pruned = tool(target, case, row.seed)
    seconds = round(time.perf_counter() - started, 1)
    name = f"{package} {version}"
    return replace(row, package=name, seconds=seconds, data=pruned.level), pruned.model


def measured_row(row: Row, model: nn.Module, network: RealNetwork, dense: Dense) -> Row:
    """Return a row with size, score and latency of the pruned network.

    Raises:
        GapruneError: the network does not run, or cannot be written to an ONNX file.
    """
    with TemporaryDirectory() as folder:
        subject = _subject(dense.subject.target, model, Path(folder) / "pruned.onnx")
        return replace(
            row,
            **_size_and_score(network, subject),
            dense=dense.figures,
            latency_torch=_speed(dense.subject, subject, EAGER),
            latency_onnx=_speed(dense.subject, subject, ONNX),
        )


def rows_of(
    cases: Mapping[str, Case],
    tools: Sequence[str],
    seeds: Sequence[int],
    store: RowStore,
    data: Path | None,
) -> Iterator[Row]:
    """Yield a stored or new row for every network, tool and seed."""
    for name, case in cases.items():
        with TemporaryDirectory() as folder:
            network: RealNetwork | None = None
            dense: Dense | None = None
            for tool, seed in product(tools, seeds):
                row = Row(tool, name, case.sparsity, seed, case.width_multiple)
                identity = ("tool", "network", "sparsity", "seed", "width_multiple", "version")
                stored = store.find(**{key: getattr(row, key) for key in identity})
                if stored is not None:
                    yield Row(**stored)
                    continue
                try:
                    if network is None:
                        network = open_peer(name, data)
                        target = network.load()
                    pruned, model = pruned_row(row, case, target)
                    if dense is None:
                        subject = _subject(target, target.model, Path(folder) / "dense.onnx")
                        dense = Dense(subject, _size_and_score(network, subject))
                    row = measured_row(pruned, model, network, dense)
                except (GapruneError, UnavailableError) as error:
                    row = replace(row, note=str(error))
                store.add(asdict(row))
                print(", ".join(cells(row)), row.note, file=sys.stderr, flush=True)
                yield row


HEADS = (
    *("network", "tool", "macs", "params", "accuracy (dense)"),
    *(f"{runtime}, batch {' / '.join(map(str, BATCHES))}" for runtime in (EAGER, ONNX)),
    *("s", "data"),
)
"""Headings of `cells`."""


def cells(row: Row) -> list[str]:
    """Return the cells of a row in the table."""
    if row.accuracy is None or row.macs is None or row.params is None:
        return [row.network, row.tool, *[MISSING] * (len(HEADS) - 2)]
    return [
        row.network,
        row.tool,
        percent(row.macs / row.dense["macs"], 1),
        percent(row.params / row.dense["params"], 1),
        f"{percent(row.accuracy)} ({percent(row.dense['accuracy'])})",
        *(
            " / ".join(f"{latency[str(batch)]['speed_up'][1]:.2f}×" for batch in BATCHES)
            for latency in (row.latency_torch, row.latency_onnx)
        ),
        f"{row.seconds:.0f}",
        row.data,
    ]


def show(rows: Sequence[Row]) -> None:
    """Print the table."""
    printed = table(*HEADS, title="The same network, budget and test data; speed on one thread")
    for row in rows:
        add_row(printed, cells(row))
    console = stdout()
    if not console.is_terminal:
        console.width = FULL_WIDTH
    console.print(printed)
    for row in rows:
        if row.note:
            console.print(f"{row.network}, {row.tool}: {row.note}", markup=False)


def main(arguments: Sequence[str] | None = None, cases: Mapping[str, Case] = CASES) -> int:
    """Measure and print the selected rows.

    Returns:
        0 if any network was pruned, 1 if none was, 2 for wrong usage.
    """
    options = _parser(cases).parse_args(arguments)
    try:
        check_names(
            ("only", options.only, cases),
            ("tools", options.tools, TOOLS),
        )
        store = RowStore(options.rows)
    except InputError as error:
        print(f"peers: error: {error}", file=sys.stderr)
        return 2
    chosen = {
        name: case if options.sparsity is None else replace(case, sparsity=options.sparsity)
        for name, case in cases.items()
        if name in (options.only or cases)
    }
    tools = options.tools or list(TOOLS)
    with SignalHandler("finished rows are saved"), torch_threads(1):
        rows = list(rows_of(chosen, tools, options.seeds, store, options.data))
    if options.json:
        print(to_json([asdict(row) for row in rows]))
    else:
        show(rows)
    return 0 if any(row.accuracy is not None for row in rows) else 1


def _parser(cases: Mapping[str, Case]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder with test data")
    parser.add_argument("--only", nargs="+", default=[], metavar="NETWORK", help=", ".join(cases))
    parser.add_argument("--tools", nargs="+", default=[], metavar="TOOL", help=", ".join(TOOLS))
    parser.add_argument(
        "--sparsity", type=float, metavar="S", help="fraction of the multiply-adds to remove"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N")
    parser.add_argument(
        "--rows", type=Path, default=DEFAULT_FOLDER, metavar="DIR", help="folder of the rows"
    )
    parser.add_argument("--json", action="store_true", help="print only rows, as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
