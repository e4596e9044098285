"""Which failures are the task's own, which are the machine's, and how to describe them."""

from __future__ import annotations

import re

import ray
import torch

_EXIT_DETAIL = re.compile(r"Worker exit type: (\w+)(?: Worker exit detail: ([^\n]*))?")
_ALLOCATOR = "can't allocate memory"  # torch raises a plain RuntimeError where memory is short
_LONGEST = 200  # characters of a description


def cause_of(error: ray.exceptions.RayError) -> BaseException:
    """Return what our code in the actor raised, or the error itself if Ray raised it."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, BaseException) else error


def origin_of(error: Exception) -> Exception:
    """Return the machine's failure beneath an exception, or else the exception itself.

    An example: a user's function that gets no memory is reported as a function that raised.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, Exception) and is_machine_failure(cause):
            return cause
        cause = cause.__cause__
    return error


def is_machine_failure(error: BaseException) -> bool:
    """Tell whether the machine failed: it is gone, or its memory is full.

    Everything else is raised by the task itself and would be raised anywhere.
    """
    if ends_worker(error) or isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and _ALLOCATOR in str(error)


def ends_worker(error: BaseException) -> bool:
    """Tell whether a worker is unusable: it is gone, or its GPU is in a bad state."""
    return isinstance(error, (ray.exceptions.RayError, torch.AcceleratorError))


def is_lost_argument(error: BaseException) -> bool:
    """Tell whether an argument of the task was lost with the node that held it."""
    return isinstance(error, (ray.exceptions.ObjectLostError, ray.exceptions.GetTimeoutError))


def describe_failure(error: BaseException) -> str:
    """Return in a few words what happened, without what Ray adds."""
    detail = _EXIT_DETAIL.search(str(error))
    if isinstance(error, ray.exceptions.ActorDiedError) and detail:
        return f"its process died: {(detail[2] or detail[1]).split('. ')[0][:_LONGEST]}"
    if isinstance(error, ray.exceptions.ActorUnavailableError):
        return "its process or its node cannot be reached"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    if getattr(error, "actor_init_failed", False):  # its last line says what was raised
        return f"its process failed to start: {lines[-1][:_LONGEST]}"
    return f"{type(error).__name__}: {lines[0][:_LONGEST]}".removesuffix(": ")
