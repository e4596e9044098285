"""What travels between the driver and the workers, and how many bytes that is.

Tasks and results are small messages. What is large, the genes of parents and of children, goes
through Ray's object store: it is sent once, to the nodes that need it, and the genes of a child
that does not survive are never sent at all.
"""

from __future__ import annotations

import pickle
import traceback
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import ray
import torch
from torch import Tensor

from gaprune.errors import GapruneError
from gaprune.profiling import Timings
from gaprune.workers.failures import origin_of

_AS_NUMPY = (torch.float32, torch.float64, torch.float16)


@dataclass
class Traffic:
    """Bytes moved so far, counted by the driver.

    Attributes:
        answers: tasks that were answered.
        evaluator: of the evaluator, once per node.
        sent: of tasks.
        stored: of parents that were put into the object store.
        returned: of results.
        fetched: of genes that were fetched.
    """

    answers: int = 0
    evaluator: int = 0
    sent: int = 0
    stored: int = 0
    returned: int = 0
    fetched: int = 0

    @property
    def moved(self) -> int:
        """All of it but the evaluator."""
        return self.sent + self.stored + self.returned + self.fetched


class Packed(NamedTuple):
    """Genes with arrays instead of tensors: Ray moves these without copies."""

    kind: type
    parts: dict[str, Any]

    @property
    def size(self) -> int:
        """Bytes of its arrays."""
        arrays = (part for part in self.parts.values() if isinstance(part, np.ndarray))
        return sum(array.nbytes for array in arrays)


@dataclass(frozen=True, eq=False)
class Remote:
    """Genes that lie where they were made.

    Attributes:
        reference: to them, in Ray's object store.
        size: in bytes.
        task: makes them again, bit for bit, should they be lost with their node.
    """

    reference: Any
    size: int
    task: Any


class Answer(NamedTuple):
    """What an actor says of one task.

    Attributes:
        sound: whether its weights were still what they should be afterwards.
        result: of the task, without its genes.
        size: of the genes in bytes; None where there are none.
        error: what the task raised instead.
        work: what the actor spent on it, if that was to be measured.
    """

    sound: bool
    result: Any = None
    size: int | None = None
    error: Exception | None = None
    work: Timings | None = None


def pack_task(task: Any) -> bytes:
    """Return the message of a task; its parents travel on their own."""
    bare = replace(task, parents=()) if getattr(task, "parents", ()) else task
    return bytes(ray.cloudpickle.dumps(bare))


def unpack_task(message: bytes, parents: tuple[Packed, ...] = ()) -> Any:
    """Return the task of a message."""
    task = pickle.loads(message)  # noqa: S301 - from the driver, which runs code here anyway
    return replace(task, parents=tuple(map(unpack, parents))) if parents else task


def pack_answer(result: Any, *, sound: bool, work: Timings | None = None) -> bytes:
    """Return the message of a result."""
    answer = Answer(sound, result if sound else None, work=work)
    return bytes(ray.cloudpickle.dumps(answer))


def pack_child(
    result: Any, *, sound: bool, work: Timings | None = None
) -> tuple[bytes, Packed | None]:
    """Return the message of a result, and its genes."""
    genes = getattr(result, "genes", None)
    if genes is None or not sound:
        return pack_answer(result, sound=sound, work=work), None
    packed = pack(genes)
    message = Answer(sound, replace(result, genes=None), packed.size, work=work)
    return bytes(ray.cloudpickle.dumps(message)), packed


def pack_error(error: Exception) -> bytes:
    """Return the message of what a task raised, or its machine did, with its traceback."""
    error = origin_of(error)
    error.add_note(f"raised in a worker:\n{traceback.format_exc()}")
    try:
        message = bytes(ray.cloudpickle.dumps(Answer(sound=True, error=error)))
        pickle.loads(message)  # noqa: S301 - exceptions may be packed and yet not unpacked
    except Exception:  # noqa: BLE001 - whatever a user's exception does
        told = GapruneError(f"{type(error).__name__}: {error}")
        return bytes(ray.cloudpickle.dumps(Answer(sound=True, error=told)))
    return message


def unpack_answer(message: bytes, reference: Any, task: Any) -> Answer:
    """Return the answer of a message; its genes are a handle to what `reference` stands for."""
    answer: Answer = pickle.loads(message)  # noqa: S301 - from an actor that runs our code
    if answer.size is None:
        return answer
    return answer._replace(
        result=replace(answer.result, genes=Remote(reference, answer.size, task))
    )


def pack(genes: Any) -> Packed:
    """Put arrays in the place of the tensors of a dataclass."""
    if not is_dataclass(genes):
        return Packed(type(genes), {"": genes})
    parts = {one.name: getattr(genes, one.name) for one in fields(genes)}
    return Packed(type(genes), {name: _to_array(part) for name, part in parts.items()})


def unpack(packed: Packed) -> Any:
    """Return the genes again; memory that others share is copied."""
    if "" in packed.parts:
        return packed.parts[""]
    parts = {name: _to_tensor(part) for name, part in packed.parts.items()}
    return packed.kind(**parts)


def _to_array(part: Any) -> Any:
    plain = isinstance(part, Tensor) and part.device.type == "cpu" and part.dtype in _AS_NUMPY
    return part.numpy() if plain else part


def _to_tensor(part: Any) -> Any:
    return torch.from_numpy(part.copy()) if isinstance(part, np.ndarray) else part
