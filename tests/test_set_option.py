"""`--set KEY=VALUE` states any key of config.toml."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import Run

from gaprune.cli.common_options import read_pairs
from gaprune.errors import InputError
from gaprune.io.run_files import read_config


def test_values_are_those_of_toml_and_quotes_may_be_left_out() -> None:
    """Numbers, switches, lists and bare words are what they look like."""
    numbers = ["steps=50", "learning-rate = 2.5"]
    pairs = [*numbers, "pareto=true", 'calibration=["noise"]', "test=a b=c", "x-y='1'"]
    assert read_pairs(pairs, {}) == {
        "steps": 50,
        "learning_rate": 2.5,
        "pareto": True,
        "calibration": ["noise"],
        "test": "a b=c",
        "x_y": "1",
    }


@pytest.mark.parametrize("pair", ["steps", "=3", "  =", ""])
def test_what_is_no_pair_is_refused(pair: str) -> None:
    """The message shows a pair."""
    with pytest.raises(InputError, match=r"set: .*steps=50"):
        read_pairs([pair], {})


@pytest.mark.parametrize(("pairs", "options"), [(["a=1", "a=2"], {}), (["a=1"], {"a": 1})])
def test_a_key_is_stated_once(pairs: list[str], options: dict[str, int]) -> None:
    """Neither of two values is taken in silence."""
    with pytest.raises(InputError, match="set: 'a'"):
        read_pairs(pairs, options)


def test_a_run_is_made_with_them_and_says_so(run: Run, place: Path) -> None:
    """They go before a configuration file, and an unknown key is an error of its own."""
    Path("c.toml").write_text('target = "net.py:make"\nsteps = 7\nseed = 3\n')
    network = ("--config", "c.toml", "--weights", "net.safetensors", "--range", "0,1")
    asked = (
        "prune",
        *network,
        "--trust-code",
        "--sparsity",
        "0.5",
        "--out",
        "r",
        "--generations",
        "1",
    )
    done = run(*asked, "--set", "steps=2", "--set", "population=2")
    assert done.code == 0, done.err
    kept = read_config(Path("r/config.toml"))
    assert (kept["steps"], kept["population"], kept["seed"]) == (2, 2, 3)
    refused = run(*asked, "--set", "stepps=2")
    assert refused.code == 2
    assert "stepps" in refused.err
    assert "steps" in refused.err
