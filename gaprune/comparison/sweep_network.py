"""A sweep of a network in memory, as `gaprune sweep` does it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from gaprune.calibration.calibration_set import make_calibration_set
from gaprune.calibration.parse import PROCEDURAL
from gaprune.calibration.samples import Samples
from gaprune.callbacks import Observer
from gaprune.comparison.sweeps import SweepOptions, SweepResult
from gaprune.comparison.sweeps import sweep as sweep_target
from gaprune.config import make_settings
from gaprune.evolution.tasks import derive_seed
from gaprune.models.input_spec import InputOptions
from gaprune.models.target import Target, target_from_module
from gaprune.runs.directory import load_masks


def sweep(  # noqa: PLR0913 # options, each by its own name
    model: nn.Module,
    by: str = "threshold",
    *,
    values: Sequence[float] = (),
    max_drop: float = 0.01,
    biases: bool = False,
    masks: Mapping[str, Tensor] | str | Path | None = None,
    inputs: InputOptions | None = None,
    test: tuple[Tensor, Tensor] | None = None,
    prune_also: Sequence[str] = (),
    observer: Observer | None = None,
) -> SweepResult:
    """Move one number over a range and see where a network breaks.

    Args:
        model: any trained network that takes one tensor and returns one; stays as it is.
        by: `threshold` zeroes weights whose magnitude is below one; `clusters` replaces the weights
            of a layer by a few shared values.
        values: thresholds, or numbers of clusters; empty takes a range that fits.
        max_drop: accuracy (or agreement, without labels) that may be lost, a part of 1.
        biases: whether biases are zeroed, or clustered, too.
        masks: of an earlier pruning, or the folder of a run: clusters of what they leave.
        inputs: shape, range, normalisation of one input.
        test: held-out inputs and labels that every point is measured on; without them the
            agreement with the dense network is measured on generated inputs.
        prune_also: further parameters, by qualified name.
        observer: told of progress.

    Returns:
        Its points as `rows`, the furthest within `max_drop` as `best`, and `plot(path)`.

    Raises:
        InputError: something breaks a rule; nothing has been computed then.
        GapruneError: an optional package is missing.

    Examples:
        >>> from gaprune import InputOptions, sweep
        >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> found = sweep(net, values=(0.0, 0.1), inputs=InputOptions(range=(0, 1)))
        >>> [row["threshold"] for row in found.rows]
        [0.0, 0.1]
    """
    read = load_masks(masks) if isinstance(masks, (str, Path)) else masks
    over = SweepOptions(values, max_drop, biases=biases, masks=read)
    target = target_from_module(model, inputs=inputs or InputOptions(), prune_also=prune_also)
    given = None if test is None else Samples(*test, "test data given by the caller")
    return sweep_target(by, target, given or generated_validation(target), over, observer)


def generated_validation(target: Target) -> Samples:
    """Return generated inputs to measure on, the validation inputs of a procedural run with seed 0."""
    generator = torch.Generator().manual_seed(derive_seed(0, "run"))
    settings = make_settings({"sparsity": 0.5, "calibration": (PROCEDURAL,)})
    return make_calibration_set(target, settings, generator).validation
