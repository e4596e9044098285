"""The files of a run directory: what they hold, and how they are written and read.

::

    config.toml           every setting, the target and its inputs; --config repeats the run
    result.json           `Result.record()`, and the SHA-256 of the other files and of itself
    history.jsonl         one line per generation
    mask.safetensors      parameter name → uint8 tensor of its shape, 1 where the weight stays
    pruned.safetensors    the whole state dict: removed weights are 0, kept ones bit-identical
    repaired.safetensors  with --repair only: the same with statistics and biases corrected
    compensated.safetensors  with --compensate only: kept weights make up for removed ones
    front.safetensors     with --pareto only: `NUMBER/parameter` → mask, numbered as `front`
    report.json           data that only the report needs, see `gaprune.report.data`
    report.html           the report, see `gaprune.report`
    checkpoint/           what `gaprune resume` needs, see `gaprune.runs.open_directory`

A mask has one byte per weight: every tool can read that, and it compresses as well as bits do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from gaprune.errors import InputError, about
from gaprune.io.manifest import FILES, file_entries, sealed
from gaprune.io.mask_file import check_mask_file, mask_bytes, packed_shapes, unpack_masks
from gaprune.io.run_files import (
    COMPENSATED,
    CONFIG,
    CONFIG_SHA256,
    FRONT,
    HISTORY,
    MASK,
    PRUNED,
    RECORD,
    REPAIRED,
    REPORT_DATA,
    config_sha256,
    read_config,
)
from gaprune.io.serialization import to_json, to_toml
from gaprune.io.weights import load_state, tensors_of
from gaprune.models.target import Target
from gaprune.runs.job import PruneJob
from gaprune.runs.result import Result


def load_masks(path: str | Path) -> dict[str, Tensor]:
    """Read the masks of a run.

    Args:
        path: a run directory, or a mask file, also one with packed bits (`gaprune export`).

    Returns:
        Parameter name → bool tensor of the parameter's shape, true where the weight stays; ready
        for `gaprune.bake` and `gaprune.attach`.

    Raises:
        InputError: no such file, damaged, or not a mask file.
    """
    if not Path(path).exists():
        raise InputError(
            f"mask: cannot read {path}: it does not exist; name a run directory, or its {MASK}"
        )
    file = Path(path) / MASK if Path(path).is_dir() else Path(path)
    try:
        stored = load_state(file)
    except InputError as error:
        raise about("mask", error) from error
    if (shapes := packed_shapes(file)) is not None:
        return unpack_masks(stored, shapes, file)
    check_mask_file(stored, file)
    return {name: mask.bool() for name, mask in stored.items()}


def write_files(result: Result, folder: Path, job: PruneJob | None) -> None:
    """Write all files of a result except its report into an empty folder.

    `config.toml` repeats the job. Without one (a network in memory was pruned) the file holds the
    settings and the inputs; the target has to be added.
    """
    report_data = {
        **(result.report_data or {}),
        "command": None if job is None else job.command(),
        "directory": _working_directory(),  # where relative paths of the command hold
    }
    texts = {
        CONFIG: config_text(result.target, result.settings, job),
        HISTORY: "".join(f"{to_json(asdict(record))}\n" for record in result.history),
        REPORT_DATA: to_json(report_data) + "\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    front = {
        f"{number}/{name}": mask
        for number, masks in enumerate(result.front_masks)
        for name, mask in masks.items()
    }
    about = {
        "target": result.target.name,
        "weights_sha256": result.target.weights_sha256,
        "sparsity": str(result.sparsity),
    }
    save_file(tensors_of(result.state_dict()), folder / PRUNED, {"format": "pt"})
    corrected = {REPAIRED: result.repaired_model(), COMPENSATED: result.compensated_model()}
    for name, model in corrected.items():
        if model is not None:  # cloned: safetensors refuses tied weights, which share memory
            state = {
                name: value.cpu().clone().contiguous()
                for name, value in tensors_of(model.state_dict()).items()
            }
            save_file(state, folder / name, {"format": "pt"})
    mask_files = {MASK: (result.masks, "gaprune mask"), FRONT: (front, "gaprune masks")}
    for name, (masks, kind) in mask_files.items():
        if masks:
            (folder / name).write_bytes(mask_bytes(masks, kind, **about))
    # The record is last: it lists the others with their hashes.
    listed = {file.name for file in folder.iterdir()} - {CONFIG}
    record = result.record() | {
        FILES: file_entries(folder, sorted(listed)),
        CONFIG_SHA256: config_sha256(read_config(folder / CONFIG)),
    }
    (folder / RECORD).write_text(to_json(sealed(record), indent=2) + "\n", encoding="utf-8")


def _working_directory() -> str | None:
    try:
        return str(Path.cwd())
    except OSError:  # it was removed meanwhile
        return None


def config_text(target: Target, settings: Mapping[str, Any], job: PruneJob | None) -> str:
    """Return the content of `config.toml`: settings as used, with every default filled in."""
    used = {key: value for key, value in settings.items() if value is not None}
    if job is None:
        head = "# A network in memory was pruned; to repeat this run, add target and weights.\n"
        return head + to_toml(network_config(target) | used)
    head = "# gaprune prune --config THIS_FILE repeats this run; paths are as they were given.\n"
    stated = {key: value for key, value in job.as_config().items() if key not in settings}
    return head + to_toml(stated | used)


def network_config(target: Target) -> dict[str, Any]:
    """Return inputs, chosen parameters and output of a network as keys of `config.toml`."""
    spec = target.inputs
    inputs: dict[str, Any] = {"input_shape": list(spec.shape), "input_kind": spec.kind}
    if spec.kind == "tokens":
        inputs["vocabulary"] = spec.vocabulary
    elif (spec.mean, spec.std) != ((0.0,), (1.0,)):
        inputs |= {"mean": list(spec.mean), "std": list(spec.std)}
    else:
        inputs["range"] = [spec.low, spec.high]
    chosen = {
        "prune_also": list(target.prune_also) or None,
        "ignore": list(target.ignore) or None,
        "output": None if target.output is None else str(target.output),
        "fold_parametrizations": True if target.folded else None,
    }
    return inputs | {name: value for name, value in chosen.items() if value is not None}
