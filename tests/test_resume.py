"""A run that was stopped goes on as if nothing had happened, or says why it cannot."""

from __future__ import annotations

import gc
import json
import os
import resource
import shutil
import signal
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import PRUNE, Run, fill, tree
from started_commands import Command
from test_checkpoint import Malicious
from torch import nn

import gaprune
from gaprune import GapruneError, InputError, InputOptions, Result, prune, resume
from gaprune.calibration.calibration_set import CalibrationSet, from_record, to_record
from gaprune.calibration.inversion.augment import Augmentation
from gaprune.calibration.samples import Samples, concatenate
from gaprune.callbacks import Observer
from gaprune.cli import main
from gaprune.config import NEUTRAL
from gaprune.io.checkpoints import read_checkpoint, write_checkpoint
from gaprune.io.run_files import CHECKPOINT, CONFIG, FILES, HISTORY
from gaprune.io.serialization import to_json
from gaprune.records import Generation
from gaprune.runs.open_directory import open_run, reopen_run

TINY: dict[str, Any] = {
    "inputs": InputOptions(range=(0, 1)),
    "calibration": ("procedural",),  # impressions, which auto may add, would end a search early
    "population": 3,
    "offspring": 3,
    "calibration_count": 32,
    "validation_count": 32,
}
SHORT: dict[str, Any] = {**TINY, "sparsity": 0.6, "generations": 4, "preset": "black-box"}
STEPS: dict[str, Any] = {"steps": 2, "batch": 8}


def net(seed: int = 0, layers: int = 2) -> nn.Module:
    """Return a network whose classes differ: of linear layers, with biases."""
    torch.manual_seed(seed)
    parts: list[nn.Module] = []
    for number in range(layers):
        parts += [nn.Linear(8, 8 if number + 1 < layers else 4), nn.Tanh()]
    model = nn.Sequential(*parts[:-1])
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.8)
    return model


class Copying(Observer):
    """Copies the run directory after every generation: what a power cut there would leave."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.copies: list[Path] = []
        self.warnings: list[str] = []

    def generation(self, record: Generation, total: int | None) -> None:
        """Copy it."""
        self.copies.append(self.run.with_name(f"{self.run.name}-{len(self.copies)}"))
        shutil.copytree(self.run, self.copies[-1])

    def warning(self, text: str) -> None:
        """Remember it."""
        self.warnings.append(text)


def found(result: Result) -> dict[str, Any]:
    """Return everything that a result says and holds, but for time, warnings and who worked."""
    record: dict[str, Any] = json.loads(to_json(result.record()))
    del record["seconds"], record["warnings"]  # such as those of a full disk
    record["settings"] = {k: v for k, v in record["settings"].items() if k not in NEUTRAL}
    record["masks"] = {name: mask.tolist() for name, mask in result.masks.items()}
    record["front_masks"] = [
        {name: mask.tolist() for name, mask in masks.items()} for masks in result.front_masks
    ]
    record["history"] = [{**vars(one), "seconds": 0} for one in result.history]
    return record


def saved(place: Path) -> dict[str, bytes]:
    """Return the files of a result whose bytes do not depend on time or workers."""
    names = ("mask.safetensors", "pruned.safetensors", "front.safetensors", "repaired.safetensors")
    return {name: (place / name).read_bytes() for name in names if (place / name).exists()}


CASES: dict[str, dict[str, Any]] = {
    "black-box": {"preset": "black-box", "generations": 4},
    "default": {"generations": 3, **STEPS},
    "classic": {"preset": "classic", "generations": 3, "calibration": ("labelled:labelled.npz",)},
    "front": {"preset": "black-box", "pareto": True, "generations": 3},
    "density_search": {"density_search": 2, "generations": 2, **STEPS},
    "warmup": {"warmup": 3, "statistics_loss": 0.5, "generations": 2, **STEPS},
    "repair in the loop": {"repair_in_loop": True, "generations": 2, **STEPS},
    "several searches": {"preset": "black-box", "max_drop": 0.25, "generations": 2},
    "stopped by stagnation": {"preset": "black-box", "stagnation": 2, "generations": 50},
    "few checkpoints": {"preset": "black-box", "checkpoint_every": 3, "generations": 5},
}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=pytest.mark.slow if case == "several searches" else [])
        for case in CASES
    ],
)
def test_stopped_after_any_generation_it_finds_the_same(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a power cut: only the disk is left, and files of calibration inputs are gone by then."""
    monkeypatch.chdir(tmp_path)
    model, settings = net(), {**TINY, "sparsity": 0.6, "seed": 3, **CASES[case]}
    if "max_drop" in settings:
        del settings["sparsity"]
    inputs = torch.rand(60, 8, generator=torch.Generator().manual_seed(1))
    np.savez("labelled.npz", x=inputs.numpy(), y=model(inputs).argmax(1).numpy())
    copying = Copying(tmp_path / "run")
    whole = prune(model, out="run", observer=copying, **settings)
    Path("labelled.npz").unlink()
    assert len(copying.copies) >= len(whole.history) > 2
    for copy in copying.copies:
        told = Copying(copy)
        again = resume(copy, model=model, observer=told)
        assert found(again) == found(whole), copy
        assert saved(copy) == saved(tmp_path / "run")
        assert not [text for text in told.warnings if "checkpoint" in text]


