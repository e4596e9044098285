"""`hf:NAME`: networks of transformers, from a folder or from the cache of the hub."""

from __future__ import annotations

import contextlib
import copy
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gaprune.errors import InputError, first_line, nearest
from gaprune.io.bounded_reading import read_json
from gaprune.io.weights import left_out_note, load_checkpoint, plain_names
from gaprune.models.input_spec import InputSpec
from gaprune.models.network import LoadedNetwork
from gaprune.models.sources.optional_packages import import_extra
from gaprune.models.sources.outputs import choose_output, choose_tower
from gaprune.models.sources.text_encoder import TextEncoder
from gaprune.models.sources.tokenizer import HIDDEN, POOLINGS, pool_tokens, take_ids
from gaprune.models.sources.vocabulary import read_token_ids

LENGTH = 64  # default number of tokens per input: a few sentences, and fast to run
_MOST_POSITIONS = ("max_position_embeddings", "max_seq_len")  # limits of lengths; MPT's
CAUSAL_LENGTH = 256  # that of a causal language model, whose every token is a prediction
MOST_LOGITS = 1 << 19  # of an input: a causal language model returns fewer positions above it
POOLING_FILE = "1_Pooling/config.json"  # in a folder of sentence-transformers
GGUF = ".gguf"  # files of llama.cpp, with the sizes of the network in them
SECOND = 16_000  # default number of samples of a waveform, at 16 kHz
_HEAD = re.compile("For[A-Z]")
_MAX_LISTED = 5  # names listed in a message
_CACHE_PREFIX = "models--"  # folders of the cache: models--OWNER--NAME
# Old names of poolings in that file. Newer versions write "mean" or "cls".
_SENTENCE_POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}


def load_hf(
    name: str,
    weights: Path | None = None,
    weights_key: str | None = None,
    output: str | int | None = None,
    tower: str | None = None,
    allow_download: bool = False,  # noqa: FBT001, FBT002 - see `SOURCES`
) -> LoadedNetwork:
    """Return a network of transformers with what its configuration says about its input.

    `output` is one of the network's outputs or a pooling (`mean`, `cls`). The default is `logits`
    for a network with a head, the stated pooling for a folder of sentence-transformers, `mean` for
    another text encoder, else `last_hidden_state`. A pooling layer that the output does not use is
    left out, so that it takes no part in a budget.

    `tower` takes a part, such as the encoder of a pair, with the names of its parameters.

    `FILE.gguf` of llama.cpp is unpacked to floating point; its networks have a head.

    Token networks take ids alone; the attention mask follows from the padding id. Code that comes
    with a network is never run, and its weights must be safetensors. For errors see `load_source`.
    """
    transformers = import_extra("transformers", "hf", f"target hf:{name}")
    folder = Path(name).expanduser()
    location = str(folder) if folder.is_dir() else name
    gguf: dict[str, str] = {}
    if folder.suffix.lower() == GGUF and folder.is_file():  # sizes and weights are in the file
        for package in ("gguf", "accelerate"):
            import_extra(package, "gguf", f"target hf:{name}")
        location, gguf = str(folder.parent), {"gguf_file": folder.name}
    with _silent(transformers):
        config = _load_config(transformers, name, location, gguf, allow_download=allow_download)
        model_class = model_class_of(transformers, config, with_head=bool(gguf))
        # these outputs do not use the network's own pooling layer
        pooled = output not in (None, HIDDEN, *POOLINGS)
        source = "its own weights"
        if weights is None:
            read = partial(
                model_class.from_pretrained,
                location,
                local_files_only=not allow_download,
                use_safetensors=True,
                **gguf,
            )
        else:
            # the class and sizes come from the configuration, the weights from the user's file
            state, source = load_checkpoint(weights, key=weights_key)
            state, left_out = plain_names(state, _expected(model_class, config))
            source += left_out_note(left_out)
            read = partial(model_class.from_pretrained, None, state_dict=state)
        model, report = _load_model(read, model_class, config, name, pooled=pooled)
        _check_complete(report, name, own_file=weights is not None)
    model.config.use_cache = False  # calibration inputs have no past keys and values
    part = f"{type(model).__name__}, "
    if tower is not None:
        model = choose_tower(model, tower)
        part += f"tower {tower}, "
    find = partial(_find_file, transformers, location, not allow_download)
    if output is None:
        output = _default_output(model, find)
    read_inputs = _INPUTS.get(_input_name(model))
    inputs = read_inputs(model, find) if read_inputs else None
    if inputs is not None and inputs.kind == "tokens":
        packs = _is_causal(transformers, model)
        start = getattr(model.config, "bos_token_id", None) if packs else None
        local = not allow_download
        text = TextEncoder(location, gguf.get("gguf_file", ""), packs, start, local)
        inputs = replace(inputs, text=text)
    if output in POOLINGS:
        pool_tokens(model, str(output))
    else:
        choose_output(model, output)
    origin = f"transformers {transformers.__version__} {name}, {part}output {output}, {source}"
    return LoadedNetwork(model.eval(), inputs, origin)


