"""One Ray actor: a process with its own copy of the evaluator that runs one task at a time.

Checksums of the frozen weights: a digest after sending, a cheap sum after every task.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any, NamedTuple

import ray
import torch
from torch import Tensor

from gaprune.errors import GapruneError
from gaprune.evaluation.evaluator import Evaluator
from gaprune.io.weights import sha256_of
from gaprune.models.forward import deterministic
from gaprune.models.sources.optional_packages import mend_torchvision
from gaprune.profiling import profiled, run_profiler
from gaprune.workers.device import CPU, CUDA, move_evaluator, synchronizer
from gaprune.workers.malloc import keep_heap, trim_heap
from gaprune.workers.transport import PackedGenome, TaskResult, pack_error, pack_result, unpack_task

TRIM_EVERY = 100  # tasks; black-box tasks of a small network take milliseconds


class ActorSetup(NamedTuple):
    """What an actor needs beside the evaluator."""

    digest: str  # of the weights in the driver
    threads: int
    gpu: bool  # whether it reserves one
    folders: list[str]  # import path of the driver
    profile: bool = False  # whether results include timings
    torchvision: bool = False  # whether the network may import it


@ray.remote(max_restarts=0, max_task_retries=0)
class Actor:
    """Holds a private copy of the evaluator, since arrays from Ray are shared, read-only memory.

    `__init__` does nothing: an exception in it would kill the actor, but one in `load` is returned.
    """

    def load(self, evaluator: bytes, setup: ActorSetup) -> str:
        """Load the evaluator and return the id of the node.

        Raises:
            GapruneError: the weights differ from those sent, or the actor sees no GPU.
        """
        torch.set_num_threads(setup.threads)
        torch.set_flush_denormal(True)
        keep_heap()
        # a user's file may import from beside it; last in the path, so nothing is shadowed
        sys.path.extend(folder for folder in setup.folders if folder not in sys.path)
        if setup.gpu and not torch.cuda.is_available():
            raise GapruneError(
                f"gpus_per_worker: torch {torch.__version__} of the workers sees no GPU; install "
                "one that does on every node, or leave --gpus-per-worker out"
            )
        if setup.torchvision:
            mend_torchvision()
        device = CUDA if setup.gpu else CPU
        self._determinism = ExitStack()  # never closed: it lasts as long as the process
        self._determinism.enter_context(deterministic(device))
        self._evaluator = move_evaluator(ray.cloudpickle.loads(evaluator), device)
        self._frozen = frozen_tensors(self._evaluator)
        if weights_digest(self._frozen) != setup.digest:
            raise GapruneError("workers: the weights that arrived differ from those sent")
        self._sum = weights_sum(self._frozen)
        self._profile, self._synchronize = setup.profile, synchronizer(device)
        self._finished = 0  # tasks
        return str(ray.get_runtime_context().get_node_id())

    def run(self, message: bytes) -> bytes:
        """Run one task and return the message of its `TaskResult`."""
        return self._run(message, None)[0]

    @ray.method(num_returns=2)  # a fifth slower than one return value, so not for every task
    def breed(self, message: bytes, *parents: PackedGenome) -> tuple[bytes, PackedGenome | None]:
        """Run one task with parents; the second value, its genome, stays in this node's store."""
        return self._run(message, parents)

    def _run(
        self, message: bytes, parents: tuple[PackedGenome, ...] | None
    ) -> tuple[bytes, PackedGenome | None]:
        self._finished += 1
        if self._finished % TRIM_EVERY == 0:
            trim_heap()
        try:
            task = unpack_task(message, parents or ())
            with run_profiler(enabled=self._profile, synchronize=self._synchronize) as profiler:
                result = task.run(self._evaluator)
                with profiled("check"):
                    intact = weights_sum(self._frozen) == self._sum
            timings = None if profiler is None else profiler.profile.driver
            return pack_result(
                TaskResult(intact, result, timings=timings), breeds=parents is not None
            )
        except Exception as error:  # noqa: BLE001 - the driver raises it; Ray would log it as well
            return pack_error(error), None


def frozen_tensors(evaluator: Any) -> list[Tensor]:
    """Return what no task may change: all parameters and the prunable weights.

    Buffers are left out: a user's network may count in them. Any other object has no tensors.
    """
    if not isinstance(evaluator, Evaluator):
        return []
    tensors = (*evaluator.network.model.parameters(), *evaluator.network.weights.values())
    return [tensor.detach() for tensor in tensors]


def weights_digest(tensors: Iterable[Tensor]) -> str:
    """Return the SHA-256 of the bits of all tensors, in order."""
    return sha256_of({str(number): tensor for number, tensor in enumerate(tensors)})


def weights_sum(tensors: Iterable[Tensor]) -> tuple[int, ...]:
    """Return, for every tensor, the sum of its 64-bit words modulo 2^64.

    It takes a thousandth of the time of the digest. It detects every change of a single word and
    all but one in 2^64 of other changes, but not an exchange of words.
    """
    sums = []
    for tensor in tensors:
        data = tensor.contiguous().reshape(-1).view(torch.uint8)
        if data.data_ptr() % 8:
            data = data.clone()  # a view as int64 needs an aligned beginning
        whole = len(data) // 8 * 8
        words = data[:whole].view(torch.int64)
        sums.append(int(words.sum() + data[whole:].sum()))
    return tuple(sums)