def test_nothing_is_done_twice(tmp_path: Path) -> None:
    """Of a finished run, no generation; of several searches, none that has ended."""
    for name, settings in (("one", {"sparsity": 0.6}), ("many", {"max_drop": 0.25})):
        chosen = {**TINY, "preset": "black-box", "generations": 2, **settings}
        whole = prune(net(), out=tmp_path / name, **chosen)
        again = Copying(tmp_path / name)
        assert found(resume(tmp_path / name, model=net(), observer=again)) == found(whole)
        assert not again.copies
        assert (len(whole.trials) > 1) == (name == "many")


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_workers_change_nothing_that_is_found(tmp_path: Path) -> None:
    """Begun here and gone on with on Ray, and the other way round; with gradient steps."""
    model, settings = net(), {**TINY, **STEPS, "sparsity": 0.6, "generations": 4}
    copying = Copying(tmp_path / "run")
    whole = prune(model, out=tmp_path / "run", observer=copying, **settings)
    assert found(resume(copying.copies[2], model=model, workers=2)) == found(whole)
    there = Copying(tmp_path / "ray")
    assert found(prune(model, out=there.run, observer=there, workers=2, **settings)) == found(whole)
    for copy in there.copies:
        assert found(resume(copy, model=model, workers=1)) == found(whole)


def test_a_longer_limit_lets_a_finished_run_go_on(tmp_path: Path) -> None:
    """Three generations and three are six where no step was planned for three; else it says so."""
    model = net()
    for preset, same in (("black-box", True), ("default", False)):
        own = {**SHORT, **(STEPS if not same else {}), "preset": preset}
        place = tmp_path / preset
        prune(model, out=place, **{**own, "generations": 3})
        told = Copying(place)
        longer = resume(place, model=model, generations=6, observer=told)
        assert len(longer.history) == 7
        assert (found(longer) == found(prune(model, **{**own, "generations": 6}))) == same
        assert bool([text for text in told.warnings if "were planned for 3" in text]) != same
        assert tomllib.loads((place / "config.toml").read_text())["generations"] == 6
        assert len(resume(place, model=model).history) == 7


class Ending(Observer):
    """Raises an error after a generation, or where a part of the run begins."""

    def __init__(self, error: BaseException, after: int | str) -> None:
        self.error, self.after = error, after

    def phase(self, name: str, detail: str) -> None:
        """Raise it."""
        if name == self.after:
            raise self.error

    def generation(self, record: Generation, total: int | None) -> None:
        """Raise it."""
        if record.generation == self.after:
            raise self.error


