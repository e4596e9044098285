"""gaprune as a Python package: progress, warnings, data in memory, what a result shows."""

from __future__ import annotations

import gc
import io
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from search_cases import tiny_model
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import gaprune
from gaprune import GapruneError, GapruneWarning, InputError, InputOptions
from gaprune.calibration.in_memory import read_data
from gaprune.callbacks import Callbacks
from gaprune.runs import python_display
from gaprune.runs.python_display import PythonDisplay

UNIT = InputOptions(range=(0, 1))
SCALED = InputOptions(mean=(0.5,), std=(0.25,))
VECTORS = torch.rand(60, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(60) % 4
SMALL: dict[str, Any] = {"preset": "black-box", "population": 4, "offspring": 4, "generations": 2}
ONE_SHOT: dict[str, Any] = {"sparsity": 0.5, "method": "magnitude"}


class Entries(Dataset[Any]):
    """A dataset that counts how often it is read."""

    def __init__(self, length: int = 10**6) -> None:
        self.length, self.read = length, 0

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, str]]:
        self.read += 1
        return VECTORS[index % 60], {"labels": "of any kind"}


class Stream(IterableDataset[Any]):
    """An endless dataset."""

    def __iter__(self) -> Iterator[Tensor]:
        while True:
            yield from VECTORS


def run(model: nn.Module | None = None, **options: Any) -> gaprune.Result:
    """Prune a tiny network by magnitude, silently."""
    options = {"inputs": UNIT, "progress": False, **ONE_SHOT, **options}
    return gaprune.prune(tiny_model() if model is None else model, **options)


