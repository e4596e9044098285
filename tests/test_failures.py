"""Which failures are the task's own, which are the machine's, and how they are described."""

from __future__ import annotations

import pytest
import torch
from ray.exceptions import ActorUnavailableError, WorkerCrashedError

from gaprune.errors import InputError
from gaprune.io.user_code import call_user
from gaprune.workers import transport as failures


def too_much() -> RuntimeError:
    """Return what torch raises where there is not enough memory."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    return caught.value


@pytest.mark.parametrize(
    ("error", "machine", "ends"),
    [
        (InputError("objective: cannot be"), False, False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False, False),
        (MemoryError(), True, False),
        (too_much(), True, False),
        (torch.OutOfMemoryError("CUDA out of memory"), True, False),
        (torch.AcceleratorError("CUDA error: an illegal memory access"), True, True),
        (WorkerCrashedError(), True, True),
    ],
    ids=lambda error: f"{error}"[-20:] or "memory",
)
def test_full_memory_and_lost_processes_are_failures_of_the_machine(
    error: Exception, machine: bool, ends: bool
) -> None:
    """Everything else would happen anywhere, and is raised."""
    assert failures.is_machine_failure(error) == machine
    assert failures.ends_worker(error) == ends


@pytest.mark.parametrize("error", [too_much(), MemoryError(), ValueError("negative")])
def test_a_full_memory_is_found_beneath_the_error_of_a_users_function(error: Exception) -> None:
    """All other exceptions stay what they were turned into."""

    def function() -> None:
        raise error

    with pytest.raises(InputError) as caught:
        call_user(function, where="objective: own.py:grade")
    expected = error if failures.is_machine_failure(error) else caught.value
    assert failures.origin_of(caught.value) is expected


def test_descriptions_are_one_short_line() -> None:
    """Without what Ray adds."""
    unreachable = ActorUnavailableError("RpcError: Socket closed", None)
    assert "reached" in failures.describe_failure(unreachable)
    assert failures.describe_failure(ValueError("first\nsecond")) == "ValueError: first"
    assert failures.describe_failure(MemoryError()) == "MemoryError"
