"""A run on disk: checked before anything is computed, written as a whole or not at all.

::

    config.toml           every setting, the target and its inputs; repeats the run with --config
    result.json           `Result.record()`
    history.jsonl         one line per generation
    mask.safetensors      parameter name → uint8 tensor of its shape, 1 where the weight stays
    pruned.safetensors    the whole state dict: dropped weights are 0, kept ones bit-identical
    repaired.safetensors  with --repair only: the same with statistics and biases corrected
    front.safetensors     with --pareto only: `NUMBER/parameter` → mask, numbered as `front`

A mask has one byte per weight: every tool reads that, and it compresses as well as bits do.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from gaprune.errors import GapruneError, InputError
from gaprune.formats import to_json, to_stamp, to_toml
from gaprune.job import Job
from gaprune.records import as_json
from gaprune.result import Result
from gaprune.weights_file import load_state

CONFIG, RECORD, HISTORY = "config.toml", "result.json", "history.jsonl"
MASK, PRUNED, FRONT = "mask.safetensors", "pruned.safetensors", "front.safetensors"
REPAIRED = "repaired.safetensors"
FILES = (CONFIG, RECORD, HISTORY, MASK, PRUNED)
_MAY_HOLD = {*FILES, FRONT, REPAIRED, "report.html", "checkpoint"}  # what --overwrite may remove


def check_output(path: str | Path, *, overwrite: bool = False) -> None:
    """Make sure that a run can be saved at `path`, before anything is computed.

    The place is tried by creating and removing an empty folder beside it; nothing stays.

    Args:
        path: the run folder; it and its parents may be missing, and it may be an empty folder.
        overwrite: whether an earlier run there may be replaced. Other files never are.

    Raises:
        InputError: a file, a folder with other content, an earlier run, or not writable.
    """
    with _writing(path, InputError):
        place = _resolved(path)
        _check_free(place, path, overwrite=overwrite)
        with _parents(place) as made:
            with _fresh_folder(place):
                pass
            _remove(made)


def save(
    result: Result, path: str | Path, *, overwrite: bool = False, job: Job | None = None
) -> Path:
    """Write a run folder, all of it or nothing; an interrupted save leaves nothing.

    The files are written and synced in a hidden folder beside `path`, which then takes its name.

    Args:
        result: what `gaprune.prune` returned.
        path: the run folder, see `check_output`.
        overwrite: whether an earlier run there is replaced.
        job: what was asked for, so that `config.toml` repeats it. Without it (a live network was
            pruned) the file holds the settings and the inputs, and the target is to be added.

    Returns:
        The absolute path of the folder.

    Raises:
        InputError: see `check_output`.
        GapruneError: writing failed, for example on a full disk.
    """
    check_output(path, overwrite=overwrite)
    place = _resolved(path)
    with _writing(path, GapruneError), _parents(place), _fresh_folder(place) as fresh:
        _write_files(result, fresh, job)
        _sync(fresh)
        _publish(fresh, place, overwrite=overwrite)
        _sync(place.parent)
    return place


def save_numbered(result: Result, stem: Path, *, job: Job | None = None) -> Path:
    """Save at the first free of `stem`, `stem-2`, `stem-3`, …, also beside runs that save now."""
    while True:
        path = free_name(stem)
        try:
            return save(result, path, job=job)
        except GapruneError:
            if not os.path.lexists(path):  # else another run has just taken the name
                raise


def free_name(stem: Path) -> Path:
    """Return the first of `stem`, `stem-2`, `stem-3`, … that does not exist."""
    names = (stem if n == 1 else stem.with_name(f"{stem.name}-{n}") for n in count(1))
    return next(name for name in names if not os.path.lexists(name))


def load_masks(path: str | Path) -> dict[str, Tensor]:
    """Read the masks of a run.

    Args:
        path: a run folder, or a mask file.

    Returns:
        Parameter name → bool tensor of the parameter's shape, true where the weight stays; ready
        for `gaprune.bake` and `gaprune.attach`.

    Raises:
        InputError: no such file, damaged, or not a mask file.
    """
    file = Path(path) / MASK if Path(path).is_dir() else Path(path)
    try:
        stored = load_state(file)
    except InputError as error:
        raise InputError(f"mask: {str(error).removeprefix('weights: ')}") from error
    for name, mask in stored.items():
        if mask.dtype != torch.uint8 or (mask > 1).any():
            raise InputError(
                f"mask: {file} must hold uint8 tensors of 0 and 1, which {name!r} ({mask.dtype}) "
                f"is not; name the {MASK} of a run"
            )
    return {name: mask.bool() for name, mask in stored.items()}


def _check_free(place: Path, shown: str | Path, *, overwrite: bool) -> None:
    if not place.exists():
        return
    if not place.is_dir():
        raise InputError(f"out: {shown} is a file; name a folder that is new or empty")
    held = sorted(entry.name for entry in place.iterdir())
    foreign = [name for name in held if name not in _MAY_HOLD]
    if foreign:
        raise InputError(
            f"out: {shown} holds other files ({', '.join(foreign[:3])}"
            f"{', …' if len(foreign) > 3 else ''}); name a folder that is new or empty"
        )
    if held and not overwrite:
        raise InputError(
            f"out: {shown} holds an earlier run; name another folder, or add --overwrite"
        )


def _write_files(result: Result, folder: Path, job: Job | None) -> None:
    about = {
        "target": result.target.name,
        "weights_sha256": result.target.weights_sha256,
        "sparsity": str(result.sparsity),
    }
    _write_text(folder / CONFIG, _config(result, job))
    _write_text(folder / RECORD, to_json(result.record(), indent=2) + "\n")
    _write_text(folder / HISTORY, "".join(to_json(as_json(r)) + "\n" for r in result.history))
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


def _config(result: Result, job: Job | None) -> str:
    """Settings as used: where the user left a choice to the preset, it is written out."""
    used = {key: value for key, value in result.settings.items() if value is not None}
    if job is not None:
        head = (
            "# gaprune prune --config THIS_FILE repeats this run; paths are as they were given.\n"
        )
        stated = {key: v for key, v in job.as_config().items() if key not in result.settings}
        return head + to_toml(stated | used)
    spec = result.target.inputs
    inputs: dict[str, Any] = {"input_shape": spec.shape, "input_kind": spec.kind}
    if spec.kind == "tokens":
        inputs["vocabulary"] = spec.vocabulary
    elif (spec.mean, spec.std) != ((0.0,), (1.0,)):
        inputs |= {"mean": spec.mean, "std": spec.std}
    else:
        inputs["range"] = (spec.low, spec.high)
    head = "# A network in memory was pruned; to repeat this run, add target and weights.\n"
    return head + to_toml(inputs | used)


def _bytes(masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: mask.to(torch.uint8) for name, mask in masks.items()}


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    _sync(path)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor], about: dict[str, str]) -> None:
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, path, about)
    path.chmod((path.parent / CONFIG).stat().st_mode)  # safetensors lets nobody else read it
    _sync(path)


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _publish(fresh: Path, place: Path, *, overwrite: bool) -> None:
    """Give `fresh` the name `place`; an earlier run there is put back if that fails."""
    if not (overwrite and place.exists()):
        fresh.replace(place)  # over nothing or an empty folder; the system refuses any other
        return
    old = _temporary(place)
    place.replace(old)
    try:
        fresh.replace(place)
    except BaseException:
        old.replace(place)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _resolved(path: str | Path) -> Path:
    return Path(path).expanduser().resolve()  # a link stays: what it points to is replaced


def _temporary(place: Path) -> Path:
    return place.with_name(f".{place.name}.{secrets.token_hex(4)}.partial")


@contextlib.contextmanager
def _fresh_folder(place: Path) -> Iterator[Path]:
    """Make a hidden folder beside `place`; whatever is still there at the end is removed."""
    fresh = _temporary(place)
    try:
        fresh.mkdir()
        yield fresh
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


@contextlib.contextmanager
def _parents(place: Path) -> Iterator[list[Path]]:
    """Make the missing parents, outermost first; an error takes them away again."""
    made: list[Path] = []
    try:
        for folder in reversed(place.parents):
            if not folder.exists():
                folder.mkdir(exist_ok=True)
                made.append(folder)
        yield made
    except BaseException:
        _remove(made)
        raise


def _remove(folders: list[Path]) -> None:
    with contextlib.suppress(OSError):  # somebody else has put something there meanwhile
        for folder in reversed(folders):
            folder.rmdir()


@contextlib.contextmanager
def _writing(path: str | Path, kind: type[GapruneError]) -> Iterator[None]:
    """Turn what the system refuses into one message."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise kind(
            f"out: cannot write to {path} ({reason}); "
            "name a folder that you may write to, with space left"
        ) from error
