"""Pruning rules and structured masks, compared with `torch.nn.utils.prune`."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from criterion_networks import Attention
from hypothesis import given, settings
from hypothesis import strategies as st
from search_cases import seeded
from torch import Tensor, nn
from torch.nn.utils import prune

from gaprune.comparison.methods.torch_rules import (
    PruningRule,
    matching,
    output_layer,
    prune_by_rules,
    slice_norms,
    structured_masks,
)
from gaprune.criteria import CRITERIA, DenseNetwork, score
from gaprune.errors import InputError
from gaprune.masks.budget import keep_total
from gaprune.models.input_spec import InputOptions
from gaprune.models.target import Target, target_from_module

WEIGHTS = ("first.weight", "up.weight", "fc1.weight", "fc2.weight")
BIASES = ("first.bias", "up.bias", "fc1.bias", "fc2.bias")


class Net(nn.Module):
    """Convolution, transposed convolution, two linear layers: `[N, 2, 4, 4]` → `[N, 3]`."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 5, 3)
        self.norm = nn.BatchNorm2d(5)
        self.up = nn.ConvTranspose2d(5, 4, 2)
        self.fc1 = nn.Linear(36, 7)
        self.fc2 = nn.Linear(7, 3)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.up(self.norm(self.first(images)).relu()).relu().flatten(1)
        logits: Tensor = self.fc2(self.fc1(hidden).relu())
        return logits


