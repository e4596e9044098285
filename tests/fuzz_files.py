"""Files of every format that gaprune writes or reads, and seeded damage to them."""

from __future__ import annotations

import gzip
import json
import random
import shutil
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from export_cases import dense_network, tiny_result
from torch import Tensor, nn

from gaprune import InputOptions, export, load_masks, prune
from gaprune.calibration.array_files import load_arrays
from gaprune.calibration.disk_cache import SUBFOLDER, cached
from gaprune.comparison import MethodRequirements, Row
from gaprune.comparison.comparison_report import make_report
from gaprune.comparison.store import CONFIG, ROWS, TABLE, open_store, read_rows
from gaprune.config import make_settings
from gaprune.errors import GapruneError
from gaprune.exports.measure.file_contents import read_contents
from gaprune.exports.pruned_network import read_pruned
from gaprune.exports.semi_structured_writer import load_semi_structured
from gaprune.io.checkpoints import read_checkpoint, read_newest
from gaprune.io.manifest import IDENTITY, SEAL, read_manifest, sealed
from gaprune.io.mask_file import save_masks
from gaprune.io.run_files import MAY_CHANGE, check_run, read_config
from gaprune.io.sparse import load_sparse
from gaprune.io.weights import load_state
from gaprune.report import report_of
from gaprune.report.reading import read_run
from gaprune.runs.status import read_status

TINY: dict[str, Any] = {
    "generations": 2,
    "steps": 2,
    "batch": 8,
    "population": 2,
    "offspring": 2,
    "calibration_count": 16,
    "validation_count": 16,
    "sparsity": 0.7,
}
DEEP, HUGE = "[" * 3000 + "]" * 3000, "9" * 5000
VALUES: tuple[str, ...] = (
    *("null", "true", "-1", "0", "3", "1e308", "1e999", "NaN", '""', '"x"', "[]", "{}", "[[1]]"),
    *('{"a": 1}', str(10**25), str(2**63), HUGE, DEEP, '"\\ud800"', '"' + "x" * 5000 + '"'),
)
PLACEHOLDER = "@replaced@"


@dataclass(frozen=True)
class FileFormat:
    """A file, and the function that reads it.

    Attributes:
        path: the file that is damaged.
        read: returns its content through a public function.
        exact: whether every change must be noticed; otherwise the format has no hash, and reading
            must only end in a result or in one error of gaprune.
    """

    path: Path
    read: Callable[[], object]
    exact: bool = True


def plain(value: object) -> object:
    """Return a value that can be compared, tensors bit by bit."""
    if isinstance(value, Tensor):
        data = value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return str(value.dtype), tuple(value.shape), data
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if is_dataclass(value) and not isinstance(value, type):
        return plain({name: getattr(value, name) for name in vars(value)})
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [plain(inner) for inner in value]
    return value


def mutate(data: bytes, rng: random.Random, suffix: str) -> bytes:
    """Return damaged bytes; of text and headers also with another value of JSON."""
    edits = [_flip, _flip, _truncate, _delete, _duplicate, _insert, _overwrite]
    edits += {".json": [_json] * 4, ".jsonl": [_jsonl] * 4, ".safetensors": [_header] * 4}.get(
        suffix, []
    )
    return rng.choice(edits)(data, rng)


def _span(data: bytes, rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + rng.choice((1, 2, 8, 64, 1024)))


def _flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 5))):
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.choice((0, 1, 8, rng.randrange(len(data))))]


def _delete(data: bytes, rng: random.Random) -> bytes:
    start, end = _span(data, rng)
    return data[:start] + data[end:]


def _duplicate(data: bytes, rng: random.Random) -> bytes:
    start, end = _span(data, rng)
    return data[:end] + data[start:end] + data[end:]


def _insert(data: bytes, rng: random.Random) -> bytes:
    start, _ = _span(data, rng)
    text = rng.choice((rng.randbytes(8), *(value.encode() for value in VALUES)))
    return data[:start] + text + data[start:]


def _overwrite(data: bytes, rng: random.Random) -> bytes:
    start, end = _span(data, rng)
    return data[:start] + rng.choice((bytes(end - start), rng.randbytes(end - start))) + data[end:]