def test_an_error_keeps_the_last_generation_and_tells_how_to_go_on(tmp_path: Path) -> None:
    """Also one whose turn to be kept had not come."""
    model, place = net(), tmp_path / "my run"
    lost = Ending(GapruneError("workers: all are lost"), 3)
    with pytest.raises(GapruneError, match=r"all are lost; gaprune.resume\('.*my run'\)"):
        prune(model, out=place, observer=lost, checkpoint_every=50, **SHORT)
    told = Copying(place)
    assert found(resume(place, model=model, observer=told)) == found(prune(model, **SHORT))
    assert len(told.copies) == SHORT["generations"] - 3


def test_wrong_input_that_shows_late_leaves_no_folder(tmp_path: Path) -> None:
    """Before the first generation was kept, there is nothing worth staying; after it there is."""
    wrong = InputError("objective: nonsense")
    for after, stays in (("baselines", False), ("search", False), (0, True)):
        with pytest.raises(InputError, match="nonsense"):
            prune(net(), out=tmp_path / "deep" / "run", observer=Ending(wrong, after), **SHORT)
        assert (tmp_path / "deep").exists() == stays


def test_calibration_alone_are_worth_going_on_with(tmp_path: Path) -> None:
    """Where something else fails before the first generation."""
    model, place = net(), tmp_path / "run"
    for after in ("baselines", "search"):
        with pytest.raises(GapruneError, match="stop"):
            prune(model, out=place, observer=Ending(GapruneError("stop"), after), **SHORT)
        assert found(resume(place, model=model)) == found(prune(model, **SHORT))
        shutil.rmtree(place)


class Filling(Copying):
    """Allows no large file during some generations."""

    def __init__(self, run: Path, generations: range) -> None:
        super().__init__(run)
        self.full = generations
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def generation(self, record: Generation, total: int | None) -> None:
        """Set or lift the limit for the next generation."""
        self.release()
        super().generation(record, total)
        if record.generation + 1 in self.full:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, self.before[1]))

    def release(self) -> None:
        """Lift the limit."""
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


def test_a_full_disk_costs_checkpoints_and_nothing_else(tmp_path: Path) -> None:
    """The run goes on with one warning; what was kept before is whole, as is what comes later."""
    model, own = net(), {**SHORT, "generations": 6}
    filling = Filling(tmp_path / "run", range(2, 5))
    try:
        whole = prune(model, out=filling.run, observer=filling, **own)
    finally:
        filling.release()
    (text,) = [text for text in filling.warnings if "checkpoint" in text]
    assert "generation 2" in text
    assert found(whole) == found(prune(model, **own))
    for number, copy in enumerate(filling.copies):
        told = Copying(copy)
        assert found(resume(copy, model=model, observer=told)) == found(whole)
        kept = 1 if number in (2, 3, 4) else number
        assert len(told.copies) == own["generations"] - kept


def test_where_the_calibration_cannot_be_kept_the_run_goes_on(tmp_path: Path) -> None:
    """It cannot be resumed then, which is said; the result is saved all the same."""

    class Full(Filling):
        """A disk that is full until the search begins."""

        def phase(self, name: str, detail: str) -> None:
            """Fill it, or make room."""
            self.release()
            if name == "calibration":
                resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, self.before[1]))

    full = Full(tmp_path / "run", range(0))
    try:
        whole = prune(net(), out=full.run, observer=full, **SHORT)
    finally:
        full.release()
    assert any(text.startswith("checkpoint:") for text in full.warnings)
    assert found(whole) == found(prune(net(), **SHORT))
    assert {path.name for path in full.run.iterdir()} == set(FILES)


