"""Messages between processes arrive unchanged, and changed weights are detected."""

from __future__ import annotations

import pytest
import torch
from fault_tasks import Grow, Heavy
from hypothesis import given
from hypothesis import strategies as st
from search_cases import random_genes, tiny_evaluator
from torch import Tensor

from gaprune.workers.actor import frozen_tensors, weights_digest, weights_sum
from gaprune.workers.transport import (
    RemoteGenome,
    TaskResult,
    pack_error,
    pack_genome,
    pack_message,
    pack_result,
    pack_task,
    unpack_genome,
    unpack_result,
    unpack_task,
)

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int8, torch.int16)
EVALUATOR = tiny_evaluator()


def numbers(size: int, dtype: torch.dtype, offset: int = 0) -> Tensor:
    """Return random numbers that need not begin at a multiple of 8 bytes."""
    values = torch.randn(size + offset, generator=torch.Generator().manual_seed(size)) * 50
    return values.to(dtype)[offset:]


@given(st.data(), st.sampled_from(DTYPES), st.integers(1, 40), st.integers(0, 3))
def test_both_checksums_detect_a_flipped_bit(
    data: st.DataObject, dtype: torch.dtype, size: int, offset: int
) -> None:
    """In any tensor at any position; and equal tensors have equal checksums."""
    tensors = [numbers(7, torch.float32), numbers(size, dtype, offset)]
    before = weights_digest(tensors), weights_sum(tensors)
    assert before == (weights_digest([t.clone() for t in tensors]), weights_sum(tensors))
    view = tensors[1].view(torch.uint8)
    view[data.draw(st.integers(0, len(view) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert weights_digest(tensors) != before[0]
    assert weights_sum(tensors) != before[1]


def test_the_checksum_covers_parameters_and_prunable_weights() -> None:
    """Other objects have no weights."""
    parameters, weights = EVALUATOR.network.model.parameters(), EVALUATOR.network.weights.values()
    shapes = [tensor.shape for tensor in (*parameters, *weights)]
    assert [tensor.shape for tensor in frozen_tensors(EVALUATOR)] == shapes
    assert frozen_tensors("any other evaluator") == []


@pytest.mark.parametrize("scope", ["allocated", "global"])
def test_a_genome_arrives_as_it_was(scope: str) -> None:
    """Bit for bit, in memory of its own."""
    genome = random_genes(EVALUATOR.layout, 60, 1, scope)
    arrived = unpack_genome(pack_genome(genome))
    assert type(arrived) is type(genome)
    for name, value in vars(genome).items():
        if isinstance(value, Tensor):
            assert torch.equal(getattr(arrived, name), value)
            assert getattr(arrived, name).data_ptr() != value.data_ptr()
        else:
            assert getattr(arrived, name) == value


def test_messages_hold_no_genomes() -> None:
    """Neither that of a task nor that of its result; both are put together again."""
    parent = Heavy(torch.rand(50_000))
    task = Grow(3, parents=(parent,))
    message = pack_task(task)
    result = unpack_task(message, (pack_genome(parent),)).run(None)
    assert torch.equal(result.genes.numbers, task.run(None).genes.numbers)
    answer, genome = pack_result(TaskResult(result=result), breeds=True)
    assert max(len(message), len(answer)) < 1000
    assert genome is not None
    arrived = unpack_result(answer, "reference", task)
    assert arrived.intact
    assert arrived.result.sum == result.sum
    assert isinstance(arrived.result.genes, RemoteGenome)
    assert arrived.result.genes.reference == "reference"
    plain, nothing = pack_result(TaskResult(result=result), breeds=False)
    assert nothing is None
    assert torch.equal(unpack_result(plain, None, task).result.genes.numbers, result.genes.numbers)


class StubbornError(Exception):
    """Can be pickled but not unpickled: it takes two arguments and keeps one."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what} {why}")


@pytest.mark.parametrize("error", [ValueError("plain"), StubbornError("does", "not travel")])
def test_an_exception_arrives_with_its_traceback(error: Exception) -> None:
    """Or, if it cannot be pickled, at least with its name and message."""
    try:
        raise error
    except (ValueError, StubbornError) as raised:
        arrived = unpack_result(pack_error(raised), None, None).error
    assert arrived is not None
    assert str(error) in str(arrived)
    assert type(error).__name__ in f"{type(arrived).__name__}: {arrived}"
    if isinstance(error, ValueError):
        assert "raised in a worker" in arrived.__notes__[0]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6.0).reshape(2, 3).T,
        torch.tensor(2.5),
        torch.empty(0, 3),
        torch.ones(3, dtype=torch.bfloat16),
        torch.ones(2, requires_grad=True),
        torch.eye(3).to_sparse(),
        torch.tensor([1 + 2j]).conj(),
    ],
    ids=["transposed", "scalar", "empty", "bfloat16", "gradient", "sparse", "conjugate"],
)
def test_tensors_arrive_as_they_were(tensor: Tensor) -> None:
    """Every kind of tensor arrives with its values, dtype and gradient, and may be written."""
    arrived = unpack_task(pack_message(tensor))
    assert arrived.dtype == tensor.dtype
    assert arrived.requires_grad == tensor.requires_grad
    assert arrived.to_dense().resolve_conj().equal(tensor.to_dense().resolve_conj())
    with torch.no_grad():
        arrived.add_(arrived)


def test_a_view_is_sent_without_the_rest() -> None:
    """The message of ten numbers of a large tensor is small."""
    assert len(pack_message(torch.zeros(10**6)[:10])) < 1000
