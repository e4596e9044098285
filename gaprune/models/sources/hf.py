"""`hf:NAME`: networks of transformers, from a folder or from the cache of the hub."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gaprune.errors import InputError, first_line, nearest
from gaprune.io.bounded_reading import read_json
from gaprune.io.weights import left_out_note, load_checkpoint, plain_names
from gaprune.models.input_spec import InputSpec
from gaprune.models.network import LoadedNetwork
from gaprune.models.sources.optional_packages import import_extra
from gaprune.models.sources.outputs import choose_output
from gaprune.models.sources.tokenizer import HIDDEN, POOLINGS, pool_tokens, take_ids
from gaprune.models.sources.vocabulary import read_token_ids

LENGTH = 64  # default number of tokens per input: a few sentences, and fast to run
POOLING_FILE = "1_Pooling/config.json"  # in a folder of sentence-transformers
GGUF = ".gguf"  # files of llama.cpp, with the sizes of the network in them
_MAX_LISTED = 5  # names listed in a message
_CACHE_PREFIX = "models--"  # folders of the cache: models--OWNER--NAME
# Old names of poolings in that file. Newer versions write "mean" or "cls".
_SENTENCE_POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}


def load_hf(
    name: str,
    weights: Path | None = None,
    weights_key: str | None = None,
    output: str | int | None = None,
    allow_download: bool = False,  # noqa: FBT001, FBT002 - see `SOURCES`
) -> LoadedNetwork:
    """Return a network of transformers with what its configuration says about its input.

    `output` is one of the network's outputs or a pooling (`mean`, `cls`). The default is `logits`
    for a network with a head, the stated pooling for a folder of sentence-transformers, `mean` for
    another text encoder, else `last_hidden_state`. A pooling layer that the output does not use is
    left out, so that it takes no part in a budget.

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
        model_class = _model_class(transformers, config, with_head=bool(gguf))
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
    find = partial(_find_file, transformers, location, not allow_download)
    if output is None:
        output = _default_output(model, find)
    inputs = None
    if model.main_input_name == "input_ids":
        vocabulary = model.get_input_embeddings().num_embeddings
        longest = getattr(model.config, "max_position_embeddings", None) or LENGTH
        shape, ids = (min(LENGTH, longest),), read_token_ids(find, vocabulary)
        inputs = InputSpec(shape, "tokens", vocabulary=vocabulary, token_ids=ids)
        take_ids(model, getattr(model.config, "pad_token_id", None))
    elif model.main_input_name == "pixel_values":
        inputs = _image_inputs(model, find)
    if output in POOLINGS:
        pool_tokens(model, str(output))
    else:
        choose_output(model, output)
    origin = (
        f"transformers {transformers.__version__} {name}, {type(model).__name__}, "
        f"output {output}, {source}"
    )
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
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(
            f"target: hf:{name} is an encoder and a decoder and needs two inputs, but gaprune "
            "passes one tensor; write a factory that returns one of the two"
        )
    return config


def _model_class(transformers: Any, config: Any, *, with_head: bool) -> Any:
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
    if model.base_model is not model:  # there is a head
        return "logits"
    if model.main_input_name != "input_ids":
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
    size = getattr(model.config, "image_size", None)
    config = _read_json(find("preprocessor_config.json"))
    if size is None:
        size = _side(config.get("crop_size")) or _side(config.get("size"))
    if size is None:
        return None
    sides = tuple(size) if isinstance(size, Sequence) else (size, size)
    shape = (getattr(model.config, "num_channels", None) or 3, *sides)
    if not config:
        return InputSpec(shape=shape, kind="image", assumed=True)
    if not config.get("do_normalize", True):
        return InputSpec(shape=shape, kind="image")
    mean, std = (tuple(config.get(key, ())) for key in ("image_mean", "image_std"))
    return InputSpec(shape=shape, kind="image", mean=mean or (0.0,), std=std or (1.0,))


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
