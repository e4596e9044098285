"""What `gaprune measure` says of a file is counted by hand, timed for real, and honest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command_line import PRUNE, Run
from export_cases import dense_network, tiny_result, zoo_result
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gaprune import Result, export, load_target, measure, save_run
from gaprune.errors import InputError
from gaprune.evaluation.latency import LatencyTable, time_runtimes
from gaprune.evaluation.runtimes import (
    CSR,
    EAGER,
    ONNX,
    RUNTIMES,
    RuntimeSubject,
    UnavailableError,
    ready,
)
from gaprune.export.measure.file_contents import FileContents, read_contents
from gaprune.export.measure.measure_file import NonzeroMacs, count_macs, remarks
from gaprune.models.input_spec import InputOptions
from gaprune.models.target import target_from_module

FORMS = ("dense", "masks", "prune", "sparse")


@pytest.fixture(scope="module")
def result() -> Result:
    """A pruned network of the zoo, so that files say which network they are of."""
    return zoo_result("four-layer", 0.9)


@pytest.fixture(scope="module")
def exported(result: Result, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Format → its file."""
    place = tmp_path_factory.mktemp("out")
    return {form: export(result, form, place / form).file for form in (*FORMS, "onnx")}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a network in memory, which no file names."""
    return save_run(tiny_result(), tmp_path_factory.mktemp("runs") / "run")


@pytest.mark.parametrize("form", FORMS)
def test_counts_are_those_of_the_state(
    form: str, result: Result, exported: dict[str, Path]
) -> None:
    """Bytes, parameters and non-zeros; every format is told by its content."""
    (found,) = measure(exported[form], runtimes=[EAGER], batches=[1])
    state = [value for value in result.state_dict().values() if value.is_floating_point()]
    if form == "masks":
        state = list(result.masks.values())
    assert found.kind == form
    assert found.bytes == exported[form].stat().st_size
    assert found.parameters == sum(value.numel() for value in state)
    assert found.nonzeros == sum(int(value.count_nonzero()) for value in state)
    assert found.zstd_bytes is not None
    assert 0 < found.zstd_bytes < found.bytes * 1.01


def test_onnx_is_counted_and_judged_as_the_network_is(
    result: Result, exported: dict[str, Path]
) -> None:
    """Its weights are those of the state dict; ONNX Runtime's answers agree as torch's do."""
    onnx, dense = measure(exported["onnx"], exported["dense"], runtimes=[ONNX], batches=[2])
    assert onnx.kind == "onnx"
    assert onnx.parameters >= sum(value.numel() for value in result.state_dict().values())
    assert onnx.agreement == pytest.approx(dense.agreement, abs=0.002)
    assert list(onnx.record()["latency_ms"]) == ["onnxruntime"]
    assert onnx.macs is not None
    assert dense.macs is not None
    assert onnx.macs.total == dense.macs.total


def test_agreement_and_accuracy_are_those_of_the_pruned_network(
    result: Result, exported: dict[str, Path]
) -> None:
    """On the first thousand test images of the zoo, by an independent count."""
    from gaprune.models.zoo import mnist  # noqa: PLC0415 - tens of megabytes

    (found,) = measure(exported["sparse"], runtimes=[EAGER], batches=[1])
    images, labels = (part[:1000] for part in mnist.test_set())
    with torch.no_grad():
        own, dense = (m(images).argmax(1) for m in (result.pruned_model(), result.target.model))
    assert found.agreement == pytest.approx(float((own == dense).double().mean()))
    assert found.accuracy == pytest.approx(float((own == labels).double().mean()))
    assert found.compared_on == "1,000 inputs: the MNIST test set"


def test_multiply_adds_are_those_counted_by_hand() -> None:
    """A convolution and a linear layer: as they are, and without those by 0."""
    conv, head = nn.Conv2d(1, 2, 3, bias=False), nn.Linear(8, 5)
    model = nn.Sequential(conv, nn.Flatten(), head)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
        conv.weight[0] = 0.0  # half of them
        head.weight[:, :6] = 0.0  # three quarters
    work = count_macs(model, torch.rand(1, 1, 4, 4))
    assert work.total == 2 * 9 * 4 + 8 * 5
    assert work.nonzero == 9 * 4 + 2 * 5


def test_a_layer_that_runs_twice_counts_twice() -> None:
    """What decides is the forward pass, not the list of layers."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4, bias=False)
            nn.init.ones_(self.layer.weight)
            self.layer.weight.data[0] = 0

        def forward(self, inputs: Tensor) -> Tensor:
            out: Tensor = self.layer(self.layer(inputs))
            return out

    assert count_macs(Twice(), torch.rand(1, 4)) == (32, 24)