def test_damage_costs_a_generation_and_nothing_else(tmp_path: Path) -> None:
    """One bit in the newest checkpoint; in both, the run has to be started again."""
    model, copying = net(), Copying(tmp_path / "run")
    whole = prune(model, out=copying.run, observer=copying, **SHORT)
    copy = copying.copies[3]
    newest, before = sorted(copy.glob("checkpoint/0*"), reverse=True)
    harm(newest / "facts.json")
    told = Copying(copy)
    assert found(resume(copy, model=model, observer=told)) == found(whole)
    assert any(newest.name in text for text in told.warnings)
    assert len(told.copies) == 2
    for place in copy.glob("checkpoint/0*[0-9]"):
        harm(place / "tensors.safetensors")
    with pytest.raises(GapruneError, match=r"all 2"):
        resume(copy, model=model)
    harm(copying.copies[2] / "checkpoint/start/tensors.safetensors")
    with pytest.raises(GapruneError, match=r"^checkpoint: .*start"):
        resume(copying.copies[2], model=model)
    assert before.name < newest.name


def harm(path: Path) -> None:
    """Flip a bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def rewrite_start(path: Path, changes: dict[str, Any]) -> None:
    """Change facts of the first checkpoint, which stays undamaged."""
    start = path / CHECKPOINT / "start"
    facts, tensors = read_checkpoint(start)
    shutil.rmtree(start)
    write_checkpoint(start, facts | changes, tensors)


def other_version(path: Path) -> None:
    """Make the run one of another torch."""
    versions = read_checkpoint(path / CHECKPOINT / "start").facts["versions"]
    rewrite_start(path, {"versions": versions | {"torch": "1.0"}})


def older_format(path: Path) -> None:
    """Make the run one of gaprune 0.2: checkpoints of format 1."""
    rewrite_start(path, {"format": 1, "versions": {"gaprune": "0.2.0"}})


def other_setting(place: Path) -> None:
    """Edit what decides about the masks."""
    config = place / "config.toml"
    config.write_text(config.read_text().replace("population = 3", "population = 4"))


def wider() -> nn.Module:
    """Return a network of other layers."""
    return nn.Sequential(nn.Linear(8, 9), nn.Tanh(), nn.Linear(9, 4))


class Addressed(nn.Linear):
    """Shows where it lies in memory."""

    def extra_repr(self) -> str:
        return f"{object.__repr__(self)}"


def test_where_objects_lie_in_memory_does_not_matter(tmp_path: Path) -> None:
    """Another process prints other addresses of the same network."""
    first, second = (nn.Sequential(Addressed(8, 8), nn.Tanh(), Addressed(8, 4)) for _ in range(2))
    second.load_state_dict(first.state_dict())
    assert repr(first) != repr(second)
    whole = prune(first, out=tmp_path / "run", **SHORT)
    assert found(resume(tmp_path / "run", model=second)) == found(whole)


def activated() -> nn.Module:
    """Return the same weights between other activations."""
    model = net()
    assert isinstance(model, nn.Sequential)
    model[1] = nn.ReLU()
    return model


REFUSED: dict[str, tuple[Callable[[Path], None] | None, dict[str, Any], str]] = {
    "weights": (None, {"model": net(1)}, "weights: "),
    "other layers": (None, {"model": wider()}, "prune_also|weights"),
    "other forward": (None, {"model": activated()}, "^model: "),
    "no model": (None, {"model": None}, "^model: .*gaprune.resume"),
    "version": (other_version, {}, r"torch 1\.0"),
    "older format": (older_format, {}, r"gaprune 0\.2\.0"),
    "setting in the file": (other_setting, {}, "^population: .*3.*4"),
    "setting as argument": (None, {"seed": 1}, "seed: .*0.*1"),
    "unknown setting": (None, {"sead": 1}, "sead"),
    "bad value": (None, {"workers": 0}, "^workers: .*0"),
    "no start": (
        lambda place: shutil.rmtree(place / CHECKPOINT / "start"),
        {},
        "run: .*stopped",
    ),
    "nothing kept": (
        lambda place: shutil.rmtree(place / CHECKPOINT),
        {},
        "checkpoint_every=0",
    ),
    "no folder": (shutil.rmtree, {}, "^run: "),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_the_same_run_is_refused(case: str, tmp_path: Path) -> None:
    """One message that names it, and nothing in the folder has changed."""
    place = tmp_path / "run"
    with pytest.raises(GapruneError):
        prune(net(), out=place, observer=Ending(GapruneError("stop"), 2), **SHORT)
    change, options, message = REFUSED[case]
    if change is not None:
        change(place)
    before = tree(tmp_path)
    gc.collect()  # the network of the first run, which could be used again
    with pytest.raises(InputError, match=message):
        resume(place, **{"model": net(), **options})
    after = tree(tmp_path)
    lock = f"run/{CHECKPOINT}/lock"  # holds the last process
    assert {k: v for k, v in after.items() if k != lock} == {
        k: v for k, v in before.items() if k != lock
    }


def test_other_limits_are_refused_where_they_would_differ_from_search_to_search(
    tmp_path: Path,
) -> None:
    """Searches that ended had the old ones."""
    own = {**TINY, "preset": "black-box", "generations": 1, "max_drop": 0.25}
    prune(net(), out=tmp_path / "run", **own)
    with pytest.raises(InputError, match=r"^generations: .*max_drop"):
        resume(tmp_path / "run", model=net(), generations=3)


def test_other_threads_are_possible_with_a_warning(tmp_path: Path) -> None:
    """They may change the last bits of sums."""
    prune(net(), out=tmp_path / "run", **SHORT)
    told = Copying(tmp_path / "run")
    resume(tmp_path / "run", model=net(), threads_per_worker=2, observer=told)
    assert any(text.startswith("threads_per_worker: 2") for text in told.warnings)


def test_two_runs_in_one_folder(tmp_path: Path) -> None:
    """The second one is refused with the number of the first one's process, whatever it wants."""
    place, mine = tmp_path / "run", rf"process {os.getpid()} is writing to .*run"

    class Meddling(Observer):
        """Tries all that writes there while a run goes on."""

        tried = 0

        def generation(self, record: Generation, total: int | None) -> None:
            """Try."""
            for attempt in (
                lambda: prune(net(), out=place, **SHORT),
                lambda: resume(place, model=net()),
                lambda: open_run(place, overwrite=True),
                lambda: reopen_run(place),
            ):
                with pytest.raises(InputError, match=mine):
                    attempt()
                self.tried += 1

    meddling = Meddling()
    prune(net(), out=place, observer=meddling, **SHORT)
    assert meddling.tried == 4 * (SHORT["generations"] + 1)
    assert {path.name for path in place.iterdir()} == {*FILES, CHECKPOINT}


