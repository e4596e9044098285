"""ONNX files: write with torch's exporter, run in ONNX Runtime, compare with torch."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gaprune.errors import GapruneError
from gaprune.models.forward import free_batch, relative_difference, rounding_tolerance
from gaprune.models.input_spec import sample_inputs
from gaprune.models.sources.optional_packages import import_extra
from gaprune.models.target import Target

FILE, EXTRA = "model.onnx", "export"
INPUT, OUTPUT, BATCH = "input", "output", "batch"
EXAMPLE_BATCH = 2  # torch treats a batch of one as a fixed size
COMPARED_BATCHES = (1, 7)
SEED = 0
_ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")  # colours of a terminal


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
                dynamic_shapes=free_batch(model),
                verbose=False,
            )
            assert program is not None
            # one file: weights inside, not in a second file beside it
            program.save(path, external_data=False)
    except Exception as error:  # the exporter runs the user's code, which may raise anything
        raise GapruneError(
            f"onnx: torch cannot export {target.name} ({export_reason(error)}); export it as "
            "dense or sparse, which need no tracing"
        ) from error


def export_reason(error: BaseException) -> str:
    """Return in one line why torch could not trace a network.

    The message of torch's exporter is a page of advice; its cause says what is wrong.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    text = _ESCAPES.sub("", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@torch.no_grad()
def compare_with_torch(model: nn.Module, target: Target, path: Path) -> float:
    """Return the largest difference between ONNX Runtime and torch, relative to the largest output.

    `GapruneError` if it exceeds `rounding_tolerance`, or shapes differ.
    """
    try:
        run = OnnxSession(path)
    except GapruneError as error:
        if target.dtype != torch.float64:
            raise
        raise GapruneError(
            f"{error}; it lacks many operations in float64: prune the network in float32 (.float())"
        ) from error
    worst = 0.0  # over all batches: the batch size must really be free
    for count in COMPARED_BATCHES:
        inputs = sample_inputs(target.inputs, count, target.dtype).to(target.device)
        expected = model(inputs).cpu()
        dtype = expected.dtype
        outputs = torch.from_numpy(run(inputs))
        if outputs.shape != expected.shape:
            raise GapruneError(
                f"onnx: the file returns {list(outputs.shape)} for {count} inputs and torch "
                f"{list(expected.shape)}; export {target.name} as dense or sparse"
            )
        difference, tolerance = relative_difference(outputs, expected), rounding_tolerance(dtype)
        if not difference <= tolerance:  # also for NaN
            raise GapruneError(
                f"onnx: ONNX Runtime differs from torch by {difference:.1e} of the largest output, "
                f"more than {tolerance:.0e}; export {target.name} as dense or sparse"
            )
        worst = max(worst, difference)
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
        options.add_session_config_entry("session.set_denormal_as_zero", "1")  # as torch here
        try:
            self._session = runtime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # compiled code with its own exception types
            raise GapruneError(
                f"onnx: ONNX Runtime cannot load {path} ({_one_line(error)}); "
                "export it as dense or sparse, or fetch it again"
            ) from error
        self._input = self._session.get_inputs()[0].name

    def __call__(self, inputs: Tensor) -> Any:  # noqa: ANN401 - an array of any dtype
        """Run the network; raise GapruneError if ONNX Runtime cannot."""
        try:
            return self._session.run(None, {self._input: inputs.cpu().numpy()})[0]
        except Exception as error:  # compiled code with its own exception types
            raise GapruneError(f"onnx: ONNX Runtime cannot run it ({_one_line(error)})") from error


def _one_line(error: Exception) -> str:
    return " ".join(_ESCAPES.sub("", str(error)).split()) or type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's warnings and reports off the terminal; errors are raised."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # errors are raised too
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