def _json(data: bytes, rng: random.Random) -> bytes:
    return _with_other_value(json.loads(data), rng).encode("utf-8", "surrogatepass")


def _jsonl(data: bytes, rng: random.Random) -> bytes:
    lines = data.splitlines(keepends=True)
    index = rng.randrange(len(lines))
    lines[index] = _json(lines[index], rng) + b"\n"
    return b"".join(lines)


def _header(data: bytes, rng: random.Random) -> bytes:
    (size,) = struct.unpack("<Q", data[:8])
    header = _json(data[8 : 8 + size], rng)
    return struct.pack("<Q", len(header)) + header + data[8 + size :]


def _with_other_value(content: object, rng: random.Random) -> str:
    """Replace, rename or remove one value at any depth; seal the result again or not."""
    outer: Any = {"root": content}
    key: Any
    parent, key = outer, "root"  # then `key` is a name or a position
    while isinstance(parent[key], (dict, list)) and parent[key] and rng.random() < 0.8:
        parent = parent[key]
        key = rng.choice(list(parent)) if isinstance(parent, dict) else rng.randrange(len(parent))
    action = rng.random()
    if action < 0.1 and parent is not outer:
        del parent[key]
    elif action < 0.2 and isinstance(parent, dict) and parent is not outer:
        parent[f"{key}x"] = parent.pop(key)
    elif action < 0.3 and isinstance(parent[key], (int, float)):
        parent[key] += 1
    else:
        parent[key] = PLACEHOLDER
    text = json.dumps(outer["root"], indent=rng.choice((None, 2)))
    return text.replace(f'"{PLACEHOLDER}"', rng.choice(VALUES))


def resealed(data: bytes, rng: random.Random) -> bytes:
    """Change a value in JSON on purpose: its hash is right again."""
    content = json.loads(data)
    content.pop(SEAL, None)
    try:
        return json.dumps(sealed(json.loads(_with_other_value(content, rng)))).encode()
    except (RecursionError, ValueError, TypeError):  # no JSON
        return data


class Packed(nn.Module):
    """A network whose first layer can be packed 2:4."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(64, 32), nn.Linear(32, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits `[N, 4]`."""
        out: Tensor = self.head(self.first(inputs).relu())
        return out


def make_formats(folder: Path) -> dict[str, FileFormat]:
    """Write a file of every format into a folder."""
    formats = {
        **_run_formats(folder / "run"),
        **_export_formats(folder),
        **_comparison_formats(folder / "comparison"),
        **_other_formats(folder / "other"),
    }
    return dict(sorted(formats.items()))


def _run_formats(run: Path) -> dict[str, FileFormat]:
    inputs = InputOptions(shape=(1, 4, 4), range=(0, 1))
    prune(dense_network(), inputs=inputs, out=run, repair=True, **TINY)
    front = run.with_name("front")
    prune(dense_network(), inputs=inputs, out=front, pareto=True, **TINY)

    def pruned() -> object:
        network = read_pruned(run)
        config = {key: value for key, value in network.config.items() if key not in MAY_CHANGE}
        return network.state, network.masks, network.record, config

    def strict() -> object:
        return read_pruned(run, strict=True).state

    def contents(name: str) -> Callable[[], object]:
        return lambda: read_contents(run / name).state

    def report() -> object:
        files = read_run(run)
        report_of(run)
        return files.record, files.history, files.report_data

    def status() -> object:
        found = read_status(run)
        return found.record, found.history

    def checkpoint() -> object:
        return tuple(read_checkpoint(run / "checkpoint" / "start"))

    def newest() -> object:
        # The older of two checkpoints stands in for the newer one: that is no silent change.
        return tuple(read_newest(run / "checkpoint" / "copy", lambda _: None) or ())

    last = max((run / "checkpoint").glob("0*"))
    shutil.copytree(last, run / "checkpoint" / "copy" / "1")
    return {
        "config": FileFormat(run / "config.toml", pruned),
        "config of prune": FileFormat(
            run / "config.toml", lambda: make_settings(_settings(run / "config.toml")), exact=False
        ),
        "result": FileFormat(run / "result.json", pruned),
        "result, report": FileFormat(run / "result.json", report),
        "result, watch": FileFormat(run / "result.json", status),
        "history": FileFormat(run / "history.jsonl", report),
        "history, watch": FileFormat(run / "history.jsonl", status),
        "report": FileFormat(run / "report.json", report),
        "mask": FileFormat(run / "mask.safetensors", lambda: load_masks(run)),
        "mask, measure": FileFormat(
            run / "mask.safetensors", lambda: read_contents(run / "mask.safetensors").masks
        ),
        "pruned": FileFormat(run / "pruned.safetensors", strict),
        "pruned, measure": FileFormat(run / "pruned.safetensors", contents("pruned.safetensors")),
        "pruned, report": FileFormat(run / "pruned.safetensors", report),
        "repaired": FileFormat(run / "repaired.safetensors", pruned),
        "front": FileFormat(front / "front.safetensors", lambda: check_run(front)),
        "front, alone": FileFormat(
            front / "front.safetensors", lambda: load_masks(front / "front.safetensors")
        ),
        **{
            f"checkpoint {name}": FileFormat(run / "checkpoint" / "start" / name, checkpoint)
            for name in ("facts.json", "tensors.safetensors", "SHA256SUMS")
        },
        **{
            f"newest checkpoint {name}": FileFormat(
                run / "checkpoint" / "copy" / "1" / name, newest
            )
            for name in ("facts.json", "tensors.safetensors")
        },
    }