def test_an_earlier_run_stays_until_there_is_something_to_keep(tmp_path: Path) -> None:
    """With `overwrite`; then nothing of it is left."""
    place = tmp_path / "run"
    prune(net(), out=place, **{**SHORT, "pareto": True})
    before = tree(place)
    with open_run(place, overwrite=True):
        pass
    lock = f"{CHECKPOINT}/lock"
    assert {**tree(place), lock: b""} == {**before, lock: b""}
    with open_run(place, overwrite=True) as run_directory:
        run_directory.begin("")
        assert {path.name for path in place.iterdir()} == {"config.toml", CHECKPOINT}
        assert [path.name for path in run_directory.checkpoint.iterdir()] == ["lock"]


def test_a_run_that_keeps_no_checkpoints_leaves_none(tmp_path: Path) -> None:
    """Neither does a one-shot method; the result is there, and resuming says that nothing is."""
    choices: list[dict[str, Any]] = [{"checkpoint_every": 0}, {"method": "magnitude"}]
    for number, own in enumerate(choices):
        place = tmp_path / str(number)
        prune(net(), out=place, **{**SHORT, **own})
        assert {path.name for path in place.iterdir()} == set(FILES)
        with pytest.raises(InputError, match="checkpoint_every=0"):
            resume(place, model=net())


def test_a_result_that_replaces_a_run_leaves_none_of_its_checkpoints(tmp_path: Path) -> None:
    """Or another search would be gone on with."""
    place = tmp_path / "run"
    prune(net(), out=place, **SHORT)
    gaprune.save_run(prune(net(), **{**SHORT, "method": "random"}), place, overwrite=True)
    assert {path.name for path in place.iterdir()} == set(FILES)


