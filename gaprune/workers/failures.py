"""What went wrong, told from what Ray raises: the task's own exception, its machine, or memory."""

from __future__ import annotations

import re
from collections.abc import Iterable

import ray
import torch

_DETAIL = re.compile(r"Worker exit type: (\w+)(?: Worker exit detail: ([^\n]*))?")
_ALLOCATOR = "can't allocate memory"  # torch raises a plain RuntimeError where memory is short
_SHOWN = 200  # characters of a message


def cause_of(error: ray.exceptions.RayError) -> BaseException:
    """Return what the code in the actor raised, or the error itself where Ray raised it."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, BaseException) else error


def origin_of(error: Exception) -> Exception:
    """Return what the machine did beneath what was made of it, or else the error itself.

    A user's function that finds no memory is reported as a function that raised.
    """
    one: BaseException | None = error
    while one is not None:
        if isinstance(one, Exception) and is_machines(one):
            return one
        one = one.__cause__
    return error


def is_machines(error: BaseException) -> bool:
    """Tell whether the machine is to blame: it is gone, or its memory is full.

    Everything else is what the task itself raised, and would raise anywhere.
    """
    if ends_worker(error) or isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and _ALLOCATOR in str(error)


def ends_worker(error: BaseException) -> bool:
    """Tell whether a worker can do nothing more: it is gone, or its GPU is in disorder."""
    return isinstance(error, (ray.exceptions.RayError, torch.AcceleratorError))


def is_arguments(error: BaseException) -> bool:
    """Tell whether it was what the task needs that is gone, with the node that held it."""
    return isinstance(error, (ray.exceptions.ObjectLostError, ray.exceptions.GetTimeoutError))


def describe(error: BaseException) -> str:
    """Return in a few words what happened."""
    found = _DETAIL.search(str(error))
    if isinstance(error, ray.exceptions.ActorDiedError) and found:
        detail = (found[2] or found[1]).split(". ")[0]
        return f"its process died: {detail[:_SHOWN]}"
    if isinstance(error, ray.exceptions.ActorUnavailableError):
        return "its process or its node cannot be reached"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    if getattr(error, "actor_init_failed", False):  # its last line says what was raised
        return f"its process could not begin: {lines[-1][:_SHOWN]}"
    return f"{type(error).__name__}: {lines[0][:_SHOWN]}".removesuffix(": ")


def tell(reasons: Iterable[str]) -> str:
    """Return several reasons as one text, each once."""
    return "; ".join(dict.fromkeys(reasons))
