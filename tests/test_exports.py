"""What `gaprune.export` writes: other tools load it, or nothing is there."""

from __future__ import annotations

import copy
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import PRUNE, Net, Run, tree
from export_cases import TINY, Branched, dense_network, same_bits, tiny_result, zoo_result
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import prune

import gaprune
from gaprune import Result, export, load_masks, load_sparse, save_run
from gaprune.config import make_settings
from gaprune.errors import GapruneError, InputError
from gaprune.export import EXPORTERS, export_run, writers
from gaprune.models.onnx import OnnxSession
from gaprune.models.sources.optional_packages import import_extra
from gaprune.models.zoo import ZOO

STATES = ("dense", "masks", "prune", "sparse")


@pytest.fixture(scope="module")
def result() -> Result:
    """A pruned network with a tied parameter and BatchNorm."""
    return tiny_result()


@pytest.fixture(scope="module")
def run_folder(result: Result, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same on the disk."""
    return save_run(result, tmp_path_factory.mktemp("runs") / "run")


def load_dense(folder: Path) -> nn.Module:
    """Load it as the card says."""
    model = Branched()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval()


def load_bits(folder: Path) -> nn.Module:
    """Load it as the card says."""
    return gaprune.bake(gaprune.attach(dense_network(), load_masks(folder / "masks.safetensors")))


def load_prune(folder: Path) -> nn.Module:
    """Load it as the card says."""
    model = Branched()
    state = load_file(folder / "model.safetensors")
    for key in state:
        if key.endswith("_mask"):
            path, _, name = key.removesuffix("_mask").rpartition(".")
            prune.identity(model.get_submodule(path), name)
    model.load_state_dict(state)
    return model.eval()


def load_small(folder: Path) -> nn.Module:
    """Load it as the card says."""
    model = Branched()
    model.load_state_dict(load_sparse(folder / "model.sparse.safetensors"))
    return model.eval()


LOADERS: dict[str, Callable[[Path], nn.Module]] = {
    "dense": load_dense,
    "masks": load_bits,
    "prune": load_prune,
    "sparse": load_small,
}


@torch.no_grad()
def answer(model: nn.Module) -> Tensor:
    """Return what a network says to fixed inputs."""
    inputs = torch.rand(9, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    outputs: Tensor = model(inputs)
    return outputs


@pytest.mark.parametrize("form", STATES)
@pytest.mark.parametrize("source", ["result", "folder"])
def test_every_state_loads_as_its_card_says(
    form: str, source: str, result: Result, run_folder: Path, tmp_path: Path
) -> None:
    """The network loaded from the file answers as the pruned one, bit for bit."""
    written = export(result if source == "result" else run_folder, form, tmp_path / "out")
    assert torch.equal(answer(LOADERS[form](written.path)), answer(result.pruned_model()))
    names = {path.name for path in written.path.iterdir()}
    assert names == {*written.files, "README.md", "export.json"}
    assert written.files == {written.file.name: written.file.stat().st_size}


def test_a_state_dict_holds_zeros_and_the_very_weights(result: Result, tmp_path: Path) -> None:
    """`dense` and `sparse` are the state dict of the result in every bit."""
    expected = result.state_dict()
    dense = export(result, "dense", tmp_path / "dense")
    sparse = export(result, "sparse", tmp_path / "sparse")
    assert same_bits(load_file(dense.file), expected)
    assert same_bits(load_sparse(sparse.file), expected)
    assert dense.dense_bytes == pytest.approx(dense.bytes, rel=0.01)


def test_packed_masks_take_a_bit_per_weight(result: Result, tmp_path: Path) -> None:
    """They are read by `load_masks` like those of a run."""
    written = export(result, "masks", tmp_path / "out")
    masks = load_masks(written.file)
    assert masks.keys() == result.masks.keys()
    assert all(torch.equal(masks[name], mask) for name, mask in result.masks.items())
    stored = load_file(written.file)
    assert {name: bits.numel() for name, bits in stored.items()} == {
        name: -(-mask.numel() // 8) for name, mask in result.masks.items()
    }


def test_damaged_packed_masks_are_refused(result: Result, tmp_path: Path) -> None:
    """Another shape than was written, and a file that is cut off."""
    written = export(result, "masks", tmp_path / "out")
    content = written.file.read_bytes()
    stated = b"[4, 1, 3, 3]"
    (tmp_path / "x.safetensors").write_bytes(content.replace(stated, b"[9, 9, 3, 3]"))
    assert stated in content
    with pytest.raises(InputError, match=r"mask: .*damaged .*not those that were written"):
        load_masks(tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors").write_bytes(content[:-1])
    with pytest.raises(InputError, match=r"mask: .*damaged"):
        load_masks(tmp_path / "x.safetensors")


def test_a_repaired_run_is_exported_repaired(tmp_path: Path) -> None:
    """Its statistics are the corrected ones; `strict` gives the network before."""
    found = tiny_result(repair=True)
    repaired = found.repaired_model()
    assert repaired is not None
    place = save_run(found, tmp_path / "run")
    for run in (found, place):
        loaded = load_small(export(run, "sparse", tmp_path / "out", overwrite=True).path)
        assert torch.equal(answer(loaded), answer(repaired))
        strict = export(run, "sparse", tmp_path / "strict", overwrite=True, strict=True)
        assert torch.equal(answer(load_small(strict.path)), answer(found.pruned_model()))
    assert not torch.equal(answer(repaired), answer(found.pruned_model()))
    assert "repaired after pruning: norm" in (tmp_path / "out" / "README.md").read_text()
    assert "repaired after" not in (tmp_path / "strict" / "README.md").read_text()


def test_a_codebook_changes_the_kept_weights_only(result: Result, tmp_path: Path) -> None:
    """Biases and statistics stay, and the card says that weights were shared."""
    written = export(result, "sparse", tmp_path / "out", codebook=4)
    back, expected = load_sparse(written.file), result.state_dict()
    for name, value in expected.items():
        if not name.endswith("weight") or name == "norm.weight":
            assert torch.equal(back[name], value)
    assert len(back["a.weight"].unique()) == 5
    assert torch.equal(back["a.weight"], back["b.weight"])
    card = (written.path / "README.md").read_text()
    assert "4 values" in card
    assert "rounded" in card
    assert "bit-identical" not in card


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "lenet" else pytest.mark.slow) for name in ZOO]
)
def test_onnx_answers_as_torch_does(name: str, tmp_path: Path) -> None:
    """Every network of the zoo, in ONNX Runtime, to 1e-4, at any batch."""
    found = zoo_result(name, 0.8)
    written = export(found, "onnx", tmp_path / "out")
    run = OnnxSession(written.file)
    model = found.pruned_model()
    for count in (1, 3, 64):
        inputs = torch.rand(count, 1, 28, 28)
        with torch.no_grad():
            assert np.abs(run(inputs) - model(inputs).numpy()).max() < 1e-4


ALONE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "gaprune":
            raise ImportError("gaprune is not installed here")
sys.meta_path.insert(0, Refuse())
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
assert "gaprune" not in sys.modules
np.save("outputs.npy", outputs)
"""


@pytest.fixture
def pruned_net(place: Path, run: Run) -> Path:
    """The run of a factory file, made on the command line."""
    assert run(*PRUNE, "--method", "magnitude", "--out", "run", "--quiet").code == 0
    return place / "run"


@pytest.mark.parametrize("form", ["dense", "onnx"])
def test_a_process_without_gaprune_loads_it(form: str, pruned_net: Path, run: Run) -> None:
    """The class of the network and safetensors, or ONNX Runtime alone, are enough."""
    ran = run("export", str(pruned_net), "--format", form, "--out", "out", "--json")
    written = json.loads(ran.out)
    folder = Path(written["path"])
    inputs = np.random.default_rng(0).random((5, 12), dtype=np.float32)
    np.save(folder / "inputs.npy", inputs)
    (folder / "alone.py").write_text(ALONE)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, "alone.py", form], cwd=folder, env=environment, check=True, timeout=120
    )
    model = Net()
    model.load_state_dict(load_file(pruned_net / "pruned.safetensors"))
    expected = model(torch.from_numpy(inputs)).detach().numpy()
    assert np.abs(np.load(folder / "outputs.npy") - expected).max() < 1e-5


