"""The benchmark of speed, with small searches in place of its own; no time is judged."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from math import isfinite
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from benchmarks import speed
from benchmarks.claims import Claim, flat, missed, table
from benchmarks.pace.clock import exponent, pairs_of
from benchmarks.pace.contenders import CONTENDERS
from benchmarks.pace.efficientnet import EfficientNetLite0
from benchmarks.pace.equal_time import (
    COUNTS,
    ON_COUNTS,
    ON_WEIGHTS,
    WEIGHTS,
    measure_density_search,
    measure_equal_time,
)
from benchmarks.pace.growth import WIDTHS, Load, measure_growth
from benchmarks.pace.original import SubnetLinear, subnet
from benchmarks.pace.overhead import TARGETS, measure_overhead
from benchmarks.pace.trial import Trial, kept, lamp_ranks, random_ranks
from benchmarks.pace.versus_original import (
    Effort,
    measure_original,
    original_of,
)
from gaprune.models.zoo import load_zoo_network, mnist

NO_TIME = 0.01  # seconds of a search: every one scores a candidate all the same
TINY: dict[str, Any] = {"seconds": NO_TIME, "calibration": 8, "validation": 8, "kinds": ("noise",)}


def test_an_evaluation_is_measured_beside_its_forward_pass() -> None:
    """Every ratio comes with the milliseconds that it is of; express is a part of evaluate."""
    found = measure_overhead(("mnist-mlp", "resnet20-sized"), calibration=8, pairs=2)
    assert set(found["overhead"]) == {"mnist-mlp", "resnet20-sized"}
    assert all(0 < ratio < 1000 for ratio in found["overhead"].values())
    for parts in found["overhead_ms"].values():
        assert set(parts) == {"dense", "evaluation", "express"}
        assert min(parts.values()) > 0


def test_networks_have_the_size_that_they_stand_for() -> None:
    """EfficientNet-Lite0 has 4,652,008 parameters, 13,000 of which lie in the last layer's bias."""
    model = EfficientNetLite0().eval()
    assert sum(parameter.numel() for parameter in model.parameters()) == 4_652_008
    with torch.no_grad():
        assert model(torch.rand(1, 3, 32, 32)).shape == (1, 1000)
    assert set(TARGETS) >= {"mnist-mlp", "mnist-cnn", "mobile-student"}


@pytest.mark.parametrize("density", [0.05, 0.3, 0.5])
def test_the_original_keeps_exactly_k(density: float) -> None:
    """The masks of its sort are those of torch's own pruning by size."""
    scores = torch.randn(37, 11, generator=torch.Generator().manual_seed(1))
    dropped = int((1 - density) * scores.numel())
    mask = subnet(scores.abs(), density)
    layer = nn.Linear(11, 37, bias=False)
    layer.weight.data = scores.clone()
    prune.l1_unstructured(layer, "weight", amount=dropped)
    expected_mask = dict(layer.named_buffers())["weight_mask"]
    assert int(mask.sum()) == scores.numel() - dropped
    assert torch.equal(mask, expected_mask)
    own = SubnetLinear(11, 37, density)
    own.scores.copy_(scores)
    inputs = torch.rand(2, 11, generator=torch.Generator().manual_seed(2))
    expected = nn.functional.linear(inputs, own.weight * expected_mask)
    assert torch.equal(own(inputs), expected)


def test_the_original_is_the_trained_network_under_its_masks() -> None:
    """With scores as large as the weights it is magnitude pruning inside layers, as torch does it.

    Generations come from the seed alone, and every fitness is an accuracy.
    """
    images, labels = (part[:100] for part in mnist.test_set())
    one = original_of(images, labels, population=2)
    weights = [layer.weight.detach().numpy() for layer in one.model.layers]
    model = load_zoo_network("mnist-cnn")
    for layer in (model.conv1, model.conv2, model.fc1, model.fc2):
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        prune.l1_unstructured(layer, "weight", amount=int(0.7 * layer.weight.numel()))
    with torch.no_grad():
        expected = (model(images).argmax(1) == labels).double().mean()
    assert one.fitness(weights) == pytest.approx(float(expected), abs=1e-9)

    def first_three() -> list[list[float]]:
        generations = one.generations(np.random.default_rng(3))
        return [next(generations) for _ in range(3)]

    found = first_three()
    assert found == first_three()
    assert all(len(fitness) == 2 and 0 <= min(fitness) <= 1 for fitness in found)


EFFORT = Effort(
    images=20,
    population=2,
    offspring=2,
    steps=1,
    rounds=2,
    calibration=8,
    default={"calibration_count": 64, "validation_count": 64},
)


@pytest.mark.slow
def test_searches_are_compared_with_the_original() -> None:
    """By candidates per second; the time to 89 % is extrapolated for it, measured for default."""
    found = measure_original(EFFORT)
    rates = found["candidates_per_second"]
    assert set(rates) == {"original", "classic", "racing", "default"}
    assert min(*rates.values(), *(found[f"{name}_ratio"] for name in set(rates) - {"original"})) > 0
    goal = found["time_to_89"]
    each = 1 / found["candidates_per_second"]["original"]
    assert goal["original_s"] == pytest.approx(34_300 * each)
    assert "extrapolated" in goal["original_s_is"]
    assert goal["default_accuracy"] >= 0.89
    assert goal["ratio"] == goal["original_s"] / goal["default_s"] > 0


def is_there(name: str) -> bool:
    """Tell whether the package of a contender is installed."""
    needs = CONTENDERS[name].needs
    return needs is None or find_spec(needs) is not None


