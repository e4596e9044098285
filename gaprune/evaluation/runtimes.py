"""What runs a network: each makes a function of it that is timed, or says why it cannot."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gaprune.errors import GapruneError
from gaprune.models.onnx import OnnxSession, save_onnx
from gaprune.models.target import Target

EAGER, COMPILE, CSR, ONNX = "torch", "torch-compile", "torch-csr", "onnxruntime"
Run = Callable[[Tensor], Any]


class RuntimeSubject:
    """A network to be timed.

    Args:
        model: the network, or None where only an ONNX file is there.
        target: what it takes.
        onnx: the ONNX file, where there is one already.
    """

    def __init__(self, model: nn.Module | None, target: Target, onnx: Path | None = None) -> None:
        self.model, self.target, self.onnx = model, target, onnx


class UnavailableError(Exception):
    """A runtime that cannot run this network here; the message says why."""


@contextmanager
def _eager(subject: RuntimeSubject) -> Iterator[Run]:
    yield _module(subject)


@contextmanager
def _compiled(subject: RuntimeSubject) -> Iterator[Run]:
    run = torch.compile(_module(subject), dynamic=False)
    try:
        yield run
    finally:
        torch._dynamo.reset()  # noqa: SLF001 - torch's own way to forget what it compiled


@contextmanager
def _csr(subject: RuntimeSubject) -> Iterator[Run]:
    """Yield the network with the weights of its linear layers as torch's CSR tensors."""
    model = copy.deepcopy(_module(subject))
    layers = [one for one in model.modules() if type(one) is nn.Linear]
    if not layers:
        raise UnavailableError("the network has no linear layer, and torch's CSR serves no other")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its CSR support a beta
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
        raise UnavailableError("the file is an ONNX file, which torch does not run")
    return subject.model


RUNTIMES: dict[str, Callable[[RuntimeSubject], Any]] = {
    EAGER: _eager,
    COMPILE: _compiled,
    CSR: _csr,
    ONNX: _onnx,
}


@contextmanager
def ready(name: str, subject: RuntimeSubject, inputs: Tensor) -> Iterator[Run]:
    """Yield a runtime that has answered once to these inputs.

    Raises:
        UnavailableError: it cannot run the network.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of compilers, about what they could do better
            with RUNTIMES[name](subject) as run:
                with torch.no_grad():
                    run(inputs)
                yield run
    except UnavailableError:
        raise
    except GapruneError as error:
        raise UnavailableError(str(error)) from error
    except Exception as error:  # compilers and runtimes raise any type
        first = (str(error).strip().splitlines() or [""])[0]
        raise UnavailableError(f"{type(error).__name__}: {first}") from error
