"""ONNX: written by torch's exporter, compared with torch in ONNX Runtime before it is kept."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gaprune.errors import GapruneError
from gaprune.models.input_spec import sample_inputs
from gaprune.models.sources.optional_packages import import_extra
from gaprune.models.target import Target

FILE, EXTRA = "model.onnx", "export"
INPUT, OUTPUT, BATCH = "input", "output", "batch"
TRACED = 2  # inputs of the example: torch takes a batch of one for a fixed size
TRIED = (1, 7)  # batches that are compared
TOLERANCE = 1e-4  # of the largest output, at least of 1
SEED = 0


def save_onnx(model: nn.Module, target: Target, path: Path) -> None:
    """Write a network that takes what `target` takes.

    Raises:
        GapruneError: an optional package is missing, or torch cannot export the network.
    """
    for package in ("onnx", "onnxscript"):
        import_extra(package, EXTRA, "onnx")
    example = sample_inputs(target.inputs, TRACED, target.dtype).to(target.device)
    try:
        with _quiet():
            program = torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
                verbose=False,
            )
            assert program is not None
            program.save(path, external_data=False)
    except Exception as error:  # the exporter runs the user's code, and raises any type
        first = (str(error).strip().splitlines() or [""])[0]
        raise GapruneError(
            f"onnx: torch cannot export {target.name} ({type(error).__name__}: {first}); export "
            "it as dense or sparse, which need no tracing"
        ) from error


@torch.no_grad()
def compare_with_torch(model: nn.Module, target: Target, path: Path) -> float:
    """Return the largest difference between ONNX Runtime and torch, part of the largest output.

    Raises:
        GapruneError: it is more than `TOLERANCE`.
    """
    run = OnnxSession(path)
    worst = 0.0
    for count in TRIED:
        inputs = sample_inputs(target.inputs, count, target.dtype).to(target.device)
        expected = model(inputs).cpu()
        found = torch.from_numpy(run(inputs))
        if found.shape != expected.shape:
            raise GapruneError(
                f"onnx: the file answers {list(found.shape)} to {count} inputs where torch answers "
                f"{list(expected.shape)}; export {target.name} as dense or sparse"
            )
        scale = max(1.0, float(expected.abs().max()))
        worst = max(worst, float((found - expected).abs().max()) / scale)
    if not worst <= TOLERANCE:
        raise GapruneError(
            f"onnx: ONNX Runtime differs from torch by {worst:.1e} of the largest output, more "
            f"than {TOLERANCE:.0e}; export {target.name} as dense or sparse"
        )
    return worst


class OnnxSession:
    """A file loaded by ONNX Runtime; called with inputs `[N, …]`, it gives outputs as an array.

    Args:
        path: the file.
        threads: that ONNX Runtime may use.

    Raises:
        GapruneError: an optional package is missing, or the file cannot be loaded.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        runtime = import_extra("onnxruntime", EXTRA, "onnx")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors; they are raised as well
        try:
            self._session = runtime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # of compiled code; it has types of its own for each mistake
            raise GapruneError(
                f"onnx: ONNX Runtime cannot load {path} ({str(error).splitlines()[0]}); "
                "export or fetch it again"
            ) from error
        self._input = self._session.get_inputs()[0].name

    def __call__(self, inputs: Tensor) -> Any:  # noqa: ANN401 - an array of any dtype
        """Run the network."""
        return self._session.run(None, {self._input: inputs.cpu().numpy()})[0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's warnings and reports off the terminal; what fails is raised."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)
