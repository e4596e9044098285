"""Under a pattern every method obeys it, and one that has no place there says so in its row."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from channel_networks import IMAGE, Separable, built
from command_line import OWN, TINY, Run
from comparison_cases import QUICK, Heard, ask, tiny_data, tiny_target
from search_cases import tiny_model
from torch import Tensor

from gaprune import InputOptions, compare, prune_target
from gaprune.comparison import ComparisonData, ComparisonSpec, find_methods, known_methods
from gaprune.comparison.context import ComparisonContext, ComparisonObserver
from gaprune.comparison.methods.edge_popup import EdgePopupOptions, edge_popup
from gaprune.comparison.methods.method_functions import channel_norms
from gaprune.config import make_settings
from gaprune.criteria import CRITERIA
from gaprune.errors import InputError
from gaprune.masks.budget import keep_total
from gaprune.masks.supermask import top_k_mask
from gaprune.models.patterns import channel_groups, channels_of
from gaprune.models.target import Target, target_from_module

TRAINED = ("distilled", "imp")
PLACELESS = {
    "2:4": ("magnitude-layer", "threshold", "structured-l1", "structured-l2", "slimming", *TRAINED),
    "4x1": ("threshold", "structured-l1", "structured-l2", "slimming", *TRAINED),
    "channel": ("threshold", "slimming", *TRAINED),
}
LAYERED = {f"{name}-layer" for name in CRITERIA} - {"magnitude-layer"}
QUICK_ONES = ("random", "magnitude", "snip", "wanda-rows", "clustered", "evolved")


def context(target: Target, pattern: str, sparsity: float = 0.5) -> ComparisonContext:
    """Return what methods of a comparison share."""
    stated = {"calibration": ("procedural",), "validation": "noise", **QUICK}
    settings = make_settings({"sparsity": sparsity, "pattern": pattern, **stated})
    return ComparisonContext(
        target, ComparisonSpec((sparsity,), settings=settings), None, ComparisonObserver()
    )


def weights_of(
    found: ComparisonContext, method: str, sparsity: float = 0.5, seed: int = 0
) -> dict[str, Tensor]:
    """Return the prunable weights of the network that a method hands in."""
    (entrant,) = find_methods((method,))[0].run(found, (sparsity,), seed)
    return {name: entrant.model.get_parameter(name) for name in found.target.layout.names}


@pytest.mark.parametrize("pattern", PLACELESS)
def test_every_method_has_a_row_and_those_without_a_place_a_note(pattern: str) -> None:
    """`all` gives a figure or a note for each, and never an error."""
    names = [one.name for one in find_methods(("all",), pattern) if one.name != "edge-popup"]
    found = ask(names, settings={"pattern": pattern, "steps": 1}, sparsities=(0.5,))
    notes = {row.method: row.note for row in found.rows if row.note is not None}
    assert set(notes) == set(PLACELESS[pattern])
    assert all(f"pattern '{pattern}'" in note for note in notes.values())
    assert [row.error for row in found.rows] == [None] * len(found.rows)
    for row in found.rows:
        assert (row.score is None) == (row.note is not None), row
    usual = set(known_methods()) - LAYERED - {"edge-popup"}
    assert {row.method for row in found.rows} == usual | (LAYERED if pattern != "2:4" else set())


def test_without_a_pattern_criteria_inside_layers_are_asked_for_by_name() -> None:
    """Tables of single weights are as they were; `lamp-layer` is there for those who want it."""
    assert not {method.name for method in find_methods(("all",))} & LAYERED
    (row,) = ask(("lamp-layer",), sparsities=(0.5,)).rows
    assert row.actual == 0.5
    (noted,) = ask(("lamp-layer",), sparsities=(0.5,), settings={"pattern": "2:4"}).rows
    assert noted.note is not None
    assert "see lamp" in noted.note


@pytest.mark.parametrize("method", [*QUICK_ONES, "lamp", "correlation"])
def test_2_of_4_holds_in_every_group(method: str) -> None:
    """Of neighbours along the inputs exactly two stay; 6 inputs are no multiple and stay whole."""
    found = context(tiny_target(), "2:4")
    for name, weight in weights_of(found, method).items():
        if weight.shape[1] % 4:
            assert weight.count_nonzero() == weight.numel()
        else:
            assert weight.view(-1, 4).count_nonzero(1).unique().tolist() == [2], name


def test_magnitude_2_of_4_is_the_best_pair_of_every_group() -> None:
    """By trying all six pairs."""
    target = tiny_target()
    found = weights_of(context(target, "2:4"), "magnitude")
    for name, weight in target.weights.items():
        if weight.shape[1] % 4 == 0:
            for group, own in zip(weight.view(-1, 4), found[name].view(-1, 4), strict=True):
                pairs = combinations(range(4), 2)
                best = max(pairs, key=lambda pair: float(group[list(pair)].abs().sum()))
                assert tuple(own.nonzero().flatten().tolist()) == best


def test_blocks_stay_or_go_as_one_by_their_mean() -> None:
    """Magnitude over blocks of two by two, against a count by hand."""
    target = tiny_target()
    found = weights_of(context(target, "2x2"), "magnitude")
    means, stays = [], []
    for name, weight in target.weights.items():
        for rows in weight.abs().split(2):
            means += [block.mean() for block in rows.split(2, dim=1)]
        for rows in found[name].split(2):
            blocks = [block.count_nonzero() == block.numel() for block in rows.split(2, dim=1)]
            stays += blocks
            kept = [block.count_nonzero() for block in rows.split(2, dim=1)]
            assert all(int(count) in (0, 4) for count in kept)
    assert torch.equal(torch.stack(stays), top_k_mask(torch.stack(means), len(means) // 2))


@pytest.mark.parametrize("method", ["structured-l1", "snip-layer", "evolved"])
def test_channels_go_with_all_that_makes_and_reads_them(method: str) -> None:
    """Half of them, and nothing of one stays."""
    target = target_from_module(built(Separable), inputs=InputOptions(IMAGE, range=(0, 1)))
    found = weights_of(context(target, "channel"), method)
    channels = channels_of(target)
    stays = target.layout.flatten({name: weight != 0 for name, weight in found.items()})
    gone = channels.unread(stays)
    assert int(gone.sum()) == channels.layout.total // 2
    assert torch.equal(channels.weight_mask(~gone), stays)


@pytest.mark.parametrize("pattern", ["2:4", "2x2", "channel"])
@pytest.mark.parametrize("initial", ["weights", "kaiming"])
def test_trained_scores_obey_the_pattern(pattern: str, initial: str) -> None:
    """Edge-popup ranks what the pattern ranks, and meets its budget."""
    target = target_from_module(built(Separable), inputs=InputOptions(IMAGE, range=(0, 1)))
    found = context(target, pattern)
    evaluator, how = found.evaluator(0), EdgePopupOptions(steps=3, batch=4, initial=initial)
    before = edge_popup(evaluator, 0.5, replace(how, steps=0), torch.Generator().manual_seed(0))
    mask = edge_popup(evaluator, 0.5, how, torch.Generator().manual_seed(0))
    assert len(mask) == evaluator.layout.total
    assert int(mask.sum()) == keep_total(evaluator.layout, 0.5)
    assert evaluator.layout.satisfies_pattern(mask)
    if pattern == "2:4" and initial == "weights":
        assert torch.equal(
            found.ranked_units.best(target.layout.flatten(target.weights).abs(), 0.5), before
        )


@pytest.mark.parametrize("norm", [1, 2])
def test_channel_norms_are_those_of_the_filters_that_make_them(norm: int) -> None:
    """Counted channel by channel: what a depthwise layer passes on counts with what made it."""
    target = target_from_module(built(Separable), inputs=InputOptions(IMAGE, range=(0, 1)))
    channels = channels_of(target)
    flat = target.layout.flatten(target.weights)
    expected = []
    for group in channel_groups(target):
        for one in group.channels:
            made = [
                target.weights[f"{place.layer}.weight"][place.channel].double().abs()
                for place in one.outputs
                if f"{place.layer}.weight" in target.weights
            ]
            expected.append(sum(float((part**norm).sum()) for part in made) ** (1 / norm))
    found = channel_norms(channels, flat, norm)
    assert torch.allclose(found, torch.tensor(expected), rtol=1e-5)


def test_a_row_is_what_prune_does_under_the_pattern() -> None:
    """The search, and a criterion, with the same settings."""
    target = tiny_target()
    for pattern in ("2:4", "2x1"):
        for method in ("evolved", "magnitude"):
            found = weights_of(context(target, pattern), method)
            stated = context(target, pattern).spec.settings.model_dump(exclude_unset=True)
            settings = make_settings({**stated, "method": method})
            alone = prune_target(target, settings).pruned_model()
            if method == "evolved" or pattern == "2:4":  # ranked over all layers
                assert all(torch.equal(alone.get_parameter(name), w) for name, w in found.items())


def test_a_stopped_comparison_goes_on_and_notes_are_not_asked_for_again(tmp_path: Path) -> None:
    """A note stays true, so that its row is kept; another pattern is another comparison."""
    names = ("magnitude", "threshold", "lamp")
    whole = ask(names, out=tmp_path / "a", settings={"pattern": "4x1"})
    with pytest.raises(KeyboardInterrupt):
        ask(names, out=tmp_path / "b", settings={"pattern": "4x1"}, observer=Heard(3))
    heard = Heard()
    again = ask(names, out=tmp_path / "b", settings={"pattern": "4x1"}, observer=heard)
    assert [row.note for row in again.rows] == [row.note for row in whole.rows]
    assert len(heard.rows) == 3
    assert {row.method for row in heard.rows} == {"threshold", "lamp"}
    with pytest.raises(InputError, match="pattern"):
        ask(names, out=tmp_path / "b", settings={"pattern": "2x2"})


def test_a_quota_says_the_sparsity_itself() -> None:
    """In Python as on the command line; another one is refused before anything is computed."""
    data = tiny_data().test
    assert data is not None
    shown: dict[str, Any] = {"inputs": InputOptions(range=(0, 1)), **QUICK}
    found = compare(
        tiny_model(),
        methods=("magnitude", "threshold"),
        pattern="1:4",
        test=(data.inputs, data.labels),  # type: ignore[arg-type]
        **shown,
    )
    assert [(row.sparsity, row.note is None) for row in found.rows] == [(0.75, True), (0.75, False)]
    assert found.removed == "weights under 1:4"
    with pytest.raises(InputError, match=r"sparsity: pattern '2:4' removes 0.5 .* got 0.9"):
        compare(tiny_model(), sparsity=(0.5, 0.9), pattern="2:4", **shown)
    with pytest.raises(InputError, match="sparsity: none given"):
        compare(tiny_model(), **shown)
    with pytest.raises(InputError, match="multiple"):
        compare(tiny_model(), pattern="5:7", **shown)
    assert ComparisonData() == ComparisonData(None, None)


COMPARE = ("compare", *OWN, *TINY, "--test", "labelled.npz")


def test_the_command_takes_a_pattern(place: Path, run: Run) -> None:
    """The sparsity follows, notes are in rows and below the table, and the exit code is 0."""
    asked: Sequence[str] = ("--methods", "magnitude,wanda-rows,threshold", "--pattern", "2:4")
    ran = run(*COMPARE, *asked, "--out", "rows", "--json")
    assert ran.code == 0, ran.err
    rows = json.loads(ran.out)
    assert [(row["method"], row["sparsity"]) for row in rows] == [
        ("magnitude", 0.5),
        ("wanda-rows", 0.5),
        ("threshold", 0.5),
    ]
    assert rows[2]["accuracy"] is None
    assert "2:4" in rows[2]["note"]
    assert "3/3 threshold 0.5: " in ran.err
    shown = run(*COMPARE, *asked, "--out", "rows")
    assert "weights under 2:4" in shown.out
    assert "threshold: " in shown.out
    assert 'pattern = "2:4"' in Path("rows/config.toml").read_text()
    again = run("compare", "--config", "rows/config.toml", "--out", "rows", "--json")
    assert json.loads(again.out) == rows
    refused = run(*COMPARE, "--pattern", "2:4", "--sparsity", "0.9", "--out", "other")
    assert refused.code == 2
    assert "pattern '2:4' removes 0.5 of the weights" in refused.err
    assert not Path("other").exists()


def test_only_notes_are_no_failure(place: Path, run: Run) -> None:
    """A comparison in which nothing has a place ends with its notes."""
    ran = run(*COMPARE, "--methods", "threshold", "--pattern", "4x1", "--sparsity", "0.5")
    assert ran.code == 0
    assert "pattern '4x1'" in ran.out
