"""Runtimes whose latency is measured: each makes a function of a network."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gaprune.errors import GapruneError, first_line
from gaprune.models.onnx import OnnxSession, save_onnx
from gaprune.models.target import Target

EAGER, COMPILE, CSR, ONNX = "torch", "torch-compile", "torch-csr", "onnxruntime"
Run = Callable[[Tensor], Any]


class RuntimeSubject(NamedTuple):
    """A network to be timed, an ONNX file of it, or both; `target` describes its inputs."""

    model: nn.Module | None
    target: Target
    onnx: Path | None = None


class UnavailableError(Exception):
    """A runtime cannot run this network here; the message gives the reason."""


@contextmanager
def _eager(subject: RuntimeSubject) -> Iterator[Run]:
    yield _module(subject)


@contextmanager
def _compiled(subject: RuntimeSubject) -> Iterator[Run]:
    # Static shapes: the fastest code, compiled for every batch size.
    run = torch.compile(_module(subject), dynamic=False)
    try:
        yield run
    finally:
        torch._dynamo.reset()  # noqa: SLF001 - torch has no public way to free compiled code


@contextmanager
def _csr(subject: RuntimeSubject) -> Iterator[Run]:
    """Yield the network with the weights of linear layers as CSR tensors."""
    # A copy, because the weights are replaced.
    model = copy.deepcopy(_module(subject))
    layers = [module for module in model.modules() if type(module) is nn.Linear]
    if not layers:
        raise UnavailableError(
            "the network has no linear layer, the only kind that torch can run in CSR"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that CSR support is in beta
        for layer in layers:
            layer.weight = nn.Parameter(layer.weight.to_sparse_csr(), requires_grad=False)
        yield model


@contextmanager
def _onnx(subject: RuntimeSubject) -> Iterator[Run]:
    threads = torch.get_num_threads()
    if subject.onnx is not None:
        yield OnnxSession(subject.onnx, threads)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        save_onnx(_module(subject), subject.target, path)
        yield OnnxSession(path, threads)


def _module(subject: RuntimeSubject) -> nn.Module:
    if subject.model is None:
        raise UnavailableError("torch does not run ONNX files")
    return subject.model


RUNTIMES: dict[str, Callable[[RuntimeSubject], Any]] = {
    EAGER: _eager,
    COMPILE: _compiled,
    CSR: _csr,
    ONNX: _onnx,
}


@contextmanager
def ready(name: str, subject: RuntimeSubject, inputs: Tensor) -> Iterator[Run]:
    """Yield a runtime after a first pass on these inputs, which includes compilation.

    Raises:
        UnavailableError: the runtime cannot run the network.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # hints of compilers
            with RUNTIMES[name](subject) as run:
                with torch.no_grad():
                    run(inputs)
                yield run
    except UnavailableError:
        raise
    except GapruneError as error:
        raise UnavailableError(str(error)) from error
    except Exception as error:  # compilers and runtimes raise exceptions of any type
        # Compiler errors have many lines; the first one names the cause.
        raise UnavailableError(f"{type(error).__name__}: {first_line(error)}") from error