def test_warnings_name_the_line_of_the_caller() -> None:
    """The result holds them too; a filter that makes them errors ends the run."""
    with pytest.warns(GapruneWarning, match="range") as caught:
        result = run(inputs=None)
    assert {Path(warning.filename).name for warning in caught} == {Path(__file__).name}
    assert [str(warning.message) for warning in caught] == list(result.warnings)
    assert result.record()["warnings"] == list(result.warnings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(GapruneWarning):
            run(inputs=None)


def test_a_run_without_remarks_warns_of_nothing() -> None:
    """Its users may turn warnings into errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run().warnings == ()


def test_comparisons_and_sweeps_warn_too() -> None:
    """Each at the line of its caller."""
    shown: dict[str, Any] = {"progress": False, "inputs": None}
    with pytest.warns(GapruneWarning) as caught:
        gaprune.compare(tiny_model(), sparsity=0.5, methods="magnitude", **shown)
    assert Path(caught[0].filename).name == Path(__file__).name


def test_observers_receive_the_words_of_python() -> None:
    """As all messages of Python calls do."""
    texts: list[str] = []
    run(inputs=None, observer=Callbacks(on_warning=texts.append))
    assert any("InputOptions(range=" in text for text in texts)
    assert not any("--" in text for text in texts)


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("progress", [True, False])
def test_progress_goes_to_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], progress: bool
) -> None:
    """By default a bar with the generations; `progress=False` shows none."""
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    run(progress=progress, method="evolved", **SMALL)
    assert ("2/2" in terminal.getvalue()) == progress
    assert ("agreement" in terminal.getvalue()) == progress
    assert capsys.readouterr().out == ""


def test_a_log_gets_few_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """None of a short run, and then one every ten seconds."""
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))  # imported, not running
    monkeypatch.setattr(python_display, "LINE_INTERVAL", 3600.0)  # on a slow machine too
    run(progress=True, method="evolved", **SMALL)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(python_display, "LINE_INTERVAL", 0.0)
    display = PythonDisplay()
    display.progress("calibration", 1, 4)
    display.progress("calibration", 2, 4)
    display.close()
    assert "2/4" in capsys.readouterr().err


@pytest.mark.parametrize(
    "make",
    [
        lambda: VECTORS,
        VECTORS.numpy,
        lambda: (VECTORS, LABELS),
        lambda: {"x": VECTORS, "y": LABELS},
        lambda: TensorDataset(VECTORS, LABELS),
        lambda: DataLoader(TensorDataset(VECTORS, LABELS), batch_size=7),
        lambda: [VECTORS[:20], VECTORS[20:]],
        lambda: (batch.numpy() for batch in VECTORS.split(9)),
        lambda: (VECTORS, LABELS.tolist()),
        lambda: [(vector, int(label)) for vector, label in zip(VECTORS, LABELS, strict=True)],
        lambda: [{"x": vector, "label": 0} for vector in VECTORS],
    ],
    ids=[
        "tensor",
        "array",
        "pair",
        "dict",
        "Dataset",
        "DataLoader",
        "list",
        "generator",
        "labels in a list",
        "entries",
        "dictionaries",
    ],
)
def test_calibration_inputs_may_be_in_memory(make: Callable[[], object]) -> None:
    """All forms hold the same inputs, and give the same masks; labels are ignored."""
    results = [
        run(method="wanda", calibration=data, validation=VECTORS, calibration_count=len(VECTORS))
        for data in (make(), VECTORS)
    ]
    for result in results:
        assert result.provenance.level == "unlabelled"
        assert result.provenance.samples == 60
        assert result.provenance.validation_samples == 60
    first, second = (result.masks for result in results)
    assert all(mask.equal(second[name]) for name, mask in first.items())


def test_data_and_names_can_be_combined() -> None:
    """A generator's inputs are added to the caller's."""
    result = run(calibration=("procedural", VECTORS), calibration_count=64)
    assert result.provenance.fresh
    assert result.settings["calibration"][0] == "procedural"


def test_large_datasets_are_read_as_far_as_counts_need() -> None:
    """At equal distances, since many are sorted; streams from their beginning."""
    entries = Entries()
    counts: dict[str, Any] = {"calibration_count": 30, "validation_count": 10}
    assert run(calibration=entries, **counts).provenance.samples == 32  # a fifth is validation
    assert entries.read == 40
    entries = Entries()
    run(calibration=entries, gradient_count=50, **counts)
    assert entries.read == 60
    loader = DataLoader(Stream(), batch_size=8)
    assert run(calibration=loader, **counts).provenance.samples == 32
    assert read_data("calibration", Stream(), 5).inputs.shape == (5, 6)


@pytest.mark.parametrize(
    "inputs",
    [VECTORS, (VECTORS * 255).round().byte(), (VECTORS - 0.5) / 0.25],
    ids=["0 to 1", "bytes", "normalised"],
)
def test_test_data_is_normalised_as_the_command_line_does(inputs: Tensor) -> None:
    """Raw values and values that are normalised already have the same accuracy."""
    model = tiny_model()
    expected = (model((VECTORS - 0.5) / 0.25).argmax(1) == LABELS).double().mean()
    loader = DataLoader(TensorDataset(inputs, LABELS), batch_size=16)
    entries = [(vector, int(label)) for vector, label in zip(inputs, LABELS, strict=True)]
    pairs = ((inputs, LABELS), (inputs.numpy(), LABELS.numpy()), (inputs, LABELS.tolist()))
    for test in (*pairs, loader, entries):
        result = run(model, test=test, inputs=SCALED)
        assert result.dense_accuracy == pytest.approx(float(expected), abs=0.02)


@pytest.mark.parametrize("inputs", [UNIT, SCALED, None])
def test_test_data_out_of_the_stated_range_is_refused(inputs: InputOptions | None) -> None:
    """Its accuracy would be that of other inputs."""
    with pytest.raises(InputError, match=r"^test: .* 25\d"):
        run(test=(VECTORS * 255, LABELS), inputs=inputs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calibration": 5}, "calibration: .*got 5$"),
        ({"calibration": []}, "calibration: .*list"),
        ({"calibration": [VECTORS, VECTORS[:, :2]]}, r"calibration: .*\[6\] and \[2\]"),
        ({"calibration": {"z": VECTORS}}, "calibration: .*got z"),
        ({"calibration": VECTORS[:, :2]}, "calibration.*Tensor given as calibration="),
        ({"calibration_count": VECTORS}, r"calibration_count: .*Tensor \[60, 6\]"),
        ({"test": VECTORS}, "test: "),
        ({"test": 5}, "test: .*got 5$"),
        ({"test": (VECTORS, functional.one_hot(LABELS))}, r"test: .*\(60, 4\)"),
        ({"test": (VECTORS, LABELS + 1)}, "test: .* 0 to 3,.* 1 to 4$"),
        ({"observer": 5}, "observer: .*got 5$"),
        ({"on_generation": 5}, "on_generation: .*got 5$"),
        ({"calibration": None}, "calibration: must be names, got None"),
        ({"model": VECTORS}, r"model: .*Tensor \[60, 6\]"),
        ({"inputs": (0, 1)}, r"inputs: .*\(0, 1\)"),
        ({"ignore": 5}, "ignore: .*got 5$"),
        ({"ignore": nn.Linear(2, 2)}, "ignore: .*Linear"),
        ({"layer_sparsity": {5: 0.5}}, "layer_sparsity: .*got 5$"),
        ({"scope": "layer", "pareto": True, "method": "evolved"}, "scope='global'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_types_are_named_in_one_line(options: dict[str, Any], message: str) -> None:
    """With the argument's name in Python, and a short form of the value."""
    with pytest.raises(InputError, match=message) as caught:
        run(**options)
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)
    assert "--" not in str(caught.value)


def test_budgets_are_checked_before_generators_are_weighed() -> None:
    """Weighing takes seconds to minutes, after which an error would be late."""
    sizes: list[int] = []
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    model[0].register_forward_hook(lambda _module, _inputs, output: sizes.append(len(output)))
    inputs = InputOptions(shape=(1, 8, 8), range=(0, 1))
    for option in ({"layer_sparsity": {"none": 0.5}}, {"floor": 0.9}, {"sparsity": 0.9999}):
        with pytest.raises(InputError):
            run(model, method="wanda", inputs=inputs, **option)
    assert max(sizes) < 10  # inputs on which the network is tried
    run(model, method="wanda", inputs=inputs)
    assert max(sizes) > 10