@pytest.mark.parametrize("name", CONTENDERS)
def test_every_contender_finds_a_mask(name: str) -> None:
    """However short the time is; others end no worse than they start on what they see."""
    if not is_there(name):
        pytest.skip(f"needs {CONTENDERS[name].needs}")
    match = replace(COUNTS if name in ON_COUNTS else WEIGHTS, **TINY)
    score = CONTENDERS[name].play(match)
    assert all(0 <= part <= 1 for part in (score.accuracy, score.agreement))
    assert score.evaluations >= 1
    assert score.peak_mb >= score.before_mb > 50
    if name not in ("gaprune", "gaprune-black-box", "gaprune-counts"):  # their validation chooses
        run = match.run()
        start = (random_ranks if "random" in name else lamp_ranks)(run)
        assert score.fitness >= Trial(run.evaluator, 1, kept(run)).fitness(start)


def test_contenders_have_processes_of_their_own() -> None:
    """DEAP alone, so nothing can be compared; its memory is in `peak_mb`."""
    found = measure_equal_time(NO_TIME, replace(WEIGHTS, **TINY), ("deap",))
    figures = found["equal_time"]
    assert figures["deap"] == found["equal_time_found"]["deap"]["accuracy"]
    assert figures["gaprune"] is figures["evotorch"] is figures["gain"] is None
    assert found["peak_mb"] == {"deap": found["equal_time_found"]["deap"]["peak_mb"]}


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the extra that brings it; the others go on without it."""
    absent = replace(CONTENDERS["cma-counts"], needs="no_such_package_here")
    monkeypatch.setitem(CONTENDERS, "cma-counts", absent)
    found = measure_density_search(NO_TIME, replace(COUNTS, **TINY), ("cma-counts",))
    assert found["allocation_missing"] == {
        "cma-counts": "needs no_such_package_here; pip install 'gaprune[bench]'"
    }
    assert found["density_search"] == {}


def test_every_contender_is_in_a_comparison() -> None:
    """And gaprune comes first: the others have at least its time."""
    assert {*ON_WEIGHTS, *ON_COUNTS} == set(CONTENDERS)
    assert ON_WEIGHTS[0] == "gaprune"


def test_growth_is_measured_from_the_smallest_to_the_largest() -> None:
    """Each size in a process of its own; the peak of 22 million is only told where they were."""
    found = measure_growth((8, 16), Load(population=4, steps=1, calibration=8, evaluations=2))
    figures = found["growth"]
    assert figures["weights"] == [8 * (784 + 8 + 10), 16 * (784 + 16 + 10)]
    assert min(*figures["evaluation_s"], *figures["generation_s"]) > 0
    for first, middle, last in zip(
        figures["start_mb"], figures["evaluation_mb"], figures["peak_mb"], strict=True
    ):
        assert 50 < first <= middle <= last
    assert all(map(isfinite, figures["exponent"].values()))
    assert found["peak_mb"] == {}
    sizes = [width * (784 + width + 10) for width in WIDTHS]
    assert (sizes[0], sizes[-1]) == (198_800, 21_998_240)


def test_an_exponent_is_a_power() -> None:
    """Quadratic cost has exponent 2."""
    assert exponent([10, 20, 40], [1.0, 4.0, 16.0]) == pytest.approx(2)


def test_pairs_are_made_in_turn() -> None:
    """The order is swapped every time, after one round that is not counted."""
    said: list[str] = []
    found = pairs_of(lambda: said.append("a"), lambda: said.append("b"), most=4)
    assert len(found) == 4
    assert "".join(said) == "ab" + "abba" * 2
    said.clear()
    assert len(pairs_of(lambda: said.append("a"), said.sort, most=9, least=3, seconds=0)) == 3


def test_claims_are_held_against_nested_figures() -> None:
    """What was not measured, or could not be, misses nothing."""
    claims = [Claim("a.b", 1.5, False, "least"), Claim("c", 2.0, True, "most")]
    assert flat({"a": {"b": 1.0, "d": {"e": 2}}}) == {"a.b": 1.0, "a.d.e": 2}
    assert missed(claims, {"a": {"b": 1.6}, "c": None}) == claims[:1]
    assert not missed(claims, {"a": {"b": 1.5}, "c": 2.0})
    lines = table(claims, {"a": {"b": 1.6}, "c": None, "left": [0.5, 1]})
    assert lines[2] == "| a.b | 1.6 (missed) | ≤ 1.5 | least |"
    assert lines[3] == "| c | None | ≥ 2 | most |"
    assert lines[-1] == "left: 0.5 1"


def test_figures_are_one_json_object(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing else on stdout; parts share `peak_mb`; a missed bound makes the exit code 1."""
    parts = {
        "overhead": lambda _: {"overhead": {"mnist-mlp": 1.2}},
        "equal-time": lambda seconds: {"given": seconds, "peak_mb": {"deap": 900.0}},
        "growth": lambda _: {"peak_mb": {"22M-weights": 2400.0}},
    }
    monkeypatch.setattr(speed, "PARTS", parts)
    assert speed.main(["--json", "--seconds", "3"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["peak_mb"] == {"deap": 900.0, "22M-weights": 2400.0}
    assert (figures["overhead"], figures["given"]) == ({"mnist-mlp": 1.2}, 3.0)
    assert set(figures["load"]) == set(parts)
    assert speed.main(["--only", "overhead"]) == 0
    printed = capsys.readouterr().out
    assert "| overhead.mnist-mlp | 1.2 | ≤ 1.5 |" in printed
    assert "peak_mb" not in printed
    monkeypatch.setattr(speed, "PARTS", {"overhead": lambda _: {"overhead": {"mnist-mlp": 1.6}}})
    assert speed.main([]) == 1


def test_an_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """With the parts that there are."""
    with pytest.raises(SystemExit) as ended:
        speed.main(["--only", "everything"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert all(name in said for name in ("everything", *speed.PARTS))
