"""`--calibration inversion` in a run: what is shown, what the provenance says, what a second run costs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from comparison_cases import conv_target
from search_cases import seeded

from gaprune.calibration.calibration_set import make_calibration_set
from gaprune.config import Settings, make_settings
from gaprune.runs.prune import prune_target
from gaprune.runs.run import PruningRun
from gaprune.runs.setup import check_settings, resolve_settings


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAPRUNE_CACHE", str(tmp_path))


def settings_of(*calibration: str) -> Settings:
    """Return the settings of a quick one-shot run on calibration inputs."""
    counts = {"calibration_count": 32, "validation_count": 32, "inversions": 64}
    return make_settings({"sparsity": 0.5, "method": "snip", "calibration": calibration, **counts})


def test_inverted_inputs_are_held_and_on_the_provenance(tmp_path: Path) -> None:
    """They are searched on, in the range of the network; some of them judge; the rung says so."""
    plan = make_calibration_set(conv_target(), settings_of("inversion"), seeded())
    assert plan.gradient_inputs is not None
    assert (
        len(plan.gradient_inputs.inputs) == 4 * 52
    )  # a fifth of 64 judges; the others and 3 moved copies
    assert plan.mixture is None
    assert (
        0
        <= float(plan.gradient_inputs.inputs.min())
        <= float(plan.gradient_inputs.inputs.max())
        <= 1
    )
    assert plan.provenance.level == "inversion"
    assert "inverted from BatchNorm" in plan.provenance.sources[0]
    assert "held-out part of 64 inputs inverted" in plan.provenance.validation
    assert "as many generated" in plan.provenance.validation
    assert plan.provenance.validation_samples == 24
    assert list((tmp_path / "calibration").iterdir())


def test_inverted_and_generated_inputs_share_the_batches() -> None:
    """Half of each gradient batch is held, half fresh."""
    plan = make_calibration_set(conv_target(), settings_of("inversion", "procedural"), seeded())
    assert plan.mixture is not None
    assert plan.gradient_share == 0.5


@pytest.mark.parametrize("loop", [False, True])
def test_inverted_inputs_move_unless_candidates_answer_after_repair(loop: bool) -> None:
    """Generated ones are new every time."""
    target = conv_target()
    for calibration, moving in (("inversion", not loop), ("noise", False)):
        asked = settings_of(calibration).replace(method="evolved", repair_in_loop=loop)
        assert (
            PruningRun(target, resolve_settings(check_settings(asked), target)).evaluator.augmentation is not None
        ) == moving


def test_a_second_run_reads_them_and_finds_the_same_masks() -> None:
    """The cache changes the time, not the result."""
    first, second = (prune_target(conv_target(), settings_of("inversion")) for _ in range(2))
    assert first.provenance == second.provenance
    assert all(torch.equal(first.masks[name], second.masks[name]) for name in first.masks)
