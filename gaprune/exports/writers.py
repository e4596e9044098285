"""Writers of the formats that keep every layer: state dicts, masks, ONNX, transformers."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from gaprune.errors import GapruneError, InputError
from gaprune.exports.pruned_network import ExportOptions, PrunedNetwork, check_written
from gaprune.exports.sparse_writer import sparse_bytes
from gaprune.io.mask_file import packed_bytes
from gaprune.io.sparse import load_sparse
from gaprune.io.tensor_files import load_tensors
from gaprune.io.weights import sha256_of
from gaprune.models.expert_routing import count_experts, find_experts, remove_experts
from gaprune.models.onnx import FILE, compare_with_torch, save_onnx
from gaprune.models.parametrizations import set_computed_weights
from gaprune.models.sources.hf import GGUF, model_class_of
from gaprune.models.sources.optional_packages import import_extra
from gaprune.models.sources.outputs import choose_tower
from gaprune.runs.directory import load_masks

MODEL, MASKS, SPARSE = "model.safetensors", "masks.safetensors", "model.sparse.safetensors"
ORIG_SUFFIX, MASK_SUFFIX = "_orig", "_mask"  # torch.nn.utils.prune appends them to parameter names
HF_PREFIX = "hf:"
_HF_CONFIG = "config.json"
_HF_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".index.json")
_HF_SKIPPED = (".md", ".py")  # our card replaces theirs; code is never copied


def write_dense(pruned: PrunedNetwork, folder: Path, options: ExportOptions) -> None:
    """Write the whole state dict, zeros included, for the original class."""
    save_file(_contiguous(pruned.state), folder / MODEL, {"format": "pt"})
    check_written(load_tensors(folder / MODEL), pruned.state)


def write_masks(pruned: PrunedNetwork, folder: Path, options: ExportOptions) -> None:
    """Write one bit per prunable weight, and no weights."""
    metadata = {"target": pruned.name, "weights_sha256": str(pruned.record["weights_sha256"])}
    (folder / MASKS).write_bytes(packed_bytes(pruned.masks, **metadata))
    check_written(load_masks(folder / MASKS), pruned.masks)


def write_prune(pruned: PrunedNetwork, folder: Path, options: ExportOptions) -> None:
    """Write the state dict of a network under `torch.nn.utils.prune`.

    `_orig` holds the pruned weights, as a run doesn't store the removed ones. Every name of a
    tied parameter has its mask.
    """
    masks = masks_by_name(pruned.state, pruned.masks)
    state: dict[str, Tensor] = {}
    for name, value in pruned.state.items():
        if name in masks:
            state[name + ORIG_SUFFIX] = value
            state[name + MASK_SUFFIX] = masks[name].to(value.dtype)
        else:
            state[name] = value
    save_file(_contiguous(state), folder / MODEL, {"format": "pt"})
    # The masks are part of the file, so compare what they give with the weights.
    check_written(without_prune(load_tensors(folder / MODEL)), pruned.state)


def write_sparse(pruned: PrunedNetwork, folder: Path, options: ExportOptions) -> None:
    """Write a sparse file (`docs/sparse-format.md`)."""
    metadata = {
        "target": pruned.name,
        "weights_sha256": str(pruned.record["weights_sha256"]),
        "sparsity": str(pruned.record["sparsity"]["actual"]),
    }
    content = sparse_bytes(pruned.state, pruned.masks, options, **metadata)
    (folder / SPARSE).write_bytes(content)
    state = load_sparse(folder / SPARSE)
    # Half precision and codebooks round the masked weights; everything else must be unchanged.
    rounds = options.half or options.codebook is not None
    skipped = masks_by_name(pruned.state, pruned.masks) if rounds else {}
    exact = {name: value for name, value in pruned.state.items() if name not in skipped}
    check_written({name: state[name] for name in exact}, exact)


def write_onnx(pruned: PrunedNetwork, folder: Path, options: ExportOptions) -> None:
    """Write an ONNX file that takes any batch size, and compare it with torch in ONNX Runtime.

    Raises:
        GapruneError: an optional package is missing, torch can't export the network, or the
            outputs differ.
    """
    target = pruned.traced_target()
    if target.dtype == torch.bfloat16:
        raise GapruneError(
            f"onnx: {target.name} computes in bfloat16, which ONNX Runtime doesn't take as input; "
            "export it as dense or sparse, or prune it in float32"
        )
    model = pruned.network(target)
    save_onnx(model, target, folder / FILE)
    compare_with_torch(model, target, folder / FILE)


def write_hf(pruned: PrunedNetwork, folder: Path, options: ExportOptions) -> None:
    """Write a folder that `from_pretrained` of transformers opens.

    Configuration and tokenizer are copied from the source, as are the weights of layers that the
    pruned network doesn't use, such as a pooler or another tower. Folded weights are written as
    those that they are computed from again: equal to rounding, and 0 where they are pruned. Experts
    that are removed as a whole are left out, with their rows of the routers.

    Raises:
        InputError: the network isn't one of `hf:NAME`.
        GapruneError: transformers isn't installed, the source is gone or has changed, or layers
            keep different numbers of experts.
    """
    name = str(pruned.config.get("target", pruned.name))
    if not name.startswith(HF_PREFIX):
        raise InputError(
            f"format: hf writes networks that came from hf:NAME, and this one is {name}; export it "
            "as dense, sparse or onnx"
        )
    transformers = import_extra("transformers", "hf", "hf")
    source = _hf_source(transformers, name.removeprefix(HF_PREFIX))
    pruned.target()  # raises if the source has changed
    # Offline, without pickles, and in the dtype of the checkpoint.
    loading: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "dtype": "auto"}
    if source.suffix.lower() == GGUF:
        model, files = _from_gguf(transformers, source), []
        with suppress(Exception):  # a file may hold no tokenizer, or one of an unknown kind
            transformers.AutoTokenizer.from_pretrained(
                source.parent, gguf_file=source.name, local_files_only=True
            ).save_pretrained(folder)
    else:
        config = transformers.AutoConfig.from_pretrained(source)
        model = model_class_of(transformers, config).from_pretrained(source, **loading)
        files = sorted(source.rglob("*"))
    tower = pruned.config.get("tower")
    part = model if tower is None else choose_tower(model, tower)
    plain = set_computed_weights(part, pruned.state)
    state = part.state_dict()
    if unknown := [name for name in plain if name not in state]:
        raise GapruneError(
            f"hf: {type(part).__name__} has no {unknown[0]}, which the run holds; its source has "
            "changed since"
        )
    # Layers that the pruned network lacks, such as a pooler or another tower, keep their weights.
    part.load_state_dict({**state, **plain})
    # The saved configuration of a network without some experts says how many it has.
    skipped = (_HF_CONFIG,) if _without_experts(part, pruned.masks) else ()
    model.save_pretrained(folder)
    for file in files:
        path = file.relative_to(source)
        hidden = any(part.startswith(".") for part in path.parts) or str(path) in skipped
        if file.is_file() and not hidden and not file.name.endswith((*_HF_WEIGHTS, *_HF_SKIPPED)):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / path)
    check_written(type(model).from_pretrained(folder, **loading).state_dict(), model.state_dict())


def _without_experts(model: Any, masks: Mapping[str, Tensor]) -> bool:  # noqa: ANN401 - as above
    """Remove the experts of which masks keep nothing, in place; tell whether there are any."""
    remaining: dict[str, Tensor] = {}
    layers = find_experts(model)
    for layer in layers:
        parts = [mask for name, mask in masks.items() if name.rpartition(".")[0] == layer.experts]
        stays = [mask.flatten(1).any(1) for mask in parts] or [torch.zeros(layer.count)]
        index = torch.stack(stays).any(0).nonzero().flatten()
        # as in `RemovedExperts`: where too few are left, all of them can be chosen
        remaining[layer.experts] = (
            index if len(index) >= layer.per_token else torch.arange(layer.count)
        )
    counts = sorted({len(index) for index in remaining.values()})
    if not layers or counts == [layers[0].count]:
        return False
    if len(counts) > 1:
        raise GapruneError(
            f"hf: {' and '.join(map(str, counts))} experts are left in the layers of this network, "
            "and a configuration of transformers states one number; prune it with --pattern=expert"
        )
    remove_experts(model, remaining)
    count_experts(model.config.get_text_config(), counts[0])
    return True


def _from_gguf(transformers: Any, file: Path) -> Any:  # noqa: ANN401 - a module, a network
    """Return a network with the sizes in a GGUF file; transformers refuses to save a loaded one."""
    named = {"gguf_file": file.name, "local_files_only": True}
    config = transformers.AutoConfig.from_pretrained(file.parent, **named)
    vars(config).pop("quantization_config", None)
    return model_class_of(transformers, config, with_head=True)(config)


def _hf_source(transformers: Any, name: str) -> Path:  # noqa: ANN401 - a module
    """Return the local folder with the files of a network of transformers."""
    folder = Path(name).expanduser()
    if folder.is_dir() or (folder.suffix.lower() == GGUF and folder.is_file()):
        return folder
    try:
        config = transformers.utils.cached_file(name, _HF_CONFIG, local_files_only=True)
    except OSError as error:
        raise GapruneError(
            f"hf: the files of {name} are no longer on this machine; fetch them again "
            "(--allow-download=yes)"
        ) from error
    return Path(config).parent


def masks_by_name(state: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the masks under every name that a tied parameter has in a state dict."""
    # A state dict lists a tied parameter under each name; equal bits and shape identify it.
    by_content = {sha256_of({"": state[name]}): mask for name, mask in masks.items()}
    shapes = {mask.shape for mask in masks.values()}
    named = dict(masks)
    for name, value in state.items():
        if name not in named and value.shape in shapes:
            mask = by_content.get(sha256_of({"": value}))
            if mask is not None:
                named[name] = mask
    return named


def without_prune(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict in which `…_orig` times `…_mask` are the parameters again."""
    plain: dict[str, Tensor] = {}
    for name, value in state.items():
        parameter = name.removesuffix(ORIG_SUFFIX)
        if parameter != name and parameter + MASK_SUFFIX in state:
            plain[parameter] = value * state[parameter + MASK_SUFFIX]
        elif not (
            name.endswith(MASK_SUFFIX) and name.removesuffix(MASK_SUFFIX) + ORIG_SUFFIX in state
        ):
            plain[name] = value
    return plain


def _contiguous(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # safetensors refuses tensors that share memory, such as tied parameters.
    return {name: value.detach().cpu().clone().contiguous() for name, value in state.items()}
