"""Measure files of weights: size, multiply-adds, latency, agreement with the dense network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import zstandard
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gaprune.calibration.generators.procedural import procedural
from gaprune.calibration.generators.random_draws import to_network
from gaprune.calibration.samples import Samples
from gaprune.callbacks import Observer
from gaprune.errors import InputError, in_words_of_the_caller, unknown_name
from gaprune.evaluation.held_out import HeldOut, HeldOutScore
from gaprune.evaluation.labelled import zoo_test
from gaprune.evaluation.latency import BATCHES, Latencies, LatencyTable, time_runtimes
from gaprune.evaluation.runtimes import CSR, RUNTIMES, RuntimeSubject
from gaprune.exports.measure.file_contents import ONNX, FileContents, find_dense, read_contents
from gaprune.io.manifest import read_manifest
from gaprune.models.forward import standard_torch
from gaprune.models.layer_kinds import layer_kind
from gaprune.models.macs import macs_per_input
from gaprune.models.onnx import OnnxSession
from gaprune.models.target import Target

SCHEMA = 1
NOTHING_PRUNED = "nothing is pruned here: the file holds the dense network"
TEST_INPUTS, GENERATED_INPUTS = 1000, 256  # on which a file is compared with the dense network
SEED = 0
ZSTD_LEVEL = 3  # the default of the command zstd
NOTICEABLE = 1.1  # speed-ups below this are noise of the machine


class NonzeroMacs(NamedTuple):
    """Multiply-adds for one input."""

    total: int  # what a dense runtime computes
    # those with a weight that isn't 0, which a runtime that skips zeros would compute; None where
    # the layers aren't known
    nonzero: int | None


@dataclass(frozen=True)
class FileMeasurement:
    """The measurements of one file; None where they need an unknown dense network."""

    file: str  # as the user named it
    kind: str  # `dense`, `sparse`, `masks`, `prune`, `semi-structured`, `onnx` or `program`
    bytes: int  # on the disk
    export_bytes: int | None  # of all files of the export that it belongs to, or None
    zstd_bytes: int  # compressed as the command zstd does
    parameters: int  # floating-point numbers in the file; of masks, the weights that they cover
    nonzeros: int  # those that aren't 0
    subnormals: int  # those below 1.2e-38 (of float32), which slow some processors down
    macs: NonzeroMacs | None
    timed: LatencyTable  # of file and dense network
    agreement: float | None  # with the dense network, in [0, 1]
    accuracy: float | None  # on labelled inputs, where there are any
    compared_on: str | None  # the inputs of agreement and accuracy
    threads: int  # of every runtime
    remarks: tuple[str, ...]  # what the figures mean, in sentences

    def record(self) -> dict[str, Any]:
        """Return plain data."""
        plain = {name: value for name, value in vars(self).items() if name != "timed"}
        return {
            "schema": SCHEMA,
            **plain,
            "macs": None if self.macs is None else self.macs.total,
            "nonzero_macs": None if self.macs is None else self.macs.nonzero,
            "latency_ms": _plain(self.timed.pruned),
            "dense_latency_ms": _plain(self.timed.dense),
            "unavailable": dict(self.timed.missing),
            "remarks": list(self.remarks),
        }


@standard_torch()
def measure(
    *files: str | Path,
    target: str | Target | nn.Module | None = None,
    runtimes: str | Sequence[str] | None = None,
    batches: int | Sequence[int] = BATCHES,
    observer: Observer | None = None,
    trust_code: bool = False,
) -> list[FileMeasurement]:
    """Measure files of weights, one after the other.

    Args:
        files: safetensors (dense, sparse, masks, or as `torch.nn.utils.prune` names them), ONNX,
            a program of `torch.export` (.pt2), or a state dict of `torch.save`. The program of a
            `compact` export is not loaded: the network is built from the files beside it.
        target: the dense network: a target's name, a run directory, a `Target`, or a module whose
            inputs an export or a run beside the file describes. None looks there for the network.
        runtimes: one or several keys of `RUNTIMES`; None takes all.
        batches: one or several batch sizes.
        observer: is told of progress.
        trust_code: whether code runs that only a file names or holds: the factory that a run or
            export names which this user's gaprune did not write on this machine, or a program of
            another tool.

    Raises:
        InputError: no such file, damaged, of no known kind, of another network; an unknown runtime;
            code that may not run.
        GapruneError: an optional package that a file needs is missing.
    """
    if not files:
        raise InputError("file: none given; name one or more files")
    stated = RUNTIMES if runtimes is None else runtimes
    names = [stated] if isinstance(stated, str) else list(stated)
    batches = (batches,) if isinstance(batches, int) else batches
    for name in names:
        if name not in RUNTIMES:
            raise unknown_name("runtimes", name, RUNTIMES)
    if not batches or any(batch < 1 for batch in batches):
        raise InputError(f"batches: must be whole numbers from 1, got {list(batches)}")
    # Read all files first: a damaged one is refused before minutes are spent on the others.
    contents = [read_contents(Path(file).expanduser(), trust_code=trust_code) for file in files]
    observer = observer or Observer()
    measurements: list[FileMeasurement] = []
    for file, content in zip(files, contents, strict=True):
        observer.progress(f"measure {file}", len(measurements), len(files))
        measurements.append(
            _measure(
                str(file),
                content,
                find_dense(content.path, target, trust_code=trust_code),
                names,
                batches,
            )
        )
    return measurements


def _measure(
    file: str,
    content: FileContents,
    dense: Target | None,
    runtimes: list[str],
    batches: Sequence[int],
) -> FileMeasurement:
    macs, timed, score, source, dense_macs = None, LatencyTable({}, {}, {}), None, None, None
    is_dense = False
    if dense is not None:
        model = content.load_into(dense)
        example = dense.example()
        dense_macs = macs_per_input(dense.model, example)
        macs = NonzeroMacs(dense_macs, None) if model is None else count_macs(model, example)
        onnx = content.path if content.kind == ONNX else None
        is_dense = model is not None and _equal(model, dense.model)
        timed = time_runtimes(
            RuntimeSubject(model, dense, onnx),
            RuntimeSubject(dense.model, dense),
            runtimes,
            batches,
        )
        score, source, problem = _score(model or _OnnxModule(content.path), dense)
        if problem is not None:
            timed.missing["agreement"] = problem
    compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL)
    return FileMeasurement(
        file=file,
        kind=content.kind,
        bytes=content.path.stat().st_size,
        export_bytes=_export_bytes(content.path),
        zstd_bytes=len(compressor.compress(content.path.read_bytes())),
        parameters=content.parameters,
        nonzeros=content.nonzeros,
        subnormals=content.subnormals,
        macs=macs,
        timed=timed,
        agreement=None if score is None else score.agreement,
        accuracy=None if score is None else score.accuracy,
        compared_on=source,
        threads=torch.get_num_threads(),
        remarks=(*remarks(timed, macs, dense_macs), *([NOTHING_PRUNED] if is_dense else [])),
    )


@torch.no_grad()
def count_macs(model: nn.Module, example: Tensor) -> NonzeroMacs:
    """Count multiply-adds for one input `[1, …]`.

    Zeros are skipped in linear layers and convolutions; all other layers count whole.
    """
    total = macs_per_input(model, example)
    with FlopCounterMode(display=False) as counter:
        model(example)
    by_layer = {
        name: sum(counts.values()) // 2 for name, counts in counter.get_flop_counts().items()
    }
    root = type(model).__name__
    skipped = 0
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if layer_kind(module) is not None and isinstance(weight, Tensor):
            macs = by_layer.get(f"{root}.{name}" if name else root, 0)
            skipped += macs - round(macs * int(weight.count_nonzero()) / max(1, weight.numel()))
    return NonzeroMacs(total, total - skipped)


class _OnnxModule(nn.Module):
    """An ONNX file that is called like a network."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._session = OnnxSession(path, torch.get_num_threads())

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.from_numpy(self._session(inputs))


