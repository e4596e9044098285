"""`gaprune measure`: counts are exact, latency is of the pruned network, and remarks are fair."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command_line import PRUNE, Run
from export_cases import dense_network, tiny_result, zoo_result
from safetensors.torch import load_file, save_file, save_model
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
from gaprune.exports.measure.file_contents import read_contents
from gaprune.exports.measure.measure_file import (
    NOTHING_PRUNED,
    NonzeroMacs,
    count_macs,
    remarks,
)
from gaprune.models.input_spec import InputOptions
from gaprune.models.target import Target, target_from_module

FORMATS = ("dense", "masks", "prune", "sparse")


@pytest.fixture(scope="module")
def result() -> Result:
    """A pruned bundled network, which its files name."""
    return zoo_result("four-layer", 0.9)


@pytest.fixture(scope="module")
def exported(result: Result, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Format → its file."""
    folder = tmp_path_factory.mktemp("out")
    return {form: export(result, form, folder / form).file for form in (*FORMATS, "onnx")}


@pytest.fixture(scope="module")
def target() -> Target:
    """A small dense network."""
    return target_from_module(dense_network(), inputs=InputOptions((1, 4, 4), range=(0, 1)))


@pytest.mark.parametrize("form", FORMATS)
def test_counts_are_those_of_the_state(
    form: str, result: Result, exported: dict[str, Path]
) -> None:
    """The format is told by the content; bytes, parameters and non-zeros are counted."""
    (measured,) = measure(exported[form], runtimes=[EAGER], batches=[1])
    state = [value for value in result.state_dict().values() if value.is_floating_point()]
    if form == "masks":
        state = list(result.masks.values())
    assert measured.kind == form
    assert measured.bytes == exported[form].stat().st_size
    assert measured.parameters == sum(value.numel() for value in state)
    assert measured.nonzeros == sum(int(value.count_nonzero()) for value in state)
    assert measured.zstd_bytes is not None
    assert 0 < measured.zstd_bytes < measured.bytes * 1.01


@pytest.mark.slow
def test_onnx_is_measured_like_the_network(result: Result, exported: dict[str, Path]) -> None:
    """Its agreement and MACs are those of the dense format."""
    onnx, dense = measure(exported["onnx"], exported["dense"], runtimes=ONNX, batches=2)
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
    """They are counted on the first thousand test images."""
    from gaprune.models.zoo import mnist  # noqa: PLC0415 - tens of megabytes

    (measured,) = measure(exported["sparse"], runtimes=[EAGER], batches=[1])
    images, labels = (part[:1000] for part in mnist.test_set())
    with torch.no_grad():
        pruned, dense = (m(images).argmax(1) for m in (result.pruned_model(), result.target.model))
    assert measured.agreement == pytest.approx(float((pruned == dense).double().mean()))
    assert measured.accuracy == pytest.approx(float((pruned == labels).double().mean()))
    assert "1,000" in str(measured.compared_on)


def test_macs_are_those_counted_by_hand() -> None:
    """Every forward pass of a convolution or linear layer counts; zeros are told apart."""
    conv, head = nn.Conv2d(1, 2, 3, bias=False), nn.Linear(8, 5)
    model = nn.Sequential(conv, nn.Flatten(), head)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
        conv.weight[0] = 0.0  # half of them
        head.weight[:, :6] = 0.0  # three quarters
    assert count_macs(model, torch.rand(1, 1, 4, 4)) == (2 * 9 * 4 + 8 * 5, 9 * 4 + 2 * 5)

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


@pytest.mark.parametrize(
    "name", [EAGER, CSR, ONNX, pytest.param("torch-compile", marks=pytest.mark.slow)]
)
def test_every_runtime_computes_the_network(name: str, target: Target) -> None:
    """Its outputs differ from torch's by at most 1e-5."""
    assert name in RUNTIMES
    inputs = torch.rand(6, 1, 4, 4)
    with ready(name, RuntimeSubject(target.model, target), inputs) as run, torch.no_grad():
        assert torch.allclose(torch.as_tensor(run(inputs)), target.model(inputs), atol=1e-5)


def test_latency_grows_with_the_batch() -> None:
    """64 inputs take longer than one; dense and pruned network are both timed."""
    target = load_target("mnist-cnn")
    subject = RuntimeSubject(target.model, target)
    timed = time_runtimes(subject, subject, [EAGER], [1, 64])
    assert timed.pruned[EAGER][64] > timed.pruned[EAGER][1] > 0
    assert timed.dense.keys() == timed.pruned.keys()
    assert not timed.missing


