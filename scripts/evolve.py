"""Evolve a mask for a network in Python: prune it, look at it, take it away.

python scripts/evolve.py [FOLDER]

Replace `make` and the weights by your own network; nothing else knows about it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from torch import nn

import gaprune

SPARSITY = 0.95
INPUTS = gaprune.InputOptions((1, 28, 28), kind="image", range=(0, 1))


def make() -> nn.Module:
    """Return a trained network: here the zoo's, there yours, with `load_state_dict`."""
    return gaprune.load_target("mnist-mlp").model


def main(folder: str | Path = "runs/evolve-example", **settings: Any) -> gaprune.Result:
    """Prune, save the run with its report, and export the masks as packed bits.

    Args:
        folder: of the run, which must not exist; the export lies beside it.
        settings: further ones of `gaprune.prune`, such as `seed=1`.
    """
    model = make()
    found = gaprune.prune(model, sparsity=SPARSITY, inputs=INPUTS, out=folder, **settings)
    print(f"{found.actual_sparsity:.2%} of the weights removed, the others as they were")
    print(f"agreement with the dense network on the validation inputs: {found.validation:.2%}")
    print(f"above the best one-shot mask: {found.gain:+.2%}")
    small = found.pruned_model()  # a copy with zeros; `model` is untouched
    print(f"{sum(int(one.count_nonzero()) for one in small.parameters()):,} values are not 0")
    files = gaprune.export(found, "masks", f"{folder}-masks")
    print(f"report: {folder}/report.html; masks: {files.file}")
    return found


if __name__ == "__main__":
    main(*sys.argv[1:2])