def _settings(path: Path) -> dict[str, Any]:
    names = type(make_settings({"sparsity": 0.5})).model_fields
    return {key: value for key, value in read_config(path).items() if key in names}


def _export_formats(folder: Path) -> dict[str, FileFormat]:
    result = tiny_result()
    paths = {
        name: export(result, name, folder / f"export-{name}").file
        for name in ("dense", "masks", "prune")
    }
    paths["sparse"] = export(result, "sparse", folder / "sparse").file
    paths["codebook"] = export(result, "sparse", folder / "codebook", codebook=4).file
    paths["plain"] = export(result, "sparse", folder / "plain", half=True, compress=False).file
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Packed().eval()
    packed = prune(
        model,
        pattern="2:4",
        inputs=InputOptions(shape=(64,), range=(0, 1)),
        method="magnitude",
        calibration_count=16,
        validation_count=16,
    )
    semi = folder / "semi"
    export(packed, "semi-structured", semi, half=True)
    alone = folder / "alone"
    alone.mkdir()
    shutil.copy(paths["dense"], alone / "dense.safetensors")
    shutil.copy(semi / "model.safetensors", alone / "semi.safetensors")
    for name in ("sparse", "codebook", "plain", "masks"):
        shutil.copy(paths[name], alone / f"{name}.safetensors")
    torch.save(result.state_dict(), alone / "state.pt")
    save_masks(result.masks, alone / "saved.safetensors")

    def measured(path: Path) -> Callable[[], object]:
        def read() -> object:
            contents = read_contents(path)
            return contents.state, contents.masks, contents.nonzeros

        return read

    return {
        **{f"export {name}": FileFormat(path, measured(path)) for name, path in paths.items()},
        "export.json": FileFormat(
            paths["dense"].parent / "export.json",
            lambda: read_manifest(paths["dense"].parent) or "no list of gaprune",
        ),
        "export.json, weights": FileFormat(
            paths["dense"].parent / "export.json", lambda: load_state(paths["dense"])
        ),
        "export semi-structured": FileFormat(
            semi / "model.safetensors", lambda: load_semi_structured(semi)
        ),
        "semi-structured.json": FileFormat(
            semi / "semi-structured.json", lambda: load_semi_structured(semi)
        ),
        **{
            f"{name}, alone": FileFormat(
                alone / f"{name}.safetensors",
                lambda name=name: load_sparse(alone / f"{name}.safetensors"),  # type: ignore[misc]
            )
            for name in ("sparse", "codebook", "plain")
        },
        **{
            f"{name}, alone": FileFormat(
                alone / f"{name}.safetensors",
                lambda name=name: load_masks(alone / f"{name}.safetensors"),  # type: ignore[misc]
            )
            for name in ("masks", "saved")
        },
        **{
            f"{name}, alone": FileFormat(
                alone / name,
                lambda name=name: load_state(alone / name),  # type: ignore[misc]
                exact=False,
            )
            for name in ("dense.safetensors", "semi.safetensors", "state.pt")
        },
    }


