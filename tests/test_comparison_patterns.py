"""Comparisons under a pattern: methods obey it, or have a note in their row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from channel_networks import IMAGE, Separable, built
from command_line import OWN, TINY, Run
from comparison_cases import QUICK, RecordingObserver, compare_tiny, tiny_target
from search_cases import tiny_model
from torch import Tensor

from gaprune import InputOptions, compare, prune_target
from gaprune.comparison import ComparisonSpec, find_methods, known_methods
from gaprune.comparison.context import ComparisonContext, ComparisonObserver
from gaprune.comparison.methods.edge_popup import EdgePopupOptions, edge_popup
from gaprune.comparison.methods.method_functions import channel_norms
from gaprune.config import make_settings
from gaprune.criteria import CRITERIA
from gaprune.errors import InputError
from gaprune.masks.budget import keep_total
from gaprune.models.patterns import channel_groups, channels_of
from gaprune.models.target import Target, target_from_module

TRAINED = ("distilled", "imp")
SWAPS = ("swaps", "correlation-swaps")  # they exchange single weights
SINGLE = (*SWAPS, *(f"{name}-layer" for name in SWAPS))
UNSUPPORTED = {
    "2:4": ("magnitude-layer", "threshold", "structured-l1", "structured-l2", "slimming", *TRAINED),
    "4x1": ("threshold", "structured-l1", "structured-l2", "slimming", *TRAINED, *SINGLE),
    "channel": ("threshold", "slimming", *TRAINED, *SINGLE),
}
WHOLE = {"structured-l1-repaired", "neuron-merging", "folding"}  # only under `channel` in `all`
LAYERED = {f"{name}-layer" for name in CRITERIA} - {"magnitude-layer"}
FAST_METHODS = ("random", "magnitude", "snip", "wanda-rows", "clustered", "evolved")


def context(target: Target, pattern: str, sparsity: float = 0.5) -> ComparisonContext:
    """Return the context of a comparison under a pattern."""
    options = {"calibration": ("procedural",), "validation": "noise", **QUICK}
    settings = make_settings({"sparsity": sparsity, "pattern": pattern, **options})
    return ComparisonContext(
        target, ComparisonSpec((sparsity,), settings=settings), None, ComparisonObserver()
    )


def weights_of(
    context: ComparisonContext, method: str, sparsity: float = 0.5, seed: int = 0
) -> dict[str, Tensor]:
    """Return the prunable weights of the network that a method returns."""
    (entrant,) = find_methods((method,))[0].run(context, (sparsity,), seed)
    return {name: entrant.model.get_parameter(name) for name in context.target.layout.names}


def separable() -> Target:
    """Return a depthwise-separable network as a target."""
    return target_from_module(built(Separable), inputs=InputOptions(IMAGE, range=(0, 1)))


@pytest.mark.parametrize("pattern", UNSUPPORTED)
def test_every_method_has_a_figure_or_a_note(pattern: str) -> None:
    """No method fails; methods that cannot obey the pattern have a note that names it."""
    left_out = {"edge-popup", "batchnorm-scale"}  # slow; the network has no BatchNorm
    names = [m.name for m in find_methods(("all",), pattern) if m.name not in left_out]
    rows = compare_tiny(names, settings={"pattern": pattern, "steps": 1}, sparsities=(0.5,)).rows
    notes = {row.method: row.note for row in rows if row.note is not None}
    assert set(notes) == set(UNSUPPORTED[pattern])
    assert all(f"'{pattern}'" in note for note in notes.values())
    for row in rows:
        assert row.error is None
        assert (row.score is None) == (row.note is not None), row
    usual = set(known_methods()) - LAYERED - WHOLE - left_out
    more = (LAYERED if pattern != "2:4" else set()) | (WHOLE if pattern == "channel" else set())
    assert {row.method for row in rows} == usual | more


@pytest.mark.parametrize("method", [*FAST_METHODS, "lamp", "correlation"])
def test_2_of_4_applies_to_every_group(method: str) -> None:
    """Two of four neighbours along the inputs stay; a layer of 6 inputs is not pruned."""
    for name, weight in weights_of(context(tiny_target(), "2:4"), method).items():
        if weight.shape[1] % 4:
            assert weight.count_nonzero() == weight.numel()
        else:
            assert weight.view(-1, 4).count_nonzero(1).unique().tolist() == [2], name


@pytest.mark.parametrize("method", ["structured-l1", "snip-layer", "evolved"])
def test_channels_are_removed_with_all_their_weights(method: str) -> None:
    """Half of the channels, with the weights that produce and consume them."""
    target = separable()
    weights = weights_of(context(target, "channel"), method)
    channels = channels_of(target)
    mask = target.layout.flatten({name: weight != 0 for name, weight in weights.items()})
    removed = channels.unread(mask)
    assert int(removed.sum()) == channels.layout.total // 2
    assert torch.equal(channels.weight_mask(~removed), mask)


@pytest.mark.parametrize("pattern", ["2:4", "2x2", "channel"])
def test_edge_popup_obeys_the_pattern(pattern: str) -> None:
    """Its mask meets the budget in the units of the pattern."""
    evaluator = context(separable(), pattern).evaluator(0)
    options = EdgePopupOptions(steps=3, batch=4)
    mask = edge_popup(evaluator, 0.5, options, torch.Generator().manual_seed(0))
    assert len(mask) == evaluator.layout.total
    assert int(mask.sum()) == keep_total(evaluator.layout, 0.5)
    assert evaluator.layout.satisfies_pattern(mask)


@pytest.mark.parametrize("norm", [1, 2])
def test_channel_norms_are_those_of_the_producing_filters(norm: int) -> None:
    """Computed channel by channel; a depthwise filter counts with the filter before it."""
    target = separable()
    expected = []
    for group in channel_groups(target):
        for channel in group.channels:
            filters = [
                target.weights[f"{output.layer}.weight"][output.channel].double().abs()
                for output in channel.outputs
                if f"{output.layer}.weight" in target.weights
            ]
            expected.append(sum(float((part**norm).sum()) for part in filters) ** (1 / norm))
    norms = channel_norms(channels_of(target), target.layout.flatten(target.weights), norm)
    assert torch.allclose(norms, torch.tensor(expected), rtol=1e-5)


@pytest.mark.parametrize(
    ("method", "pattern"), [("evolved", "2:4"), ("evolved", "2x1"), ("magnitude", "2:4")]
)
def test_a_row_is_what_prune_returns(method: str, pattern: str) -> None:
    """The same settings give the same weights."""
    target = tiny_target()
    shared = context(target, pattern)
    stated = shared.spec.settings.model_dump(exclude_unset=True)
    alone = prune_target(target, make_settings({**stated, "method": method})).pruned_model()
    for name, weight in weights_of(shared, method).items():
        assert torch.equal(alone.get_parameter(name), weight)


def test_rows_with_notes_are_resumed(tmp_path: Path) -> None:
    """A note is computed once; another pattern is another comparison."""
    names, settings = ("magnitude", "threshold", "lamp"), {"pattern": "4x1"}
    whole = compare_tiny(names, settings=settings)
    with pytest.raises(KeyboardInterrupt):
        compare_tiny(names, out=tmp_path, settings=settings, observer=RecordingObserver(3))
    observer = RecordingObserver()
    again = compare_tiny(names, out=tmp_path, settings=settings, observer=observer)
    assert [row.note for row in again.rows] == [row.note for row in whole.rows]
    assert [row.method for row in observer.rows] == ["threshold", "lamp", "lamp"]
    with pytest.raises(InputError, match="pattern"):
        compare_tiny(names, out=tmp_path, settings={"pattern": "2x2"})


def test_a_pattern_of_n_in_m_sets_the_sparsity() -> None:
    """Any other sparsity is refused."""
    options: dict[str, Any] = {"inputs": InputOptions(range=(0, 1)), **QUICK}
    comparison = compare(tiny_model(), methods=("magnitude", "threshold"), pattern="1:4", **options)
    assert [(row.sparsity, row.note is None) for row in comparison.rows] == [
        (0.75, True),
        (0.75, False),
    ]
    assert "1:4" in comparison.removed
    with pytest.raises(InputError, match=r"sparsity: .*'2:4'.*0.5 .*0.9"):
        compare(tiny_model(), sparsity=(0.5, 0.9), pattern="2:4", **options)
    with pytest.raises(InputError, match="sparsity: "):
        compare(tiny_model(), **options)
    with pytest.raises(InputError, match="multiple"):
        compare(tiny_model(), pattern="5:7", **options)


def test_the_command_takes_a_pattern(place: Path, run: Run) -> None:
    """JSON, table and configuration have the pattern; a note is no failure."""
    command = ("compare", *OWN, *TINY, "--test", "labelled.npz", "--pattern", "2:4")
    methods = ("--methods", "magnitude,wanda-rows,threshold")
    ran = run(*command, *methods, "--out", "rows", "--json")
    assert ran.code == 0, ran.err
    rows = json.loads(ran.out)
    assert [(row["method"], row["sparsity"]) for row in rows] == [
        ("magnitude", 0.5),
        ("wanda-rows", 0.5),
        ("threshold", 0.5),
    ]
    assert rows[2]["accuracy"] is None
    assert "2:4" in rows[2]["note"]
    table = run(*command, *methods, "--out", "rows").out
    assert "2:4" in table
    assert "threshold: " in table
    again = run("compare", "--config", "rows/config.toml", "--out", "rows", "--json")
    assert json.loads(again.out) == rows
    refused = run(*command, "--sparsity", "0.9", "--out", "other")
    assert refused.code == 2
    assert "'2:4' removes 0.5" in refused.err
    assert not Path("other").exists()
