"""A run on disk: what its files are called and hold, and which folder may be one.

::

    config.toml           every setting, the target and its inputs; repeats the run with --config
    result.json           `Result.record()`
    history.jsonl         one line per generation
    mask.safetensors      parameter name → uint8 tensor of its shape, 1 where the weight stays
    pruned.safetensors    the whole state dict: dropped weights are 0, kept ones bit-identical
    repaired.safetensors  with --repair only: the same with statistics and biases corrected
    front.safetensors     with --pareto only: `NUMBER/parameter` → mask, numbered as `front`
    report.json           what the report shows beside all this, see `gaprune.report.data`
    report.html           all of it to be read, see `gaprune.report`
    checkpoint/           what `gaprune resume` needs, see `gaprune.runs.open_directory`

A mask has one byte per weight: every tool reads that, and it compresses as well as bits do.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from gaprune.config import Settings
from gaprune.errors import InputError
from gaprune.io.atomic_folder import sync
from gaprune.io.lock import in_use_by
from gaprune.io.mask_file import packed_shapes, unpack_masks
from gaprune.io.run_files import (
    CHECKPOINT,
    CONFIG,
    FRONT,
    HISTORY,
    LOCK,
    MASK,
    MAY_HOLD,
    PRUNED,
    RECORD,
    REPAIRED,
    REPORT_DATA,
    writing,
)
from gaprune.io.serialization import to_json, to_stamp, to_toml
from gaprune.io.weights import load_state
from gaprune.models.input_spec import InputSpec
from gaprune.models.target import Target
from gaprune.records import as_json
from gaprune.runs.job import PruneJob
from gaprune.runs.result import Result


def check_free(path: str | Path, *, overwrite: bool = False) -> None:
    """Make sure that a run may be saved at `path`; nothing is written.

    Args:
        path: the run folder; it and its parents may be missing, and it may be an empty folder.
        overwrite: whether an earlier run there may be replaced. Other files never are.

    Raises:
        InputError: a file, a folder with other content or a run that goes on, or an earlier run.
    """
    with writing(path, InputError):
        place = Path(path).expanduser().resolve()  # of a link, what it points to is replaced
        if not place.exists():
            return
        if not place.is_dir():
            raise InputError(f"out: {path} is a file; name a folder that is new or empty")
        held = sorted(entry.name for entry in place.iterdir())
    foreign = [name for name in held if name not in MAY_HOLD]
    if foreign:
        raise InputError(
            f"out: {path} holds other files ({', '.join(foreign[:3])}"
            f"{', …' if len(foreign) > 3 else ''}); name a folder that is new or empty"
        )
    if (owner := in_use_by(place / CHECKPOINT / LOCK)) is not None:
        raise busy(path, owner)
    if held and not overwrite:
        going_on = "" if RECORD in held else " that did not end; gaprune resume goes on with it"
        raise InputError(
            f"out: {path} holds an earlier run{going_on}; name another folder, or add --overwrite"
        )


def busy(path: str | Path, owner: str | None) -> InputError:
    """Return the error for a folder in which another process is at work."""
    return InputError(
        f"out: {owner or 'another process'} is at work in {path}; name another folder, or wait for "
        "its end"
    )


def free_name(stem: Path) -> Path:
    """Return the first of `stem`, `stem-2`, `stem-3`, … that does not exist."""
    names = (stem if n == 1 else stem.with_name(f"{stem.name}-{n}") for n in count(1))
    return next(name for name in names if not os.path.lexists(name))


def load_masks(path: str | Path) -> dict[str, Tensor]:
    """Read the masks of a run.

    Args:
        path: a run folder, or a mask file, also one with packed bits (`gaprune export`).

    Returns:
        Parameter name → bool tensor of the parameter's shape, true where the weight stays; ready
        for `gaprune.bake` and `gaprune.attach`.

    Raises:
        InputError: no such file, damaged, or not a mask file.
    """
    if not Path(path).exists():
        raise InputError(
            f"mask: cannot read {path}: it is not there; name the folder of a run, or its {MASK}"
        )
    file = Path(path) / MASK if Path(path).is_dir() else Path(path)
    try:
        stored = load_state(file)
    except InputError as error:
        raise InputError(f"mask: {str(error).removeprefix('weights: ')}") from error
    if (shapes := packed_shapes(file)) is not None:
        return unpack_masks(stored, shapes, file)
    for name, mask in stored.items():
        if mask.dtype != torch.uint8 or (mask > 1).any():
            raise InputError(
                f"mask: {file} must hold uint8 tensors of 0 and 1, which {name!r} ({mask.dtype}) "
                f"is not; name the {MASK} of a run"
            )
    return {name: mask.bool() for name, mask in stored.items()}


def write_files(result: Result, folder: Path, job: PruneJob | None) -> None:
    """Write all files of a result but its report into an empty folder; they are on the disk then.

    Args:
        result: what `gaprune.prune` returned.
        folder: where.
        job: what was asked for, so that `config.toml` repeats it. Without it (a live network was
            pruned) the file holds the settings and the inputs, and the target is to be added.
    """
    about = {
        "target": result.target.name,
        "weights_sha256": result.target.weights_sha256,
        "sparsity": str(result.sparsity),
    }
    _write_text(folder / CONFIG, config_text(result.target, result.settings, job))
    _write_text(folder / RECORD, to_json(result.record(), indent=2) + "\n")
    _write_text(folder / HISTORY, "".join(to_json(as_json(r)) + "\n" for r in result.history))
    report_data = {
        **(result.report_data or {}),
        "command": None if job is None else command_of(job),
    }
    _write_text(folder / REPORT_DATA, to_json(report_data) + "\n")
    _write_tensors(folder / MASK, _bytes(result.masks), to_stamp(format="gaprune mask", **about))
    _write_tensors(folder / PRUNED, result.state_dict(), {"format": "pt"})
    repaired = result.repaired_model()
    if repaired is not None:
        state = {name: value.clone() for name, value in repaired.state_dict().items()}  # tied apart
        _write_tensors(folder / REPAIRED, state, {"format": "pt"})
    if result.front_masks:
        front = {
            f"{number}/{name}": mask
            for number, masks in enumerate(result.front_masks)
            for name, mask in masks.items()
        }
        _write_tensors(folder / FRONT, _bytes(front), to_stamp(format="gaprune masks", **about))


def command_of(job: PruneJob) -> str:
    """Return what to type for a job: everything that was stated, as options."""
    words = ["gaprune", "prune", job.target]
    for name, value in job.as_config().items():
        if name == "target" or (name in Settings.model_fields and not _is_stated(job, name)):
            continue
        option = f"--{name.replace('_', '-')}"
        if name in Settings.model_fields and isinstance(value, bool):
            words.append(option if value else option.replace("--", "--no-", 1))
        elif isinstance(value, bool):
            words += [option, "yes" if value else "no"]
        elif isinstance(value, list):
            words += [option, ",".join(map(str, value))]
        else:
            words += [option, str(value)]
    return shlex.join(words)


def _is_stated(job: PruneJob, name: str) -> bool:
    return name in job.settings.model_fields_set


def config_text(target: Target, settings: Mapping[str, Any], job: PruneJob | None) -> str:
    """Return settings as used: where the user left a choice to the preset, it is written out."""
    used = {key: value for key, value in settings.items() if value is not None}
    if job is not None:
        head = (
            "# gaprune prune --config THIS_FILE repeats this run; paths are as they were given.\n"
        )
        stated = {key: v for key, v in job.as_config().items() if key not in settings}
        return head + to_toml(stated | used)
    head = "# A network in memory was pruned; to repeat this run, add target and weights.\n"
    return head + to_toml(stated_inputs(target.inputs) | used)


def stated_inputs(spec: InputSpec) -> dict[str, Any]:
    """Return what a network takes, as keys of `config.toml`."""
    inputs: dict[str, Any] = {"input_shape": list(spec.shape), "input_kind": spec.kind}
    if spec.kind == "tokens":
        inputs["vocabulary"] = spec.vocabulary
    elif (spec.mean, spec.std) != ((0.0,), (1.0,)):
        inputs |= {"mean": list(spec.mean), "std": list(spec.std)}
    else:
        inputs["range"] = [spec.low, spec.high]
    return inputs


def _bytes(masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: mask.to(torch.uint8) for name, mask in masks.items()}


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    sync(path)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor], about: dict[str, str]) -> None:
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, path, about)
    path.chmod((path.parent / CONFIG).stat().st_mode)  # safetensors lets nobody else read it
    sync(path)