def _comparison_formats(folder: Path) -> dict[str, FileFormat]:
    rows = [
        Row(
            *("net", sparsity, method, 0, MethodRequirements("procedural")),
            accuracy=0.9,
            agreement=0.8,
            seconds=1.5,
            actual=sparsity,
            steps=({"sparsity": 0.5, "accuracy": None},),
        )
        for sparsity in (0.5, 0.9)
        for method in ("magnitude", "lamp")
    ]
    with open_store(folder, {"target": "net", "torch": "2"}) as store:
        store.write(CONFIG, 'target = "net"\nsparsity = [0.5, 0.9]\n')
        for row in rows:
            store.add(row)
        store.write(TABLE, "A caption.\n\n| a |\n")
        store.list_files()

    def page() -> object:
        return make_report(folder).read_text(encoding="utf-8")

    return {
        "rows": FileFormat(folder / ROWS, lambda: [asdict(row) for row in read_rows(folder)]),
        **{name: FileFormat(folder / name, page) for name in (IDENTITY, CONFIG, TABLE)},
    }


def _other_formats(folder: Path) -> dict[str, FileFormat]:
    folder.mkdir()
    images = np.arange(6 * 16, dtype=np.uint8).reshape(6, 1, 4, 4)
    np.savez(folder / "a.npz", x=images, y=np.arange(6))
    np.savez_compressed(folder / "b.npz", images=images.astype(np.float32) / 255)
    np.save(folder / "a.npy", images)
    torch.save({"x": torch.from_numpy(images)}, folder / "a.pt")
    idx = b"\0\0\x08\x03" + struct.pack(">3I", 6, 4, 4) + images.tobytes()
    (folder / "a.idx").write_bytes(idx)
    (folder / "a.idx.gz").write_bytes(gzip.compress(idx))
    tensor = torch.arange(8.0)
    cached("k", lambda: tensor, print, folder)
    names = ("a.npz", "b.npz", "a.npy", "a.pt", "a.idx", "a.idx.gz")
    return {
        **{
            f"inputs {name}": FileFormat(
                folder / name,
                lambda name=name: load_arrays(folder / name),  # type: ignore[misc]
                exact=False,
            )
            for name in names
        },
        "cache": FileFormat(
            folder / SUBFOLDER / "k.safetensors",
            lambda: cached("k", lambda: tensor, lambda _: None, folder),
        ),
    }


def fuzz(formats: Mapping[str, FileFormat], count: int, first_seed: int = 0) -> list[str]:
    """Damage files `count` times in turn; return what went wrong, a line each."""
    names, faults = list(formats), []
    expected = {name: plain(file.read()) for name, file in formats.items()}
    for seed in range(first_seed, first_seed + count):
        name = names[seed % len(names)]
        file, rng = formats[name], random.Random(seed)
        original, exact = file.path.read_bytes(), file.exact
        if file.path.suffix == ".json" and SEAL.encode() in original and rng.random() < 0.3:
            damaged, exact = resealed(original, rng), False
        else:
            damaged = mutate(original, rng, file.path.suffix)
        if fault := _outcome(file, damaged, exact=exact, expected=expected[name]):
            faults.append(f"seed {seed}, {name}: {fault}")
        file.path.write_bytes(original)
    return faults


def _outcome(file: FileFormat, damaged: bytes, *, exact: bool, expected: object) -> str | None:
    """Return what is wrong about reading damaged bytes; None if nothing is."""
    # Replaced, not overwritten: earlier results may still map the old content.
    file.path.unlink()
    file.path.write_bytes(damaged)
    try:
        content = plain(file.read())
    except GapruneError as error:
        text = str(error)
        return f"{len(text.splitlines())} lines: {text!r}" if "\n" in text else None
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        return f"{type(error).__name__}: {error}"[:300]
    return "a silent change" if exact and content != expected else None
