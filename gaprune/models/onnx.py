"""ONNX files: write with torch's exporter, run in ONNX Runtime, compare with torch."""

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

from gaprune.errors import GapruneError, first_line
from gaprune.models.input_spec import sample_inputs
from gaprune.models.sources.optional_packages import import_extra
from gaprune.models.target import Target

FILE, EXTRA = "model.onnx", "export"
INPUT, OUTPUT, BATCH = "input", "output", "batch"
EXAMPLE_BATCH = 2  # torch treats a batch of one as a fixed size
COMPARED_BATCHES = (1, 7)
TOLERANCE = 1e-4  # relative to the largest output, at least 1
SEED = 0


def save_onnx(model: nn.Module, target: Target, path: Path) -> None:
    """Write a network with the inputs of `target` to an ONNX file, with a free batch size.

    Raises:
        GapruneError: an optional package is missing, or torch cannot export the network.
    """
    for package in ("onnx", "onnxscript"):
        import_extra(package, EXTRA, "onnx")
    example = sample_inputs(target.inputs, EXAMPLE_BATCH, target.dtype).to(target.device)
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
            # one file: weights inside, not in a second file beside it
            program.save(path, external_data=False)
    except Exception as error:  # the exporter runs the user's code, which may raise anything
        raise GapruneError(
            f"onnx: torch cannot export {target.name} ({type(error).__name__}: "
            f"{first_line(error)}); export it as dense or sparse, which need no tracing"
        ) from error


@torch.no_grad()
def compare_with_torch(model: nn.Module, target: Target, path: Path) -> float:
    """Return the largest difference between ONNX Runtime and torch, relative to the largest output.

    `GapruneError` if it exceeds `TOLERANCE`, or shapes differ.
    """
    run = OnnxSession(path)
    worst = 0.0  # over all batches: the batch size must really be free
    for count in COMPARED_BATCHES:
        inputs = sample_inputs(target.inputs, count, target.dtype).to(target.device)
        expected = model(inputs).cpu()
        outputs = torch.from_numpy(run(inputs))
        if outputs.shape != expected.shape:
            raise GapruneError(
                f"onnx: the file returns {list(outputs.shape)} for {count} inputs and torch "
                f"{list(expected.shape)}; export {target.name} as dense or sparse"
            )
        scale = max(1.0, float(expected.abs().max()))
        worst = max(worst, float((outputs - expected).abs().max()) / scale)
    if not worst <= TOLERANCE:
        raise GapruneError(
            f"onnx: ONNX Runtime differs from torch by {worst:.1e} of the largest output, more "
            f"than {TOLERANCE:.0e}; export {target.name} as dense or sparse"
        )
    return worst


class OnnxSession:
    """An ONNX file in ONNX Runtime; called with inputs `[N, …]`, it returns outputs as an array.

    Raises:
        GapruneError: an optional package is missing, or the file cannot be loaded.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        runtime = import_extra("onnxruntime", EXTRA, "onnx")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1  # operators one after the other, as torch does
        options.log_severity_level = 3  # errors only; they are raised as exceptions too
        try:
            self._session = runtime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # compiled code with its own exception types
            raise GapruneError(
                f"onnx: ONNX Runtime cannot load {path} ({first_line(error)}); "
                "export or fetch it again"
            ) from error
        self._input = self._session.get_inputs()[0].name

    def __call__(self, inputs: Tensor) -> Any:  # noqa: ANN401 - an array of any dtype
        """Run the network."""
        return self._session.run(None, {self._input: inputs.cpu().numpy()})[0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's warnings and reports off the terminal; errors are raised."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
