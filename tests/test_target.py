"""Targets: a zoo name, a factory or a live module becomes a private, frozen network."""

from __future__ import annotations

import copy
import pickle
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call

from gaprune.errors import InputError
from gaprune.io.user_code import load_function
from gaprune.io.weights import sha256_of
from gaprune.masks.supermask import masked_weights
from gaprune.models.forward import functional_forward
from gaprune.models.input_spec import InputOptions, InputSpec
from gaprune.models.target import Target, load_target, target_from_module
from gaprune.models.zoo import ZOO, load_zoo_network

FACTORIES = '''
"""Networks for the tests."""
from __future__ import annotations
from dataclasses import dataclass
import sys
import torch
from torch import nn
from torch.nn import Linear

@dataclass
class Sizes:
    wide: int = 3

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = Linear(4, Sizes().wide), Linear(3, 2)
    def forward(self, x):
        return self.fc2(self.fc1(x).relu())

def make(): print("building"); return Net()
def wrapped(): return nn.DataParallel(Net())
def fails(): raise ZeroDivisionError("no weights today")
def leaves(): sys.exit(3)
def returns_dict(): return Net().state_dict()
def needs(width): return Net()
def lazy(): return nn.LazyLinear(2)
def _hidden(): return Net()
number = 7
'''


@pytest.fixture(autouse=True)
def _import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the folders that imported user files add to `sys.path`."""
    monkeypatch.setattr(sys, "path", sys.path.copy())


@pytest.fixture
def factories(tmp_path: Path) -> Path:
    """Return a file with valid and invalid factories."""
    path = tmp_path / "nets.py"
    path.write_text(FACTORIES, encoding="utf-8")
    return path


def _mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(), nn.Linear(3, 2))


def _target(model: nn.Module, **options: Any) -> Target:
    return target_from_module(model, **{"inputs": InputOptions(), **options})


@pytest.mark.parametrize("name", ZOO)
def test_zoo_targets(name: str) -> None:
    """A zoo name gives its network with its checkpoint, its inputs and its weights in order."""
    target, reference = load_target(name), load_zoo_network(name)
    assert (target.name, target.zoo, target.inputs) == (name, name, ZOO[name].inputs)
    assert target.weights_sha256 == sha256_of(reference.state_dict())
    assert target.layout.names == tuple(target.weights)
    inputs = torch.rand(3, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(target.model(inputs), reference(inputs))


def test_weights_share_memory_with_the_frozen_model() -> None:
    """Weights are the model's own, detached; the model is frozen and in evaluation mode."""
    target = _target(_mlp())
    assert not any(parameter.requires_grad for parameter in target.model.parameters())
    assert not any(module.training for module in target.model.modules())
    for name, weight in target.weights.items():
        assert weight.data_ptr() == target.model.get_parameter(name).data_ptr()
        assert not weight.requires_grad
    assert target.dtype == torch.float32
    assert target.device == torch.device("cpu")


def test_the_callers_model_stays_unchanged() -> None:
    """Bits, mode, gradient flags, gradients and hooks of the caller's model stay as they are."""
    model = _mlp()
    model[0].bias.requires_grad_(False)
    model[1].eval()
    model[3].weight.grad = torch.ones(2, 3)
    model[0].register_forward_hook(lambda *_: None)

    def flags() -> list[object]:
        return [
            [module.training for module in model.modules()],
            [parameter.requires_grad for parameter in model.parameters()],
            dict(model[0]._forward_hooks),
        ]

    before, flags_before = copy.deepcopy(model.state_dict()), flags()
    target = _target(model, prune_also=["0.bias"])
    target.model.get_parameter("0.weight").zero_()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert flags() == flags_before
    assert torch.equal(model[3].weight.grad, torch.ones(2, 3))
    assert target.model.get_parameter("3.weight").grad is None


def test_extra_parameters_join_the_weights() -> None:
    """`prune_also` adds parameters by name."""
    target = _target(_mlp(), prune_also=["3.bias"])
    assert target.layout.names == ("0.weight", "3.weight", "3.bias")
    assert target.layout.total == 12 + 6 + 2


def test_the_hash_covers_weights_and_buffers() -> None:
    """Two targets of equal networks have one hash; a changed buffer gives another."""
    model = _mlp()
    digest = _target(model).weights_sha256
    assert _target(model).weights_sha256 == digest
    model.get_buffer("1.running_mean").add_(1)
    assert _target(model).weights_sha256 != digest


def test_parameters_over_one_memory_are_tied() -> None:
    """Two Parameter objects that share memory stay tied in the copy, under the first name."""
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Tanh(), nn.Linear(3, 3, bias=False))
    model[2].weight = nn.Parameter(model.get_parameter("0.weight"))
    target = _target(model)
    assert target.layout.names == ("0.weight",)
    masked = masked_weights(target.weights, {"0.weight": torch.zeros(3, 3, dtype=torch.bool)})
    outputs = functional_call(target.model, masked, (torch.ones(1, 3),))
    assert torch.equal(outputs, torch.zeros(1, 3))
    assert model[2].weight is not model[0].weight


