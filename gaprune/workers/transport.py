"""Messages between the driver and the actors: tasks, results, genomes and failures.

Tasks and results are small. Genomes are large and are passed through Ray's object store: each is
sent once, to the nodes that need it, and the genome of a child that does not survive is never sent.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import re
import traceback
from collections import ChainMap
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import ray
import torch
from torch import Tensor

from gaprune.errors import GapruneError
from gaprune.profiling import Timings

_EXIT_DETAIL = re.compile(r"Worker exit type: (\w+)(?: Worker exit detail: ([^\n]*))?")
_ALLOCATOR = "can't allocate memory"  # torch raises a plain RuntimeError where memory is short
_LONGEST = 200  # characters of a description


class PackedGenome(NamedTuple):
    """A genome with NumPy arrays in place of tensors: Ray moves arrays without copies."""

    kind: type
    parts: dict[str, Any]


@dataclass(frozen=True, eq=False)
class RemoteGenome:
    """A handle to a genome in the object store."""

    reference: Any
    task: Any  # computes the genome again, bit for bit, if it is lost with its node


class TaskResult(NamedTuple):
    """What an actor returns for one task."""

    intact: bool = True  # whether the weights were unchanged after the task
    result: Any = None  # without its genome
    has_genome: bool = False
    error: Exception | None = None  # that the task raised
    timings: Timings | None = None  # of the actor, if they were asked for


def _reduce_tensor(tensor: Tensor) -> Any:
    """Return how to build a tensor again: from a NumPy array, which is copied less often."""
    if not tensor.requires_grad:
        with contextlib.suppress(TypeError, RuntimeError):  # see `pack_genome`; sparse tensors
            return torch.from_numpy, (tensor.numpy(),)
    return tensor.__reduce_ex__(pickle.HIGHEST_PROTOCOL)


class _MessagePickler(ray.cloudpickle.CloudPickler):
    """Pickles tensors in half the time."""

    # as the base class has it: shared by all instances
    dispatch_table = ChainMap(  # noqa: RUF012
        {Tensor: _reduce_tensor}, ray.cloudpickle.CloudPickler.dispatch_table
    )


def pack_message(content: object) -> bytes:
    """Return a message; views of tensors become tensors of their own."""
    message = io.BytesIO()
    _MessagePickler(message).dump(content)  # type: ignore[no-untyped-call] # Ray has no types
    return message.getvalue()


def pack_task(task: Any) -> bytes:
    """Return the message of a task, without its parents."""
    return pack_message(replace(task, parents=()) if getattr(task, "parents", ()) else task)


def unpack_task(message: bytes, parents: tuple[PackedGenome, ...] = ()) -> Any:
    """Return the task of a message, with its parents."""
    task = pickle.loads(message)  # noqa: S301 - from the driver, whose code runs here anyway
    return replace(task, parents=tuple(map(unpack_genome, parents))) if parents else task


def pack_result(answer: TaskResult, *, breeds: bool) -> tuple[bytes, PackedGenome | None]:
    """Return the message of a result and, separately, the genome of a task that breeds."""
    genome = None
    if breeds and answer.intact:
        genome = pack_genome(answer.result.genes)
        answer = answer._replace(result=replace(answer.result, genes=None), has_genome=True)
    return pack_message(answer), genome


def pack_error(error: Exception) -> bytes:
    """Return the message of an exception, with its traceback as a note."""
    error = origin_of(error)
    error.add_note(f"raised in a worker:\n{traceback.format_exc()}")
    try:
        message = pack_message(TaskResult(error=error))
        pickle.loads(message)  # noqa: S301 - some exceptions can be pickled but not unpickled
    except Exception:  # noqa: BLE001 - a user's exception may raise anything
        plain = GapruneError(f"{type(error).__name__}: {error}")
        return pack_message(TaskResult(error=plain))
    return message


def unpack_result(message: bytes, reference: Any, task: Any) -> TaskResult:
    """Return the result of a message, with a handle to the genome behind `reference`."""
    answer: TaskResult = pickle.loads(message)  # noqa: S301 - from an actor that runs our code
    if not answer.has_genome:
        return answer
    genome = RemoteGenome(reference, task)
    return answer._replace(result=replace(answer.result, genes=genome))


def pack_genome(genome: Any) -> PackedGenome:
    """Return a genome, which is a dataclass, with arrays in place of its tensors."""
    parts = {item.name: getattr(genome, item.name) for item in fields(genome)}
    for name, part in parts.items():
        if isinstance(part, Tensor):
            with contextlib.suppress(TypeError):  # no bfloat16 in NumPy, no tensor on a GPU
                parts[name] = part.numpy()
    return PackedGenome(type(genome), parts)


def unpack_genome(packed: PackedGenome) -> Any:
    """Return the genome again; copied, since arrays from Ray are shared, read-only memory."""
    parts = {
        name: torch.from_numpy(part.copy()) if isinstance(part, np.ndarray) else part
        for name, part in packed.parts.items()
    }
    return packed.kind(**parts)


def origin_of(error: Exception) -> Exception:
    """Return the machine's failure beneath an exception, such as a full memory, or else itself."""
    cause: BaseException | None = error
    while cause is not None and not is_machine_failure(cause):
        cause = cause.__cause__
    return cause if isinstance(cause, Exception) else error


def is_machine_failure(error: BaseException) -> bool:
    """Tell whether the machine failed; everything else would be raised by the task anywhere."""
    if ends_worker(error) or isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and _ALLOCATOR in str(error)


def ends_worker(error: BaseException) -> bool:
    """Tell whether a worker is unusable: it is gone, or its GPU is in a bad state."""
    return isinstance(error, (ray.exceptions.RayError, torch.AcceleratorError))


def describe_failure(error: BaseException) -> str:
    """Return in a few words what happened, without what Ray adds."""
    if isinstance(error, GapruneError):
        return str(error)
    detail = _EXIT_DETAIL.search(str(error))
    if isinstance(error, ray.exceptions.ActorDiedError) and detail:
        return f"its process died: {(detail[2] or detail[1]).split('. ')[0][:_LONGEST]}"
    if isinstance(error, ray.exceptions.ActorUnavailableError):
        return "its process or its node cannot be reached"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    if getattr(error, "actor_init_failed", False):  # its last line says what was raised
        return f"its process failed to start: {lines[-1][:_LONGEST]}"
    return f"{type(error).__name__}: {lines[0][:_LONGEST]}".removesuffix(": ")
