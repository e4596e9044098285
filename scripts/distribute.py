"""Prune on Ray: on this machine's cores, or on a cluster; go on where an earlier call stopped.

python scripts/distribute.py            # two workers here
python scripts/distribute.py auto 16    # sixteen on the cluster that this machine belongs to

Masks are the same, bit for bit, for any number of workers.
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
        address: `none` starts a Ray here, `auto`, `HOST:PORT` and `ray://HOST:PORT` find one.
        workers: actors; each reserves `threads_per_worker` CPUs and `gpus_per_worker` GPUs.
        folder: of the run; one that was stopped goes on.
        settings: further ones of `gaprune.prune`.
    """
    model = gaprune.load_target(TARGET).model
    if Path(folder).exists():
        print(f"{folder} goes on")
        found = gaprune.resume(folder, model=model, workers=workers, ray_address=address)
    else:
        found = gaprune.prune(
            model,
            sparsity=SPARSITY,
            inputs=INPUTS,
            workers=workers,
            ray_address=address,
            out=folder,
            **settings,
        )
    print(f"{found.evaluations:,} evaluations on {workers} workers in {found.seconds:.0f} s")
    print(
        f"agreement on the validation inputs {found.validation:.2%}; report: {folder}/report.html"
    )
    return found


if __name__ == "__main__":
    main(sys.argv[1] if sys.argv[1:] else "none", int(sys.argv[2]) if sys.argv[2:] else 2)
