"""Checkpoints: what loads, what is mended, and what is refused before it can do harm."""

from __future__ import annotations

import copy
import hashlib
import io
import os
import pickle
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file, save_model
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from gaprune.errors import InputError
from gaprune.io.weights import apply_state, load_state, sha256_of


def _net(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            OrderedDict(conv=nn.Conv1d(2, 4, 3), norm=nn.BatchNorm1d(4), head=nn.Linear(5, 3))
        )


def _equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return list(first) == list(second) and all(torch.equal(first[n], second[n]) for n in first)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".PT"])
@pytest.mark.parametrize(
    "nest",
    [
        lambda state: state,
        lambda state: {"epoch": 3, "state_dict": state},
        lambda state: {"model": state, "optimizer": {"lr": 0.1}},
        lambda state: {"model_state_dict": state},
        lambda state: {"model": {"state_dict": dict(state)}},
    ],
    ids=["bare", "state_dict", "model", "model_state_dict", "model.state_dict"],
)
def test_torch_files(tmp_path: Path, suffix: str, nest: Callable[[object], object]) -> None:
    """State dicts load from torch files, plain or nested, in order and bit for bit."""
    state = _net().state_dict()
    path = tmp_path / f"weights{suffix}"
    torch.save(nest(state), path)
    assert _equal(load_state(path), state)


def test_a_layer_called_model_is_not_a_nesting(tmp_path: Path) -> None:
    """A tensor under the name 'model' belongs to the network."""
    torch.save({"model": torch.ones(2)}, tmp_path / "weights.pt")
    assert list(load_state(tmp_path / "weights.pt")) == ["model"]


def test_safetensors_files(tmp_path: Path) -> None:
    """Safetensors files load bit for bit."""
    state = _net().state_dict()
    save_file(state, tmp_path / "weights.safetensors")
    loaded = load_state(tmp_path / "weights.safetensors")
    assert _equal(dict(sorted(loaded.items())), dict(sorted(state.items())))