def test_a_masked_pass_leaves_a_module_with_two_names_unchanged() -> None:
    """A layer registered twice is masked at both uses, and no bit of the dense network changes."""
    layer = nn.Linear(3, 3)
    target = _target(nn.Sequential(layer, nn.Tanh(), layer))
    before, inputs = copy.deepcopy(target.model.state_dict()), torch.ones(1, 3)
    dropped = {"0.weight": torch.zeros(3, 3)}
    expected = torch.tanh(layer.bias) @ torch.zeros(3, 3) + layer.bias
    for _ in range(2):
        assert torch.equal(functional_forward(target.model, dropped, inputs)[0], expected)
    assert all(torch.equal(before[name], v) for name, v in target.model.state_dict().items())
    assert isinstance(target.model.get_submodule("2").weight, nn.Parameter)


@pytest.mark.filterwarnings("ignore:.*jit.*:DeprecationWarning")  # torch's own, in torch.compile
@pytest.mark.parametrize(
    "wrap", [pytest.param(torch.compile, marks=pytest.mark.slow), nn.DataParallel]
)
def test_wrapped_modules_are_unwrapped(wrap: Callable[[nn.Module], nn.Module]) -> None:
    """A compiled or data-parallel network has the parameter names of the network inside."""
    assert _target(wrap(_mlp())).layout.names == ("0.weight", "3.weight")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_inputs_have_the_dtype_of_the_network(dtype: torch.dtype) -> None:
    """A bfloat16 or double network is run on inputs of its own type."""
    assert _target(_mlp().to(dtype)).dtype == dtype


def test_networks_that_cannot_be_copied_or_moved() -> None:
    """A lock among the attributes prevents a copy; an unknown device is refused."""
    model = _mlp()
    with pytest.raises(InputError, match=r"device: .*'abacus'"):
        _target(model, device="abacus")
    object.__setattr__(model, "lock", threading.Lock())
    with pytest.raises(InputError, match=r"model: .*TypeError"):
        _target(model)


