"""Messages between the driver and the actors, and how many bytes they are.

Tasks and results are small. Genomes are large and are passed through Ray's object store: each is
sent once, to the nodes that need it, and the genome of a child that does not survive is never sent.
"""

from __future__ import annotations

import pickle
import traceback
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import ray
import torch
from torch import Tensor

from gaprune.errors import GapruneError
from gaprune.profiling import Timings
from gaprune.workers.failures import origin_of

_AS_NUMPY = (torch.float32, torch.float64, torch.float16)


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


def pack_task(task: Any) -> bytes:
    """Return the message of a task, without its parents."""
    bare = replace(task, parents=()) if getattr(task, "parents", ()) else task
    return bytes(ray.cloudpickle.dumps(bare))


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
    return bytes(ray.cloudpickle.dumps(answer)), genome


def pack_error(error: Exception) -> bytes:
    """Return the message of an exception, with its traceback as a note."""
    error = origin_of(error)
    error.add_note(f"raised in a worker:\n{traceback.format_exc()}")
    try:
        message = bytes(ray.cloudpickle.dumps(TaskResult(error=error)))
        pickle.loads(message)  # noqa: S301 - some exceptions can be pickled but not unpickled
    except Exception:  # noqa: BLE001 - a user's exception may raise anything
        plain = GapruneError(f"{type(error).__name__}: {error}")
        return bytes(ray.cloudpickle.dumps(TaskResult(error=plain)))
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
    parts = {}
    for item in fields(genome):
        part = getattr(genome, item.name)
        on_cpu = isinstance(part, Tensor) and part.device.type == "cpu"
        # NumPy has no bfloat16; other parts are pickled as they are
        parts[item.name] = part.numpy() if on_cpu and part.dtype in _AS_NUMPY else part
    return PackedGenome(type(genome), parts)


def unpack_genome(packed: PackedGenome) -> Any:
    """Return the genome again.

    Arrays from Ray are read-only memory that processes share, but torch would write into it: copy.
    """
    parts = {
        name: torch.from_numpy(part.copy()) if isinstance(part, np.ndarray) else part
        for name, part in packed.parts.items()
    }
    return packed.kind(**parts)