def _saved(content: object, **options: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


class Payload:
    """A pickle of this runs a shell command when it is loaded carelessly."""

    def __init__(self, command: str = "true") -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


DAMAGED: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "empty": (".pt", lambda: b"", "is empty"),
    "empty safetensors": (".safetensors", lambda: b"", "is empty"),
    "cut off": (".pt", lambda: _saved(_net().state_dict())[:700], "damaged or not a state dict"),
    "cut off, old format": (
        ".pth",
        lambda: _saved({"a": torch.ones(99)}, _use_new_zipfile_serialization=False)[:-50],
        "damaged or not a state dict",
    ),
    "cut off safetensors": (".safetensors", lambda: b"\x40" + b"\0" * 20, "damaged or not a safe"),
    "text": (".bin", lambda: b"hello, world", "damaged or not a state dict"),
    "text as safetensors": (".safetensors", lambda: b"hello, world" * 9, "damaged or not a safe"),
    "whole module": (
        ".pt",
        lambda: _saved(nn.Linear(2, 2)),
        "holds more than tensors.*'torch.nn.modules.linear.Linear'",
    ),
    "code": (".pt", lambda: _saved({"a": Payload()}), "holds more than tensors.*'posix.system'"),
    "code, plain pickle": (
        ".pt",
        lambda: pickle.dumps(Payload(), protocol=2),
        "holds more than tensors.*'posix.system'",
    ),
    "a list": (".pt", lambda: _saved([torch.ones(2)]), "must hold a state dict.*got list"),
    "a tensor": (".pt", lambda: _saved(torch.ones(2)), "must hold a state dict.*got Tensor"),
    "nothing": (".pt", lambda: _saved({}), "must hold a state dict.*got an empty dict"),
    "nothing, nested": (".pt", lambda: _saved({"model": {}}), "got an empty dict"),
    "numbers": (".pt", lambda: _saved({"a": torch.ones(2), "epoch": 3}), "entry 'epoch' is a int"),
    "numbered": (".pt", lambda: _saved({0: torch.ones(2)}), "entry 0 is a Tensor"),
    "other suffix": (".onnx", lambda: b"x", r"must end in one of \.safetensors.*got '\.onnx'"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_files_that_are_refused(tmp_path: Path, case: str) -> None:
    """A file that is not a state dict is refused by name, and never recommended for unsafe use."""
    suffix, content, message = DAMAGED[case]
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content())
    with pytest.raises(InputError, match=message) as caught:
        load_state(path)
    assert str(path) in str(caught.value)
    assert "weights_only" not in str(caught.value)


def test_missing_file_and_directory(tmp_path: Path) -> None:
    """A path that is no file is refused."""
    with pytest.raises(InputError, match=r"cannot read .*gone\.pt"):
        load_state(tmp_path / "gone.pt")
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(InputError, match="is a directory"):
        load_state(tmp_path / "folder.pt")


@pytest.mark.parametrize("plain", [False, True])
def test_a_malicious_pickle_runs_nothing(tmp_path: Path, plain: bool) -> None:
    """Code in a checkpoint does not run, even where the environment asks torch to allow it."""
    path, marker = tmp_path / "weights.pt", tmp_path / "marker"
    payload = {"a": Payload(f"touch {marker}")}
    path.write_bytes(pickle.dumps(payload, protocol=2) if plain else _saved(payload))
    environment = {**os.environ, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}

    def attempt(code: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, str(path)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    safe = attempt(
        "import sys; from pathlib import Path; from gaprune.io.weights import load_state\n"
        "load_state(Path(sys.argv[1]))"
    )
    assert "InputError: weights: " in safe.stderr
    assert "holds more than tensors" in safe.stderr
    assert not marker.exists()
    attempt("import sys, torch; torch.load(sys.argv[1])")
    assert marker.exists()  # the file is armed: torch's own default runs it in this environment


def test_state_is_applied_bit_for_bit() -> None:
    """A network gets exactly the values of the state, buffers too."""
    source, model = _net(1), _net(2)
    source.get_buffer("norm.running_mean").fill_(0.3)
    apply_state(model, source.state_dict())
    assert _equal(model.state_dict(), source.state_dict())


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module."]
)
def test_wrapper_prefixes_are_mended(prefix: str) -> None:
    """Prefixes of DataParallel and torch.compile come off, stacked too."""
    source, model = _net(1), _net(2)
    apply_state(model, {prefix + name: value for name, value in source.state_dict().items()})
    assert _equal(model.state_dict(), source.state_dict())


def test_a_compiled_submodule_is_mended() -> None:
    """The prefix of a submodule that was compiled on its own comes off."""
    source, model = _net(1), _net(2)
    state = {n.replace("conv.", "conv._orig_mod."): v for n, v in source.state_dict().items()}
    apply_state(model, state)
    assert _equal(model.state_dict(), source.state_dict())


def test_a_layer_called_module_keeps_its_name() -> None:
    """A network whose own layer is called `module` loads plain and wrapped checkpoints."""
    source, model = (nn.Sequential(OrderedDict(module=_net(seed))) for seed in (1, 2))
    state = source.state_dict()
    apply_state(model, state)
    assert _equal(model.state_dict(), state)
    for mended in ({f"module.{n}": v for n, v in state.items()}, source[0].state_dict()):
        model = nn.Sequential(OrderedDict(module=_net(3)))
        apply_state(model, mended)
        assert _equal(model.state_dict(), state)


def test_names_that_fit_are_never_mended() -> None:
    """A network that has a layer both inside and outside a `module` gets each its own values."""
    source, model = (
        nn.Sequential(OrderedDict(fc=nn.Linear(2, 2), module=nn.Sequential(nn.Linear(2, 2))))
        for _ in "12"
    )
    for network in (source, model):
        network.get_submodule("module").add_module("fc", nn.Linear(2, 2))
    apply_state(model, source.state_dict())
    assert _equal(model.state_dict(), source.state_dict())


def test_two_keys_are_never_merged() -> None:
    """A checkpoint that has a name both with and without prefix is refused."""
    state = _net().state_dict()
    state["module.head.bias"] = torch.ones(3)
    with pytest.raises(InputError, match=r"unexpected 1 \(module\.head\.bias\)"):
        apply_state(_net(), state)


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
    apply_state(model, state)
    assert _equal(model.state_dict(), source.state_dict())
    assert model[1].weight is model[0].weight


def test_tied_parameters_must_agree() -> None:
    """Two values for one tied parameter are refused; the same NaN twice is the same value."""
    state = {"table.weight": torch.zeros(4, 3), "head.weight": torch.ones(4, 3)}
    with pytest.raises(InputError, match=r"'table.weight' and 'head.weight'"):
        apply_state(_tied(), state)
    nan = torch.full((4, 3), torch.nan)
    apply_state(_tied(), {"table.weight": nan, "head.weight": nan.clone()})


def test_a_batch_counter_may_be_missing() -> None:
    """Old checkpoints lack `num_batches_tracked`, which a frozen network does not need."""
    source, model = _net(1), _net(2)
    state = source.state_dict()
    del state["norm.num_batches_tracked"]
    apply_state(model, state)
    assert _equal(model.state_dict(), source.state_dict())


def test_floats_are_converted() -> None:
    """A half-precision checkpoint fills a float32 network with the same values."""
    source, model = _net(1).half(), _net(2)
    apply_state(model, source.state_dict())
    weight = model.get_parameter("head.weight")
    assert weight.dtype == torch.float32
    assert torch.equal(weight, source.get_parameter("head.weight").float())


def test_missing_and_unexpected_names() -> None:
    """Names that differ are refused, a few of each listed and the rest counted."""
    state = _net().state_dict()
    state["tail.weight"] = state.pop("head.weight")
    message = r"missing 1 \(head\.weight\), unexpected 1 \(tail\.weight\)"
    with pytest.raises(InputError, match=message):
        apply_state(_net(), state)
    with pytest.raises(InputError, match=r"missing 8 \(conv\.weight, .* and 3 more\)"):
        apply_state(_net(), {"x": torch.ones(1)})


def test_other_shapes() -> None:
    """A tensor of another shape is refused with both shapes, and nothing is copied."""
    state, model = _net(1).state_dict(), _net(2)
    before = copy.deepcopy(model.state_dict())
    state["head.weight"] = torch.ones(10, 5)
    message = r"head\.weight \[10, 5\] .*\[3, 5\]"
    with pytest.raises(InputError, match=message):
        apply_state(model, state)
    assert _equal(model.state_dict(), before)


def test_other_kinds_of_number() -> None:
    """Integers don't stand for floats, nor floats for a counter."""
    state = _net().state_dict()
    state["head.weight"] = torch.ones(3, 5, dtype=torch.int8)
    with pytest.raises(InputError, match=r"head\.weight is torch\.int8 where .* torch\.float32"):
        apply_state(_net(), state)
    state = _net().state_dict()
    state["norm.num_batches_tracked"] = torch.tensor(1.0)
    with pytest.raises(InputError, match=r"num_batches_tracked is torch\.float32 where .*int64"):
        apply_state(_net(), state)


def test_a_pruned_checkpoint() -> None:
    """A state dict of torch.nn.utils.prune is refused with the call that makes it permanent."""
    source = _net()
    prune.l1_unstructured(source[2], "weight", 0.5)
    message = r"already pruned.*prune\.remove\(model\.get_submodule\('head'\), 'weight'\)"
    with pytest.raises(InputError, match=message):
        apply_state(_net(), source.state_dict())


def test_a_parametrised_checkpoint() -> None:
    """A state dict of a parametrised network is refused with the way out."""
    source = _net()
    parametrizations.weight_norm(source[2])
    with pytest.raises(InputError, match=r"parametrised.*remove_parametrizations"):
        apply_state(_net(), source.state_dict())


def test_renaming_hooks_run() -> None:
    """A network that renames old keys while loading, as torchvision's do, still loads them."""

    class Renamed(nn.Linear):
        def _load_from_state_dict(
            self, state: dict[str, Tensor], prefix: str, *rest: object
        ) -> None:
            if f"{prefix}kernel" in state:
                state[f"{prefix}weight"] = state.pop(f"{prefix}kernel")
            super()._load_from_state_dict(state, prefix, *rest)

    model = nn.Sequential(Renamed(2, 2, bias=False))
    apply_state(model, {"0.kernel": torch.eye(2)})
    assert torch.equal(model.get_parameter("0.weight"), torch.eye(2))


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