def test_settings_take_what_torch_users_write() -> None:
    """A `torch.device`, and one name where several are possible."""
    search = {**SMALL, "method": "evolved", "initial_criteria": "lamp"}
    settings = run(device=torch.device("cpu"), **search).settings
    assert settings["device"] == "cpu"
    assert settings["initial_criteria"] == ["lamp"]


def test_inputs_are_checked_when_they_are_stated() -> None:
    """A number stands for one of all channels."""
    stated: dict[str, Any] = {"shape": 6, "mean": 0.5}
    assert InputOptions(**stated).mean == (0.5,)
    with pytest.raises(InputError, match=r"inputs: range .*Tensor"):
        InputOptions(range=VECTORS)  # type: ignore[arg-type]


class Two(nn.Module):
    """A network with two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        features = self.first(inputs).relu()
        return {"features": features, "logits": self.head(features)}


def test_layers_are_named_by_themselves() -> None:
    """In `ignore`, `prune_also` and `layer_sparsity`; types of layers too."""
    model = Two()
    options: dict[str, Any] = {"output": "logits"}
    by_layer = run(model, ignore=model.head, prune_also=[model.first.bias], **options)
    by_name = run(model, ignore=("head",), prune_also="first.bias", **options)
    assert by_layer.layers == by_name.layers
    assert by_layer.target.ignore == ("head",)
    fractions = run(model, layer_sparsity={model.head: 0.25}, **options).summary()
    assert {row["layer"]: row["density"] for row in fractions}["head.weight"] == 0.75
    with pytest.raises(InputError, match="no layer"):
        run(model, ignore=nn.Linear, **options)


def test_a_run_in_memory_is_known_as_long_as_its_network(tmp_path: Path) -> None:
    """It bears the name of the class; resume, export and measure find the network."""
    model = Two()
    folder, exported = tmp_path / "run", tmp_path / "masks"
    options: dict[str, Any] = {**SMALL, "method": "evolved", "output": "logits", "ignore": "head"}
    result = run(model, out=folder, **options)
    assert result.target.name == "Two"
    assert (
        gaprune.resume(folder, progress=False)
        .masks["first.weight"]
        .equal(result.masks["first.weight"])
    )
    gaprune.export(folder, "sparse", exported)
    file = next(exported.glob("*.safetensors"))
    what: dict[str, Any] = {"runtimes": ["torch"], "batches": [1]}
    assert gaprune.measure(file, **what)[0].agreement is not None
    assert gaprune.measure(file, target=model, **what)[0].agreement is not None
    del model, result
    gc.collect()
    with pytest.raises(InputError, match="model="):
        gaprune.resume(folder)
    (measured,) = gaprune.measure(file, **what)
    assert any("target=" in remark for remark in measured.remarks)


def test_a_result_prints_few_lines() -> None:
    """Twelve at most: sparsity, accuracy, gain, best one-shot method, time, warnings."""
    result = run(inputs=None, method="evolved", test=(VECTORS, LABELS), **SMALL)
    lines = repr(result).splitlines()
    assert len(lines) <= 12
    assert max(map(len, lines)) <= 120
    names = {line.split("  ")[0] for line in lines}
    assert {"sparsity", "accuracy", "best one-shot", "gain", "time", "warnings"} <= names
    assert str(result.best_baseline) in repr(result)
    html = result._repr_html_()
    assert html.count("<polyline") == 1
    assert "<script" not in html
    assert "<polyline" not in run()._repr_html_()  # nothing was searched


def test_a_summary_has_one_row_per_layer() -> None:
    """Printed as a table; as data a list of dictionaries."""
    result = run()
    summary = result.summary()
    assert [row["layer"] for row in summary] == [layer.name for layer in result.layers]
    assert sum(row["kept"] for row in summary) == result.kept
    assert len(repr(summary).splitlines()) == len(summary) + 1
    assert np.prod(summary[0]["shape"]) == summary[0]["weights"]


def test_a_comparison_becomes_a_data_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one row per method; without pandas the message says how to install it."""
    comparison = gaprune.compare(
        tiny_model(), sparsity=0.5, methods=("magnitude", "lamp"), inputs=UNIT, progress=False
    )
    assert "magnitude" in repr(comparison)
    monkeypatch.setattr("gaprune.comparison.comparison_report.find_spec", lambda _: None)
    with pytest.raises(GapruneError, match="pip install pandas"):
        comparison.to_dataframe()
    monkeypatch.undo()
    pytest.importorskip("pandas")
    assert list(comparison.to_dataframe()["method"]) == ["magnitude", "lamp"]


def test_dir_shows_the_public_names() -> None:
    """And no modules, whatever has been imported."""
    assert dir(gaprune) == sorted(gaprune.__all__)
    assert all(getattr(gaprune, name).__doc__ for name in gaprune.__all__)
