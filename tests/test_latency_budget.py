"""Budgets in measured time: asked, predicted, measured; the search itself is as reproducible."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from channel_networks import Separable, built
from test_pattern_search import IMAGES, SMALL, wide
from test_resume import Copying, found
from torch import nn

from gaprune import Result, prune, resume
from gaprune.config import make_settings
from gaprune.errors import InputError

BROAD: dict[str, Any] = {"pattern": "channel", "budget": "latency", "latency_batch": 64}


def broad() -> nn.Module:
    """Return a network that is slow enough for channels to matter."""
    return Separable(64, 128)


def timeless(result: Result) -> dict[str, Any]:
    """Return everything that a result says but what a clock said."""
    return {key: value for key, value in found(result).items() if key != "latency"}


@pytest.mark.slow
def test_what_was_asked_predicted_and_measured_is_said(tmp_path: Path) -> None:
    """The multiply-adds that were found are a setting, so that a run goes on with the same ones."""
    model, place = built(broad), tmp_path / "run"
    copying = Copying(place)
    stated = {**SMALL, **BROAD, "sparsity": 0.3, "generations": 1}
    result = prune(model, inputs=IMAGES, out=place, observer=copying, **stated)
    said = result.latency
    assert said is not None
    assert said["asked"] == 0.3
    assert said["predicted"] >= 0.3 - 1e-3
    assert 0 < said["compact_ms"] < said["dense_ms"]
    assert said["measured"] > 0
    low, middle, high = said["speed_up"]
    assert low <= middle <= high
    assert middle == pytest.approx(1 / (1 - said["measured"]), rel=0.01)
    assert (said["runtime"], said["batch"], said["threads"]) == ("torch", 64, 1)
    assert said["budget_macs"] == result.settings["budget_macs"]
    kept = result.macs["kept"]
    assert kept is not None
    assert kept <= said["budget_macs"]
    again = resume(copying.copies[0], model=model, observer=Copying(copying.copies[0]))
    assert timeless(again) == timeless(result)
    assert again.latency is not None
    assert again.latency["budget_macs"] == said["budget_macs"]
    assert again.latency["predicted"] is None
    stated = {**stated, "budget_macs": said["budget_macs"]}
    assert timeless(prune(model, inputs=IMAGES, **stated)) == timeless(result)


@pytest.mark.parametrize("factor", [1.25, 2, 4.0])
def test_a_speed_up_is_a_budget_of_latency(factor: float) -> None:
    """Twice as fast is half of the latency removed, by channels; a copy means the same."""
    settings = make_settings({"speed_up": factor})
    assert settings.sparsity == 1 - 1 / factor
    assert (settings.pattern, settings.budget) == ("channel", "latency")
    assert settings.replace(seed=1).sparsity == settings.sparsity


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"sparsity": 0.9}, r"speed_up.*sparsity"),
        ({"pattern": "2:4"}, r"speed_up.*pattern"),
        ({"budget": "macs"}, r"speed_up.*budget"),
        ({"max_drop": 0.01}, r"speed_up.*max.drop"),
        ({"speed_up": 1}, "above 1"),
        ({"speed_up": "fast"}, "speed_up"),
    ],
)
def test_a_speed_up_says_all(stated: dict[str, Any], message: str) -> None:
    """Another target beside it, or no speed-up, is refused."""
    with pytest.raises(InputError, match=message):
        make_settings({"speed_up": 2, **stated})


@pytest.mark.slow
def test_what_no_network_reaches_is_refused() -> None:
    """With what is possible."""
    stated = {**SMALL, **BROAD, "sparsity": 0.999}
    with pytest.raises(InputError, match=r"^sparsity: 0\.999 "):
        prune(built(broad), inputs=IMAGES, **stated)


def test_other_runtimes_are_refused() -> None:
    """With those that there are."""
    stated = {**SMALL, **BROAD, "sparsity": 0.3, "latency_runtime": "tensorrt"}
    with pytest.raises(InputError, match="latency_runtime"):
        prune(built(wide), inputs=IMAGES, **stated)
