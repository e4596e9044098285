"""Checkpoints: which files load, which names are mended, and which files are refused."""

from __future__ import annotations

import argparse
import collections
import copy
import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file, save_model
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from gaprune.errors import InputError
from gaprune.io.tensor_files import Unread, load_torch
from gaprune.io.weights import apply_state, load_checkpoint, load_state, sha256_of


def _net(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            OrderedDict(conv=nn.Conv1d(2, 4, 3), norm=nn.BatchNorm1d(4), head=nn.Linear(5, 3))
        )


def _equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return list(first) == list(second) and all(torch.equal(first[n], second[n]) for n in first)


@pytest.mark.parametrize(
    ("file", "nest"),
    [
        ("weights.pt", lambda state: state),
        ("weights.pth", lambda state: {"epoch": 3, "state_dict": state}),
        ("weights.bin", lambda state: {"model": state, "optimizer": {"lr": 0.1}}),
        ("weights.PT", lambda state: {"model_state_dict": state}),
        ("other.pt", lambda state: {"model": {"state_dict": dict(state)}}),
    ],
)
def test_torch_files(tmp_path: Path, file: str, nest: Callable[[object], object]) -> None:
    """State dicts load from torch files, plain or nested, in order and bit for bit."""
    state = _net().state_dict()
    torch.save(nest(state), tmp_path / file)
    assert _equal(load_state(tmp_path / file), state)


def _behind(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


STATE = _net(1).state_dict()
RAW = _net(3).state_dict()
TRAINERS: dict[str, object] = {
    "lightning.ckpt": {
        "state_dict": _behind("model.", STATE),
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}],
        "hyper_parameters": {"lr": 0.1},
    },
    "loss.ckpt": {"state_dict": {**_behind("net.", STATE), "loss.weight": torch.ones(3)}},
    "imagenet.pth.tar": {"state_dict": _behind("module.", STATE), "best": torch.tensor(70.0)},
    "basicsr.pth": {"params_ema": STATE, "params": RAW},
    "timm.pth": {"state_dict": RAW, "state_dict_ema": _behind("module.", STATE)},
    "yolo.pt": {"model": RAW, "ema": {"module": STATE, "updates": 7}},
    "mmengine.pth": {"ema_state_dict": RAW, "state_dict": STATE},
    "deepspeed.pt": {"module": STATE, "optimizer": {"state": {}, "param_groups": []}},
    "own_key.th": {"my_network": STATE, "rng_state": torch.ones(4, dtype=torch.uint8)},
    "flat.bin": {**STATE, "epoch": 3, "optimizer": {"state": {}, "param_groups": []}},
    "beside.pt": {
        "model": STATE,
        "best": np.float64(0.9),
        "curve": np.arange(3.0),
        "args": argparse.Namespace(lr=0.1, out=Path("runs"), names=np.array(["a"], dtype=object)),
        "losses": collections.defaultdict(list, train=[1.0]),
    },
}


@pytest.mark.parametrize("file", TRAINERS)
@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoints_of_trainers(tmp_path: Path, file: str, zipped: bool) -> None:
    """The network's weights are read from what trainers save around and beside them."""
    torch.save(TRAINERS[file], tmp_path / file, _use_new_zipfile_serialization=zipped)
    assert _equal(_apply(load_state(tmp_path / file)), STATE)


@pytest.mark.parametrize(
    ("key", "content"),
    [
        ("params", {"params": STATE, "params_ema": RAW}),
        ("ema.module", {"model": RAW, "ema": {"module": STATE, "updates": 7}}),
        ("student", {"state_dict": {**_behind("student.", STATE), **_behind("teacher.", RAW)}}),
        ("a.b", {"a.b": STATE, "c": RAW}),
    ],
)
def test_one_of_several_state_dicts_is_chosen(tmp_path: Path, key: str, content: object) -> None:
    """A key, a path of keys or a prefix of names chooses; what is not there is refused."""
    path = tmp_path / "several.pt"
    torch.save(content, path)
    state, origin = load_checkpoint(path, key=key)
    assert _equal(_apply(state), STATE)
    assert repr(key) in origin
    with pytest.raises(InputError, match=r"'gone'|a\.b, c"):
        load_checkpoint(path, key="gone")


def test_the_origin_names_the_average(tmp_path: Path) -> None:
    """Where an average is taken instead of the raw weights, both are named."""
    torch.save({"state_dict": RAW, "state_dict_ema": STATE}, tmp_path / "both.pt")
    origin = load_checkpoint(tmp_path / "both.pt").origin
    assert "'state_dict_ema'" in origin
    assert "'state_dict'" in origin
    torch.save({"state_dict": RAW}, tmp_path / "one.pt")
    assert load_checkpoint(tmp_path / "one.pt").origin.endswith("one.pt")


