"""A run folder: all of it or nothing, what is written is read back, and bad places are refused."""

from __future__ import annotations

import json
import resource
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gaprune import InputOptions, Result, load_masks, prune, save_run
from gaprune.config import make_settings
from gaprune.errors import GapruneError, InputError
from gaprune.io.manifest import SEAL, sealed
from gaprune.io.run_files import FILES, RESULT_SCHEMA, read_record
from gaprune.io.serialization import to_json
from gaprune.runs.job import PruneJob, make_job
from gaprune.runs.open_directory import free_name, open_numbered_run, open_run
from gaprune.runs.setup import check_settings
from gaprune.runs.status import read_status

TINY: dict[str, Any] = {
    "generations": 1,
    "steps": 2,
    "batch": 8,
    "population": 2,
    "offspring": 2,
    "calibration_count": 16,
    "validation_count": 16,
}


class Tied(nn.Module):
    """Two layers that share a weight, one that does not, BatchNorm with buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.norm = nn.BatchNorm1d(6)
        self.b.weight = self.a.weight

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits `[N, 3]`."""
        out: Tensor = self.head(self.norm(self.b(self.a(inputs).relu())))
        return out


@pytest.fixture(scope="module")
def dense() -> nn.Module:
    """The network before pruning."""
    torch.manual_seed(0)
    return Tied()


@pytest.fixture(scope="module")
def result(dense: nn.Module) -> Result:
    """A real result, found in a moment."""
    return prune(dense, sparsity=0.5, inputs=InputOptions(range=(0, 1)), **TINY)


def tree(folder: Path) -> dict[str, bytes | None]:
    """Return everything below a folder, hidden or not: path → content, None for folders."""
    return {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
        for path in folder.rglob("*")
    }


def test_a_run_folder_holds_every_file_and_nothing_else(result: Result, tmp_path: Path) -> None:
    """Missing parents are made, and no temporary name is left beside the folder."""
    place = save_run(result, tmp_path / "deep" / "er" / "run")
    assert place == tmp_path / "deep" / "er" / "run"
    assert {path.name for path in place.iterdir()} == set(FILES)
    assert [path.name for path in place.parent.iterdir()] == ["run"]
    # Whoever may read the record may read the weights.
    assert len({path.stat().st_mode for path in place.iterdir()}) == 1


