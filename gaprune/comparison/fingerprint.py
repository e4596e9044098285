"""Everything that a row depends on beside its key, as plain data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from gaprune.calibration.auto import expand_auto
from gaprune.calibration.parse import CalibrationFile, parse_calibration, parse_validation
from gaprune.calibration.provenance import samples_sha256
from gaprune.comparison.context import ComparisonContext
from gaprune.comparison.spec import ComparisonData
from gaprune.config import NEUTRAL, Settings
from gaprune.io.file_hash import content_of
from gaprune.models.input_spec import InputSpec
from gaprune.runs.resolve_settings import check_settings, resolve_settings

SCHEMA = 1
_IN_KEYS = ("sparsity", "seed", "method")  # settings that are a row's own
_NAMED = {"threads_per_worker": "threads"}  # settings that older folders name otherwise
_LATER = {
    "density_search": 0,
    "budget": "weights",
    "budget_macs": None,
    "clip": None,
    "warmup": 0,
    "device": "cpu",
    "statistics_loss": 0.0,
    "feature_loss": 0.0,
    "floor": 0.0,
    "gpus_per_worker": 0.0,
    "latency_batch": 1,
    "max_drop": None,
    "patience": None,
    "pattern": "unstructured",
    "precision": "float32",
    "repair_in_loop": False,
    "initial_criteria": None,
    "batch_cache": 0,
}
"""Settings that came after the first folders → the value at which rows are what they were before.

At it they are left out, so that older folders of the same comparison still go on.
"""


def identity_of(context: ComparisonContext, data: ComparisonData) -> dict[str, Any]:
    """Return what must be equal where rows stand in one table.

    Files count by their content: networks, objectives and calibration inputs of the user.
    """
    stated = context.settings
    settings = resolve_settings(stated, check_settings(stated), context.target)
    return {
        "schema": SCHEMA,
        "target": context.target.name,
        "weights_sha256": context.target.weights_sha256,
        "inputs": context.target.inputs.facts(),
        "pruned": list(context.target.layout.names),
        **{
            name: None if one is None else samples_sha256(one)
            for name, one in data._asdict().items()
        },
        **{
            _NAMED.get(name, name): value
            for name, value in settings.model_dump(mode="json").items()
            if name not in (*_IN_KEYS, *NEUTRAL) and not (name in _LATER and value == _LATER[name])
        },
        "calibration": list(expand_auto(settings.calibration, context.target)),
        **{f"training_{name}": value for name, value in asdict(context.training).items()},
        "epochs": context.epochs,
        "schedule": [[step.sparsity, step.epochs] for step in context.schedule],
        "clusters": context.clusters,
        **{f"file {path}": content_of(path) for path in sorted(set(_files(context)))},
        "gaprune": metadata.version("gaprune"),
        "torch": torch.__version__,
    }


def requested_files(settings: Settings, spec: InputSpec) -> list[CalibrationFile]:
    """Return the files that calibration inputs and validation ask for; none of them is read.

    Raises:
        InputError: an unknown calibration input or validation.
    """
    files = list(parse_calibration(settings.calibration, spec).files)
    if file := parse_validation(settings.validation, spec):
        files.append(file)
    return files


def _files(context: ComparisonContext) -> Iterator[str]:
    """Yield the paths of what the user gave as files."""
    for code in (context.target.name, context.settings.objective):
        yield from _there(code.rpartition(":")[0])
    for request in requested_files(context.settings, context.target.inputs):
        whole = list(_there(request.path))
        yield from whole or (one for part in request.path.split("+") for one in _there(part))


def _there(path: str) -> Iterator[str]:
    if path and Path(path).expanduser().exists():
        yield path
