"""One file, measured: what it holds, how large it is, what it answers, how long that takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gaprune.calibration.generators.random_draws import to_network
from gaprune.calibration.generators.procedural import procedural
from gaprune.calibration.samples import Samples
from gaprune.callbacks import Observer
from gaprune.errors import GapruneError, InputError, unknown_name
from gaprune.evaluation.held_out import HeldOut, HeldOutScore
from gaprune.evaluation.labelled import zoo_test
from gaprune.evaluation.latency import BATCHES, Latencies, LatencyTable, time_runtimes
from gaprune.evaluation.runtimes import RUNTIMES, RuntimeSubject
from gaprune.export.measure.dense_network import dense_of, network_of
from gaprune.export.measure.nonzero_macs import NonzeroMacs, work_of
from gaprune.export.measure.read_file import ONNX, FileContents, read_file
from gaprune.export.measure.remarks import latency_remarks
from gaprune.io.sparse.compression import zstd_size
from gaprune.models.macs import macs_per_input
from gaprune.models.onnx import OnnxSession
from gaprune.models.target import Target

SCHEMA = 1
SHOWN_TEST, SHOWN_MADE = 1000, 256  # inputs on which networks are compared
SEED = 0


@dataclass(frozen=True)
class FileMeasurement:
    """A file, measured.

    Attributes:
        file: as the user named it.
        kind: `dense`, `sparse`, `masks`, `prune`, `semi-structured`, `onnx` or `program`.
        bytes: on the disk.
        zstd_bytes: after Zstandard, as its command compresses; None without the package.
        parameters: numbers of floating types in the file; of masks, weights that they speak of.
        nonzeros: those that are not 0.
        work: multiply-adds for one input; None where nobody knows the network.
        timed: see `LatencyTable`.
        agreement: with the dense network, 1 is perfect; None as above.
        accuracy: on labelled inputs, where there are any.
        compared_on: the inputs of both, in words.
        threads: that every runtime had.
        said: what the figures mean, in sentences.
    """

    file: str
    kind: str
    bytes: int
    zstd_bytes: int | None
    parameters: int
    nonzeros: int
    work: NonzeroMacs | None
    timed: LatencyTable
    agreement: float | None
    accuracy: float | None
    compared_on: str | None
    threads: int
    said: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "schema": SCHEMA,
            "file": self.file,
            "kind": self.kind,
            "bytes": self.bytes,
            "zstd_bytes": self.zstd_bytes,
            "parameters": self.parameters,
            "nonzeros": self.nonzeros,
            "macs": None if self.work is None else self.work.all,
            "nonzero_macs": None if self.work is None else self.work.nonzero,
            "latency_ms": _plain(self.timed.pruned),
            "dense_latency_ms": _plain(self.timed.dense),
            "unavailable": dict(self.timed.missing),
            "agreement": self.agreement,
            "accuracy": self.accuracy,
            "compared_on": self.compared_on,
            "threads": self.threads,
            "remarks": list(self.said),
        }


def measure(
    *files: str | Path,
    target: str | Target | None = None,
    runtimes: Sequence[str] | None = None,
    batches: Sequence[int] = BATCHES,
    observer: Observer | None = None,
) -> list[FileMeasurement]:
    """Measure files of weights, one after the other.

    Args:
        files: safetensors (dense, sparse, masks, or as `torch.nn.utils.prune` names them), ONNX,
            a program of `torch.export` (.pt2), or a state dict of `torch.save`.
        target: the dense network: a target's name, the folder of a run, or a `Target`. None looks
            beside each file: an export and a run say which it is.
        runtimes: keys of `RUNTIMES`; None takes all.
        batches: inputs of one pass.
        observer: told of progress.

    Raises:
        InputError: no such file, damaged, of no known kind, of another network; an unknown runtime.
        GapruneError: an optional package that a file needs is missing.
    """
    if not files:
        raise InputError("file: none given; name one or more files")
    names = list(RUNTIMES) if runtimes is None else list(runtimes)
    for name in names:
        if name not in RUNTIMES:
            raise unknown_name("runtimes", name, RUNTIMES)
    if not batches or any(batch < 1 for batch in batches):
        raise InputError(f"batches: must be whole numbers from 1, got {list(batches)}")
    held = [read_file(Path(file).expanduser()) for file in files]  # all, before any takes long
    told, found = observer or Observer(), list[FileMeasurement]()
    for file, one in zip(files, held, strict=True):
        told.progress(f"measure {file}", len(found), len(files))
        found.append(_measure_one(str(file), one, target, names, batches))
    return found


def _measure_one(
    shown: str,
    held: FileContents,
    stated: str | Target | None,
    names: list[str],
    batches: Sequence[int],
) -> FileMeasurement:
    dense = dense_of(held.path, stated)
    model = None if dense is None else network_of(held, dense)
    work, timed, score, source = None, LatencyTable({}, {}, {}), None, None
    dense_macs = None if dense is None else macs_per_input(dense.model, dense.example())
    if dense is not None:
        onnx = held.path if held.kind == ONNX else None
        assert dense_macs is not None
        work = NonzeroMacs(dense_macs, None) if model is None else work_of(model, dense.example())
        timed = time_runtimes(
            RuntimeSubject(model, dense, onnx), RuntimeSubject(dense.model, dense), names, batches
        )
        score, source, complaint = _score(model or _Onnx(held.path), dense)
        if complaint is not None:
            timed.missing["agreement"] = complaint
    return FileMeasurement(
        file=shown,
        kind=held.kind,
        bytes=held.path.stat().st_size,
        zstd_bytes=_zstd(held.path),
        parameters=held.parameters,
        nonzeros=held.nonzeros,
        work=work,
        timed=timed,
        agreement=None if score is None else score.agreement,
        accuracy=None if score is None else score.accuracy,
        compared_on=source,
        threads=torch.get_num_threads(),
        said=tuple(latency_remarks(held, timed, work, dense_macs)),
    )


class _Onnx(nn.Module):
    """An ONNX file, called like a network."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._session = OnnxSession(path, torch.get_num_threads())

    def forward(self, inputs: Tensor) -> Tensor:
        """Return what ONNX Runtime answers."""
        return torch.from_numpy(self._session(inputs))


def _score(model: nn.Module, dense: Target) -> tuple[HeldOutScore | None, str | None, str | None]:
    """Return agreement and accuracy, on which inputs, and why there are none."""
    samples = zoo_test(dense)
    if samples is None:
        generator = torch.Generator().manual_seed(SEED)
        unit = procedural(dense.inputs, SHOWN_MADE, generator)
        inputs = to_network(dense.inputs, unit, dense.dtype)
        samples = Samples(inputs, None, "procedural inputs")
    elif samples.labels is not None:
        first = slice(SHOWN_TEST)
        samples = Samples(samples.inputs[first], samples.labels[first], samples.source)
    source = f"{len(samples.inputs):,} inputs: {samples.source}"
    try:
        return HeldOut(dense, samples).measure(model), source, None
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 - of ONNX Runtime, on files of other exporters
        return None, None, f"{type(error).__name__}: {str(error).splitlines()[0]}"


def _zstd(path: Path) -> int | None:
    try:
        return zstd_size(path.read_bytes())
    except GapruneError:
        return None


def _plain(latencies: Latencies) -> dict[str, Mapping[str, float]]:
    return {
        name: {str(batch): round(ms, 4) for batch, ms in by_batch.items()}
        for name, by_batch in latencies.items()
    }