def test_the_pruned_state_loads_and_its_bits_are_the_checkpoint_s(
    result: Result, dense: nn.Module, tmp_path: Path
) -> None:
    """A fresh network takes the file; kept weights are bit-identical, the others are 0."""
    place = save_run(result, tmp_path / "run")
    state, masks = load_file(place / "pruned.safetensors"), load_masks(place)
    fresh = Tied()
    fresh.load_state_dict(state)
    masks["b.weight"] = masks["a.weight"]  # one parameter under two names
    for name, before in dense.state_dict().items():
        kept = masks.get(name, torch.ones_like(before, dtype=torch.bool))
        assert torch.equal(state[name][kept], before[kept]), name
        assert not state[name][~kept].any(), name
    inputs = torch.rand(5, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(fresh.eval()(inputs), result.pruned_model()(inputs))


def test_masks_are_read_back_as_they_were(result: Result, tmp_path: Path) -> None:
    """By folder and by file, as bool tensors of the parameters' shapes."""
    place = save_run(result, tmp_path / "run")
    for source in (place, str(place), place / "mask.safetensors"):
        masks = load_masks(source)
        assert set(masks) == set(result.masks)
        assert all(torch.equal(masks[name], result.masks[name]) for name in masks)


def test_the_record_and_the_history_are_those_of_the_result(result: Result, tmp_path: Path) -> None:
    """`result.json` is `record()` with hashes; the history has one line per generation."""
    place = save_run(result, tmp_path / "run")
    record = json.loads((place / "result.json").read_text())
    assert sealed(record) == record
    hashes = {name: record.pop(name) for name in ("files", "config_sha256", "sha256")}
    assert set(hashes["files"]) == set(FILES) - {"config.toml", "result.json", "report.html"}
    assert record == json.loads(json.dumps(result.record()))
    lines = [json.loads(line) for line in (place / "history.jsonl").read_text().splitlines()]
    assert [line["generation"] for line in lines] == [one.generation for one in result.history]
    assert [line["validation"] for line in lines] == [one.validation for one in result.history]


def test_the_config_of_a_job_makes_the_same_job(result: Result, tmp_path: Path) -> None:
    """Everything stated comes back, and what the preset chose is written out."""
    job = PruneJob(
        target='odd "name".py:make',
        checked=check_settings(make_settings({"sparsity": 0.5, **TINY})),
        weights="a\\b.safetensors",
        inputs=InputOptions(shape=(6,), kind="vector", mean=(0.5,), std=(0.25,)),
        prune_also=("norm.weight",),
        test="t.npz",
    )
    place = save_run(result, tmp_path / "run", job=job)
    again = make_job(tomllib.loads((place / "config.toml").read_text()))
    assert again == replace(job, checked=check_settings(make_settings(dict(result.settings))))
    assert again.settings.learning_rate is not None


def test_the_config_of_a_live_network_lacks_the_target_only(result: Result, tmp_path: Path) -> None:
    """Settings and inputs are there, so adding a target is enough to repeat the run."""
    place = save_run(result, tmp_path / "run")
    config = tomllib.loads((place / "config.toml").read_text())
    job = make_job({**config, "target": "net.py:make"})
    assert job.inputs == InputOptions(shape=(6,), kind="vector", range=(0.0, 1.0))
    assert job.settings == make_settings(dict(result.settings))


def test_an_earlier_run_stays_unless_it_is_to_be_replaced(result: Result, tmp_path: Path) -> None:
    """With `overwrite` all of it is replaced, also files that the new run has not."""
    place = save_run(result, tmp_path / "run")
    (place / "report.html").write_text("of the earlier run")
    before = tree(tmp_path)
    with pytest.raises(InputError, match="overwrite=True"):
        save_run(result, place)
    assert tree(tmp_path) == before
    save_run(result, place, overwrite=True)
    assert {path.name for path in place.iterdir()} == set(FILES)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_an_empty_folder_is_as_good_as_none(result: Result, tmp_path: Path) -> None:
    """A folder made beforehand is filled, also through a link."""
    (tmp_path / "made").mkdir()
    (tmp_path / "link").symlink_to("made")
    save_run(result, tmp_path / "link")
    assert {path.name for path in (tmp_path / "made").iterdir()} == set(FILES)
    assert (tmp_path / "link").is_symlink()


BAD_PLACES = {
    "file": ("a file", "file"),
    "file/below": ("a folder below a file", "^out: "),
    "x" * 300: ("a name too long for the system", "^out: "),
    "full": ("a folder with other files", "notes.txt"),
}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", BAD_PLACES, ids=[what for what, _ in BAD_PLACES.values()])
def test_a_bad_place_is_refused_and_nothing_is_written(
    name: str, overwrite: bool, tmp_path: Path
) -> None:
    """The message names the place and the way out; `--overwrite` never touches other files."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    before = tree(tmp_path)
    with pytest.raises(InputError, match=BAD_PLACES[name][1]):
        open_run(tmp_path / name, overwrite=overwrite)
    assert tree(tmp_path) == before


def test_a_claim_on_a_place_where_nothing_is_kept_leaves_no_trace(tmp_path: Path) -> None:
    """The folder, its lock and the missing parents are gone again."""
    with open_run(tmp_path / "some" / "new" / "run"):
        assert (tmp_path / "some" / "new" / "run").is_dir()
    assert not tree(tmp_path)


class _Interrupting(tuple[Any, ...]):
    """A history in whose middle Ctrl-C comes."""

    __slots__ = ()

    def __iter__(self) -> Iterator[Any]:
        raise KeyboardInterrupt


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_interrupted_save_changes_nothing(
    result: Result, overwrite: bool, tmp_path: Path
) -> None:
    """No half a folder, no hidden rest, no parents; an earlier run is as it was."""
    if overwrite:
        save_run(result, tmp_path / "new" / "run")
    before = tree(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        save_run(
            replace(result, history=_Interrupting()), tmp_path / "new" / "run", overwrite=overwrite
        )
    assert tree(tmp_path) == before


@pytest.mark.parametrize("limit", [500, 3_500], ids=["in a text", "in the weights"])
def test_a_full_disk_is_one_message_and_leaves_nothing(limit: int, tmp_path: Path) -> None:
    """Writing fails in the middle, here by the limit on the size of a file."""
    net = nn.Linear(90, 90)
    found = prune(net, sparsity=0.5, inputs=InputOptions(range=(0, 1)), method="magnitude", **TINY)
    assert 500 < len(to_json(found.record(), indent=2)) < 3_500 < 90 * 90
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(GapruneError, match=r"^out: "):
            save_run(found, tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not tree(tmp_path)


def save_at_next(result: Result, stem: Path) -> Path:
    """Save where no run is."""
    with open_numbered_run(stem) as run_directory:
        return run_directory.save(result)


def test_numbered_runs_never_meet(result: Result, tmp_path: Path) -> None:
    """Runs that end at the same moment each get a folder of their own, complete."""
    with ThreadPoolExecutor(6) as pool:
        places = list(pool.map(lambda _: save_at_next(result, tmp_path / "run"), range(6)))
    names = {f"run{end}" for end in ("", "-2", "-3", "-4", "-5", "-6")}
    assert {place.name for place in places} == {path.name for path in tmp_path.iterdir()} == names
    assert all({path.name for path in place.iterdir()} == set(FILES) for place in places)
    assert free_name(tmp_path / "run").name == "run-7"


def test_the_masks_of_a_front_are_saved_too(result: Result, tmp_path: Path) -> None:
    """One file, numbered as the record numbers them."""
    name = next(iter(result.masks))
    masks = dict(result.masks)
    wider = {**masks, name: torch.ones_like(masks[name])}
    place = save_run(replace(result, front_masks=(masks, wider)), tmp_path / "run")
    front = load_masks(place / "front.safetensors")
    assert torch.equal(front[f"0/{name}"], masks[name])
    assert front[f"1/{name}"].all()
    assert len(front) == 2 * len(masks)


def test_a_file_that_holds_no_masks_is_refused(result: Result, tmp_path: Path) -> None:
    """Weights, other integers, a missing and a damaged file: one message each."""
    place = save_run(result, tmp_path / "run")
    save_file({"w": torch.tensor([0, 1, 2], dtype=torch.uint8)}, tmp_path / "two.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((place / "mask.safetensors").read_bytes()[:-5])
    for path, rule in {
        place / "pruned.safetensors": "uint8",
        tmp_path / "two.safetensors": "'w'",
        tmp_path / "cut.safetensors": "damaged",
        tmp_path / "none.safetensors": "",
        tmp_path: "",
    }.items():
        with pytest.raises(InputError, match=f"^mask: .*{rule}"):
            load_masks(path)


@pytest.mark.parametrize(
    "record", [{"schema": 1, "versions": {"gaprune": "0.2.0"}}, {"versions": {"gaprune": "0.2.0"}}]
)
def test_the_result_of_an_older_version_is_refused(
    record: dict[str, Any], result: Result, tmp_path: Path
) -> None:
    """The error names the version that wrote it, and the schema that this one reads."""
    path = save_run(result, tmp_path / "run")
    (path / "result.json").write_text(json.dumps({"layers": [], **record}))
    for read in (read_record, read_status):
        with pytest.raises(InputError, match=rf"gaprune 0\.2\.0.*{RESULT_SCHEMA}"):
            read(path)


@pytest.mark.parametrize(
    "changed",
    [
        {"sparsity": {"asked": 0.5}},
        {"macs": {"dense": "many", "kept": 1}},
        {"agreement": {"calibration": None, "validation": 0.5}},
        {"accuracy": {"dense": 0.5}},
        {"latency": 3},
        {"perplexity": {"dense": 3.0}},
        {"warnings": "none"},
        {"front": [{"sparsity": 0.5}]},
        {"profile": 1},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_a_value_of_another_type_is_refused_by_name(
    changed: dict[str, Any], result: Result, tmp_path: Path
) -> None:
    """Also where somebody who edited the file made its hash right again."""
    path = save_run(result, tmp_path / "run") / "result.json"
    record = json.loads(path.read_text()) | changed
    record.pop(SEAL)
    path.write_text(json.dumps(sealed(record)))
    with pytest.raises(InputError, match=next(iter(changed))):
        read_record(path.parent)


def test_equal_results_are_saved_as_equal_bytes(result: Result, tmp_path: Path) -> None:
    """Masks and networks can be compared by the hash of their files."""
    for number in range(4):
        save_run(result, tmp_path / str(number))
    for name in ("mask.safetensors", "pruned.safetensors"):
        assert len({(tmp_path / str(number) / name).read_bytes() for number in range(4)}) == 1