def test_the_command_writes_beside_the_run_and_says_how_small_it_is(
    pruned_net: Path, run: Run
) -> None:
    """Without --out the folder is called after the run and the format."""
    ran = run("export", str(pruned_net), "--format", "sparse")
    assert (ran.code, ran.err) == (0, "")
    folder = pruned_net.with_name("run-sparse")
    assert f"written to {folder}" in ran.out
    assert "model.sparse.safetensors" in ran.out
    again = run("export", str(pruned_net), "--format", "sparse")
    assert again.code == 2
    assert "holds an earlier export; name another folder, or add --overwrite" in again.err
    assert run("export", str(pruned_net), "--format", "sparse", "--overwrite").code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "--format", "spares"), r"unknown name 'spares' \(did you mean 'sparse'\?\)"),
        (("run", "--format", "dense", "--half"), "half: dense .* only sparse"),
        (("run", "--format", "sparse", "--codebook", "0"), "codebook: must be from 1"),
        (("run", "--format", "hf"), "hf writes networks that came from hf:NAME"),
        (("nowhere", "--format", "dense"), "run: there is no folder nowhere"),
        (("full", "--format", "dense"), "run: full has no result.json"),
        (("run", "--format", "dense", "--out", "full"), r"full holds other files \(notes.txt\)"),
        (("run", "--format", "dense", "--out", "net.py"), "net.py is a file"),
    ],
    ids=lambda value: "-".join(value).replace("--", "") if isinstance(value, tuple) else "",
)
def test_wrong_requests_are_refused_and_write_nothing(
    arguments: tuple[str, ...], message: str, pruned_net: Path, place: Path, run: Run
) -> None:
    """One line says what is wrong, the exit code is 2, and no file is new."""
    before = tree(place)
    ran = run("export", *arguments)
    assert ran.code == 2
    assert re.search(message, ran.err)
    assert tree(place) == before


