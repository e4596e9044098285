"""What is the task's own failure, what is its machine's, and what is said of it."""

from __future__ import annotations

import pytest
import torch
from ray.exceptions import ActorUnavailableError, ObjectLostError, WorkerCrashedError

from gaprune.errors import InputError
from gaprune.io.user_code import call_user
from gaprune.workers.failures import (
    describe,
    ends_worker,
    is_arguments,
    is_machines,
    origin_of,
    tell,
)


def too_much() -> RuntimeError:
    """Return what torch raises where there is not enough memory."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    return caught.value


@pytest.mark.parametrize(
    ("error", "machines", "ends"),
    [
        (InputError("objective: cannot be"), False, False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False, False),
        (MemoryError(), True, False),
        (too_much(), True, False),
        (torch.OutOfMemoryError("CUDA out of memory"), True, False),
        (torch.AcceleratorError("CUDA error: an illegal memory access"), True, True),
        (WorkerCrashedError(), True, True),
    ],
    ids=lambda one: f"{one}"[-20:] or "memory",
)
def test_machines_are_to_blame_for_their_memory_and_their_end(
    error: Exception, machines: bool, ends: bool
) -> None:
    """Everything else would happen anywhere, and is raised."""
    assert is_machines(error) == machines
    assert ends_worker(error) == ends


@pytest.mark.parametrize("error", [too_much(), MemoryError(), ValueError("negative")])
def test_a_users_function_is_not_to_blame_for_the_memory_that_it_does_not_find(
    error: Exception,
) -> None:
    """Whatever is made of what it raises; all else stays what was made of it."""

    def function() -> None:
        raise error

    with pytest.raises(InputError) as caught:
        call_user(function, where="objective: own.py:grade")
    assert origin_of(caught.value) is (error if is_machines(error) else caught.value)


def test_what_a_task_needs_can_be_lost_without_its_worker() -> None:
    """Genes that lay on a node that is gone."""
    assert is_arguments(ObjectLostError("ab" * 28, None, "made here"))
    assert not is_arguments(WorkerCrashedError())


def test_reasons_are_short_and_said_once() -> None:
    """One line each, without what Ray adds."""
    unreachable = describe(ActorUnavailableError("RpcError: Socket closed", None))
    assert unreachable == "its process or its node cannot be reached"
    assert describe(ValueError("first\nsecond")) == "ValueError: first"
    assert describe(MemoryError()) == "MemoryError"
    assert tell(["bang", "crash", "bang"]) == "bang; crash"
