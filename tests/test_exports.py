"""What `gaprune.export` writes: other tools load it, and a refused export writes nothing."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import PRUNE, Net, Run, tree
from export_cases import (
    TINY,
    Branched,
    dense_network,
    same_bits,
    save_bert,
    tiny_result,
    zoo_result,
)
from report_runs import reseal
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import prune

import gaprune
from gaprune import Result, export, load_masks, load_sparse, save_run
from gaprune.config import make_settings
from gaprune.errors import GapruneError, InputError
from gaprune.exports import EXPORTERS, ExportResult
from gaprune.models.onnx import OnnxSession
from gaprune.models.zoo import ZOO


@pytest.fixture(scope="module")
def result() -> Result:
    """A pruned network with a tied parameter and BatchNorm."""
    return tiny_result()


@pytest.fixture(scope="module")
def run_folder(result: Result, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its run directory."""
    return save_run(result, tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def copied(run_folder: Path, tmp_path: Path) -> Path:
    """A copy of the run directory that a test may damage."""
    return Path(shutil.copytree(run_folder, tmp_path / "run"))


@pytest.fixture(scope="module")
def exports(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ExportResult]:
    """Format → its export, each made once."""
    folder = tmp_path_factory.mktemp("exports")
    return {form: export(run_folder, form, folder / form) for form in LOADERS}


def loaded(state: dict[str, Tensor]) -> nn.Module:
    """Return the network with a state dict."""
    model = Branched()
    model.load_state_dict(state)
    return model.eval()


def load_pruned(folder: Path) -> nn.Module:
    """Load a state dict of `torch.nn.utils.prune`."""
    model = Branched()
    state = load_file(folder / "model.safetensors")
    for key in state:
        if key.endswith("_mask"):
            path, _, name = key.removesuffix("_mask").rpartition(".")
            prune.identity(model.get_submodule(path), name)
    model.load_state_dict(state)
    return model.eval()


LOADERS: dict[str, Callable[[Path], nn.Module]] = {  # as the model cards tell
    "dense": lambda folder: loaded(load_file(folder / "model.safetensors")),
    "masks": lambda folder: gaprune.bake(
        gaprune.attach(dense_network(), load_masks(folder / "masks.safetensors"))
    ),
    "prune": load_pruned,
    "sparse": lambda folder: loaded(load_sparse(folder / "model.sparse.safetensors")),
}


@torch.no_grad()
def outputs(model: nn.Module) -> Tensor:
    """Return the outputs for fixed inputs."""
    inputs = torch.rand(9, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    logits: Tensor = model(inputs)
    return logits


@pytest.mark.parametrize("form", LOADERS)
def test_every_format_gives_the_pruned_network(
    form: str, result: Result, exports: dict[str, ExportResult], tmp_path: Path
) -> None:
    """Outputs are equal, bit for bit, for exports of the run directory and of the result."""
    written = exports[form]
    assert torch.equal(outputs(LOADERS[form](written.path)), outputs(result.pruned_model()))
    assert {path.name for path in written.path.iterdir()} == {
        *written.files,
        "README.md",
        "export.json",
    }
    assert written.files == {written.file.name: written.file.stat().st_size}
    exported = export(result, form, tmp_path / "out").path
    assert torch.equal(outputs(LOADERS[form](exported)), outputs(result.pruned_model()))


def test_files_hold_the_state_and_the_masks(
    result: Result, exports: dict[str, ExportResult]
) -> None:
    """`dense` and `sparse` are the state dict in every bit; masks take one bit per weight."""
    assert same_bits(load_file(exports["dense"].file), result.state_dict())
    assert same_bits(load_sparse(exports["sparse"].file), result.state_dict())
    assert exports["dense"].dense_bytes == pytest.approx(exports["dense"].bytes, rel=0.01)
    assert same_bits(load_masks(exports["masks"].file), dict(result.masks))
    assert {name: bits.numel() for name, bits in load_file(exports["masks"].file).items()} == {
        name: -(-mask.numel() // 8) for name, mask in result.masks.items()
    }


def test_a_repaired_run_is_exported_repaired(tmp_path: Path) -> None:
    """`strict` exports the network before repair; the card tells them apart."""
    result = tiny_result(repair=True)
    repaired = result.repaired_model()
    assert repaired is not None
    assert not torch.equal(outputs(repaired), outputs(result.pruned_model()))
    for name, run in (("result", result), ("run", save_run(result, tmp_path / "saved"))):
        for strict, model in ((False, repaired), (True, result.pruned_model())):
            path = tmp_path / f"{name}-{strict}"
            export(run, "sparse", path, strict=strict)
            assert torch.equal(outputs(LOADERS["sparse"](path)), outputs(model))
            assert ("repaired after" in (path / "README.md").read_text()) is not strict


def test_a_codebook_changes_only_masked_tensors(result: Result, tmp_path: Path) -> None:
    """Biases and statistics stay, and the card doesn't promise equal bits."""
    written = export(result, "sparse", tmp_path / "out", codebook=4)
    state = load_sparse(written.file)
    for name, value in result.state_dict().items():
        if not name.endswith("weight") or name == "norm.weight":
            assert torch.equal(state[name], value)
    assert len(state["a.weight"].unique()) == 5
    assert torch.equal(state["a.weight"], state["b.weight"])
    assert "bit-identical" not in (written.path / "README.md").read_text()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "lenet" else pytest.mark.slow) for name in ZOO]
)
def test_onnx_computes_what_torch_does(name: str, tmp_path: Path) -> None:
    """ONNX Runtime's outputs differ by at most 1e-4, at any batch size."""
    result = zoo_result(name, 0.8)
    session = OnnxSession(export(result, "onnx", tmp_path / "out").file)
    for count in (1, 3, 64):
        inputs = torch.rand(count, 1, 28, 28)
        with torch.no_grad():
            expected = result.pruned_model()(inputs).numpy()
        assert np.abs(session(inputs) - expected).max() < 1e-4