class Returns(nn.Module):
    """A linear layer whose output goes through any function."""

    def __init__(self, change: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.change = change

    def forward(self, inputs: Tensor) -> object:
        return self.change(self.fc(inputs))


OUTPUTS: dict[str, tuple[Callable[[Tensor], object], str]] = {
    "tuple": (lambda x: (x, None), r"0: tensor \[2, 3\], 1: NoneType; .*output="),
    "dict": (lambda x: {"logits": x}, r"'logits': tensor \[2, 3\]; .*output="),
    "None": (lambda _: None, "NoneType"),
    "no batch": (lambda x: x.sum(), r"shape \[\]"),
    "batch elsewhere": (lambda x: x.T, r"shape \[3, 2\]"),
    "classes": (lambda x: x.argmax(1), r"torch\.int64"),
    "NaN": (lambda x: x * torch.nan, "finite.*range="),
    "Inf": (lambda x: x / 0, "finite"),
}


@pytest.mark.parametrize("case", OUTPUTS)
def test_outputs_that_cannot_be_compared(case: str) -> None:
    """A network must return one finite float tensor that keeps the batch first."""
    change, message = OUTPUTS[case]
    with pytest.raises(InputError, match=f"model: .* 3 .*{message}"):
        _target(Returns(change))


def test_a_flat_output_is_accepted() -> None:
    """A regressor may return one number per input."""
    assert _target(Returns(lambda x: x[:, 0])).layout.total == 9


def test_inputs_that_the_network_refuses() -> None:
    """The error quotes shape and torch error; the trial batch contains the highest token id."""
    with pytest.raises(InputError, match=r"1,5 .*\[2, 1, 5\].*RuntimeError: mat1"):
        _target(nn.Linear(3, 2), inputs=InputOptions(shape=(1, 5)))
    model = nn.Sequential(nn.Embedding(1000, 4), nn.Flatten(), nn.Linear(12, 2))
    assert _target(model, inputs=InputOptions(shape=(3,))).inputs.vocabulary == 1000
    with pytest.raises(InputError, match=r"IndexError"):
        _target(model, inputs=InputOptions(shape=(3,), vocabulary=1001))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("name", ["make", "Net", "wrapped"])
def test_factories_with_weights(
    factories: Path, suffix: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A factory's network gets the weights of a file; its prints do not reach stdout."""
    path = factories.with_name(f"weights{suffix}")
    reference = load_function(f"{factories}:Net", "target")()
    state = {f"module.{key}": value for key, value in reference.state_dict().items()}
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    target = load_target(f"{factories}:{name}", weights=path)
    assert target.weights_sha256 == sha256_of(reference.state_dict())
    assert target.zoo is None
    assert str(path) in target.origin
    assert target.layout.names == ("fc1.weight", "fc2.weight")
    assert target.inputs == InputSpec((4,), "vector", assumed=True)
    assert capsys.readouterr().out == ""


def test_user_files_are_imported_once_and_pickle(factories: Path) -> None:
    """A file has one module whatever its spelling, so its classes survive pickling."""
    first = load_function(f"{factories}:Net", "target")
    other = factories.parent / "." / ".." / factories.parent.name / factories.name
    assert load_function(f"{other}:Net", "target") is first
    assert type(pickle.loads(pickle.dumps(first()))) is first


def test_user_files_can_import_their_neighbours(tmp_path: Path) -> None:
    """A factory file can import a module from its own folder."""
    (tmp_path / "neighbour_of_the_test.py").write_text("SIZE = 3\n")
    (tmp_path / "main.py").write_text(
        "from torch import nn\nfrom neighbour_of_the_test import SIZE\n"
        "def make(): return nn.Linear(SIZE, 2)\n"
    )
    assert load_target(f"{tmp_path}/main.py:make").inputs.shape == (3,)


FACTORY_ERRORS = {
    "fails": "ZeroDivisionError: no weights today",
    "leaves": "SystemExit: 3",
    "needs": "TypeError: .*'width'",
    "returns_dict": r"torch\.nn\.Module, got OrderedDict",
    "lazy": "'weight' is lazy",
    "number": "'number'.* Sizes, Net, make, wrapped, fails",
    "absent": "'absent'.* Sizes, Net, make, wrapped, fails",
    "no-name": r"path/to/file\.py:function",
    "": r"path/to/file\.py:function",
}


@pytest.mark.parametrize("name", FACTORY_ERRORS)
def test_factories_that_fail(factories: Path, name: str) -> None:
    """A factory that is missing, raises or returns something else is refused with the reason."""
    with pytest.raises(InputError, match=FACTORY_ERRORS[name]) as caught:
        load_target(f"{factories}:{name}")
    if name == "fails":  # the user's own traceback stays available
        assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_factory_files_that_fail(tmp_path: Path) -> None:
    """A file that is missing, is not Python or raises is refused, and can be corrected."""
    path = tmp_path / "broken.py"
    for file, source, message in (
        ("absent.py", None, r"absent\.py"),
        ("nets.txt", None, r"nets\.txt"),
        ("broken.py", "def (", r"broken\.py .*SyntaxError"),
        ("broken.py", "import absent_module_x", r"broken\.py .*ModuleNotFound"),
    ):
        if source is not None:
            path.write_text(source)
        with pytest.raises(InputError, match=message):
            load_target(f"{tmp_path}/{file}:make")
    path.write_text("from torch import nn\ndef make(): return nn.Linear(2, 2)\n# corrected")
    assert load_target(f"{path}:make").layout.total == 4


@pytest.mark.parametrize("spec", ["mnist-mpl", "nets.py", "", "tim:resnet18"])
def test_unknown_targets(spec: str) -> None:
    """The error lists zoo names, factories and schemes, and suggests the nearest name."""
    with pytest.raises(InputError, match=r"mnist-cnn.*\.py:factory.*timm:NAME") as caught:
        load_target(spec)
    assert spec != "tim:resnet18" or "'timm'" in str(caught.value)


def test_weights_that_do_not_fit(factories: Path) -> None:
    """NaN in a checkpoint, a checkpoint of another network and a missing file are refused."""
    state = load_function(f"{factories}:Net", "target")().state_dict()
    path = factories.with_name("weights.pt")
    state["fc2.weight"][0, 1] = torch.nan
    torch.save(state, path)
    for spec, file, message in (
        (f"{factories}:make", path, r"'fc2.weight' .* 1 of its 6"),
        ("mnist-mlp", path, r"fc1\.bias \[3\] .*\[250\]"),
        (f"{factories}:make", path.with_name("gone.pt"), r"gone\.pt"),
    ):
        with pytest.raises(InputError, match=message):
            load_target(spec, weights=file)


def test_zoo_networks_take_other_weights(tmp_path: Path) -> None:
    """`weights` replaces the checkpoint of a zoo network, and the origin says so."""
    model = ZOO["lenet"].factory()
    torch.save({"state_dict": model.state_dict()}, tmp_path / "mine.pth")
    target = load_target("lenet", weights=tmp_path / "mine.pth")
    assert target.weights_sha256 == sha256_of(model.state_dict())
    assert target.zoo == "lenet"
    assert "mine.pth" in target.origin


def test_an_output_is_chosen_by_name(tmp_path: Path) -> None:
    """`output` selects an output; parameters keep the names of the checkpoint."""
    file = tmp_path / "several.py"
    file.write_text(
        "import torch\n"
        "class Net(torch.nn.Linear):\n"
        "    def forward(self, x): return {'logits': super().forward(x), 'hidden': x}\n"
        "def make(): return Net(5, 3)\n"
    )
    target = load_target(f"{file}:make", inputs=InputOptions(shape=(5,)), output="logits")
    assert target.model(torch.zeros(2, 5)).shape == (2, 3)
    with pytest.raises(InputError, match=r"^output: .*'logit'"):
        load_target(f"{file}:make", inputs=InputOptions(shape=(5,)), output="logit")
    assert target.layout.names == ("weight",)