def test_unavailable_runtimes_give_a_reason(target: Target) -> None:
    """CSR needs a linear layer, and torch a module."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten())
    conv = target_from_module(model, inputs=InputOptions((1, 4, 4), range=(0, 1)))
    timed = time_runtimes(RuntimeSubject(conv.model, conv), None, [CSR, EAGER], [1])
    assert "linear" in timed.missing[CSR]
    assert list(timed.pruned) == [EAGER]
    with (
        pytest.raises(UnavailableError, match="torch"),
        ready(EAGER, RuntimeSubject(None, target), torch.rand(1, 1, 4, 4)),
    ):
        pass


SAME = NonzeroMacs(100, 10)  # of a dense network with 100 MACs
SMALLER = NonzeroMacs(40, 40)


@pytest.mark.parametrize(
    ("pruned", "dense", "macs", "words"),
    [
        # Half the time in torch is noise where the MACs are equal.
        ({EAGER: {1: 1.0}, CSR: {1: 4.0}}, {EAGER: {1: 2.0}}, SAME, ("0.50", "batch 1", CSR)),
        ({EAGER: {1: 2.0}, CSR: {1: 1.0}}, {EAGER: {1: 2.0}}, SAME, ("2.00", "batch 1", CSR)),
        # The dense network is timed in its own fastest runtime.
        ({CSR: {1: 1.0}}, {EAGER: {1: 2.0}, ONNX: {1: 0.5}}, SAME, ("0.50", CSR, "all 100")),
        ({EAGER: {1: 1.0}}, {EAGER: {1: 2.0}}, SAME, ("all 100", "not time")),
        (
            {EAGER: {1: 1.0, 64: 9.0}, ONNX: {1: 3.0, 64: 8.0}},
            {EAGER: {1: 2.0, 64: 8.0}},
            SMALLER,
            ("2.00", "1.00", "batch 64 (onnxruntime)"),
        ),
    ],
    ids=["same", "csr", "slower", "no csr", "smaller"],
)
def test_a_speed_up_needs_fewer_macs_or_a_sparse_runtime(
    pruned: dict[str, dict[int, float]],
    dense: dict[str, dict[int, float]],
    macs: NonzeroMacs,
    words: tuple[str, ...],
) -> None:
    """The fastest runtimes of both networks are compared, batch by batch."""
    lines = list(remarks(LatencyTable(pruned, dense, {}), macs, 100))
    assert all(word in " ".join(lines) for word in words), lines
    assert any("not time" in line for line in lines) == (macs is SAME and "2.00" not in words)


def test_a_file_without_a_named_network_is_counted(tmp_path: Path, target: Target) -> None:
    """Latency and agreement need the network, which a remark asks for."""
    path = tmp_path / "moved.safetensors"
    run_directory = save_run(tiny_result(), tmp_path / "run")
    path.write_bytes((run_directory / "pruned.safetensors").read_bytes())
    (measured,) = measure(path)
    record = measured.record()
    assert (record["macs"], record["latency_ms"], record["agreement"]) == (None, {}, None)
    assert record["nonzeros"] < record["parameters"]
    assert "target=" in record["remarks"][0]
    (measured,) = measure(path, target=target, runtimes=[EAGER], batches=[1])
    assert "256" in str(measured.compared_on)
    assert measured.agreement is not None


def test_the_dense_network_agrees_with_itself(tmp_path: Path, target: Target) -> None:
    """Agreement is 1, and a remark says that nothing is pruned."""
    path = tmp_path / "dense.safetensors"
    save_model(target.model, str(path))
    (measured,) = measure(path, target=target, runtimes=[EAGER], batches=[1])
    assert measured.agreement == 1.0
    assert NOTHING_PRUNED in measured.remarks


@pytest.mark.parametrize(
    ("name", "content", "options", "match"),
    [
        ("bad.safetensors", b"\x10" * 9, {}, "bad.safetensors is damaged"),
        ("none.safetensors", None, {}, "no file"),
        (".", None, {}, "folder"),
        ("x.onnx", b"no model", {}, "ONNX"),
        ("x.png", b"\x89PNG", {}, ".safetensors"),
        (None, None, {"target": "lenet", "runtimes": [EAGER]}, "dense.*(missing|shapes|names)"),
        (None, None, {"runtimes": ["tensorrt"]}, "'tensorrt'.*torch-csr"),
        (None, None, {"batches": [0]}, "batches"),
    ],
)
def test_wrong_files_and_options_are_refused(
    name: str | None,
    content: bytes | None,
    options: dict[str, list[str]],
    match: str,
    exported: dict[str, Path],
    tmp_path: Path,
) -> None:
    """The error names the file or the option."""
    path = exported["dense"] if name is None else tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=match):
        measure(path, **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="files"):
        measure()


def test_the_kind_is_told_by_the_content(exported: dict[str, Path], tmp_path: Path) -> None:
    """Neither the name of a sparse file matters, nor who wrote a state dict."""
    path = tmp_path / "any.safetensors"
    path.write_bytes(exported["sparse"].read_bytes())
    assert read_contents(path).kind == "sparse"
    torch.save(load_file(exported["dense"]), tmp_path / "x.pt")
    assert read_contents(tmp_path / "x.pt").kind == "dense"


def test_the_command_prints_a_record_per_file(place: Path, run: Run) -> None:
    """`--json` has the documented keys; a dense network that has changed is refused."""
    assert run(*PRUNE, "--method", "magnitude", "--out", "run", "--quiet").code == 0
    assert run("export", "run", "--format", "sparse", "--no-compress").code == 0
    files = ("run/pruned.safetensors", "run-sparse/model.sparse.safetensors")
    ran = run("measure", *files, "--runtimes", "torch,torch-csr", "--json")
    assert ran.code == 0
    rows = json.loads(ran.out)
    assert [row["file"] for row in rows] == list(files)
    for row in rows:
        assert {"bytes", "parameters", "nonzeros", "macs", "agreement"} < row.keys()
        batches = {name: set(by_batch) for name, by_batch in row["latency_ms"].items()}
        assert batches == {"torch": {"1", "64"}, "torch-csr": {"1", "64"}}
        assert (row["macs"], row["nonzero_macs"]) == (240, 120)
    ran = run("measure", files[0], "--runtimes", "torch")
    assert ran.code == 0
    assert files[0] in ran.out
    state = load_file("net.safetensors")
    save_file({name: value + 1 for name, value in state.items()}, "net.safetensors")
    ran = run("measure", files[0], "--runtimes", "torch")
    assert (ran.code, files[0] in ran.err) == (2, True)