def target_of(
    model: nn.Module, *shape: int, seed: int = 0, prune_also: Sequence[str] = ()
) -> Target:
    """Return a target of normal weights: no two of them, and no two norms, are equal."""
    generator = seeded(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return target_from_module(model, inputs=InputOptions(shape=shape), prune_also=prune_also)


TARGET = target_of(Net(), 2, 4, 4)
WITH_BIASES = target_of(Net(), 2, 4, 4, prune_also=BIASES)


def masks_of(
    rules: Sequence[PruningRule], target: Target = TARGET, start: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Return the masks of rules."""
    return prune_by_rules(target, rules, generator=seeded(5), start=start)


def module_of(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Return a layer and the parameter's name in it, as torch's functions take them."""
    path, _, leaf = name.rpartition(".")
    return model.get_submodule(path), leaf


class Torch:
    """The oracle: torch's own functions on a copy of the network."""

    def __init__(self, target: Target) -> None:
        self.model = copy.deepcopy(target.model)
        self.names = target.layout.names

    def each(self, call: Callable[..., object], names: Sequence[str], **options: object) -> Torch:
        """Call one of torch's functions for each parameter."""
        for name in names:
            call(*module_of(self.model, name), **options)
        return self

    def masks(self) -> dict[str, Tensor]:
        """Return torch's masks; parameters without one are dense."""
        masks = {}
        for name in self.names:
            module, leaf = module_of(self.model, name)
            weight = getattr(module, leaf)
            masks[name] = getattr(module, f"{leaf}_mask", torch.ones_like(weight)).bool()
        return masks


def assert_same(masks: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Compare names, dtypes and values."""
    assert list(masks) == list(expected)
    for name, mask in masks.items():
        assert mask.dtype == torch.bool
        assert torch.equal(mask, expected[name]), name


def slices_left(mask: Tensor, dim: int) -> int:
    """Count the slices with at least one weight."""
    return sum(bool(mask.select(dim, i).any()) for i in range(mask.shape[dim]))


@pytest.mark.parametrize("amount", [0.2, 0.81, 150])
def test_global_magnitude_is_global_unstructured(amount: float) -> None:
    """All layers ranked together, also after a rule that has already removed some."""
    oracle = Torch(TARGET)
    parameters = [module_of(oracle.model, name) for name in WEIGHTS]
    rule = PruningRule(amount, scope="global")
    for rules in ([rule], [rule, rule]):
        prune.global_unstructured(parameters, prune.L1Unstructured, amount=amount)
        assert_same(masks_of(rules), oracle.masks())


def test_rules_start_from_custom_masks() -> None:
    """Like `custom_from_mask`: rules rank the weights that the masks keep."""
    custom = {
        name: torch.rand(TARGET.weights[name].shape, generator=seeded(3)) < 0.6
        for name in ("first.weight", "fc1.weight")
    }
    oracle = Torch(TARGET)
    for name, mask in custom.items():
        oracle.each(prune.custom_from_mask, [name], mask=mask)
    assert_same(masks_of([], start=custom), oracle.masks())
    oracle.each(prune.l1_unstructured, WEIGHTS, amount=0.3)
    assert_same(masks_of([PruningRule(0.3)], start=custom), oracle.masks())


@st.composite
def calls(draw: st.DrawFn) -> list[tuple[PruningRule, str]]:
    """Up to five deterministic rules, each with the name of its weight."""
    rules = []
    for _ in range(draw(st.integers(1, 5))):
        name = draw(st.sampled_from((*WEIGHTS, *BIASES)))
        ndim = WITH_BIASES.weights[name].ndim
        amount = draw(st.one_of(st.floats(0.05, 0.95), st.just(1)))
        dim = draw(st.none() | st.integers(-ndim, ndim - 1)) if ndim > 1 else None
        rules.append(
            (PruningRule(amount, name, dim=dim, norm=draw(st.sampled_from((1, 2, math.inf)))), name)
        )
    return rules


@given(calls(), st.integers(0, 5))
@settings(max_examples=25)
def test_any_sequence_of_rules_matches_torch(
    sequence: list[tuple[PruningRule, str]], seed: int
) -> None:
    """Both refuse an amount above what is left."""
    target = target_of(Net(), 2, 4, 4, seed=seed, prune_also=BIASES)
    oracle = Torch(target)
    try:
        for rule, name in sequence:
            if rule.dim is None:
                oracle.each(prune.l1_unstructured, [name], amount=rule.amount)
            else:
                options = {"amount": rule.amount, "n": rule.norm, "dim": rule.dim}
                oracle.each(prune.ln_structured, [name], **options)
    except ValueError:
        with pytest.raises(InputError, match="amount: "):
            masks_of([rule for rule, _ in sequence], target)
        return
    assert_same(masks_of([rule for rule, _ in sequence], target), oracle.masks())


@pytest.mark.parametrize(
    ("criterion", "options"),
    [
        *((criterion, {}) for criterion in sorted(CRITERIA)),
        ("snip", {"scope": "global"}),
        ("snip", {"dim": 0, "norm": 1}),
    ],
)
def test_criteria_remove_the_exact_amount(criterion: str, options: dict[str, Any]) -> None:
    """Two rules of one half leave a quarter; the same generator gives the same masks."""
    calibration = torch.rand(16, 2, 4, 4, generator=seeded(1))
    rules = [PruningRule(0.5, "fc1.weight", criterion, **options)] * 2
    first, again = (
        prune_by_rules(TARGET, rules, calibration=calibration, generator=seeded(2))
        for _ in range(2)
    )
    assert_same(first, again)
    mask = first["fc1.weight"]
    if "dim" in options:
        assert (slices_left(mask, 0), int(mask.sum())) == (1, 36)  # 7, 3, 1: halves round to even
    else:
        assert int(mask.sum()) == 63


def test_a_later_rule_scores_the_pruned_network() -> None:
    """SNIP after magnitude takes gradients of the pruned network."""
    calibration = torch.rand(16, 2, 4, 4, generator=seeded(1))
    first = masks_of([PruningRule(0.6)])
    masks = prune_by_rules(
        TARGET,
        [PruningRule(0.6), PruningRule(30, "fc1.weight", "snip")],
        calibration=calibration,
        generator=seeded(),
    )
    model = TARGET.masked_copy(first)
    weights = {name: model.get_parameter(name).detach() for name in WEIGHTS}
    network = DenseNetwork(model, weights, TARGET.layout, TARGET.inputs)
    scores = TARGET.layout.split(score("snip", network, calibration, seeded()))["fc1.weight"]
    gone = first["fc1.weight"] & ~masks["fc1.weight"]
    assert int(gone.sum()) == 30
    assert scores[gone].max() <= scores[masks["fc1.weight"]].min()


def test_of_equal_scores_the_later_go_first() -> None:
    """Ties have a fixed order, so masks are the same on every machine."""
    model = nn.Sequential(nn.Linear(4, 3, bias=False))
    nn.init.constant_(model[0].weight, 0.5)  # type: ignore[arg-type]
    target = target_from_module(model, inputs=InputOptions(shape=(4,)))
    mask = masks_of([PruningRule(5)], target)["0.weight"]
    assert mask.flatten().tolist() == [True] * 7 + [False] * 5
    assert masks_of([PruningRule(1, dim=0)], target)["0.weight"].any(1).tolist() == [
        True,
        True,
        False,
    ]


MATCHES = {
    "*": WEIGHTS,
    "fc*": WEIGHTS[2:],
    "*.weight": WEIGHTS,
    "first.weight": WEIGHTS[:1],
    "Conv2d": WEIGHTS[:1],
    "ConvTranspose2d.weight": WEIGHTS[1:2],
    "_ConvNd": WEIGHTS[:2],
    "Linear": WEIGHTS[2:],
}


def test_rules_select_by_name_or_type() -> None:
    """Globs of qualified names, layer types and their bases; a suffix separates biases."""
    for where, names in MATCHES.items():
        assert matching(TARGET, where) == list(names), where
    assert matching(WITH_BIASES, "Linear") == ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]
    assert matching(WITH_BIASES, "Linear.bias") == ["fc1.bias", "fc2.bias"]


@pytest.mark.parametrize(
    ("message", "options"),
    [
        *(("amount: .*0.*1", {"amount": n}) for n in (0, 1.0, -1, 1.5, True, math.nan, "0.2")),
        ("where: ", {"where": ""}),
        ("scope: .*'layers'.*'layer'", {"scope": "layers"}),
        ("dim: .*0.5", {"dim": 0.5}),
        ("dim: .*True", {"dim": True}),
        ("norm: .*1.*2.*inf.*3", {"norm": 3}),
        (r"where: 'fc9\*'.*first.weight.*Linear", {"where": "fc9*"}),
        (r"prune_also=\['fc1.bias'\]", {"where": "fc1.bias"}),
        (r"prune_also=\['norm.weight', 'norm.bias'\]", {"where": "BatchNorm2d"}),
        ("criterion: .*'magnitud'.*'magnitude'", {"criterion": "magnitud"}),
        ("amount: 22 .*21.*fc2.weight", {"amount": 22, "where": "fc2.weight"}),
        ("amount: 4 .*3.*0", {"amount": 4, "where": "fc2.weight", "dim": 0}),
        ("dim: .*-2.*1.*fc1.weight", {"where": "fc1.weight", "dim": 2}),
        ("calibration: .*'snip'", {"criterion": "snip"}),
    ],
)
def test_wrong_rules_are_refused(message: str, options: dict[str, Any]) -> None:
    """The error names the argument, the value and the valid ones."""
    with pytest.raises(InputError, match=message):
        masks_of([PruningRule(**{"amount": 0.5, **options})])


def test_custom_masks_must_fit() -> None:
    """Name, shape and dtype are checked."""
    with pytest.raises(InputError, match=r"start: 'fc1\.bias'"):
        masks_of([], start={"fc1.bias": torch.ones(7) > 0})
    for mask in (torch.ones(3, 7), torch.ones(7, 3) > 0):
        with pytest.raises(InputError, match=r"start\['fc2.weight'\]: .*\(3, 7\)"):
            masks_of([], start={"fc2.weight": mask})


class Grouped(nn.Module):
    """Plain, transposed and grouped convolutions; the output layer is registered first."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 3)
        self.first = nn.Conv2d(2, 12, 3)
        self.up = nn.ConvTranspose2d(12, 10, 2, groups=2)
        self.down = nn.Conv2d(10, 16, 3)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.up(self.first(images).relu()).relu()
        logits: Tensor = self.head(self.down(hidden).relu().flatten(1))
        return logits


GROUPED = target_of(Grouped(), 2, 4, 4)
CHANNELS = {"first.weight": 0, "up.weight": 1, "down.weight": 0}


def channels_left(mask: Tensor, dim: int) -> int:
    """Count the channels that are kept, and check that none is partly removed."""
    rows = mask.movedim(dim, 0).flatten(1)
    assert torch.equal(rows.all(1), rows.any(1))
    return int(rows.all(1).sum())


@pytest.mark.parametrize("norm", [1, 2, math.inf])
@pytest.mark.parametrize("sparsity", [0.3, 0.6, 0.85])
def test_structured_masks_match_ln_structured(sparsity: float, norm: float) -> None:
    """In each layer, for the counts of the budget; the output layer stays dense."""
    masks = structured_masks(GROUPED, sparsity, norm)
    model = copy.deepcopy(GROUPED.model)
    for name, dim in CHANNELS.items():
        layer = model.get_submodule(name.removesuffix(".weight"))
        gone = GROUPED.weights[name].shape[dim] - channels_left(masks[name], dim)
        prune.ln_structured(layer, "weight", amount=gone, n=norm, dim=dim)
        assert torch.equal(masks[name], layer.get_buffer("weight_mask").bool()), name
    assert masks["head.weight"].all()


@given(st.floats(0.01, 0.87))
def test_no_further_channel_fits_the_budget(sparsity: float) -> None:
    """The budget is not exceeded, and no layer has room for another channel."""
    masks = structured_masks(GROUPED, sparsity, 1)
    assert list(masks) == list(GROUPED.weights)
    slack = keep_total(GROUPED.layout, sparsity) - sum(int(m.sum()) for m in masks.values())
    assert slack >= 0
    for name, dim in CHANNELS.items():
        left, all_of_them = channels_left(masks[name], dim), masks[name].shape[dim]
        assert left >= 1
        assert left == all_of_them or slack < masks[name].numel() // all_of_them


def test_an_impossible_sparsity_gives_the_largest_one() -> None:
    """The sparsity in the error works; one more weight does not."""
    with pytest.raises(InputError, match="at most") as caught:
        structured_masks(GROUPED, 0.95, 1)
    match = re.search(r"at most ([\d.]+)", str(caught.value))
    assert match
    most = float(match[1])
    masks = structured_masks(GROUPED, most, 1)
    assert [channels_left(masks[name], dim) for name, dim in CHANNELS.items()] == [1, 1, 1]
    with pytest.raises(InputError, match="at most"):
        structured_masks(GROUPED, most + 1 / GROUPED.layout.total, 1)


def test_the_output_layer_is_the_one_that_runs_last() -> None:
    """Not the one registered last; no hook stays."""
    assert output_layer(GROUPED) == "head.weight"
    assert not any(module._forward_hooks for module in GROUPED.model.modules())
    tokens = target_from_module(Attention(), inputs=InputOptions(shape=(5,)))
    assert output_layer(tokens) == "head.weight"


def test_wrong_structured_arguments_are_refused() -> None:
    """Norm, sparsity, dimension, and a model without layers."""
    with pytest.raises(InputError, match=r"norm: .*1.*2.*3"):
        structured_masks(GROUPED, 0.5, 3)
    with pytest.raises(InputError, match=r"sparsity: .*0.*1"):
        structured_masks(GROUPED, 1.0, 1)
    with pytest.raises(InputError, match=r"dim: .*-2.*1.*\(3, 4\).*2"):
        slice_norms(torch.ones(3, 4), 2, 1)
    with pytest.raises(InputError, match=r"dim: "):
        slice_norms(torch.ones(3), 0, 1)
    vectors = nn.Sequential(nn.LayerNorm(4))
    options = InputOptions(shape=(4,))
    target = target_from_module(vectors, inputs=options, prune_also=["0.weight"])
    with pytest.raises(InputError, match=r"model: "):
        structured_masks(target, 0.5, 1)
