"""Damage and hostile files end in one line and exit code 2, before memory or time is spent."""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from gaprune import export, load_masks, load_sparse
from gaprune.calibration.array_files import load_arrays
from gaprune.cli import main
from gaprune.comparison.comparison_report import make_report
from gaprune.errors import InputError
from gaprune.exports.pruned_network import ExportOptions
from gaprune.exports.sparse_writer import sparse_bytes
from gaprune.io.bounded_reading import MAX_LINE, read_lines
from gaprune.io.mask_file import save_masks
from gaprune.io.serialization import to_metadata
from gaprune.io.sparse import DATA, TABLE, table_sha256
from gaprune.io.weights import load_state

SHAPES = {"fc1.weight": (250, 784), "fc1.bias": (250,), "fc2.weight": (100, 250)}
DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000 + "\n"
GIANT = 1 << 42


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run of a bundled network, with checkpoints."""
    run = tmp_path_factory.mktemp("finished") / "run"
    short = ("--generations", "1", "--set", "steps=1", "--set", "population=2")
    counts = ("--calibration-count", "16", "--validation-count", "16")
    options = ("--sparsity", "0.9", "--calibration", "noise", "--quiet", "--out", str(run))
    assert main(["prune", "mnist-mlp", *options, *short, *counts]) == 0
    return run


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must fail with exit code 2, and return its only line."""
    capsys.readouterr()
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.count("weights: ") + line.count("run: ") + line.count("file: ") <= 1
    return line