@pytest.mark.parametrize("file", ["mask.safetensors", "pruned.safetensors", "result.json"])
def test_a_damaged_run_is_not_exported(file: str, run_folder: Path, tmp_path: Path) -> None:
    """Cut off, or with weights that its mask drops."""
    place = tmp_path / "run"
    place.mkdir()
    for path in run_folder.iterdir():
        if path.is_file():
            (place / path.name).write_bytes(path.read_bytes())
    (place / file).write_bytes((place / file).read_bytes()[:-20])
    with pytest.raises(GapruneError, match=r"run: .*damaged"):
        export(place, "dense", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_outside_the_mask_are_noticed(run_folder: Path, tmp_path: Path) -> None:
    """A run whose files do not belong together is not exported."""
    place = tmp_path / "run"
    place.mkdir()
    for path in run_folder.iterdir():
        if path.is_file():
            (place / path.name).write_bytes(path.read_bytes())
    state = load_file(place / "pruned.safetensors")
    state["head.weight"] += 1
    save_file(state, place / "pruned.safetensors")
    with pytest.raises(GapruneError, match=r"'head.weight' has weights that its mask removes"):
        export(place, "dense", tmp_path / "out")


def test_another_network_is_not_exported_for_this_one(run_folder: Path, tmp_path: Path) -> None:
    """A run of a network in memory needs that network for ONNX, and no other."""
    with pytest.raises(InputError, match=r"model: the run in .* is of a network in memory"):
        export(run_folder, "onnx", tmp_path / "out")
    other = copy.deepcopy(dense_network())
    other.head.bias.data += 1  # type: ignore[union-attr, operator]
    with pytest.raises(InputError, match="model: the weights of model are not those"):
        export(run_folder, "onnx", tmp_path / "out", model=other)
    assert not list(tmp_path.iterdir())
    written = export(run_folder, "onnx", tmp_path / "out", model=dense_network())
    assert written.file.is_file()


@pytest.mark.parametrize("moment", ["write", "card"])
def test_a_failing_export_leaves_what_was_there(
    moment: str, result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At whatever point it stops: an earlier export stays whole, no folder is half there."""
    place = tmp_path / "deep" / "out"
    export(result, "sparse", place)
    before = tree(tmp_path)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    if moment == "write":
        monkeypatch.setattr(writers, "load_sparse", stop)
    else:
        monkeypatch.setattr(export_run, "model_card", stop)
    with pytest.raises(KeyboardInterrupt):
        export(result, "sparse", place, overwrite=True)
    assert tree(tmp_path) == before
    with pytest.raises(KeyboardInterrupt):
        export(result, "sparse", tmp_path / "new" / "er" / "out")
    assert tree(tmp_path) == before


KILLED = """
import os, signal, sys
from gaprune.export import export_run
from gaprune.io import atomic
real, count = atomic.sync, 0
def sync(path):
    global count
    count += 1
    if count == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    real(path)
atomic.sync = sync
export_run.export(sys.argv[1], "sparse", sys.argv[2])
"""


@pytest.mark.parametrize("moment", [1, 4])
def test_a_killed_export_is_not_there_and_the_next_one_clears_up(
    moment: int, run_folder: Path, tmp_path: Path
) -> None:
    """SIGKILL before the rename leaves no folder of that name; the rest goes with the next."""
    place = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, str(run_folder), str(place), str(moment)]
    ran = subprocess.run(command, check=False, timeout=120)
    assert ran.returncode == -signal.SIGKILL
    assert not place.exists()
    assert [path.name.endswith(".partial") for path in tmp_path.iterdir()] == [True]
    export(run_folder, "sparse", place)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_ctrl_c_ends_the_command_with_130(pruned_net: Path, place: Path) -> None:
    """One line says that nothing was written, and nothing is."""
    before = tree(place)
    script = (
        "import os, signal, sys, gaprune.export.export_run as w; from gaprune.cli import main\n"
        "w.model_card = lambda *a: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.exit(main(['export', 'run', '--format', 'dense']))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=place, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 130
    assert "interrupted; nothing was written" in ran.stderr
    assert tree(place) == before


def test_other_files_are_never_replaced(result: Result, tmp_path: Path) -> None:
    """Also with `overwrite`, a file that an export did not write keeps the folder."""
    place = tmp_path / "out"
    export(result, "dense", place)
    (place / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds other files \(notes.txt\)"):
        export(result, "sparse", place, overwrite=True)
    assert (place / "notes.txt").read_text() == "mine"


def test_files_can_be_read_by_those_who_may_read_others(result: Result, tmp_path: Path) -> None:
    """The library writes for the owner alone; an export follows the process' own rule."""
    before = os.umask(0o027)
    try:
        written = export(result, "dense", tmp_path / "out")
    finally:
        os.umask(before)
    assert {oct(path.stat().st_mode & 0o777) for path in written.path.iterdir()} == {"0o640"}


def test_the_card_tells_what_and_how(run_folder: Path, tmp_path: Path) -> None:
    """The head that hubs read, the provenance, the figures, the bytes, how to load."""
    written = export(run_folder, "sparse", tmp_path / "out")
    card = (written.path / "README.md").read_text()
    record = json.loads((run_folder / "result.json").read_text())
    head, _, body = card.removeprefix("---\n").partition("\n---\n")
    assert head.splitlines()[0] == "library_name: gaprune"
    for fact in (
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
        assert fact in body
    assert str(tmp_path) not in card


@pytest.mark.parametrize("form", EXPORTERS)
def test_the_code_of_every_card_is_python(form: str) -> None:
    """What a card tells the reader to type compiles."""
    compile(EXPORTERS[form].loading, form, "exec")


def test_a_folder_of_transformers_opens_with_from_pretrained(tmp_path: Path) -> None:
    """Weights are the pruned ones, what took no part is as it was, other files come along."""
    transformers = import_extra("transformers", "hf", "test")
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 32}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = transformers.BertConfig(**sizes, num_attention_heads=2)
        source = transformers.BertModel(config).eval()
    source.save_pretrained(tmp_path / "source")
    (tmp_path / "source" / "vocab.txt").write_text("a\nb\n")
    (tmp_path / "source" / "README.md").write_text("the old card")
    name = f"hf:{tmp_path / 'source'}"
    found = gaprune.prune_target(
        gaprune.load_target(name),
        make_settings({"sparsity": 0.5, **TINY}),
    )
    written = export(found, "hf", tmp_path / "out")
    model = transformers.AutoModel.from_pretrained(written.path)
    assert export(found, "onnx", tmp_path / "onnx").file.is_file()  # ids go in, and are compared
    state, pruned = model.state_dict(), found.state_dict()
    assert pruned.keys() < state.keys()
    for key, value in state.items():
        assert torch.equal(value, pruned.get(key, source.state_dict()[key]))
    assert (written.path / "vocab.txt").read_text() == "a\nb\n"
    assert "library_name: transformers" in (written.path / "README.md").read_text()
