"""Plug-ins of a package that is really installed beside gaprune."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import TINY, Run
from comparison_cases import QUICK
from torch import Tensor, nn

import gaprune
from gaprune import InputError, InputOptions, plugins
from gaprune.cli import machine_checks as doctor
from gaprune.comparison import added_methods, find_methods
from gaprune.evolution.operators import find_crossover, find_mutation
from gaprune.exports import export

CODE = '''
import torch
from gaprune.evolution.presets import Preset
from gaprune.exports.format_registry import Exporter
from gaprune.evaluation.objectives import Objective, agreement, kl_divergence

calls = []

def spread(network, calibration, density, generator):
    """|w| times the fan-in."""
    parts = {name: w.abs() * w[0].numel() for name, w in network.weights.items()}
    return network.layout.flatten(parts)

def rain(spec, count, generator):
    calls.append("rain")
    return (torch.rand(count, *spec.shape, generator=generator) > 0.8).float()

def flood(spec, count, generator):
    return 2 * torch.ones(count, *spec.shape)

def close(outputs, teacher, labels):
    return -float((outputs - teacher).square().mean())

steered = Objective("any", lambda *outputs: -kl_divergence(*outputs), kl_divergence, agreement)

def shake(genes, layout, generator):
    calls.append("shake")
    return genes.with_scores(genes.scores + torch.rand(layout.total, generator=generator))

def first(a, b, layout, generator):
    calls.append("first")
    return a, b

shaken = Preset(
    "shaken",
    crossovers={"first": 1.0},
    mutations={"shake": 1.0},
    defaults={"population": 2, "offspring": 2, "generations": 1, "density_search": 0},
)
lost = Preset("lost", crossovers={"none": 1.0}, mutations={"shiver": 1.0}, defaults={})

def write(pruned, folder, options):
    (folder / "names.txt").write_text("\\n".join(pruned.state))

listing = Exporter("the names of its tensors", write, "names.txt", "open('names.txt')", "text")
'''
ENTRIES = """
[gaprune.criteria]
spread = tiny:spread
magnitude = tiny:spread
torn = tiny_torn:criterion
gone = tiny:nothing_of_that_name
number = tiny:calls

[gaprune.objectives]
close = tiny:close
steered = tiny:steered

[gaprune.generators.vector]
rain = tiny:rain
flood = tiny:flood

[gaprune.mutations]
shake = tiny:shake

[gaprune.crossovers]
first = tiny:first

[gaprune.presets]
shaken = tiny:shaken
lost = tiny:lost

[gaprune.exporters]
listing = tiny:listing
"""
INPUTS = InputOptions(range=(0, 1))


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Install a package with a plug-in of every kind, some of them broken."""
    folder = tmp_path / "site"
    facts = folder / "tiny-1.0.dist-info"
    facts.mkdir(parents=True)
    (folder / "tiny.py").write_text(CODE)
    (folder / "tiny_torn.py").write_text("raise RuntimeError('torn on purpose')\n")
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(ENTRIES)
    monkeypatch.syspath_prepend(folder)
    yield folder
    for name in ("tiny", "tiny_torn"):
        sys.modules.pop(name, None)


@pytest.fixture
def model() -> nn.Sequential:
    """A small network, the same at every call."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def small(model: nn.Module, **settings: Any) -> gaprune.Result:
    """Prune half of the weights in a short run."""
    return gaprune.prune(model, inputs=INPUTS, **{"sparsity": 0.5, **QUICK, **settings})


def flat(result: gaprune.Result) -> Tensor:
    """Return a result's masks as one vector."""
    return torch.cat([mask.flatten() for mask in result.masks.values()])


def test_a_criterion_is_a_method_of_prune(tiny: Path, model: nn.Sequential) -> None:
    """Its mask is the top-k of what it returns."""
    result = small(model, method="spread", scope="global")
    scores = torch.cat([w.abs().flatten() * w.shape[1] for w in model.parameters() if w.ndim == 2])
    assert flat(result).equal(scores >= scores.sort(descending=True).values[35])
    assert result.method == "spread"
    assert "spread" in result.baselines


def test_a_criterion_is_a_method_of_compare_when_it_is_named(
    tiny: Path, model: nn.Sequential
) -> None:
    """Over all layers and inside each; `all` stays what it is without plug-ins."""
    result = gaprune.compare(
        model, sparsity=0.8, methods=("spread", "spread-layer"), inputs=INPUTS, **QUICK
    )
    assert [(row.method, row.error) for row in result.rows] == [
        ("spread", None),
        ("spread-layer", None),
    ]
    assert result.rows[0].score != result.rows[1].score
    assert "spread" not in {method.name for method in find_methods(["all"])}


def test_what_is_installed_changes_nothing(
    model: nn.Sequential, request: pytest.FixtureRequest
) -> None:
    """The same seed finds the same masks, and nothing of a plug-in is imported."""
    before = small(model, sparsity=0.8)
    request.getfixturevalue("tiny")
    after = small(model, sparsity=0.8)
    assert flat(before).equal(flat(after))
    assert list(before.baselines) == list(after.baselines)
    assert before.provenance == after.provenance
    assert "tiny" not in sys.modules


def test_a_generator_makes_calibration_and_validation_inputs(
    tiny: Path, model: nn.Sequential
) -> None:
    """By its name, which is recorded in the provenance."""
    result = small(model, calibration=("rain",))
    assert any("rain" in source for source in result.provenance.sources)
    judged = small(model, validation="rain")
    assert "rain" in judged.provenance.validation
    with pytest.raises(InputError, match="flood"):
        small(model, calibration=("flood",))


