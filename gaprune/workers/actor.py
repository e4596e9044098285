"""One worker: a process that holds its own copy of the evaluator and runs one task after the other."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import Any, NamedTuple

import ray
import torch

from gaprune.errors import GapruneError
from gaprune.profiling import Timings, profiled, run_profiler
from gaprune.workers.checksum import digest, frozen, tally
from gaprune.workers.device import CPU, CUDA, behind, deterministic, move_evaluator
from gaprune.workers.malloc import keep_heap
from gaprune.workers.transport import Packed, pack_answer, pack_child, pack_error, unpack_task


class ActorSetup(NamedTuple):
    """What an actor needs beside the evaluator.

    Attributes:
        digest: of the weights of the evaluator, as the driver has them.
        threads: of torch.
        gpu: whether it was given some of a GPU.
        folders: where the driver imports from.
        measured: whether answers tell what was spent on them.
    """

    digest: str
    threads: int
    gpu: bool
    folders: list[str]
    measured: bool = False


@ray.remote(max_restarts=0, max_task_retries=0)
class Actor:
    """Holds a private copy of the evaluator (Ray's arrays are shared, read-only memory).

    It is empty when it is made, so that what fails while it loads comes back as an error.
    """

    def load(self, evaluator: bytes, shipment: ActorSetup) -> str:
        """Load the evaluator and return the id of the node.

        Raises:
            GapruneError: the weights are not those that were sent, or there is no GPU.
        """
        torch.set_num_threads(shipment.threads)
        keep_heap()
        # last, so they shadow nothing: what a user's file imports from beside it
        sys.path.extend(folder for folder in shipment.folders if folder not in sys.path)
        if shipment.gpu and not torch.cuda.is_available():
            raise GapruneError(
                f"gpus_per_worker: torch {torch.__version__} of the workers sees no GPU; install "
                "one that does on every node, or leave --gpus-per-worker out"
            )
        device = CUDA if shipment.gpu else CPU  # of the GPUs, it sees those that Ray gave it
        self._arithmetic = ExitStack()  # stays as long as the process
        self._arithmetic.enter_context(deterministic(device))
        self._evaluator = move_evaluator(ray.cloudpickle.loads(evaluator), device)
        self._frozen = frozen(self._evaluator)
        if digest(self._frozen) != shipment.digest:
            raise GapruneError("workers: the weights that arrived are not those that were sent")
        self._tally = tally(self._frozen)
        self._measured, self._behind = shipment.measured, behind(device)
        return str(ray.get_runtime_context().get_node_id())

    def run(self, message: bytes) -> bytes:
        """Run one task; returns its answer.

        What the task raises is part of the answer: Ray would log it as well.
        """
        try:
            result, sound, work = self._do(unpack_task(message))
        except Exception as error:  # noqa: BLE001 - it is raised where the task comes from
            return pack_error(error)
        return pack_answer(result, sound=sound, work=work)

    @ray.method(num_returns=2)  # a fifth dearer than one, so not for every task
    def breed(self, message: bytes, *parents: Packed) -> tuple[bytes, Packed | None]:
        """Run one task that breeds; returns its answer, and genes that stay in this node."""
        try:
            result, sound, work = self._do(unpack_task(message, parents))
        except Exception as error:  # noqa: BLE001 - it is raised where the task comes from
            return pack_error(error), None
        return pack_child(result, sound=sound, work=work)

    def _do(self, task: Any) -> tuple[Any, bool, Timings | None]:
        """Return the result, whether the weights are still sound, and what was spent."""
        with run_profiler(enabled=self._measured, synchronize=self._behind) as profiler:
            result = task.run(self._evaluator)
            with profiled("check"):
                sound = tally(self._frozen) == self._tally
        return result, sound, None if profiler is None else profiler.profile.driver