LARGE = {**STATE, **{f"layer{number}": torch.ones(1) for number in range(9)}}


@pytest.mark.parametrize("extra", [_behind("ema.", RAW), _behind("other.", LARGE)])
def test_a_part_of_a_file_must_be_stated(extra: dict[str, Tensor]) -> None:
    """A network that fits two parts of a file, or the smaller part, is not guessed."""
    with pytest.raises(InputError, match="weights_key="):
        _apply({**_behind("model.", STATE), **extra})


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_are_read_together(tmp_path: Path, suffix: str) -> None:
    """A list of shards gives all tensors in the files beside it, and nothing from elsewhere."""
    names = list(STATE)
    index = {name: f"part-{number // 5}.{suffix}" for number, name in enumerate(names)}
    for file in set(index.values()):
        part = {name: STATE[name] for name in names if index[name] == file}
        (save_file if suffix == "safetensors" else torch.save)(part, tmp_path / file)
    path = tmp_path / f"model.{suffix}.index.json"
    path.write_text(json.dumps({"weight_map": index}))
    assert _equal(_apply(load_state(path)), STATE)
    for changed in ({**index, "gone": index[names[0]]}, {**index, "a": "../a.bin"}, {}):
        path.write_text(json.dumps({"weight_map": changed}))
        with pytest.raises(InputError, match=r"gone|beside it|weight_map"):
            load_state(path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_named(tmp_path: Path) -> None:
    """A TorchScript archive is called by its name: it is sound, but a program."""
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "traced.pt")
    with pytest.raises(InputError, match="TorchScript"):
        load_state(tmp_path / "traced.pt")


def test_what_lies_beside_the_weights_is_not_built(tmp_path: Path) -> None:
    """Objects of allowed types are never made: their names stand for an inert type."""
    torch.save({"w": torch.ones(2), "out": Path("x"), "n": np.float64(1)}, tmp_path / "a.pt")
    content = load_torch(tmp_path / "a.pt")
    assert isinstance(content, dict)
    assert type(content["out"]) is type(content["n"]) is Unread


def test_a_layer_called_model_is_not_a_nesting(tmp_path: Path) -> None:
    """A tensor under the name 'model' belongs to the network."""
    torch.save({"model": torch.ones(2)}, tmp_path / "weights.pt")
    assert list(load_state(tmp_path / "weights.pt")) == ["model"]