ALONE = """
import sys
sys.modules["gaprune"] = None
import numpy as np
inputs = np.load("inputs.npy")
if sys.argv[1] == "onnx":
    import onnxruntime
    session = onnxruntime.InferenceSession("model.onnx")
    outputs = session.run(None, {"input": inputs})[0]
else:
    import torch
    from torch import nn
    from safetensors.torch import load_file
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(12, 16), nn.Linear(16, 3)
        def forward(self, x):
            return self.fc2(self.fc1(x).relu())
    model = Net()
    model.load_state_dict(load_file("model.safetensors"))
    outputs = model(torch.from_numpy(inputs)).detach().numpy()
np.save("outputs.npy", outputs)
"""


@pytest.fixture
def pruned_net(place: Path, run: Run) -> Path:
    """The run of a factory file, made on the command line."""
    assert run(*PRUNE, "--method", "magnitude", "--out", "run", "--quiet").code == 0
    return place / "run"


@pytest.mark.parametrize("form", ["dense", "onnx"])
def test_files_are_loaded_without_gaprune(form: str, pruned_net: Path, run: Run) -> None:
    """The network's class and safetensors, or ONNX Runtime alone, are enough."""
    ran = run("export", str(pruned_net), "--format", form, "--out", "out", "--json")
    folder = Path(json.loads(ran.out)["path"])
    inputs = np.random.default_rng(0).random((5, 12), dtype=np.float32)
    np.save(folder / "inputs.npy", inputs)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-c", ALONE, form]
    subprocess.run(command, cwd=folder, env=environment, check=True, timeout=120)
    model = Net()
    model.load_state_dict(load_file(pruned_net / "pruned.safetensors"))
    expected = model(torch.from_numpy(inputs)).detach().numpy()
    assert np.abs(np.load(folder / "outputs.npy") - expected).max() < 1e-5


def test_the_command_writes_beside_the_run(pruned_net: Path, place: Path, run: Run) -> None:
    """The default folder has the name of run and format; wrong requests write nothing."""
    ran = run("export", str(pruned_net), "--format", "sparse")
    assert (ran.code, ran.err) == (0, "")
    folder = pruned_net.with_name("run-sparse")
    assert str(folder) in ran.out
    assert "model.sparse.safetensors" in ran.out
    again = run("export", str(pruned_net), "--format", "sparse", "--overwrite")
    assert again.code == 0
    before = tree(place)
    for arguments, pattern in {
        ("run", "--format", "sparse"): "--overwrite",
        ("run", "--format", "spares"): "'spares' .*'sparse'",
        ("run", "--format", "dense", "--half"): "half: dense .*sparse",
        ("run", "--format", "sparse", "--codebook", "0"): "codebook: .* 1 ",
        ("run", "--format", "hf"): "hf:NAME",
        ("nowhere", "--format", "dense"): "run: .*nowhere",
        ("full", "--format", "dense"): "full .*result.json",
        ("run", "--format", "dense", "--out", "full"): r"full .*\(notes.txt\)",
        ("run", "--format", "dense", "--out", "net.py"): "net.py is a file",
    }.items():
        ran = run("export", *arguments)
        assert ran.code == 2
        assert re.search(pattern, ran.err), arguments
        assert tree(place) == before