def test_objectives_steer_as_they_can(tiny: Path, model: nn.Sequential) -> None:
    """One with a loss takes gradient steps; a function alone is a black box."""
    steered = small(model, objective="steered")
    kl = small(model, objective="kl")
    assert flat(steered).equal(flat(kl))
    with pytest.raises(InputError, match="black box"):
        small(model, objective="close")
    short = {name: value for name, value in QUICK.items() if name not in ("steps", "batch")}
    blind = gaprune.prune(
        model, sparsity=0.5, inputs=INPUTS, objective="close", preset="black-box", **short
    )
    assert blind.record()["settings"]["objective"] == "close"


def test_operators_work_through_a_preset(tiny: Path, model: nn.Sequential) -> None:
    """A preset's own operators make its children, and the budget stays exact."""
    result = gaprune.prune(
        model,
        sparsity=0.5,
        inputs=INPUTS,
        preset="shaken",
        calibration_count=32,
        validation_count=32,
    )
    assert int(flat(result).count_nonzero()) == 36
    assert {"shake", "first"} <= set(sys.modules["tiny"].calls)
    with pytest.raises(InputError, match=r"'shiver'.*shake"):
        gaprune.prune(model, sparsity=0.5, inputs=INPUTS, preset="lost")
    with pytest.raises(InputError, match=r"'frist'.*'first'"):
        find_crossover("frist")
    assert find_mutation("shake") is sys.modules["tiny"].shake


def test_a_format_is_exported(tiny: Path, tmp_path: Path, model: nn.Sequential) -> None:
    """It writes its file, and the card says how it is loaded."""
    result = small(model, method="magnitude")
    written = export(result, "listing", tmp_path / "out")
    assert "0.weight" in written.file.read_text()
    assert "open('names.txt')" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(InputError, match=r"half.*listing"):
        export(result, "listing", tmp_path / "half", half=True)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("torn", r"'torn' \(tiny 1\.0: tiny_torn:criterion\).*torn on purpose"),
        ("gone", "nothing_of_that_name"),
        ("number", "got list"),
        ("spraed", "'spraed'.*'spread'"),
    ],
)
def test_naming_a_broken_one_says_what_is_wrong(
    tiny: Path, model: nn.Sequential, name: str, says: str
) -> None:
    """The message names plug-in, package and place."""
    with pytest.raises(InputError, match=says):
        gaprune.prune(model, sparsity=0.5, inputs=INPUTS, method=name)


def test_a_built_in_name_cannot_be_taken(tiny: Path, model: nn.Sequential) -> None:
    """`magnitude` stays magnitude, whatever is installed."""
    result = small(model, method="magnitude", scope="global")
    sizes = torch.cat([w.abs().flatten() for w in model.parameters() if w.ndim == 2])
    assert flat(result).equal(sizes >= sizes.sort(descending=True).values[35])
    names = plugins.plugin_names(plugins.CRITERIA, ["magnitude"])
    assert names == ["gone", "number", "spread", "torn"]


def test_broken_ones_are_left_out_of_lists(tiny: Path) -> None:
    """What can be read is listed; of each other one a warning says why it is not."""
    with pytest.warns(UserWarning, match="it is ignored") as caught:
        methods = added_methods()
    assert list(methods) == ["spread"]
    texts = [str(warning.message) for warning in caught]
    assert len(texts) == 4
    assert any("'magnitude' is built in" in text for text in texts)


def test_help_needs_no_plugin(tiny: Path, run: Run) -> None:
    """Commands that name none of them import none."""
    assert run("--help").code == 0
    assert run("prune", "--help").code == 0
    assert "tiny" not in sys.modules
    assert "tiny_torn" not in sys.modules


def test_the_command_line_takes_their_names(tiny: Path, place: Path, run: Run) -> None:
    """`--method` and `--calibration` as with our own, also from a run's config.toml."""
    network = ("net.py:make", "--weights", "net.safetensors", "--range", "0,1", "--sparsity", "0.5")
    ran = run(
        "prune", *network, *TINY, "--method", "spread", "--calibration", "rain", "--out", "out"
    )
    assert ran.code == 0, ran.err
    again = run("prune", "--config", "out/config.toml", "--out", "again")
    assert again.code == 0, again.err
    assert (place / "out/mask.safetensors").read_bytes() == (
        place / "again/mask.safetensors"
    ).read_bytes()


def test_doctor_names_every_broken_one(tiny: Path) -> None:
    """It loads all of them and works on; without plug-ins it says so."""
    check = doctor.check_plugins()
    assert check.status == doctor.WARN
    for name in ("torn", "gone", "number", "magnitude", "lost"):
        assert f"plug-in '{name}'" in check.finding
    assert "'spread'" not in check.finding
    (tiny / "tiny-1.0.dist-info" / "entry_points.txt").write_text("[gaprune.magic]\na = tiny:b\n")
    plugins._installed.cache_clear()
    assert "'gaprune.magic'" in doctor.check_plugins().finding
    (tiny / "tiny-1.0.dist-info" / "entry_points.txt").write_text("")
    plugins._installed.cache_clear()
    assert doctor.check_plugins() == doctor.Check("plug-ins", doctor.OK, "none installed")
