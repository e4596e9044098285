"""What travels between processes arrives as it was, and what has changed on the way is noticed."""

from __future__ import annotations

import pytest
import torch
from fault_tasks import Grow, Heavy
from hypothesis import given
from hypothesis import strategies as st
from search_cases import random_genes, tiny_evaluator
from torch import Tensor

from gaprune.evolution.genome import Genes
from gaprune.workers.checksum import digest, frozen, tally
from gaprune.workers.transport import (
    Remote,
    pack,
    pack_answer,
    pack_child,
    pack_error,
    pack_task,
    unpack,
    unpack_answer,
    unpack_task,
)

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int8, torch.int16)
EVALUATOR = tiny_evaluator()


def numbers(size: int, dtype: torch.dtype, offset: int = 0) -> Tensor:
    """Return random numbers that need not begin where a word does."""
    whole = torch.randn(size + offset, generator=torch.Generator().manual_seed(size)) * 50
    return whole.to(dtype)[offset:]


@given(st.data(), st.sampled_from(DTYPES), st.integers(1, 40), st.integers(0, 3))
def test_a_flipped_bit_is_noticed(
    data: st.DataObject, dtype: torch.dtype, size: int, offset: int
) -> None:
    """In any tensor, at any place, by either sum; and nothing is where nothing has changed."""
    tensors = [numbers(7, torch.float32), numbers(size, dtype, offset)]
    sums = digest(tensors), tally(tensors)
    assert sums == (digest([one.clone() for one in tensors]), tally(tensors))
    held = tensors[1].view(torch.uint8)
    held[data.draw(st.integers(0, len(held) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert digest(tensors) != sums[0]
    assert tally(tensors) != sums[1]


def test_what_tasks_may_not_change_is_what_the_network_computes_with() -> None:
    """Prunable weights, and the parameters beside them."""
    held = frozen(EVALUATOR)
    sizes = [p.shape for p in EVALUATOR.model.parameters()] + [
        w.shape for w in EVALUATOR.weights.values()
    ]
    assert [one.shape for one in held] == sizes
    assert frozen("any other evaluator") == []
    assert tally([]) == ()


@pytest.mark.parametrize("scope", ["allocated", "global"])
def test_genes_arrive_as_they_were(scope: str) -> None:
    """Bit for bit, in memory of their own."""
    genes = random_genes(EVALUATOR.layout, 60, 1, scope)
    packed = pack(genes)
    assert packed.size == genes.scores.nbytes
    arrived = unpack(packed)
    assert isinstance(arrived, Genes)
    assert torch.equal(arrived.scores, genes.scores)
    assert (arrived.counts, arrived.keep) == (genes.counts, genes.keep)
    assert (arrived.fixed, arrived.absolute) == (genes.fixed, genes.absolute)
    assert arrived.scores.data_ptr() != genes.scores.data_ptr()


def test_a_message_holds_no_genes() -> None:
    """Neither that of a task nor that of its answer; both are put together again."""
    parent = Heavy(torch.rand(50_000))
    task = Grow(3, parents=(parent,))
    message = pack_task(task)
    found = unpack_task(message, (pack(parent),)).run(None)
    assert torch.equal(found.genes.numbers, task.run(None).genes.numbers)
    answer, genes = pack_child(found, sound=True)
    assert max(len(message), len(answer)) < 1000
    assert genes is not None
    result = unpack_answer(answer, "reference", task).result
    assert result.sum == found.sum
    assert isinstance(result.genes, Remote)
    assert (result.genes.reference, result.genes.size) == ("reference", 200_000)
    assert unpack_answer(pack_child(found, sound=False)[0], None, task).sound is False


def test_genes_of_a_task_that_does_not_say_so_travel_in_the_answer() -> None:
    """There is no handle to them then."""
    found = Grow(3).run(None)
    answer = unpack_answer(pack_answer(found, sound=True), None, None)
    assert torch.equal(answer.result.genes.numbers, found.genes.numbers)
    assert unpack_answer(pack_answer(found, sound=False), None, None).sound is False


class StubbornError(Exception):
    """Cannot be unpacked: it wants two arguments and keeps one."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what} {why}")


def fail(error: Exception) -> None:
    """Raise it."""
    raise error


@pytest.mark.parametrize("error", [ValueError("plain"), StubbornError("does", "not travel")])
def test_what_a_task_raises_arrives_with_its_traceback(error: Exception) -> None:
    """Or, where it cannot be packed, at least its name and message."""
    try:
        fail(error)
    except (ValueError, StubbornError) as raised:
        arrived = unpack_answer(pack_error(raised), None, None).error
    assert arrived is not None
    assert str(error) in str(arrived)
    assert type(error).__name__ in f"{type(arrived).__name__}: {arrived}"
    if isinstance(error, ValueError):
        assert "raised in a worker" in arrived.__notes__[0]