def _saved(content: object, **options: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


class Payload:
    """A pickle of this class runs a shell command when it is loaded without protection."""

    def __init__(self, command: str = "true") -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


DAMAGED: dict[str, tuple[str, bytes, str]] = {
    "empty": (".pt", b"", "empty"),
    "empty safetensors": (".safetensors", b"", "empty"),
    "truncated": (".pt", _saved(_net().state_dict())[:700], "damaged"),
    "truncated, old format": (
        ".pth",
        _saved({"a": torch.ones(99)}, _use_new_zipfile_serialization=False)[:-50],
        "damaged",
    ),
    "truncated safetensors": (".safetensors", b"\x40" + b"\0" * 20, "damaged"),
    "text": (".bin", b"hello, world", "damaged"),
    "text as safetensors": (".safetensors", b"hello, world" * 9, "damaged"),
    "whole module": (".pt", _saved(nn.Linear(2, 2)), r"'torch\.nn\.modules\.linear\.Linear'"),
    "code": (".pt", _saved({"a": Payload()}), r"'posix\.system'"),
    "code, plain pickle": (".pt", pickle.dumps(Payload(), protocol=2), r"'posix\.system'"),
    "list": (".pt", _saved([torch.ones(2)]), "got list"),
    "tensor": (".pt", _saved(torch.ones(2)), "got Tensor"),
    "empty dict": (".pt", _saved({}), "empty"),
    "nested empty dict": (".pt", _saved({"model": {}}), "'model'"),
    "numbers": (".pt", _saved({"a": torch.ones(2), "a.scale": 3}), r"'a\.scale' is a int"),
    "several": (
        ".pt",
        _saved({"one": STATE, "two": {"a": torch.ones(2)}}),
        "one, two",
    ),
    "GGUF": (".bin", b"GGUF" + b"\0" * 20, "GGUF"),
    "pointer": (".safetensors", b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
    "numbered": (".pt", _saved({0: torch.ones(2)}), "0 is a Tensor"),
    "other suffix": (".onnx", b"x", r"\.safetensors.*'\.onnx'"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_files_that_are_refused(tmp_path: Path, case: str) -> None:
    """A file that is not a state dict is refused by name; unsafe loading is never suggested."""
    suffix, content, message = DAMAGED[case]
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_state(path)
    assert str(path) in str(caught.value)
    assert "weights_only" not in str(caught.value)


def test_missing_file_and_directory(tmp_path: Path) -> None:
    """A path that is no file is refused."""
    (tmp_path / "folder.pt").mkdir()
    for name, message in (("gone.pt", r"gone\.pt"), ("folder.pt", "directory")):
        with pytest.raises(InputError, match=message):
            load_state(tmp_path / name)


def test_a_malicious_pickle_runs_nothing(tmp_path: Path) -> None:
    """Code in a checkpoint does not run, even where the environment asks torch to allow it."""
    marker, files = tmp_path / "marker", (tmp_path / "zip.pt", tmp_path / "plain.pt")
    payload = {"a": Payload(f"touch {marker}")}
    files[0].write_bytes(_saved(payload))
    files[1].write_bytes(pickle.dumps(payload, protocol=2))
    script = """
import sys, torch
from pathlib import Path
from gaprune.errors import InputError
from gaprune.io.weights import load_state
marker, *files = map(Path, sys.argv[1:])
for file in files:
    try:
        load_state(file)
    except InputError as error:
        assert "posix.system" in str(error)
    assert not marker.exists()
    try:  # torch's own default runs the code in this environment: the file is a real attack
        torch.load(file)
    except Exception:
        pass
    marker.unlink()
"""
    environment = {**os.environ, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
    command = [sys.executable, "-c", script, str(marker), *map(str, files)]
    subprocess.run(command, env=environment, capture_output=True, check=True)


def _apply(state: dict[str, Tensor], model: nn.Module | None = None) -> dict[str, Tensor]:
    """Return the state of a network of other weights after applying a state to it."""
    model = model or _net(2)
    apply_state(model, state)
    return model.state_dict()


MENDED: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "exact": lambda state: state,
    **{
        prefix: lambda state, prefix=prefix: {prefix + n: v for n, v in state.items()}  # type: ignore[misc]
        for prefix in (
            "module.",
            "_orig_mod.",
            "module._orig_mod.",
            "_orig_mod.module.",
            "module.module.",
        )
    },
    "compiled submodule": lambda state: {
        n.replace("conv.", "conv._orig_mod."): v for n, v in state.items()
    },
    "no batch counter": lambda state: {
        n: v for n, v in state.items() if n != "norm.num_batches_tracked"
    },
}


@pytest.mark.parametrize("case", MENDED)
def test_names_are_mended(case: str) -> None:
    """Wrapper prefixes come off, and a missing batch counter stays 0; values are bit-exact."""
    source = _net(1)
    source.get_buffer("norm.running_mean").fill_(0.3)
    assert _equal(_apply(MENDED[case](source.state_dict())), source.state_dict())


def test_a_layer_called_module_keeps_its_name() -> None:
    """A network whose own layer is called `module` loads plain and wrapped checkpoints."""
    source = nn.Sequential(OrderedDict(module=_net(1)))
    state = source.state_dict()
    wrapped = {f"module.{n}": v for n, v in state.items()}
    for variant in (state, wrapped, source[0].state_dict()):
        assert _equal(_apply(variant, nn.Sequential(OrderedDict(module=_net(3)))), state)


def test_names_that_fit_are_never_mended() -> None:
    """A network that has a layer both inside and outside a `module` gets each its own values."""
    source, model = (
        nn.Sequential(OrderedDict(fc=nn.Linear(2, 2), module=nn.Sequential(nn.Linear(2, 2))))
        for _ in "12"
    )
    for network in (source, model):
        network.get_submodule("module").add_module("fc", nn.Linear(2, 2))
    assert _equal(_apply(source.state_dict(), model), source.state_dict())


def _tied() -> nn.Sequential:
    model = nn.Sequential(OrderedDict(table=nn.Embedding(4, 3), head=nn.Linear(3, 4, bias=False)))
    model[1].weight = model[0].weight
    return model


def test_tied_parameters_may_come_once(tmp_path: Path) -> None:
    """`safetensors.torch.save_model` drops the second name of a tied tensor; it still loads."""
    source, model = _tied(), _tied()
    save_model(source, str(tmp_path / "tied.safetensors"))
    state = load_state(tmp_path / "tied.safetensors")
    assert len(state) == 1
    assert _equal(_apply(state, model), source.state_dict())
    assert model[1].weight is model[0].weight


def test_tied_parameters_must_agree() -> None:
    """Two values for one tied parameter are refused; the same NaN twice is the same value."""
    state = {"table.weight": torch.zeros(4, 3), "head.weight": torch.ones(4, 3)}
    with pytest.raises(InputError, match=r"'table.weight' and 'head.weight'"):
        apply_state(_tied(), state)
    nan = torch.full((4, 3), torch.nan)
    apply_state(_tied(), {"table.weight": nan, "head.weight": nan.clone()})


def test_floats_are_converted() -> None:
    """A half-precision checkpoint fills a float32 network with the same values."""
    state = _net(1).half().state_dict()
    weight = _apply(state)["head.weight"]
    assert weight.dtype == torch.float32
    assert torch.equal(weight, state["head.weight"].float())


def _pruned() -> dict[str, Tensor]:
    model = _net()
    prune.l1_unstructured(model[2], "weight", 0.5)
    return model.state_dict()


def _parametrised() -> dict[str, Tensor]:
    model = _net()
    parametrizations.weight_norm(model[2])
    return model.state_dict()


REFUSED: dict[str, tuple[Callable[[], dict[str, Tensor]], str]] = {
    "renamed": (
        lambda: {n.replace("head", "tail"): v for n, v in _net().state_dict().items()},
        r"missing 2 \(head\.weight.*unexpected 2 \(tail\.weight",
    ),
    "other network": (lambda: {"x": torch.ones(1)}, r"missing 8 \(conv\.weight, .* 3 more\)"),
    "with and without prefix": (
        lambda: {**_net().state_dict(), "module.head.bias": torch.ones(3)},
        r"unexpected 1 \(module\.head\.bias\)",
    ),
    "other shape": (
        lambda: {**_net().state_dict(), "head.weight": torch.ones(10, 5)},
        r"head\.weight \[10, 5\] .*\[3, 5\]",
    ),
    "integers": (
        lambda: {**_net().state_dict(), "head.weight": torch.ones(3, 5, dtype=torch.int8)},
        r"head\.weight .*torch\.int8 .*torch\.float32",
    ),
    "float counter": (
        lambda: {**_net().state_dict(), "norm.num_batches_tracked": torch.tensor(1.0)},
        r"num_batches_tracked .*torch\.float32 .*int64",
    ),
    "pruned": (_pruned, r"prune\.remove\(model\.get_submodule\('head'\), 'weight'\)"),
    "parametrised": (_parametrised, "remove_parametrizations"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_states_that_are_refused(case: str) -> None:
    """Names, shapes and types that differ are listed; a wrong shape changes no weight."""
    state, message = REFUSED[case]
    model = _net(2)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match=message):
        apply_state(model, state())
    assert case != "other shape" or _equal(model.state_dict(), before)


def test_renaming_hooks_run() -> None:
    """A network that renames old keys while loading, as torchvision's do, still loads them."""

    class Renamed(nn.Linear):
        def _load_from_state_dict(
            self, state: dict[str, Tensor], prefix: str, *rest: object
        ) -> None:
            state[f"{prefix}weight"] = state.pop(f"{prefix}kernel")
            super()._load_from_state_dict(state, prefix, *rest)

    state = _apply({"0.kernel": torch.eye(2)}, nn.Sequential(Renamed(2, 2, bias=False)))
    assert torch.equal(state["0.weight"], torch.eye(2))


TENSORS = {
    "f": torch.tensor([[1.5, -0.0], [float("nan"), 3.0]]),
    "b": torch.tensor([True, False]),
    "h": torch.ones(3, dtype=torch.bfloat16),
    "i": torch.tensor(7),
    "none": torch.zeros(0, 4),
}


def test_hash_is_stable() -> None:
    """The hash follows from names, dtypes, shapes and bytes as documented, on any machine."""
    digest = hashlib.sha256(b'["i", "torch.int64", []]\n' + (7).to_bytes(8, "little"))
    assert sha256_of({"i": torch.tensor(7)}) == digest.hexdigest()


@given(st.permutations(list(TENSORS)))
def test_hash_ignores_order_and_layout(names: list[str]) -> None:
    """Neither the order of the names nor the strides in memory matter."""
    shuffled = {name: TENSORS[name] for name in names}
    shuffled["f"] = TENSORS["f"].T.contiguous().T
    assert sha256_of(shuffled) == sha256_of(TENSORS)


@pytest.mark.parametrize(
    "change",
    [
        {"i": torch.tensor(8)},
        {"i": torch.tensor([7])},
        {"i": torch.tensor(7, dtype=torch.int32)},
        {"f": torch.tensor([[1.5, 0.0], [float("nan"), 3.0]])},
        {"none": torch.zeros(4, 0)},
        {"more": torch.zeros(0)},
    ],
)
def test_hash_sees_every_change(change: dict[str, Tensor]) -> None:
    """A value, sign of zero, shape, dtype or name that differs gives another hash."""
    assert sha256_of({**TENSORS, **change}) != sha256_of(TENSORS)
    renamed = {f"{name}x": value for name, value in TENSORS.items()}
    assert sha256_of(renamed) != sha256_of(TENSORS)
