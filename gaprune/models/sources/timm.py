"""`timm:NAME`: networks of PyTorch Image Models, with weights that are on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor, nn

from gaprune.errors import InputError, nearest
from gaprune.io.weights import apply_state, left_out_note, load_checkpoint
from gaprune.models.input_spec import InputSpec
from gaprune.models.network import LoadedNetwork
from gaprune.models.sources.optional_packages import import_extra
from gaprune.models.sources.outputs import choose_output, choose_tower

HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # names of weight files on the hub


def load_timm(
    name: str,
    weights: Path | None = None,
    weights_key: str | None = None,
    output: str | int | None = None,
    tower: str | None = None,
    allow_download: bool = False,  # noqa: FBT001, FBT002 - see `SOURCES`
) -> LoadedNetwork:
    """Return a network of timm with what timm knows about its input.

    With `weights` the network is built to fit them: as many classes and input channels as they
    have. Without, its pretrained weights are looked up in the caches of huggingface_hub and torch.
    For arguments and errors see `load_source`.
    """
    timm = import_extra("timm", "timm", f"target timm:{name}")
    config = _pretrained_config(timm, name)
    sizes: dict[str, int] = {}
    if weights is not None:
        state, source = load_checkpoint(weights, key=weights_key)
        sizes = _sizes_of(state, config)  # a fine-tuned classifier has its own number of classes
        model = _build(timm, name, **sizes)
        source += left_out_note(apply_state(model, state))
    else:
        model, source = _pretrained(timm, name, config, allow_download=allow_download)
    inputs = None
    if tower is None:
        inputs = _input_spec(timm.data.resolve_model_data_config(model), sizes.get("in_chans"))
    else:  # its input is another one
        model, source = choose_tower(model, tower), f"tower {tower}, {source}"
    if output is not None:
        choose_output(model, output)
    return LoadedNetwork(model.eval(), inputs, f"timm {timm.__version__} {name}, {source}")


def _pretrained_config(timm: Any, name: str) -> dict[str, Any]:
    """Return timm's description of a network and its weights."""
    if not timm.is_model(name):
        names = [*timm.list_models(), *timm.list_models(pretrained=True)]
        raise InputError(f"target: timm has no network {name!r}; {nearest(name, names, 'it has')}")
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError:  # the tag after the dot is unknown
        tagged = timm.list_models(f"{name.partition('.')[0]}.*", pretrained=True)
        raise InputError(
            f"target: timm has no weights {name!r}; {nearest(name, tagged, 'it has')}"
        ) from None
    return {} if config is None else dict(config.to_dict())


def _build(timm: Any, name: str, **settings: Any) -> nn.Module:
    try:
        model: nn.Module = timm.create_model(name, **settings)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise InputError(f"target: timm cannot build {name!r} ({error})") from error
    return model


def _sizes_of(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, int]:
    """Return numbers of classes and input channels of a checkpoint that differ from timm's own."""
    defaults = {
        "num_classes": config.get("num_classes"),
        "in_chans": config.get("input_size", (3,))[0],
    }
    # the classifier shows the number of classes, the first convolution the input channels
    sizes = {}
    for setting, key, axis in (("num_classes", "classifier", 0), ("in_chans", "first_conv", 1)):
        layers = config.get(key) or ()
        for layer in (layers,) if isinstance(layers, str) else layers:
            # behind a prefix, which is that of all names; inner blocks may have layers of that name
            names = [key for key in state if f".{key}".endswith(f".{layer}.weight")]
            weight = state[min(names, key=len)] if names else None
            if weight is not None and weight.ndim > axis:
                sizes[setting] = weight.shape[axis]
    return {key: size for key, size in sizes.items() if size != defaults[key]}


def _pretrained(
    timm: Any, name: str, config: Mapping[str, Any], *, allow_download: bool
) -> tuple[nn.Module, str]:
    source = f"pretrained weights {config.get('tag', '')}"
    file = _cached_weights(config)
    if file is not None:
        overlay = {"file": str(file)}  # timm then downloads nothing
        model = _build(timm, name, pretrained=True, pretrained_cfg_overlay=overlay)
        return model, f"{source} from the local cache"
    if not (config.get("hf_hub_id") or config.get("url")):
        raise InputError(f"weights: timm has none for {name!r}; give --weights=FILE")
    if not allow_download:
        raise InputError(
            f"weights: those of timm:{name} are not on this machine, and nothing is downloaded "
            "unasked; give --weights=FILE (any state dict of this network), or allow the download "
            "(--allow-download=yes), or download them once with "
            f"python -c \"import timm; timm.create_model('{name}', pretrained=True)\""
        )
    try:
        return timm.create_model(name, pretrained=True), source
    except Exception as error:  # a download can fail in any way
        raise InputError(
            f"weights: those of timm:{name} could not be downloaded "
            f"({type(error).__name__}: {error}); give --weights=FILE"
        ) from error


def _cached_weights(config: Mapping[str, Any]) -> Path | None:
    """Return the file of pretrained weights in the cache of the hub or of torch, or None."""
    if hub := config.get("hf_hub_id"):
        cache = import_extra("huggingface_hub", "timm", "target timm")
        repository, _, revision = str(hub).partition("@")
        file_name = config.get("hf_hub_filename")
        for file in (file_name,) if file_name else HUB_FILES:
            path = cache.try_to_load_from_cache(repository, file, revision=revision or None)
            if isinstance(path, str):
                return Path(path)
    # older weights come from plain addresses, which torch caches by file name
    url = config.get("url")
    if isinstance(url, str) and url:
        cached = Path(torch.hub.get_dir(), "checkpoints", Path(urlsplit(url).path).name)
        return cached if cached.is_file() else None
    return None


def _input_spec(config: Mapping[str, Any], channels: int | None) -> InputSpec:
    shape = tuple(config["input_size"])
    if channels is not None:
        shape = (channels, *shape[1:])
    # for another number of channels: the average over timm's colours
    mean, std = (
        values if len(values) in (1, shape[0]) else (sum(values) / len(values),)
        for values in (tuple(config["mean"]), tuple(config["std"]))
    )
    return InputSpec(shape=shape, kind="image", mean=mean, std=std)