@pytest.mark.parametrize("name", [EAGER, CSR, ONNX])
def test_every_runtime_answers_as_the_network_does(name: str) -> None:
    """What is timed is the pruned network and nothing else."""
    target = target_from_module(dense_network(), inputs=InputOptions((1, 4, 4), range=(0, 1)))
    inputs = torch.rand(6, 1, 4, 4)
    with ready(name, RuntimeSubject(target.model, target), inputs) as run, torch.no_grad():
        found = torch.as_tensor(run(inputs))
        assert torch.allclose(found, target.model(inputs), atol=1e-5)


@pytest.mark.slow
def test_a_compiled_network_answers_as_it_does_uncompiled() -> None:
    """torch.compile, where there is a compiler."""
    target = target_from_module(dense_network(), inputs=InputOptions((1, 4, 4), range=(0, 1)))
    inputs = torch.rand(6, 1, 4, 4)
    with (
        ready("torch-compile", RuntimeSubject(target.model, target), inputs) as run,
        torch.no_grad(),
    ):
        assert torch.allclose(run(inputs), target.model(inputs), atol=1e-5)


def test_latency_grows_with_the_work() -> None:
    """A pass of 64 inputs takes longer than one of one input; both networks are timed."""
    target = load_target("mnist-cnn")
    subject = RuntimeSubject(target.model, target)
    timed = time_runtimes(subject, subject, [EAGER], [1, 64])
    assert timed.pruned[EAGER][64] > timed.pruned[EAGER][1] > 0
    assert timed.dense.keys() == timed.pruned.keys()
    assert not timed.missing


def test_a_runtime_that_cannot_says_why() -> None:
    """CSR without linear layers; torch on an ONNX file."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten())
    target = target_from_module(model, inputs=InputOptions((1, 4, 4), range=(0, 1)))
    timed = time_runtimes(RuntimeSubject(target.model, target), None, [CSR, EAGER], [1])
    assert "no linear layer" in timed.missing[CSR]
    assert list(timed.pruned) == [EAGER]
    with (
        pytest.raises(UnavailableError, match="torch does not run"),
        ready(EAGER, RuntimeSubject(None, target), torch.rand(1, 1, 4, 4)),
    ):
        pass


SAME, SMALLER = (
    NonzeroMacs(100, 10),
    NonzeroMacs(40, 40),
)  # of a dense network with 100 multiply-adds


@pytest.mark.parametrize(
    ("own", "dense", "work", "words"),
    [
        (
            {EAGER: {1: 1.0}, CSR: {1: 4.0}},  # half the time in torch is noise: the work is equal
            {EAGER: {1: 2.0}},
            SAME,
            ("no speed-up: 0.50 times as fast at batch 1 (torch-csr)", "saves bytes, not time"),
        ),
        (
            {EAGER: {1: 2.0}, CSR: {1: 1.0}},
            {EAGER: {1: 2.0}},
            SAME,
            ("speed-up over the dense network", "2.00 times as fast at batch 1 (torch-csr)"),
        ),
        (
            {CSR: {1: 1.0}},  # the dense network is free to use its own fastest runtime
            {EAGER: {1: 2.0}, ONNX: {1: 0.5}},
            SAME,
            ("no speed-up: 0.50 times as fast at batch 1 (torch-csr)", "all 100 multiply-adds"),
        ),
        ({EAGER: {1: 1.0}}, {EAGER: {1: 2.0}}, SAME, ("all 100 multiply-adds", "not time")),
        (
            {EAGER: {1: 1.0, 64: 9.0}, ONNX: {1: 3.0, 64: 8.0}},
            {EAGER: {1: 2.0, 64: 8.0}},
            SMALLER,
            (
                "speed-up over the dense network in its fastest runtime: 2.00 times as fast",
                "no speed-up: 1.00 times as fast at batch 64 (onnxruntime)",
            ),
        ),
    ],
    ids=["same", "csr", "slower", "no csr", "smaller"],
)
def test_the_verdict_compares_the_fastest_of_both(
    own: dict[str, dict[int, float]],
    dense: dict[str, dict[int, float]],
    work: NonzeroMacs,
    words: tuple[str, ...],
) -> None:
    """A file is faster only by less work, and if nothing runs the dense network as fast."""
    held = FileContents(Path("x"), "dense", 10, 2)
    said = list(remarks(held, LatencyTable(own, dense, {}), work, 100))
    assert all(part in " ".join(said) for part in words), said
    assert any("not time" in line for line in said) == (work is SAME and "2.00" not in words[1])


def test_a_file_that_nobody_names_is_counted_all_the_same(tiny: Path, tmp_path: Path) -> None:
    """No network: no latency and no agreement, and a line that says what to do."""
    lonely = tmp_path / "lonely.safetensors"
    lonely.write_bytes((tiny / "pruned.safetensors").read_bytes())
    (found,) = measure(lonely)
    record = found.record()
    assert (record["macs"], record["latency_ms"], record["agreement"]) == (None, {}, None)
    assert record["nonzeros"] < record["parameters"]
    assert "--target" in record["remarks"][0]
    target = target_from_module(dense_network(), inputs=InputOptions((1, 4, 4), range=(0, 1)))
    (known,) = measure(lonely, target=target, runtimes=[EAGER], batches=[1])
    assert known.compared_on == "256 inputs: procedural inputs"
    assert known.agreement is not None


def test_a_dense_network_that_has_changed_is_not_compared_with(place: Path, run: Run) -> None:
    """The checkpoint beside the factory file is another one now: the file's figures would lie."""
    assert run(*PRUNE, "--method", "magnitude", "--out", "run", "--quiet").code == 0
    state = load_file("net.safetensors")
    save_file({name: value + 1 for name, value in state.items()}, "net.safetensors")
    ran = run("measure", "run/pruned.safetensors", "--runtimes", "torch")
    assert ran.code == 2
    assert "are no longer those that run/pruned.safetensors was pruned from" in ran.err


