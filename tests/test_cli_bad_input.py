"""Bad input ends with exit code 2 and one message, before anything is written."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from command_line import OWN, PRUNE, Run, tree

# What is wrong → the arguments, and what the message must say: the argument, and what came.
BAD: dict[str, tuple[tuple[str, ...], str]] = {
    **{
        f"sparsity {value}": ((*OWN, "--sparsity", value), rf"sparsity: .*got '?{value}'?$")
        for value in ("0.0", "1.0", "1.5", "-0.1", "nan", "inf", "abc", "50%")
    },
    "no sparsity": (OWN, "sparsity: .*--sparsity"),
    "no target": (("--sparsity", "0.5"), "target: .*mnist-mlp"),
    "unknown target": (("mnist-mpl", "--sparsity", "0.5"), "target: .*'mnist-mlp'"),
    "layer emptied": (
        (*PRUNE[1:], "--scope", "layer", "--sparsity", "0.99"),
        "'fc2.weight'",
    ),
    "nothing kept": ((*PRUNE[1:], "--sparsity", "0.9999"), "sparsity: .*at most"),
    "method": ((*PRUNE[1:], "--method", "lmap"), "method: .*'lmap'.*'lamp'.*synflow"),
    "preset": ((*PRUNE[1:], "--preset", "fast"), "preset: .*'fast'.*black-box"),
    "scope": ((*PRUNE[1:], "--scope", "local"), "scope: .*'local'.*allocated"),
    "calibration": ((*PRUNE[1:], "--calibration", "nois"), "calibration.*'nois'.*'noise'"),
    "validation": ((*PRUNE[1:], "--validation", "nois"), "validation: .*'nois'.*'noise'"),
    "objective": ((*PRUNE[1:], "--objective", "klo"), "objective: .*'klo'.*'kl'"),
    "layer name": ((*PRUNE[1:], "--prune-also", "fc3.bias"), "fc3.bias"),
    "input kind": ((*PRUNE[1:], "--input-kind", "sound"), "input kind: .*'sound'.*signal"),
    "input shape": ((*PRUNE[1:], "--input-shape", "3,x"), "input_shape: .*got '3,x'"),
    "half a pixel": ((*PRUNE[1:], "--input-shape", "3.5"), "input_shape: "),
    "other shape": ((*PRUNE[1:], "--input-shape", "13"), "input shape: .*13.*--input-shape"),
    "range": ((*PRUNE[1:], "--range", "1"), "range: .*two"),
    "range reversed": ((*PRUNE[1:], "--range", "1,-1"), "range: .*low"),
    "std zero": ((*OWN[:3], "--sparsity", "0.5", "--std", "0"), "std: .*0"),
    "workers": ((*PRUNE[1:], "--workers", "0"), "workers: .*'0'"),
    "seed": ((*PRUNE[1:], "--seed", "1.5"), "seed: .*integer.*got '1.5'"),
    "calibration shape": ((*PRUNE[1:], "--calibration", "wide.npz"), "calibration.*wide.npz.*12"),
    "calibration dtype": ((*PRUNE[1:], "--calibration", "text.npz"), "calibration.*text.npz"),
    "calibration without rows": (
        (*PRUNE[1:], "--calibration", "no_rows.npz"),
        "calibration.*no_rows.npz",
    ),
    "calibration without bytes": (
        (*PRUNE[1:], "--calibration", "empty.npz"),
        "calibration.*empty.npz",
    ),
    "calibration missing": ((*PRUNE[1:], "--calibration", "none.npz"), "calibration.*none.npz"),
    "calibration without labels": (
        (*PRUNE[1:], "--calibration", "labelled:plain.npz"),
        "calibration.*plain.npz .*labels",
    ),
    "test without labels": ((*PRUNE[1:], "--test", "plain.npz"), "test: plain.npz .*labels"),
    "test of another shape": ((*PRUNE[1:], "--test", "wide.npz"), "test: .*wide.npz"),
    "config key": ((*PRUNE[1:], "--config", "typo.toml"), "'sparsiti'.*'sparsity'.*input_shape"),
    "config missing": ((*PRUNE[1:], "--config", "none.toml"), "config: .*none.toml"),
    "config not TOML": ((*PRUNE[1:], "--config", "broken.toml"), "config: .*TOML"),
    "config value": (("--config", "wrong.toml", "--trust-code"), "seed: .*got 'x'"),
    "weights missing": ((*PRUNE[1:], "--weights", "none.pt"), "weights: .*none.pt"),
    "weights of another network": (
        ("mnist-mlp", "--weights", "net.safetensors", "--sparsity", "0.5"),
        "weights: .*fc1.weight",
    ),
    "factory not named": (
        ("net.py", "--sparsity", "0.5"),
        "net.py:make",
    ),
    "events in a file": ((*PRUNE[1:], "--tensorboard", "net.py"), "tensorboard: .*net.py"),
    "words of numbers": ((*PRUNE[1:], "--device", "tpu"), r"device: .*cuda:N.*'tpu'"),
    "factory missing": (("net.py:mk", "--sparsity", "0.5"), "target: .*'mk'.*make"),
    "out is a file": ((*PRUNE[1:], "--out", "net.py"), "out: net.py "),
    "out below a file": ((*PRUNE[1:], "--out", "net.py/run"), "out: .*net.py/run"),
    "out has other files": ((*PRUNE[1:], "--out", "full"), "out: full .*files"),
    "out and no-save": ((*PRUNE[1:], "--out", "run", "--no-save"), "out: .*--no-save"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_message_and_writes_nothing(case: str, run: Run, place: Path) -> None:
    """Exit 2; the message names the argument, what came and the way out; no traceback."""
    arguments, message = BAD[case]
    before = tree(place)
    ran = run("prune", *arguments, "--quiet")
    assert ran.code == 2
    assert ran.out == ""
    (line,) = [line for line in ran.err.splitlines() if "gaprune: error: " in line]
    assert re.search(message, line.removeprefix("gaprune: error: ")), line
    assert "Traceback" not in ran.err
    assert tree(place) == before


def test_a_folder_that_cannot_take_runs_is_found_before_the_search(run: Run, place: Path) -> None:
    """Also where the user named none."""
    Path("runs").write_text("a file")
    ran = run(*PRUNE)
    assert (ran.code, ran.out) == (2, "")
    assert "runs/net-make-0.5" in ran.err
    assert "generation" not in ran.err


@pytest.mark.parametrize(
    "arguments", [("prune", "--sparsty", "0.5"), ("pruen",), ("demo", "--seed", "x"), ()]
)
def test_wrong_usage_exits_with_2(arguments: tuple[str, ...], run: Run) -> None:
    """Unknown commands and options are named; no command at all shows the help."""
    ran = run(*arguments)
    assert ran.code == 2
    assert "Usage: gaprune" in ran.out + ran.err
    assert all(word in ran.out + ran.err for word in arguments[-2:-1])
    errors = [line for line in ran.err.splitlines() if "error: " in line.lower()]
    assert [line.startswith("gaprune: error: ") for line in errors] == [True] * bool(arguments)


def test_several_workers_name_the_extra_with_ray(
    run: Run, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One worker never imports Ray."""
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    ran = run(*PRUNE, "--workers", "2")
    assert ran.code == 2
    assert "gaprune[ray]" in ran.err
    assert run(*PRUNE, "--method", "magnitude", "--no-save", "--quiet").code == 0
