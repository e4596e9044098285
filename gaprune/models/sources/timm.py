"""`timm:NAME`: networks of PyTorch Image Models, with weights that are on this machine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor, nn

from gaprune.errors import InputError, nearest
from gaprune.io.weights import apply_state, load_state
from gaprune.models.input_spec import InputSpec
from gaprune.models.sources.loaded import Loaded, Wanted
from gaprune.models.sources.optional_packages import import_extra
from gaprune.models.sources.outputs import choose_output

HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # under these names a hub holds weights
_WRAPPERS = re.compile(r"^(?:(?:module|_orig_mod)\.)+")  # what torch's wrappers put before names


def load_timm(wanted: Wanted) -> Loaded:
    """Return a network of timm with what timm knows about its input.

    With `weights` the network is built to fit them: as many classes and input channels as they
    have. Without, its pretrained weights are looked up in the caches of huggingface_hub and torch,
    and nothing is fetched unless `allow_download`.

    Raises:
        GapruneError: timm is not installed.
        InputError: an unknown name (the nearest are listed), no pretrained weights at hand, or
            weights that don't fit.
    """
    timm = import_extra("timm", "timm", f"target timm:{wanted.name}")
    config = _pretrained_config(timm, wanted.name)
    sizes: dict[str, int] = {}
    if wanted.weights is not None:
        state = load_state(wanted.weights)
        sizes = _sizes_of(state, config)
        model = _build(timm, wanted.name, **sizes)
        apply_state(model, state)
        source = f"weights from {wanted.weights}"
    else:
        model, source = _pretrained(timm, wanted, config)
    inputs = _inputs(timm.data.resolve_model_data_config(model), sizes.get("in_chans"))
    if wanted.output is not None:
        choose_output(model, wanted.output)
    origin = f"timm {timm.__version__} {wanted.name}, {source}"
    return Loaded(model.eval(), inputs, origin)


def _pretrained_config(timm: Any, name: str) -> dict[str, Any]:  # noqa: ANN401 - a module
    """Return what timm knows about a network and its weights; raise for an unknown name."""
    if not timm.is_model(name):
        raise InputError(
            f"target: timm has no network {name!r}; {nearest(name, _names(timm), 'it has')}"
        )
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError:  # the part after the dot is unknown
        tagged = timm.list_models(f"{name.partition('.')[0]}.*", pretrained=True)
        raise InputError(
            f"target: timm has no weights {name!r}; {nearest(name, tagged, 'it has')}"
        ) from None
    return {} if config is None else dict(config.to_dict())


def _names(timm: Any) -> list[str]:  # noqa: ANN401 - a module
    return [*timm.list_models(), *timm.list_models(pretrained=True)]


def _build(timm: Any, name: str, **settings: Any) -> nn.Module:  # noqa: ANN401 - module, settings
    try:
        model: nn.Module = timm.create_model(name, **settings)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise InputError(f"target: timm cannot build {name!r} ({error})") from error
    return model


def _sizes_of(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, int]:
    """Return how many classes and input channels a checkpoint was made for, where it shows."""
    plain = {_WRAPPERS.sub("", key): value for key, value in state.items()}
    places = (("num_classes", "classifier", 0), ("in_chans", "first_conv", 1))
    sizes = {}
    for setting, key, axis in places:
        layers = config.get(key) or ()
        for layer in (layers,) if isinstance(layers, str) else layers:
            weight = plain.get(f"{layer}.weight")
            if weight is not None and weight.ndim > axis:
                sizes[setting] = weight.shape[axis]
    usual = {
        "num_classes": config.get("num_classes"),
        "in_chans": config.get("input_size", (3,))[0],
    }
    return {key: size for key, size in sizes.items() if size != usual[key]}


def _pretrained(timm: Any, wanted: Wanted, config: Mapping[str, Any]) -> tuple[nn.Module, str]:  # noqa: ANN401
    name = wanted.name
    file = _cached(config)
    if file is not None:
        overlay = {"file": str(file)}
        model = _build(timm, name, pretrained=True, pretrained_cfg_overlay=overlay)
        return model, f"pretrained weights {config.get('tag', '')} from the local cache"
    if not (config.get("hf_hub_id") or config.get("url")):
        raise InputError(f"weights: timm has none for {name!r}; give --weights FILE")
    if not wanted.allow_download:
        raise InputError(
            f"weights: those of timm:{name} are not on this machine, and nothing is downloaded "
            "unasked; give --weights FILE (any state dict of this network), or allow the download "
            "(--allow-download yes), or fetch them once with "
            f"python -c \"import timm; timm.create_model('{name}', pretrained=True)\""
        )
    try:
        model = timm.create_model(name, pretrained=True)
    except Exception as error:  # whatever a network can do to a download
        raise InputError(
            f"weights: those of timm:{name} could not be fetched "
            f"({type(error).__name__}: {error}); give --weights FILE"
        ) from error
    return model, f"pretrained weights {config.get('tag', '')}"


def _cached(config: Mapping[str, Any]) -> Path | None:
    """Return the file of pretrained weights that was downloaded before, by timm or by torch."""
    if hub := config.get("hf_hub_id"):
        cache = import_extra("huggingface_hub", "timm", "target timm")
        repository, _, revision = str(hub).partition("@")
        own = config.get("hf_hub_filename")
        for file in (own,) if own else HUB_FILES:
            found = cache.try_to_load_from_cache(repository, file, revision=revision or None)
            if isinstance(found, str):
                return Path(found)
    url = config.get("url")
    if isinstance(url, str) and url:
        path = Path(torch.hub.get_dir(), "checkpoints", Path(urlsplit(url).path).name)
        return path if path.is_file() else None
    return None


def _inputs(config: Mapping[str, Any], channels: int | None) -> InputSpec:
    shape = tuple(config["input_size"])
    if channels is not None:
        shape = (channels, *shape[1:])
    mean, std = (
        values if len(values) in (1, shape[0]) else (sum(values) / len(values),)
        for values in (tuple(config["mean"]), tuple(config["std"]))
    )  # other channels than timm's own network has: the average of its colours
    return InputSpec(shape=shape, kind="image", mean=mean, std=std)