@pytest.mark.slow
def test_one_flipped_bit_of_a_kept_weight_is_refused(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By export, measure, report and resume; the intact run passes."""
    file = finished / "pruned.safetensors"
    intact = file.read_bytes()
    bits = bytearray(intact)
    state, mask = load_state(file), load_masks(finished)["fc2.weight"]
    kept_weight = state["fc2.weight"][mask][0].numpy().tobytes()
    bits[intact.index(kept_weight)] ^= 1
    commands = [
        ["export", str(finished), "--format", "dense", "--out", str(tmp_path / "out"), "--quiet"],
        ["measure", str(file), "--quiet"],
        ["report", str(finished)],
        ["resume", str(finished), "--quiet"],
    ]
    file.write_bytes(bits)
    try:
        for command in commands:
            assert "pruned.safetensors" in error_of(command, capsys)
        assert not (tmp_path / "out").exists()
    finally:
        file.write_bytes(intact)
    card = export(finished, "dense", tmp_path / "out").path / "README.md"
    assert "bit-identical" in card.read_text()


def test_target_and_weights_of_a_run_may_be_edited_and_nothing_else(
    finished: Path, tmp_path: Path
) -> None:
    """They are checked by the hash of the dense network."""
    config = finished / "config.toml"
    intact = config.read_text()
    try:
        config.write_text(intact.replace('target = "mnist-mlp"', 'target = "moved.py:make"'))
        export(finished, "dense", tmp_path / "moved")
        config.write_text(intact.replace("sparsity = 0.9", "sparsity = 0.8"))
        with pytest.raises(InputError, match=r"config\.toml"):
            export(finished, "dense", tmp_path / "changed")
    finally:
        config.write_text(intact)


@pytest.mark.parametrize("name", ["result.json", "report.json", "history.jsonl"])
def test_deeply_nested_records_are_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By every command that reads them."""
    (tmp_path / "config.toml").write_text('target = "mnist-mlp"\n')
    for file in {name, "result.json"}:
        (tmp_path / file).write_text(DEEP)
    for command in (["report"], ["watch"], ["export", "--format", "dense"]):
        error_of([command[0], str(tmp_path), *command[1:]], capsys)


def unusual(kind: str, shape: tuple[int, ...]) -> Tensor:
    """Return a tensor that does not store its elements one by one."""
    if kind == "sparse_coo":
        return torch.zeros(shape).to_sparse()
    if kind == "meta":
        return torch.empty(shape, device="meta")
    if kind == "quantised":
        return torch.quantize_per_tensor(torch.zeros(shape), 0.1, 0, torch.qint8)
    return torch.zeros(1).expand(10**6, 10**6)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("kind", ["sparse_coo", "meta", "quantised", "expanded"])
def test_unusual_tensors_are_refused_by_name(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of any layout that would be a traceback or a terabyte later."""
    file = tmp_path / "state.pt"
    torch.save({name: unusual(kind, shape) for name, shape in SHAPES.items()}, file)
    options = ["--sparsity", "0.9", "--no-save", "--quiet", "--weights", str(file)]
    for command in (["prune", "mnist-mlp", *options], ["measure", str(file), "--quiet"]):
        line = error_of(command, capsys)
        assert "fc1.weight" in line
        assert kind in line


def test_a_checkpoint_that_contains_itself_is_refused(tmp_path: Path) -> None:
    """The search for nested weights ends."""
    content: dict[str, Any] = {}
    content["model"] = content
    torch.save(content, tmp_path / "state.pt")
    with pytest.raises(InputError, match="without tensors"):
        load_state(tmp_path / "state.pt")


def test_a_damaged_name_in_an_archive_is_an_error_of_gaprune(tmp_path: Path) -> None:
    """Python's reader of archives raises another type for it than for other damage."""
    path = tmp_path / "state.pt"
    torch.save({"a": torch.zeros(2)}, path)
    path.write_bytes(path.read_bytes().replace(b"data.pkl", b"\xf1ata.pkl"))
    with pytest.raises(InputError, match="damaged"):
        load_state(path)


def test_half_a_million_tensors_are_refused(tmp_path: Path) -> None:
    """Their names alone take seconds."""
    entry = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"n{i}": entry for i in range(200_000)}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(InputError, match="100,000"):
        load_state(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "entry",
    [
        {"shape": [GIANT], "kept": 0},
        {"shape": [GIANT]},
        {"shape": "4"},
        {"shape": [4], "kept": -1},
        {"shape": [4], "bytes": []},
        {"shape": [4], "bytes": [0, GIANT]},
        {"shape": [4], "dtype": ["float32"]},
        {"shape": [4], "codebook": 10**9},
        {"same_as": 3},
        {"same_as": "nothing"},
        {},
    ],
    ids=str,
)
def test_sparse_files_that_lie_are_refused(entry: dict[str, Any], tmp_path: Path) -> None:
    """Sizes and types in the table are checked before memory is taken."""
    complete = {"dtype": "float32", "bytes": [0], "sha256": "e3b0c44298fc1c14"}
    table = json.dumps({"w": {**complete, **entry} if entry and "same_as" not in entry else entry})
    stored = {TABLE: torch.tensor(list(table.encode()), dtype=torch.uint8)}
    stored[DATA] = torch.zeros(0, dtype=torch.uint8)
    facts = {"format": "gaprune sparse", "version": "2", "table": ""}
    sha256 = table_sha256(facts, table.encode())
    file = tmp_path / "a.safetensors"
    save_file(stored, file, to_metadata(**facts, sha256=sha256))
    for read in (load_sparse, load_state):
        with pytest.raises(InputError):
            read(file)


def test_a_sparse_file_is_compared_with_the_network_before_it_is_unpacked(tmp_path: Path) -> None:
    """A gigabyte that this machine has is refused for a small network."""
    weights, mask = torch.zeros(1 << 20), torch.zeros(1 << 20, dtype=torch.bool)
    (tmp_path / "a.safetensors").write_bytes(
        sparse_bytes({"w": weights}, {"w": mask}, ExportOptions())
    )
    assert load_state(tmp_path / "a.safetensors")["w"].numel() == 1 << 20
    with pytest.raises(InputError, match="bytes"):
        load_state(tmp_path / "a.safetensors", max_bytes=1 << 20)


@pytest.mark.parametrize("form", ["npz", "idx.gz", "npy"])
def test_files_that_would_grow_are_refused(form: str, tmp_path: Path) -> None:
    """An archive of zeros, and a header that states more than the file has."""
    file, size = tmp_path / f"a.{form}", 200 << 20
    if form == "npz":
        np.savez_compressed(file, x=np.zeros(size, np.uint8))
    elif form == "idx.gz":
        file.write_bytes(gzip.compress(struct.pack(">I2I", 0x802, size, 1) + bytes(1 << 20)))
    else:
        header = {"descr": "<f8", "fortran_order": False, "shape": (size,)}
        with file.open("wb") as out:
            np.lib.format.write_array_header_1_0(out, header)
    with pytest.raises(InputError, match="bytes"):
        load_arrays(file)


@pytest.mark.parametrize(
    "content",
    [
        'target = "caf\xe9"\n'.encode("latin-1"),
        b"seed = " + b"9" * 5000,
        b"seed = " + b"9" * 40,
        b"seed = " + b"[" * 5000 + b"]" * 5000,
        b".".join([b"a"] * 60_000) + b" = 1\n",
        b'"a".' * 60_000 + b"b = 1\n",
        b"[" + b"a . " * 60_000 + b"b]\n",
        b"# " + b"x" * (1 << 20),
    ],
    ids=["latin1", "5000 digits", "40 digits", "deep", "dotted", "quoted", "table", "long"],
)
def test_settings_that_cannot_be_read_are_refused(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Encoding, numbers, depth and size."""
    (tmp_path / "a.toml").write_bytes(content)
    config = str(tmp_path / "a.toml")
    line = error_of(["prune", "mnist-mlp", "--no-save", "--config", config], capsys)
    assert "config: " in line


def test_an_input_larger_than_memory_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Before it is allocated."""
    options = ["--sparsity", "0.9", "--no-save", "--input-shape", "100000,100000,100"]
    assert "input shape: " in error_of(["prune", "mnist-mlp", *options], capsys)


def test_lines_are_read_one_by_one(tmp_path: Path) -> None:
    """An incomplete last line is left out, and a line without end is refused."""
    (tmp_path / "a").write_bytes(b"1\n2\n3")
    assert list(read_lines(tmp_path / "a")) == [b"1", b"2"]
    (tmp_path / "a").write_bytes(b"1\n" + bytes(MAX_LINE + 1))
    with pytest.raises(ValueError, match="line"):
        list(read_lines(tmp_path / "a"))


def test_a_mask_of_another_shape_names_the_mask(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Measured against a network that it does not fit."""
    masks = {"fc1.weight": torch.ones(3, 3, dtype=torch.bool)}
    file = save_masks(masks, tmp_path / "m.safetensors")
    line = error_of(["measure", str(file), "--target", "mnist-mlp", "--quiet"], capsys)
    assert "fc1.weight" in line


def test_a_hostile_name_cannot_command_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Messages have one line, and print what they quote."""
    name = tmp_path / "a\x1b[2J\nb.toml"
    line = error_of(["prune", "mnist-mlp", "--no-save", "--config", str(name)], capsys)
    assert "\x1b" not in line


def test_reports_refuse_rows_of_wrong_types(tmp_path: Path) -> None:
    """Also where a row is no object."""
    for row in ("1", "[]", '{"sparsity": "x"}', DEEP.strip()):
        (tmp_path / "rows.jsonl").write_text(f"{row}\n")
        with pytest.raises(InputError, match="line 1"):
            make_report(tmp_path)
