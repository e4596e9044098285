"""`hf:NAME`: networks of transformers, from a folder or from the cache of the hub."""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from gaprune.errors import InputError, nearest
from gaprune.io.weights import load_state
from gaprune.models.input_spec import InputSpec
from gaprune.models.sources.loaded import Loaded, Wanted
from gaprune.models.sources.optional_packages import import_extra
from gaprune.models.sources.outputs import choose_output
from gaprune.models.sources.tokenizer import HIDDEN, POOLINGS, pool_tokens, take_ids
from gaprune.models.sources.vocabulary import read_token_ids

LENGTH = 64  # tokens of one input, where nobody states it: a few sentences, and quick to run
POOLING_FILE = "1_Pooling/config.json"  # of a folder of sentence-transformers
_SHOWN = 5  # names listed in a message
_CACHED = "models--"  # folders of the cache: models--OWNER--NAME
# What that file writes for our poolings; newer ones write the name itself.
_SENTENCE_POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}


def load_hf(wanted: Wanted) -> Loaded:
    """Return a network of transformers with what its configuration says about its input.

    The class is the one that its configuration names. `wanted.output` is one of the network's
    outputs (`logits`, `last_hidden_state`, `pooler_output`, or a place) or of `POOLINGS` (`mean`,
    `cls`). By default a network with a head gives its `logits`, a folder of sentence-transformers
    what its pooling says, any other text encoder `mean`, any other network `last_hidden_state`.
    A pooling layer that the output does not use is left out, so that it takes no part in a budget.

    Token networks take ids alone; the attention mask is made from the padding id. Code that comes
    with a network is never run, and weights must be safetensors (or `weights`).

    Raises:
        GapruneError: transformers is not installed.
        InputError: no such folder, nothing in the cache, weights that are missing or don't fit, a
            network that needs several inputs.
    """
    place = f"target hf:{wanted.name}"
    transformers = import_extra("transformers", "hf", place)
    with _quiet(transformers):
        config = _config(transformers, wanted)
        network = _class_of(transformers, config)
        model = _read(network, config, wanted)
        files = _Files(transformers, wanted)
    model.config.use_cache = False  # keys and values of a past that no calibration input has
    output = _usual_output(model, files) if wanted.output is None else wanted.output
    read = _INPUTS.get(model.main_input_name)
    inputs = read(model, files) if read else None
    if model.main_input_name == "input_ids":
        take_ids(model, getattr(model.config, "pad_token_id", None))
    if output in POOLINGS:
        pool_tokens(model, str(output))
    else:
        choose_output(model, output)
    source = "its own weights" if wanted.weights is None else f"weights from {wanted.weights}"
    origin = (
        f"transformers {transformers.__version__} {wanted.name}, {type(model).__name__}, "
        f"output {output}, {source}"
    )
    return Loaded(model.eval(), inputs, origin)


def _config(transformers: Any, wanted: Wanted) -> Any:  # noqa: ANN401 - a module, a configuration
    name = wanted.name
    folder = Path(name).expanduser()
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise InputError(f"target: {name} holds no config.json; name a folder of save_pretrained")
    try:
        config = transformers.AutoConfig.from_pretrained(
            _location(name), local_files_only=not wanted.allow_download, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"target: hf:{name} is no folder with a config.json that this transformers knows, nor "
            f"in the cache of the hub ({_first_line(error)}; {nearest(name, _cached(), 'in it')}); "
            "nothing is downloaded unasked: name a folder written by save_pretrained, or allow the "
            "download (--allow-download yes)"
        ) from error
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(
            f"target: hf:{name} is an encoder and a decoder and needs two inputs, but one tensor "
            "is shown to it; write a factory that returns one of the two"
        )
    return config


def _cached() -> list[str]:
    """Return the names of the networks in the cache of the hub."""
    place = Path(import_extra("huggingface_hub", "hf", "target").constants.HF_HUB_CACHE)
    return sorted(
        one.name.removeprefix(_CACHED).replace("--", "/") for one in place.glob(f"{_CACHED}*")
    )


def _location(name: str) -> str:
    folder = Path(name).expanduser()
    return str(folder) if folder.is_dir() else name


def _class_of(transformers: Any, config: Any) -> Any:  # noqa: ANN401 - module, configuration, class
    named = config.architectures or ()
    for name in named:
        if inspect.isclass(found := getattr(transformers, name, None)):
            return found
    if named or type(config) not in transformers.MODEL_MAPPING:
        raise InputError(
            f"target: transformers has no network {', '.join(named) or type(config).__name__}; "
            "code that comes with a network is not run: write a factory for it"
        )
    return transformers.MODEL_MAPPING[type(config)]


def _arguments(function: Any) -> Mapping[str, Any]:  # noqa: ANN401 - any callable
    return inspect.signature(function).parameters