@pytest.mark.parametrize(
    "file", ["mask.safetensors", "pruned.safetensors", "result.json", "weights"]
)
def test_a_damaged_run_is_not_exported(file: str, copied: Path, tmp_path: Path) -> None:
    """Truncated files, and weights that the mask removes, are refused."""
    if file == "weights":
        state = load_file(copied / "pruned.safetensors")
        state["head.weight"] += 1
        save_file(state, copied / "pruned.safetensors")
        reseal(copied)  # the hashes are right, the content is not
    else:
        (copied / file).write_bytes((copied / file).read_bytes()[:-20])
    with pytest.raises(GapruneError, match="'head.weight'" if file == "weights" else "damaged"):
        export(copied, "dense", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_dense_network_is_checked(copied: Path, tmp_path: Path) -> None:
    """ONNX of a network in memory needs that network, with the same weights.

    The network of a run is known while it lives, but not to a copy of the folder.
    """
    other = copy.deepcopy(dense_network())
    other.head.bias.data += 1  # type: ignore[union-attr, operator]
    for model, pattern in ((None, "model: .*memory"), (other, "model: .*SHA-256")):
        with pytest.raises(InputError, match=pattern):
            export(copied, "onnx", tmp_path / "out", model=model)
    assert not (tmp_path / "out").exists()
    assert export(copied, "onnx", tmp_path / "out", model=dense_network()).file.is_file()


def test_other_files_are_never_replaced(result: Result, tmp_path: Path) -> None:
    """A file that no export wrote protects its folder, also from `overwrite`."""
    export(result, "dense", tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    before = tree(tmp_path)
    with pytest.raises(InputError, match=r"\(notes.txt\)"):
        export(result, "sparse", tmp_path / "out", overwrite=True)
    assert tree(tmp_path) == before


def test_files_have_the_permissions_of_the_process(result: Result, tmp_path: Path) -> None:
    """Every file follows the umask; safetensors alone would write for the owner only."""
    before = os.umask(0o027)
    try:
        written = export(result, "dense", tmp_path / "out")
    finally:
        os.umask(before)
    assert {oct(path.stat().st_mode & 0o777) for path in written.path.iterdir()} == {"0o640"}


def test_the_card_has_the_figures_of_the_run(
    run_folder: Path, exports: dict[str, ExportResult]
) -> None:
    """Metadata of model hubs, provenance, scores, bytes, layers and the loader are there."""
    written = exports["sparse"]
    card = (written.path / "README.md").read_text()
    record = json.loads((run_folder / "result.json").read_text())
    head, _, body = card.removeprefix("---\n").partition("\n---\n")
    assert head.splitlines()[0] == "library_name: gaprune"
    for text in (
        record["weights_sha256"],
        record["provenance"]["sha256"],
        record["provenance"]["validation_sha256"],
        f"**{record['provenance']['level']}**",
        f"{100 * record['agreement']['validation']:.2f} %",
        f"{written.bytes:,}",
        "`conv.weight` | 36 |",
        "gaprune.load_sparse",
        "bit-identical",
    ):
        assert text in body
    assert str(run_folder.parent) not in card
    for form, exporter in EXPORTERS.items():
        compile(exporter.loading, form, "exec")


def test_model_hubs_read_the_card(exports: dict[str, ExportResult]) -> None:
    """It has the licence, the library and the metrics of the run; unknown things are left out."""
    hub = pytest.importorskip("huggingface_hub")
    written = exports["sparse"]
    data = hub.ModelCard.load(written.path / "README.md").data
    assert data.library_name == "gaprune"
    assert data.license == "other"
    assert data.base_model is None
    metrics = {result.metric_type: result.metric_value for result in data.eval_results}
    assert metrics["agreement"] == pytest.approx(written.agreement)
    assert metrics.get("accuracy") == written.accuracy


@pytest.mark.slow
def test_transformers_opens_its_folder(tmp_path: Path) -> None:
    """Weights are pruned, unused layers as before, and files beside the weights are copied."""
    transformers, source = save_bert(tmp_path / "source")
    (tmp_path / "source" / "vocab.txt").write_text("a\nb\n")
    (tmp_path / "source" / "README.md").write_text("the old card")
    target = gaprune.load_target(f"hf:{tmp_path / 'source'}")
    result = gaprune.prune_target(target, make_settings({"sparsity": 0.5, **TINY}))
    written = export(result, "hf", tmp_path / "out")
    state = transformers.AutoModel.from_pretrained(written.path).state_dict()
    pruned = result.state_dict()
    assert pruned.keys() < state.keys()
    for key, value in state.items():
        assert torch.equal(value, pruned.get(key, source.state_dict()[key]))
    assert (written.path / "vocab.txt").read_text() == "a\nb\n"
    assert "library_name: transformers" in (written.path / "README.md").read_text()
    assert export(result, "onnx", tmp_path / "onnx").file.is_file()  # its inputs are token ids