def _score(model: nn.Module, dense: Target) -> tuple[HeldOutScore | None, str | None, str | None]:
    """Return agreement and accuracy, a description of the inputs, and why there is no score."""
    samples = zoo_test(dense)
    if samples is None:
        generator = torch.Generator().manual_seed(SEED)
        unit = procedural(dense.inputs, GENERATED_INPUTS, generator)
        inputs = to_network(dense.inputs, unit, dense.dtype)
        samples = Samples(inputs, None, "generated here, not the run's")
    elif samples.labels is not None:
        first = slice(TEST_INPUTS)
        source = f"the first of {samples.source}"
        samples = Samples(samples.inputs[first], samples.labels[first], source)
    source = f"{len(samples.inputs):,} inputs: {samples.source}"
    try:
        return HeldOut(dense, samples).measure(model), source, None
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 - ONNX Runtime, on files of other exporters
        return None, None, f"{type(error).__name__}: {str(error).splitlines()[0]}"


def _equal(model: nn.Module, other: nn.Module) -> bool:
    state, others = model.state_dict(), other.state_dict()
    return state.keys() == others.keys() and all(map(torch.equal, state.values(), others.values()))


def remarks(timed: LatencyTable, macs: NonzeroMacs | None, dense_macs: int | None) -> Iterator[str]:
    """Say whether a file is faster than the dense network, each in its fastest runtime.

    A network of the same shapes takes the same multiply-adds in every runtime that doesn't skip
    zeros. Only torch-csr, which does, can be faster there; other differences are noise. Both
    `macs` and `dense_macs` are None where the dense network isn't known.
    """
    if macs is None or dense_macs is None:
        yield in_words_of_the_caller(
            "nothing was run, as the dense network is unknown: name it with --target, or measure "
            "the file in the folder of its run or export"
        )
        return
    smaller = macs.total < dense_macs
    latencies = timed.pruned if smaller else {CSR: timed.pruned.get(CSR, {})}
    faster: list[str] = []
    slower: list[str] = []
    for batch in {batch: None for times in latencies.values() for batch in times}:
        milliseconds, runtime = _fastest(latencies, batch)
        if any(batch in times for times in timed.dense.values()):
            speedup = _fastest(timed.dense, batch)[0] / milliseconds
            text = f"{speedup:.2f} times as fast at batch {batch} ({runtime})"
            (faster if speedup >= NOTICEABLE else slower).append(text)
    if faster:
        yield f"speed-up over the dense network in its fastest runtime: {', '.join(faster)}"
    if slower:
        yield f"no speed-up: {', '.join(slower)} as the dense network in its fastest runtime"
    if not smaller and not faster and timed.pruned:
        yield (
            f"it takes all {macs.total:,} multiply-adds of the dense network, also those by zero, "
            "in every runtime but torch-csr: this sparsity saves bytes, not time"
        )


def _fastest(latencies: Latencies, batch: int) -> tuple[float, str]:
    return min((times[batch], name) for name, times in latencies.items() if batch in times)


def _export_bytes(path: Path) -> int | None:
    manifest = read_manifest(path.parent)
    if manifest is None or path.name not in manifest["files"]:
        return None
    return sum(int(entry["bytes"]) for entry in manifest["files"].values())


def _plain(latencies: Latencies) -> dict[str, Mapping[str, float]]:
    return {
        name: {str(batch): round(ms, 4) for batch, ms in by_batch.items()}
        for name, by_batch in latencies.items()
    }
