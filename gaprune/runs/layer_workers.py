"""Workers for one-shot masks: the layers of a network are refined on several of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from gaprune.config import EVOLVED
from gaprune.criteria import find_criterion
from gaprune.criteria.layer_tasks import layer_tasks_on
from gaprune.errors import GapruneError
from gaprune.models.network import DenseNetwork
from gaprune.profiling import profiled
from gaprune.runs.setup import ResolvedSettings
from gaprune.workers import FailedTask, Warn, open_workers
from gaprune.workers.serial import torch_threads


@contextmanager
def layers_on_workers(
    resolved: ResolvedSettings, network: DenseNetwork, warn: Warn
) -> Iterator[None]:
    """Make one-shot masks inside the block; workers, if any are asked, refine the layers of one.

    Raises:
        GapruneError: a layer ends every worker that refines it.
    """
    options, method = resolved.worker_options, resolved.settings.method
    if options.in_process or method == EVOLVED or not find_criterion(method).by_layers:
        with profiled("baselines"), torch_threads(options.threads):
            yield
        return
    with torch_threads(options.threads), open_workers(network, options, warn) as workers:

        def run(tasks: Sequence[Any]) -> list[Any]:
            results = workers.run(tasks)
            for failed in results:
                if isinstance(failed, FailedTask):
                    raise GapruneError(
                        f"workers: a layer ended the worker that refined it {failed.attempts} "
                        f"times ({failed.why}); try --workers=1"
                    )
            return results

        with profiled("baselines"), layer_tasks_on(run):
            yield