def _load_config(
    transformers: Any,
    name: str,
    location: str,
    gguf: Mapping[str, str],
    *,
    allow_download: bool,
) -> Any:
    if not gguf and Path(location).is_dir() and not (Path(location) / "config.json").is_file():
        raise InputError(f"target: {name} holds no config.json; name a folder of save_pretrained")
    try:
        config = transformers.AutoConfig.from_pretrained(
            # trust_remote_code=False: files of a network never run as code
            location,
            local_files_only=not allow_download,
            trust_remote_code=False,
            **gguf,
        )
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        if gguf:
            raise InputError(
                f"target: transformers cannot read hf:{name} ({first_line(error)}); name a folder "
                "of save_pretrained"
            ) from error
        cache = Path(import_extra("huggingface_hub", "hf", "target").constants.HF_HUB_CACHE)
        cached = sorted(
            path.name.removeprefix(_CACHE_PREFIX).replace("--", "/")
            for path in cache.glob(f"{_CACHE_PREFIX}*")
        )
        raise InputError(
            f"target: hf:{name} is not a folder with a config.json that this transformers knows, "
            f"nor in the hub's cache ({first_line(error)}; {nearest(name, cached, 'in it')}); "
            "nothing is downloaded unasked: name a folder written by save_pretrained, or allow the "
            "download (--allow-download=yes)"
        ) from error
    return config


def model_class_of(transformers: Any, config: Any, *, with_head: bool = False) -> Any:
    """Return the class of transformers that a configuration names.

    `with_head` takes that of a language model where it names none. Raises InputError if this
    version of transformers has no such class.
    """
    names = config.architectures or ()
    classes = transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    with_head = with_head and type(config) in classes
    for name in names:
        if inspect.isclass(model_class := getattr(transformers, name, None)):
            return model_class  # the first that this version of transformers knows
    if names or type(config) not in transformers.MODEL_MAPPING:
        raise InputError(
            f"target: transformers has no network {', '.join(names) or type(config).__name__}; "
            "code that comes with a network is not run: write a factory for it"
        )
    return (classes if with_head else transformers.MODEL_MAPPING)[type(config)]


def _expected(model_class: Any, config: Any) -> dict[str, Tensor]:
    """Return the state dict of a network without memory for it; empty if it cannot be built so."""
    try:
        with torch.device("meta"):
            return dict(model_class(copy.deepcopy(config)).state_dict(keep_vars=True))
    except Exception:  # noqa: BLE001 - code of a network may compute with its weights
        return {}


def _load_model(
    read: Callable[..., Any], model_class: Any, config: Any, name: str, *, pooled: bool
) -> tuple[Any, Mapping[str, Any]]:
    arguments = inspect.signature(model_class.__init__).parameters
    pooling = {} if pooled or "add_pooling_layer" not in arguments else {"add_pooling_layer": False}
    try:
        model, report = read(
            config=config,
            dtype="auto",
            attn_implementation="eager",  # fused kernels have no second derivatives (GraSP)
            experts_implementation="eager",  # grouped products take no float64 (SynFlow)
            output_loading_info=True,  # the report on missing and unexpected weights
            **pooling,
        )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise InputError(
            f"weights: those of hf:{name} cannot be read ({first_line(error)}); the folder or the "
            "cache must hold safetensors; or give --weights=FILE"
        ) from error
    return model, report


def _check_complete(report: Mapping[str, Any], name: str, *, own_file: bool) -> None:
    """Raise if transformers has filled weights with random numbers, or has ignored some."""
    missing = sorted(map(str, report.get("missing_keys", ())))
    misfits = sorted(str(entry[0]) for entry in report.get("mismatched_keys", ()))
    # A folder may hold a head that is not used. The user's own file must match exactly.
    unused = sorted(report.get("unexpected_keys", ())) if own_file else []
    unused = [key for key in unused if not key.startswith("pooler.")]
    for keys, problem in (
        (missing, "are missing and would be random"),
        (misfits, "have other shapes and would be random"),
        (unused, "have no place in it"),
    ):
        if keys:
            more = f" and {len(keys) - _MAX_LISTED} more" if len(keys) > _MAX_LISTED else ""
            raise InputError(
                f"weights: {len(keys)} of hf:{name} {problem} "
                f"({', '.join(keys[:_MAX_LISTED])}{more}); check that they belong to the class "
                "that config.json names in 'architectures'"
            )


def _find_file(transformers: Any, location: str, local: bool, file: str) -> Path | None:  # noqa: FBT001
    # in the network's folder or the cache
    try:
        return Path(transformers.utils.cached_file(location, file, local_files_only=local))
    except OSError:
        return None