def test_a_calibration_set_comes_back_as_it_was() -> None:
    """With labels and domain inputs; without stored inputs or generators too."""
    draw = torch.Generator().manual_seed(0)
    target = gaprune.load_target("lenet")
    whole = Samples(torch.rand(9, 1, 28, 28, generator=draw), torch.arange(9), "a file")
    half = whole.take(torch.arange(4))
    search = concatenate([half, half])
    made = gaprune.records.Provenance("proxy", ("a", "b"), 9, False, "0", "g", 2, "1")
    for stored, domain_count in ((whole, 4), (whole, None), (None, None)):
        plan = CalibrationSet(
            *(search, half, None, stored, 0.25),
            Augmentation(moves=True, mixes=False),
            *(domain_count, made, {"z": 0.1, "a": 1 / 3}),
        )
        again = from_record(*to_record(plan), target)
        for name in ("search", "validation", "gradient_inputs", "domain_inputs"):
            before, after = getattr(plan, name), getattr(again, name)
            assert (before is None) == (after is None)
            if before is not None:
                assert torch.equal(before.inputs, after.inputs)
                assert torch.equal(before.labels, after.labels)
        assert (again.domain_inputs is again.search) == (domain_count is None)
        for name in ("provenance", "gradient_share", "augmentation"):
            assert getattr(again, name) == getattr(plan, name)
        assert list(again.mutual_information.items()) == list(plan.mutual_information.items())


def record_in(place: Path) -> dict[str, Any]:
    """Return `result.json` without the time, and the hashes of files that hold times."""
    record: dict[str, Any] = json.loads((place / "result.json").read_text())
    return {key: record[key] for key in record.keys() - {"seconds", "files", "sha256"}}


SEARCH = (*PRUNE, "--preset", "black-box", "--generations", "60", "--offspring", "8")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of `SEARCH`, which nobody has stopped."""
    folder = tmp_path_factory.mktemp("whole")
    fill(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main((*SEARCH, "--out", "run", "--quiet")) == 0
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_command_goes_on(
    number: signal.Signals, start: Callable[..., Command], run: Run, whole: Path
) -> None:
    """Exit code 130 or 143 with a result so far; in the end the masks are those of one go."""
    command = start(*SEARCH, "--out", "run")
    command.wait_for("generation 2/")
    command.process.send_signal(number)
    ran = command.end()
    if number == signal.SIGKILL:
        assert ran.code == -number
        assert {path.name for path in Path("run").iterdir()} == {CONFIG, HISTORY, CHECKPOINT}
    else:
        assert ran.code == 128 + number
        assert record_in(Path("run"))["stopped"] == "interrupted"
        assert "gaprune resume run" in ran.out
    assert not command.descendants()
    done = len(list(Path("run").glob("checkpoint/0*")))
    assert done == 2
    again = run("resume", "run")
    assert again.code == 0, again.err
    assert "checkpoint" in again.err
    assert record_in(Path("run")) == record_in(whole)
    assert saved(Path("run")) == saved(whole)
    assert Path("run/config.toml").read_text() == (whole / "config.toml").read_text()


def test_a_pickle_executes_nothing_anywhere(
    run: Run, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As any file of a checkpoint, whatever torch is told to trust."""
    assert run(*PRUNE, "--out", "run").code == 0
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    inside = Path("run/checkpoint").glob("*/*")
    kept = [path.relative_to("run") for path in inside]
    assert len(kept) == 9
    for number, path in enumerate(kept):
        shutil.copytree("run", f"run{number}")
        torch.save(Malicious(Path("trace")), Path(f"run{number}", path))
        ran = run("resume", f"run{number}", "--quiet", "--trust-code")
        assert ran.code == (1 if "start" in path.parts else 0)
        assert ("warning: checkpoint: " in ran.err) == ("000002" in path.parts)
    assert not Path("trace").exists()
