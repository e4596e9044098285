"""`--probes inversion` in a run: what is shown, what the receipt says, what a second run costs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from comparison_cases import conv_target
from search_cases import seeded, tiny_model

from gaprune.config import Settings, make_settings
from gaprune.errors import InputError
from gaprune.input_options import InputOptions
from gaprune.pipeline import prune_target
from gaprune.probes.plan import plan_probes
from gaprune.target import target_from_module


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAPRUNE_CACHE", str(tmp_path))


def settings_of(*probes: str) -> Settings:
    """Return the settings of a quick one-shot run on probes."""
    counts = {"probe_count": 32, "guard_count": 32, "inversions": 64}
    return make_settings({"sparsity": 0.5, "method": "snip", "probes": probes, **counts})


def test_inverted_inputs_are_held_and_on_the_receipt(tmp_path: Path) -> None:
    """They are searched on, in the range of the network; a generator judges; the rung says so."""
    plan = plan_probes(conv_target(), settings_of("inversion"), seeded())
    assert plan.pool is not None
    assert len(plan.pool.inputs) == 64
    assert plan.fresh is None
    assert 0 <= float(plan.pool.inputs.min()) <= float(plan.pool.inputs.max()) <= 1
    assert plan.receipt.rung == "inversion"
    assert "inverted from BatchNorm" in plan.receipt.sources[0]
    assert "generated" in plan.receipt.guard
    assert list((tmp_path / "probes").iterdir())


def test_inverted_and_generated_inputs_share_the_batches() -> None:
    """Half of each gradient batch is held, half fresh."""
    plan = plan_probes(conv_target(), settings_of("inversion", "procedural"), seeded())
    assert plan.fresh is not None
    assert plan.pool_share == 0.5


def test_a_second_run_reads_them_and_finds_the_same_masks() -> None:
    """The cache changes the time, not the result."""
    first, second = (prune_target(conv_target(), settings_of("inversion")) for _ in range(2))
    assert first.receipt == second.receipt
    assert all(torch.equal(first.masks[name], second.masks[name]) for name in first.masks)


def test_a_network_without_batchnorm_is_sent_to_impressions() -> None:
    """The message names the other way."""
    target = target_from_module(tiny_model(), inputs=InputOptions(range=(0, 1)))
    with pytest.raises(InputError, match="impressions"):
        plan_probes(target, settings_of("inversion"), seeded())
