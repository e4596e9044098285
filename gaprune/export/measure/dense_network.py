"""Which dense network a file belongs to: named by the user, by its export, or by its run."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gaprune.config import read_config
from gaprune.errors import InputError
from gaprune.export.measure.read_file import FileContents
from gaprune.export.pruned_network import find_target
from gaprune.io.manifest import read_facts
from gaprune.io.run_files import CONFIG, RECORD
from gaprune.io.weights import apply_state
from gaprune.models.target import Target, load_target


class Named(NamedTuple):
    """What the folder of a file says about its dense network.

    Attributes:
        config: keys as in `config.toml`; without a target where a network in memory was pruned.
        sha256: of its weights, or None.
    """

    config: Mapping[str, Any]
    sha256: str | None


def named_beside(path: Path) -> Named | None:
    """Return what names the dense network in the folder of a file; None: nothing does."""
    folder = path.resolve().parent
    facts = read_facts(folder)
    if facts is not None and isinstance(facts.get("config"), dict):
        return Named(facts["config"], facts.get("weights_sha256"))
    if not (folder / CONFIG).is_file():
        return None
    try:
        sha256 = json.loads((folder / RECORD).read_text(encoding="utf-8"))["weights_sha256"]
    except (OSError, ValueError, KeyError, TypeError):  # a run that has not ended
        sha256 = None
    return Named(read_config(folder / CONFIG), sha256)


def dense_of(path: Path, stated: str | Target | None) -> Target | None:
    """Return the dense network of a file; None where nobody says which it is.

    Args:
        path: the file.
        stated: a target's name, a run folder, or the target itself; None looks beside the file.

    Raises:
        InputError: what is named cannot be loaded, or is no longer what was pruned.
    """
    if isinstance(stated, Target):
        return stated
    if stated is not None:
        place = Path(stated).expanduser()
        if (place / CONFIG).is_file():
            return find_target(read_config(place / CONFIG), f"the run in {stated}")
        return load_target(stated)
    named = named_beside(path)
    if named is None or "target" not in named.config:
        return None
    target = find_target(named.config, str(path))
    if named.sha256 not in (None, target.weights_sha256):
        raise InputError(
            f"target: the weights of {target.name} are no longer those that {path} was pruned from "
            "(SHA-256); name the dense network with --target"
        )
    return target


@torch.no_grad()
def network_of(held: FileContents, dense: Target) -> nn.Module | None:
    """Return a copy of the dense network with the weights of a file, or its own; None of ONNX.

    Raises:
        InputError: they do not fit.
    """
    if held.network is not None:
        return held.network
    model = copy.deepcopy(dense.model)
    if held.state is not None:
        try:
            apply_state(model, held.state)
        except InputError as error:
            raise InputError(f"{held.path}: {str(error).removeprefix('weights: ')}") from error
        return model
    if held.masks is not None:
        _fits(held.masks, dense, held.path)
        return dense.masked_copy(held.masks)
    return None


def _fits(masks: Mapping[str, Tensor], dense: Target, path: Path) -> None:
    for name, mask in masks.items():
        if name not in dense.weights or dense.weights[name].shape != mask.shape:
            raise InputError(f"{path}: its mask {name!r} is of no weight of {dense.name}")