def test_the_dense_network_itself_agrees_with_itself(tmp_path: Path) -> None:
    """Agreement is 1 and a remark says that nothing is pruned."""
    target = load_target("lenet")
    path = tmp_path / "dense.safetensors"
    save_file(target.model.state_dict(), path)
    (found,) = measure(path, target="lenet", runtimes=[EAGER], batches=[1])
    assert found.agreement == 1.0
    assert any("nothing is pruned" in line for line in found.remarks)


def test_wrong_files_are_refused_before_anything_is_measured(
    exported: dict[str, Path], tmp_path: Path
) -> None:
    """Missing, damaged, foreign, of another network; unknown runtimes; no batch."""
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(exported["dense"].read_bytes()[:-5])
    with pytest.raises(InputError, match=r"bad.safetensors is damaged"):
        measure(exported["dense"], bad)
    with pytest.raises(InputError, match="there is no file"):
        measure(tmp_path / "none.safetensors")
    with pytest.raises(InputError, match="is a folder"):
        measure(tmp_path)
    broken = tmp_path / "x.onnx"
    broken.write_bytes(b"no model at all")
    with pytest.raises(InputError, match="not an ONNX file"):
        measure(broken)
    picture = tmp_path / "x.png"
    picture.write_bytes(b"\x89PNG")
    with pytest.raises(InputError, match="must end in one of"):
        measure(picture)
    with pytest.raises(InputError, match=r"dense.*(missing|shapes|names)"):
        measure(exported["dense"], target="lenet", runtimes=[EAGER])
    with pytest.raises(InputError, match=r"unknown name 'tensorrt'.*torch-csr"):
        measure(exported["dense"], runtimes=["tensorrt"])
    with pytest.raises(InputError, match="batches"):
        measure(exported["dense"], batches=[0])
    with pytest.raises(InputError, match="none given"):
        measure()


def test_the_kind_is_told_by_the_content(exported: dict[str, Path], tmp_path: Path) -> None:
    """A sparse file under any name, and a state dict of torch.save."""
    other = tmp_path / "any.safetensors"
    other.write_bytes(exported["sparse"].read_bytes())
    assert read_contents(other).kind == "sparse"
    torch.save(load_file(exported["dense"]), tmp_path / "x.pt")
    assert read_contents(tmp_path / "x.pt").kind == "dense"


def test_the_command_prints_one_record_per_file(place: Path, run: Run) -> None:
    """`--json` holds the promised keys; without it a table and the honest line are printed."""
    assert run(*PRUNE, "--method", "magnitude", "--out", "run", "--quiet").code == 0
    assert run("export", "run", "--format", "sparse", "--no-compress").code == 0
    files = ("run/pruned.safetensors", "run-sparse/model.sparse.safetensors")
    ran = run("measure", *files, "--runtimes", "torch,torch-csr", "--json")
    assert ran.code == 0
    rows = json.loads(ran.out)
    assert [row["file"] for row in rows] == list(files)
    for row in rows:
        assert {"bytes", "parameters", "nonzeros", "macs", "agreement"} < row.keys()
        assert {name: set(by) for name, by in row["latency_ms"].items()} == {
            "torch": {"1", "64"},
            "torch-csr": {"1", "64"},
        }
        assert row["macs"] == 12 * 16 + 16 * 3
        assert row["nonzero_macs"] == (12 * 16 + 16 * 3) // 2
    shown = run("measure", files[0], "--runtimes", "torch")
    assert shown.code == 0
    assert "milliseconds of one pass" in shown.out
    assert "multiply-adds of the dense network" in shown.out
    assert files[0] in shown.out


def test_runtimes_are_four() -> None:
    """What the help lists is what there is."""
    assert list(RUNTIMES) == ["torch", "torch-compile", "torch-csr", "onnxruntime"]
