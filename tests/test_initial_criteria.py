"""`starts`: which one-shot masks a search begins with."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from command_line import OWN, TINY, Run
from search_cases import tiny_model
from torch import Tensor, nn

from gaprune import InputError, InputOptions, Result, prune

SMALL: dict[str, Any] = {
    "sparsity": 0.7,
    "inputs": InputOptions(range=(0, 1)),
    "calibration_count": 64,
    "validation_count": 64,
    "generations": 1,
    "steps": 5,
    "batch": 16,
}


def prune_tiny(**changes: Any) -> Result:
    """Prune a tiny network in a small search."""
    return prune(tiny_model(), **{**SMALL, **changes})


def test_a_search_begins_with_what_is_stated() -> None:
    """They alone are computed and compared; another start, another search."""
    result = prune_tiny(initial_criteria=["lamp-wanda", "snip"])
    assert set(result.baselines) == {"lamp-wanda", "snip"}
    assert result.validation_agreement >= max(one.agreement for one in result.baselines.values())
    everywhere = prune_tiny()
    assert set(everywhere.baselines) > set(result.baselines)


def test_the_result_beats_masks_from_which_no_search_starts() -> None:
    """`correlation-swaps` is scored, but only a search that names it starts from it."""
    result = prune_tiny()
    assert {"swaps", "correlation-swaps"} <= result.baselines.keys()
    assert result.validation_agreement >= result.baselines["correlation-swaps"].agreement
    named = prune_tiny(initial_criteria=["correlation-swaps"], generations=0)
    assert named.origin == "correlation-swaps"
    assert prune_tiny(pareto=True).front


class TokenEncoder(nn.Module):
    """Token ids `[N, 5]` → embeddings `[N, 5, 6]`."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.linear = nn.Embedding(12, 8), nn.Linear(8, 6)

    def forward(self, ids: Tensor) -> Tensor:
        outputs: Tensor = self.linear(self.embedding(ids))
        return outputs


def test_encoders_of_texts_are_not_searched_unless_asked() -> None:
    """On generated texts gradient steps mislead: the default is the best one-shot mask."""
    inputs = InputOptions((5,), kind="tokens", vocabulary=12)
    counts: dict[str, Any] = {"calibration_count": 32, "validation_count": 32, "steps": 1}
    model = TokenEncoder().eval()
    best = prune(model, sparsity=0.5, inputs=inputs, **counts)
    assert best.settings["generations"] == 0
    assert best.origin in best.baselines
    searched = prune(model, sparsity=0.5, inputs=inputs, generations=2, **counts)
    assert len(searched.history) == 3


def test_a_stated_start_is_computed_also_where_no_gradient_is_taken() -> None:
    """The preset `black-box` leaves gradient criteria out, unless somebody names one."""
    result = prune_tiny(preset="black-box", initial_criteria=["snip"], population=4, offspring=4)
    assert "snip" in result.baselines


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"initial_criteria": ["lamp", "nope"]}, "unknown .*'nope'.*lamp-wanda"),
        ({"initial_criteria": []}, "initial_criteria"),
        ({"initial_criteria": ["swaps"], "pattern": "2x1"}, "initial_criteria: 'swaps'"),
        ({"method": "swaps", "pattern": "channel"}, "method: 'swaps'"),
        ({"initial_criteria": ["lamp"], "method": "snip"}, "initial_criteria: .*'snip'"),
        (
            {"initial_criteria": ["lamp"], "preset": "classic"},
            "initial_criteria: .*'classic'",
        ),
    ],
)
def test_starts_that_mean_nothing_are_refused(changes: dict[str, Any], message: str) -> None:
    """Before anything is computed, with the way out."""
    with pytest.raises(InputError, match=message):
        prune_tiny(**changes)


def test_the_command_line_takes_them_and_config_toml_holds_them(run: Run, place: Path) -> None:
    """Joined by commas; the saved configuration repeats the run."""
    tiny = (*OWN, *TINY, "--sparsity", "0.5", "--json")
    record = json.loads(run("prune", *tiny, "--initial-criteria", "lamp,wanda", "--out", "run").out)
    assert set(record["baselines"]) == {"lamp", "wanda"}
    config = Path("run/config.toml")
    assert tomllib.loads(config.read_text())["initial_criteria"] == ["lamp", "wanda"]
    again = json.loads(run("prune", "--config", str(config), "--no-save", "--json").out)
    assert again["layers"] == record["layers"]
    assert again["agreement"] == record["agreement"]