def _read(network: Any, config: Any, wanted: Wanted) -> Any:  # noqa: ANN401 - class, configuration
    """Build the network and fill every one of its weights."""
    settings: dict[str, Any] = {
        "config": config,
        "dtype": "auto",
        "attn_implementation": "eager",  # the fused kernels have no second derivatives (GraSP)
        "output_loading_info": True,
    }
    unpooled = wanted.output is None or wanted.output in (*POOLINGS, HIDDEN)
    if unpooled and "add_pooling_layer" in _arguments(network.__init__):
        settings["add_pooling_layer"] = False
    try:
        if wanted.weights is None:
            model, report = network.from_pretrained(
                _location(wanted.name),
                local_files_only=not wanted.allow_download,
                use_safetensors=True,
                **settings,
            )
        else:
            state = load_state(wanted.weights)
            model, report = network.from_pretrained(None, state_dict=state, **settings)
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise InputError(
            f"weights: those of hf:{wanted.name} cannot be read ({_first_line(error)}); the folder "
            "or the cache must hold safetensors; or give --weights FILE"
        ) from error
    _check_complete(report, wanted)
    return model


def _check_complete(report: Mapping[str, Any], wanted: Wanted) -> None:
    """Raise where transformers has filled weights with random numbers, or left some unused."""
    missing = sorted(map(str, report.get("missing_keys", ())))
    misfits = sorted(str(one[0]) for one in report.get("mismatched_keys", ()))
    # a file of the user's own is for this network; a folder may hold a head that is not asked for
    unused = sorted(report.get("unexpected_keys", ())) if wanted.weights is not None else []
    unused = [name for name in unused if not name.startswith("pooler.")]
    for names, what in (
        (missing, "are missing and would be random"),
        (misfits, "have other shapes and would be random"),
        (unused, "have no place in it"),
    ):
        if names:
            raise InputError(
                f"weights: {len(names)} of hf:{wanted.name} {what} ({_some(names)}); check that "
                "they belong to the class that config.json names in 'architectures'"
            )


class _Files:
    """The files beside a network, in its folder or in the cache of the hub."""

    def __init__(self, transformers: Any, wanted: Wanted) -> None:  # noqa: ANN401 - a module
        self._find = partial(
            transformers.utils.cached_file,
            _location(wanted.name),
            local_files_only=not wanted.allow_download,
        )

    def find(self, name: str) -> Path | None:
        """Return where a file is, or None: there is no such file."""
        try:
            return Path(self._find(name))
        except OSError:
            return None

    def read(self, name: str) -> dict[str, Any]:
        """Return the content of a file, empty where there is no such file."""
        path = self.find(name)
        if path is None:
            return {}
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"target: cannot read {path} ({error})") from error
        return content if isinstance(content, dict) else {}


def _usual_output(model: Any, files: _Files) -> str:  # noqa: ANN401 - a network of transformers
    if model.base_model is not model:
        return "logits"
    if model.main_input_name != "input_ids":
        return HIDDEN
    stated = files.read(POOLING_FILE)
    used = [key for key, value in stated.items() if key.startswith("pooling_mode") and value]
    named = [_SENTENCE_POOLINGS.get(key, str(stated[key])) for key in used] or ["mean"]
    if len(named) == 1 and named[0] in POOLINGS:
        return named[0]
    raise InputError(
        f"output: {POOLING_FILE} asks for {', '.join(used)}, which is not among "
        f"{', '.join(POOLINGS)}; choose one with --output, or another output such as {HIDDEN}"
    )


def _token_inputs(model: Any, files: _Files) -> InputSpec | None:  # noqa: ANN401 - a network
    vocabulary = model.get_input_embeddings().num_embeddings
    longest = getattr(model.config, "max_position_embeddings", None) or LENGTH
    token_ids = read_token_ids(files.find, vocabulary)
    shape = (min(LENGTH, longest),)
    return InputSpec(shape=shape, kind="tokens", vocabulary=vocabulary, token_ids=token_ids)


def _image_inputs(model: Any, files: _Files) -> InputSpec | None:  # noqa: ANN401 - a network
    """Read the size from the configuration, and the normalisation from the preprocessor's."""
    size = getattr(model.config, "image_size", None)
    stated = files.read("preprocessor_config.json")
    if size is None:
        size = _side(stated.get("crop_size")) or _side(stated.get("size"))
    if size is None:
        return None
    sides = tuple(size) if isinstance(size, Sequence) else (size, size)
    shape = (getattr(model.config, "num_channels", None) or 3, *sides)
    if not stated:
        return InputSpec(shape=shape, kind="image", assumed=True)
    if not stated.get("do_normalize", True):
        return InputSpec(shape=shape, kind="image")
    mean, std = (tuple(stated.get(key, ())) for key in ("image_mean", "image_std"))
    return InputSpec(shape=shape, kind="image", mean=mean or (0.0,), std=std or (1.0,))


_INPUTS = {"input_ids": _token_inputs, "pixel_values": _image_inputs}


def _side(size: object) -> object:
    if isinstance(size, Mapping):
        if "height" in size:
            return (size["height"], size["width"])
        return size.get("shortest_edge")
    return size


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:  # noqa: ANN401 - a module
    """Keep transformers' progress bars and its reports on loading off the terminal."""
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


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