def _read_json(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(f"target: cannot read {path} ({error})") from error
    return content if isinstance(content, dict) else {}


def _default_output(model: Any, find: Callable[[str], Path | None]) -> str:
    # a head: classes with one that need no whole base model are called XForTask
    if getattr(model, "base_model", model) is not model or _HEAD.search(type(model).__name__):
        return "logits"
    if _input_name(model) != "input_ids":
        return HIDDEN
    config = _read_json(find(POOLING_FILE))
    modes = [key for key, value in config.items() if key.startswith("pooling_mode") and value]
    poolings = [_SENTENCE_POOLINGS.get(key, str(config[key])) for key in modes] or ["mean"]
    if len(poolings) == 1 and poolings[0] in POOLINGS:
        return poolings[0]
    raise InputError(
        f"output: {POOLING_FILE} asks for {', '.join(modes)}, which is not among "
        f"{', '.join(POOLINGS)}; choose one with --output, or another output such as {HIDDEN}"
    )


def _image_inputs(model: Any, find: Callable[[str], Path | None]) -> InputSpec | None:
    """Return the size from the configuration, and the normalisation from the preprocessor's."""
    settings = getattr(model, "config", None)
    size = getattr(settings, "image_size", None)
    config = _read_json(find("preprocessor_config.json"))
    if size is None:
        size = _side(config.get("crop_size")) or _side(config.get("size"))
    if size is None:
        return None
    sides = tuple(size) if isinstance(size, Sequence) else (size, size)
    shape = (getattr(settings, "num_channels", None) or 3, *sides)
    if not config:
        return InputSpec(shape=shape, kind="image", assumed=True)
    if not config.get("do_normalize", True):
        return InputSpec(shape=shape, kind="image")
    mean, std = (tuple(config.get(key, ())) for key in ("image_mean", "image_std"))
    return InputSpec(shape=shape, kind="image", mean=mean or (0.0,), std=std or (1.0,))


def _is_causal(transformers: Any, model: Any) -> bool:
    return type(model) is transformers.MODEL_FOR_CAUSAL_LM_MAPPING.get(type(model.config), None)


def _token_inputs(model: Any, find: Callable[[str], Path | None]) -> InputSpec | None:
    """Take ids alone, in place, and return their shape."""
    embedding = next((m for m in model.modules() if isinstance(m, nn.Embedding)), None)
    with contextlib.suppress(AttributeError, NotImplementedError):
        embedding = model.get_input_embeddings()
    if embedding is None:
        return None
    settings = getattr(model, "config", None)
    # of networks of transformers, only causal language models return chosen positions
    causal = "logits_to_keep" in inspect.signature(model.forward).parameters
    length = CAUSAL_LENGTH if causal else LENGTH
    limits = (getattr(settings, name, None) for name in _MOST_POSITIONS)
    length = min(length, *filter(None, limits))
    vocabulary = embedding.num_embeddings
    positions = max(1, MOST_LOGITS // vocabulary) if causal else None
    padding = getattr(settings, "pad_token_id", None)
    take_ids(model, padding, positions)
    ids = read_token_ids(find, vocabulary)
    return InputSpec(
        (length,),
        "tokens",
        vocabulary=vocabulary,
        token_ids=ids,
        padding=None if causal else padding,
    )


def _spectrogram_inputs(model: Any, _find: object) -> InputSpec | None:
    """Return Whisper's `[mel bins, frames]`, of which two become one position."""
    sizes = [getattr(model.config, name, 0) for name in ("num_mel_bins", "max_source_positions")]
    if not all(sizes):
        return None
    return InputSpec((sizes[0], 2 * sizes[1]), "signal", low=-1.0, high=1.0)


def _waveform_inputs(model: Any, _find: object) -> InputSpec | None:
    """Return a second of sound for networks with convolutions over samples, as wav2vec 2.0."""
    if not hasattr(model.config, "conv_stride"):
        return None
    return InputSpec((SECOND,), "signal", low=-1.0, high=1.0)


_INPUTS: dict[str, Callable[[Any, Callable[[str], Path | None]], InputSpec | None]] = {
    "input_ids": _token_inputs,
    "pixel_values": _image_inputs,
    "input_features": _spectrogram_inputs,
    "input_values": _waveform_inputs,
}
"""Argument of forward → what is known about it."""


def _input_name(model: Any) -> str:
    # a part that is no network of transformers lacks the attribute
    first = next(iter(inspect.signature(model.forward).parameters), "")
    return str(getattr(model, "main_input_name", first))


def _side(size: object) -> object:
    if isinstance(size, Mapping):
        if "height" in size:
            return (size["height"], size["width"])
        return size.get("shortest_edge")
    return size


@contextlib.contextmanager
def _silent(transformers: Any) -> Iterator[None]:
    """Keep transformers' progress bars and loading reports off the terminal."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
