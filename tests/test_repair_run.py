"""`--repair` in a run: another row and another file, and everything else as without it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command_line import OWN, TINY, Run
from comparison_cases import conv_target, images
from safetensors.torch import load_file

from gaprune.config import make_settings
from gaprune.runs.prune import prune_target
from gaprune.runs.result import Result

QUICK = {"sparsity": 0.6, "method": "magnitude", "calibration_count": 64, "validation_count": 64}


@pytest.fixture(scope="module")
def results() -> tuple[Result, Result]:
    """One-shot magnitude on a network with BatchNorm, strict and with repair."""
    strict, repaired = (
        prune_target(conv_target(), make_settings({**QUICK, "repair": on}), test=images(50, 3))
        for on in (False, True)
    )
    return strict, repaired


def test_repair_changes_statistics_and_no_weight(results: tuple[Result, Result]) -> None:
    """Masks and strict figures are those without repair; only what is named differs."""
    strict, repaired = results
    assert strict.repaired is None
    assert strict.repaired_model() is None
    assert repaired.repaired is not None
    assert all(torch.equal(strict.masks[name], repaired.masks[name]) for name in strict.masks)
    assert (strict.validation_agreement, strict.accuracy) == (
        repaired.validation_agreement,
        repaired.accuracy,
    )
    model = repaired.repaired_model()
    assert model is not None
    before, after = repaired.state_dict(), model.state_dict()
    differing = {name for name in before if not torch.equal(before[name], after[name])}
    assert differing <= set(repaired.repaired.repair.changed)
    assert "norm1.running_mean" in differing
    assert not any(name in repaired.masks for name in differing)


def test_the_repaired_figures_are_those_of_the_repaired_network(
    results: tuple[Result, Result],
) -> None:
    """Accuracy is measured on the copy that the result gives."""
    _, result = results
    model = result.repaired_model()
    assert model is not None
    assert result.repaired is not None
    test = images(50, 3)
    assert test.labels is not None
    hits = (model(test.inputs).argmax(1) == test.labels).double().mean()
    assert result.repaired.accuracy == pytest.approx(float(hits))
    record = result.record()["repaired"]
    assert record["accuracy"] == result.repaired.accuracy
    assert record["changed"] == list(result.repaired.repair.changed)


def test_a_repaired_run_on_disk(run: Run, place: Path) -> None:
    """A network without BatchNorm has its biases corrected; both state dicts are there."""
    ran = run("prune", *OWN, "--sparsity", "0.5", *TINY, "--repair", "--out", "r")
    assert ran.code == 0
    assert "evolved, repaired" in ran.out
    strict, repaired = load_file("r/pruned.safetensors"), load_file("r/repaired.safetensors")
    assert all(torch.equal(strict[n], repaired[n]) for n in strict if n.endswith("weight"))
    assert not torch.equal(strict["fc1.bias"], repaired["fc1.bias"])
    assert json.loads(Path("r/result.json").read_text())["repaired"]["changed"]
    assert run("prune", "--config", "r/config.toml", "--out", "r", "--overwrite").code == 0
