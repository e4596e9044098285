"""Prune a network in Python, inspect the result and export it.

python scripts/evolve.py [FOLDER]

Replace the body of `make` with your own trained network.
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
    """Return a trained network: one from the zoo; yours would use `load_state_dict`."""
    return gaprune.load_target("mnist-mlp").model


def main(folder: str | Path = "runs/evolve-example", **settings: Any) -> gaprune.Result:
    """Prune, save the run with its report, and export the masks as packed bits.

    Args:
        folder: run directory, which must not exist; the export is written beside it.
        settings: further arguments of `gaprune.prune`, such as `seed=1`.
    """
    model = make()
    result = gaprune.prune(model, sparsity=SPARSITY, inputs=INPUTS, out=folder, **settings)
    print(f"{result.actual_sparsity:.2%} of the weights removed, the others unchanged")
    print(f"agreement with the dense network: {result.validation_agreement:.2%}")
    print(f"gain over the best one-shot mask: {result.gain:+.2%}")
    pruned = result.pruned_model()  # a copy with zeros; `model` is unchanged
    print(f"{sum(int(p.count_nonzero()) for p in pruned.parameters()):,} parameters are nonzero")
    files = gaprune.export(result, "masks", f"{folder}-masks")
    print(f"report: {folder}/report.html; masks: {files.file}")
    return result


if __name__ == "__main__":
    main(*sys.argv[1:2])
