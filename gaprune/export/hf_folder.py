"""A folder that `from_pretrained` of transformers opens: pruned weights, all other files kept."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gaprune.errors import GapruneError, InputError
from gaprune.export.pruned_network import PrunedNetwork
from gaprune.export.sparse_entries import ExportOptions
from gaprune.io.weights import sha256_of
from gaprune.models.sources.optional_packages import import_extra

SCHEME = "hf:"
CONFIG = "config.json"
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".index.json")
_OTHERS = (".md", ".py")  # its card, which ours replaces; code is never taken along


def write_hf(pruned: PrunedNetwork, folder: Path, how: ExportOptions) -> None:
    """Write what `from_pretrained` of the network's own class opens.

    Configuration, tokenizer and pooling are those of the source. A layer that took no part in the
    pruned network, such as a pooler, is written as it was.

    Raises:
        InputError: the network is not one of `hf:NAME`.
        GapruneError: transformers is not installed, or the source is gone.
    """
    name = str(pruned.config.get("target", pruned.name))
    if not name.startswith(SCHEME):
        raise InputError(
            f"format: hf writes networks that came from hf:NAME, and this one is {name}; export it "
            "as dense, sparse or onnx"
        )
    transformers = import_extra("transformers", "hf", "hf")
    source = _source(transformers, name.removeprefix(SCHEME))
    kind: Any = type(pruned.target().model)
    model = kind.from_pretrained(source, local_files_only=True, use_safetensors=True, dtype="auto")
    _fill(model, pruned)
    model.save_pretrained(folder)
    for file in _beside(source):
        place = folder / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)
    back = kind.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype="auto")
    if sha256_of(back.state_dict()) != sha256_of(model.state_dict()):
        raise GapruneError(
            "hf: the folder read back is not what was written; check the disk, and try again"
        )


def _source(transformers: Any, name: str) -> Path:  # noqa: ANN401 - a module
    """Return the folder with the network's files, on this machine."""
    place = Path(name).expanduser()
    if place.is_dir():
        return place
    try:
        found = transformers.utils.cached_file(name, CONFIG, local_files_only=True)
    except OSError as error:
        raise GapruneError(
            f"hf: the files of {name} are no longer on this machine; fetch them again (gaprune "
            "prune … --allow-download yes)"
        ) from error
    return Path(found).parent


def _fill(model: Any, pruned: PrunedNetwork) -> None:  # noqa: ANN401 - a network of transformers
    own = model.state_dict()
    if foreign := [name for name in pruned.state if name not in own]:
        raise GapruneError(
            f"hf: {type(model).__name__} has no {foreign[0]}, which the run holds; its source has "
            "changed since"
        )
    model.load_state_dict({**own, **pruned.state})


def _beside(source: Path) -> Iterator[Path]:
    """Yield the files that are neither weights nor a card."""
    for file in sorted(source.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(source).parts)
        if file.is_file() and not hidden and not file.name.endswith((*_WEIGHTS, *_OTHERS)):
            yield file
