"""Prune on Ray, on this machine or on a cluster, and resume an interrupted run.

python scripts/distribute.py            # two workers on this machine
python scripts/distribute.py auto 16    # sixteen workers on the cluster of this machine

The masks are bit-identical for any number of workers.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gaprune

TARGET, SPARSITY = "mnist-mlp", 0.95
INPUTS = gaprune.InputOptions((1, 28, 28), kind="image", range=(0, 1))


def main(
    address: str = "none",
    workers: int = 2,
    folder: str | Path = "runs/distribute-example",
    **settings: Any,
) -> gaprune.Result:
    """Search on Ray actors, each with its own copy of the network.

    Args:
        address: `none` starts Ray on this machine; `auto`, `HOST:PORT` and `ray://HOST:PORT`
            connect to a cluster.
        workers: number of actors, each with `threads_per_worker` CPUs and `gpus_per_worker` GPUs.
        folder: run directory; an interrupted run resumes.
        settings: further arguments of `gaprune.prune`.
    """
    model = gaprune.load_target(TARGET).model
    if Path(folder).exists():
        print(f"resuming {folder}")
        result = gaprune.resume(folder, model=model, workers=workers, ray_address=address)
    else:
        result = gaprune.prune(
            model,
            sparsity=SPARSITY,
            inputs=INPUTS,
            workers=workers,
            ray_address=address,
            out=folder,
            **settings,
        )
    print(f"{result.evaluations:,} evaluations on {workers} workers in {result.seconds:.0f} s")
    print(
        f"agreement on the validation inputs {result.validation_agreement:.2%}; "
        f"report: {folder}/report.html"
    )
    return result


if __name__ == "__main__":
    main(sys.argv[1] if sys.argv[1:] else "none", int(sys.argv[2]) if sys.argv[2:] else 2)
