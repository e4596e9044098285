"""Pruning rules and whole channels against torch.nn.utils.prune, mask for mask."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

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
    output_dim,
    output_layer,
    prune_by_rules,
    slice_norms,
    structured_masks,
)
from gaprune.criteria import CRITERIA, Criterion, DenseNetwork, score
from gaprune.errors import InputError
from gaprune.masks.budget import keep_total
from gaprune.masks.supermask import attach, bake, detach
from gaprune.models.target import InputOptions, Target, target_from_module

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


def make_target(seed: int = 0, *, biases: bool = False) -> Target:
    """Return a target of normal weights: no two of them are equal."""
    model = Net()
    with torch.no_grad():
        generator = seeded(seed)
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    options = InputOptions(shape=(2, 4, 4))
    return target_from_module(model, inputs=options, prune_also=BIASES if biases else ())


TARGET, WITH_BIASES = make_target(), make_target(biases=True)


def masks_of(
    rules: Sequence[PruningRule], target: Target = TARGET, start: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Return the masks under test."""
    return prune_by_rules(target, rules, generator=seeded(5), start=start)


def module_of(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Return what torch's functions take: the layer, and the parameter's name in it."""
    path, _, leaf = name.rpartition(".")
    return model.get_submodule(path), leaf


class Torch:
    """The oracle: torch's own functions on a copy of the network."""

    def __init__(self, target: Target) -> None:
        self.model = copy.deepcopy(target.model)
        self.names = target.layout.names

    def each(self, call: Callable[..., object], names: Sequence[str], **how: object) -> Torch:
        """Call one of torch's functions for every named parameter."""
        for name in names:
            call(*module_of(self.model, name), **how)
        return self

    def masks(self) -> dict[str, Tensor]:
        """Return torch's masks; what it never touched stays whole."""
        found = {}
        for name in self.names:
            module, leaf = module_of(self.model, name)
            shown = getattr(module, leaf)
            found[name] = getattr(module, f"{leaf}_mask", torch.ones_like(shown)).bool()
        return found


def assert_same(masks: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Compare mask for mask."""
    assert list(masks) == list(expected)
    for name, mask in masks.items():
        assert mask.dtype == torch.bool
        assert torch.equal(mask, expected[name]), name


def slices_left(mask: Tensor, dim: int) -> int:
    """Count the slices that still hold something, the plain way."""
    return sum(bool(mask.select(dim, i).any()) for i in range(mask.shape[dim]))


def structured_cases() -> Iterator[tuple[str, int, float]]:
    """Yield every weight with each of its dimensions, from both ends, and each norm."""
    for name, weight in TARGET.weights.items():
        for dim in range(-weight.ndim, weight.ndim):
            for norm in (1, 2, math.inf):
                yield name, dim, norm


@pytest.mark.parametrize("amount", [0.2, 0.5, 0.95, 1, 3, 19])
def test_lowest_magnitudes_go_as_with_l1_unstructured(amount: float) -> None:
    """In every layer on its own, a fraction or a number of weights."""
    expected = Torch(TARGET).each(prune.l1_unstructured, WEIGHTS, amount=amount).masks()
    assert_same(masks_of([PruningRule(amount)]), expected)


@pytest.mark.parametrize(("name", "dim", "norm"), list(structured_cases()))
def test_slices_of_least_norm_go_as_with_ln_structured(name: str, dim: int, norm: float) -> None:
    """Along every dimension of linear, convolution and transposed convolution weights."""
    for amount in (0.4, 1):
        oracle = Torch(TARGET).each(prune.ln_structured, [name], amount=amount, n=norm, dim=dim)
        assert_same(masks_of([PruningRule(amount, name, dim=dim, norm=norm)]), oracle.masks())


@pytest.mark.parametrize("amount", [0.2, 0.81, 150])
def test_global_magnitude_is_global_unstructured(amount: float) -> None:
    """All layers ranked together, also after a rule that has already removed some."""
    oracle = Torch(TARGET)
    parameters = [module_of(oracle.model, name) for name in WEIGHTS]
    rule = PruningRule(amount, scope="global")
    for rules in ([rule], [rule, rule]):
        prune.global_unstructured(parameters, prune.L1Unstructured, amount=amount)
        assert_same(masks_of(rules), oracle.masks())


@pytest.mark.parametrize("amount", [0.3, 0.5, 4])
def test_random_weights_are_as_many_as_with_random_unstructured(amount: float) -> None:
    """The choice is the generator's, the count is torch's."""
    with torch.random.fork_rng():
        expected = Torch(TARGET).each(prune.random_unstructured, WEIGHTS, amount=amount).masks()
    masks = masks_of([PruningRule(amount, criterion="random")])
    assert [int(m.sum()) for m in masks.values()] == [int(m.sum()) for m in expected.values()]
    other = prune_by_rules(TARGET, [PruningRule(amount, criterion="random")], generator=seeded(6))
    assert any(not torch.equal(masks[name], other[name]) for name in WEIGHTS)


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_random_slices_go_as_a_whole_and_as_many_as_with_random_structured(dim: int) -> None:
    """Half of the slices of every weight; those that stay are untouched."""
    with torch.random.fork_rng():
        oracle = Torch(TARGET).each(prune.random_structured, WEIGHTS, amount=0.5, dim=dim).masks()
    masks = masks_of([PruningRule(0.5, criterion="random", dim=dim)])
    for name, mask in masks.items():
        left = slices_left(oracle[name], dim)
        assert slices_left(mask, dim) == left
        assert int(mask.sum()) == left * mask.numel() // mask.shape[dim]


def test_random_slices_are_drawn_without_regard_to_what_they_hold() -> None:
    """A slice with one weight left is as likely to stay as a full one."""
    start = torch.ones(3, 7, dtype=torch.bool)
    start[0, 1:] = False
    generator, stays = seeded(), 0
    rule = PruningRule(1, "fc2.weight", "random", dim=0)
    for _ in range(300):
        masks = prune_by_rules(TARGET, [rule], generator=generator, start={"fc2.weight": start})
        stays += bool(masks["fc2.weight"][0].any())
    assert stays / 300 == pytest.approx(2 / 3, abs=0.1)


def test_custom_masks_are_where_the_rules_begin() -> None:
    """As with custom_from_mask: what the user drops stays dropped, rules look at the rest."""
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


def test_l1_then_slices_then_random_combine_as_in_a_pruning_container() -> None:
    """Mask for mask up to the random rule, count for count after it, again and again."""
    oracle, masks = Torch(TARGET), masks_of([])
    for _ in range(3):
        oracle.each(prune.l1_unstructured, WEIGHTS, amount=0.2)
        oracle.each(prune.ln_structured, WEIGHTS, amount=0.25, n=2, dim=1)
        masks = masks_of([PruningRule(0.2), PruningRule(0.25, dim=1)], start=masks)
        assert_same(masks, oracle.masks())
        with torch.random.fork_rng():
            oracle.each(prune.random_unstructured, WEIGHTS, amount=0.1)
        after = masks_of([PruningRule(0.1, criterion="random")], start=masks)
        for name, mask in oracle.masks().items():
            assert int(after[name].sum()) == int(mask.sum())
            assert not (after[name] & ~masks[name]).any()
        masks = after
        for name in WEIGHTS:  # go on from the same masks
            oracle.each(prune.custom_from_mask, [name], mask=masks[name])
            masks[name] = oracle.masks()[name]


@st.composite
def calls(draw: st.DrawFn) -> list[tuple[PruningRule, str]]:
    """Up to five rules without chance, each with the one weight that it names."""
    found = []
    for _ in range(draw(st.integers(1, 5))):
        name = draw(st.sampled_from((*WEIGHTS, *BIASES)))
        ndim = WITH_BIASES.weights[name].ndim
        amount = draw(st.one_of(st.floats(0.05, 0.95), st.just(1)))
        dim = draw(st.none() | st.integers(-ndim, ndim - 1)) if ndim > 1 else None
        found.append(
            (PruningRule(amount, name, dim=dim, norm=draw(st.sampled_from((1, 2, math.inf)))), name)
        )
    return found


@given(calls(), st.integers(0, 5))
@settings(max_examples=60)
def test_any_sequence_of_rules_is_torchs(
    sequence: list[tuple[PruningRule, str]], seed: int
) -> None:
    """Until nothing is left, where torch refuses a number too."""
    target = make_target(seed, biases=True)
    oracle = Torch(target)
    try:
        for rule, name in sequence:
            if rule.dim is None:
                oracle.each(prune.l1_unstructured, [name], amount=rule.amount)
            else:
                how = {"amount": rule.amount, "n": rule.norm, "dim": rule.dim}
                oracle.each(prune.ln_structured, [name], **how)
    except ValueError:
        with pytest.raises(InputError, match="amount: "):
            masks_of([rule for rule, _ in sequence], target)
        return
    assert_same(masks_of([rule for rule, _ in sequence], target), oracle.masks())


def test_convolutions_and_linear_layers_are_pruned_by_their_type() -> None:
    """20 % of every convolution, 40 % of every linear layer."""
    oracle = Torch(TARGET)
    oracle.each(prune.l1_unstructured, ["first.weight"], amount=0.2)
    oracle.each(prune.l1_unstructured, ["fc1.weight", "fc2.weight"], amount=0.4)
    masks = masks_of([PruningRule(0.2, "Conv2d"), PruningRule(0.4, "Linear")])
    assert_same(masks, oracle.masks())
    gone = {name: 1 - float(mask.float().mean()) for name, mask in masks.items()}
    assert gone["first.weight"] == pytest.approx(0.2, abs=0.01)
    assert gone["up.weight"] == 0
    assert gone["fc1.weight"] == pytest.approx(0.4, abs=0.01)


def test_biases_are_pruned_where_the_target_has_them() -> None:
    """By a glob, with the same functions of torch."""
    oracle = Torch(WITH_BIASES).each(prune.l1_unstructured, BIASES, amount=2)
    assert_same(masks_of([PruningRule(2, "*.bias")], WITH_BIASES), oracle.masks())


@pytest.mark.parametrize(
    "rules", [[PruningRule(0.3)], [PruningRule(0.5, "fc*"), PruningRule(0.4, dim=0)]]
)
def test_baked_masks_are_what_torch_leaves_when_pruning_is_made_permanent(
    rules: list[PruningRule],
) -> None:
    """Attach and bake give the state dict of prune.remove; detach gives the dense one."""
    masks, oracle = masks_of(rules), Torch(TARGET)
    for name in WEIGHTS:
        oracle.each(prune.custom_from_mask, [name], mask=masks[name])
    oracle.each(prune.remove, WEIGHTS)
    baked = bake(attach(copy.deepcopy(TARGET.model), masks)).state_dict()
    expected = oracle.model.state_dict()
    assert set(baked) == set(expected)
    assert all(torch.equal(baked[name], expected[name]) for name in expected)
    dense = detach(attach(copy.deepcopy(TARGET.model), masks)).state_dict()
    assert all(torch.equal(dense[name], v) for name, v in TARGET.model.state_dict().items())


def test_the_target_stays_as_it_is() -> None:
    """Rules change neither the network nor the masks they start from."""
    before = {name: tensor.clone() for name, tensor in TARGET.model.state_dict().items()}
    start = {"fc1.weight": torch.ones(7, 36, dtype=torch.bool)}
    masks_of([PruningRule(0.5), PruningRule(0.5, dim=0)], start=start)
    assert start["fc1.weight"].all()
    assert all(torch.equal(before[n], t) for n, t in TARGET.model.state_dict().items())


@pytest.mark.parametrize("criterion", sorted(CRITERIA))
@pytest.mark.parametrize("how", [{}, {"scope": "global"}, {"dim": 0, "norm": 1}])
def test_every_criterion_removes_the_amount_and_the_same_again(
    criterion: str, how: dict[str, object]
) -> None:
    """With calibration inputs for those that need some; the same generator gives the same masks."""
    calibration = torch.rand(16, 2, 4, 4, generator=seeded(1))
    rules = [
        PruningRule(0.5, "fc1.weight", criterion, **how),  # type: ignore[arg-type]
        PruningRule(0.5, "fc1.weight", criterion, **how),  # type: ignore[arg-type]
    ]
    runs = [
        prune_by_rules(TARGET, rules, calibration=calibration, generator=seeded(2))
        for _ in range(2)
    ]
    assert_same(runs[0], runs[1])
    mask = runs[0]["fc1.weight"]
    if "dim" in how:
        assert (slices_left(mask, 0), int(mask.sum())) == (1, 36)  # 7, 3, 1: halves to even
    else:
        assert int(mask.sum()) == 63


def test_a_later_rule_scores_the_network_that_is_left() -> None:
    """SNIP after magnitude: gradients of the pruned network, not of the dense one."""
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


@pytest.mark.parametrize("offset", [0, -100])
def test_a_criterion_of_ones_own_works_with_every_rule(
    offset: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Registered under a name; negative scores rank slices as raised ones do."""

    def shifted(network: DenseNetwork, *_: object) -> Tensor:
        return network.flat.abs() + offset

    entry = Criterion("mine", shifted, False, False, "here", "|w| and a constant")
    monkeypatch.setitem(CRITERIA, "mine", entry)
    for how in ({"scope": "global"}, {"dim": 1, "norm": 1}):
        mine = masks_of([PruningRule(0.5, "*", "mine", **how)])
        assert_same(mine, masks_of([PruningRule(0.5, **how)]))


def test_of_equal_scores_the_later_go_first() -> None:
    """Torch leaves it open; here the same masks come out everywhere."""
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


@pytest.mark.parametrize(("where", "names"), MATCHES.items())
def test_rules_say_where_by_name_or_type(where: str, names: tuple[str, ...]) -> None:
    """Globs of qualified names, layer types and their bases."""
    assert matching(TARGET, where) == list(names)


def test_types_with_a_parameters_name_tell_weights_from_biases() -> None:
    """A type alone means all that is prunable there."""
    assert matching(WITH_BIASES, "Linear") == ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]
    assert matching(WITH_BIASES, "Linear.bias") == ["fc1.bias", "fc2.bias"]


def test_packed_and_tied_weights_have_all_their_names() -> None:
    """Attention's projections by its type, a tied weight under either name."""
    model = Attention()
    tokens = target_from_module(model, inputs=InputOptions(shape=(5,)))
    assert matching(tokens, "MultiheadAttention") == ["attention.in_proj_weight"]
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    tied = target_from_module(nn.Sequential(first, second), inputs=InputOptions(shape=(3,)))
    assert matching(tied, "1.weight") == ["0.weight"]


@pytest.mark.parametrize("amount", [0, 0.0, 1.0, -1, 1.5, True, math.nan, "0.2", None])
def test_an_amount_is_a_fraction_or_a_number(amount: object) -> None:
    """Anything else is refused when the rule is written."""
    with pytest.raises(InputError, match=r"amount: .*0.*1"):
        PruningRule(amount)  # type: ignore[arg-type]


WRONG_RULES = {
    "where: must be a layer type": {"where": ""},
    "scope: unknown name 'layers' .*did you mean 'layer'": {"scope": "layers"},
    "dim: must be a whole number or None, got 0.5": {"dim": 0.5},
    "dim: must be a whole number or None, got True": {"dim": True},
    "norm: must be 1, 2 or inf, got 3": {"norm": 3},
}


@pytest.mark.parametrize(("message", "wrong"), WRONG_RULES.items(), ids=WRONG_RULES)
def test_a_wrong_rule_is_refused_when_it_is_written(message: str, wrong: dict[str, object]) -> None:
    """The message names the argument and the way out."""
    with pytest.raises(InputError, match=message):
        PruningRule(0.5, **wrong)  # type: ignore[arg-type]


WRONG_USES = {
    r"where: 'fc9\*' matches no parameter; prunable are first.weight.* Linear": PruningRule(
        0.5, "fc9*"
    ),
    r"load it with prune_also=\['fc1.bias'\]": PruningRule(0.5, "fc1.bias"),
    r"prune_also=\['norm.weight', 'norm.bias'\]": PruningRule(0.5, "BatchNorm2d"),
    "criterion: unknown name 'magnitud' .*did you mean 'magnitude'": PruningRule(
        0.5, criterion="magnitud"
    ),
    "amount: 22 is more than the 21 weights .* left of fc2.weight": PruningRule(22, "fc2.weight"),
    "amount: 4 is more than the 3 slices along dimension 0": PruningRule(4, "fc2.weight", dim=0),
    "dim: must be from -2 to 1 for fc1.weight": PruningRule(0.5, "fc1.weight", dim=2),
    "calibration inputs: criterion 'snip' shows inputs": PruningRule(0.5, criterion="snip"),
}


@pytest.mark.parametrize(("message", "rule"), WRONG_USES.items(), ids=WRONG_USES)
def test_a_rule_that_does_not_fit_says_what_would(message: str, rule: PruningRule) -> None:
    """Nothing is guessed."""
    with pytest.raises(InputError, match=message):
        masks_of([rule])


def test_biases_have_no_slices() -> None:
    """As in torch, vectors are refused where whole slices are asked for."""
    with pytest.raises(InputError, match=r"dim: "):
        masks_of([PruningRule(0.5, "fc1*", dim=0)], WITH_BIASES)


WRONG_STARTS = {
    "start: 'fc1.bias' is not prunable in this target": {"fc1.bias": torch.ones(7) > 0},
    r"start\['fc2.weight'\]: must be bool of shape \(3, 7\), got torch.float32": {
        "fc2.weight": torch.ones(3, 7)
    },
    r"got torch.bool of shape \(7, 3\)": {"fc2.weight": torch.ones(7, 3) > 0},
}


@pytest.mark.parametrize(("message", "start"), WRONG_STARTS.items(), ids=WRONG_STARTS)
def test_custom_masks_that_do_not_fit_are_refused(message: str, start: dict[str, Tensor]) -> None:
    """By name, shape and dtype."""
    with pytest.raises(InputError, match=message):
        masks_of([], start=start)


class Grouped(nn.Module):
    """Convolutions, transposed and grouped ones; the last layer to run is registered first."""

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


def target_of(model: nn.Module, *shape: int, also: tuple[str, ...] = ()) -> Target:
    """Return a target of normal weights: no two norms are equal."""
    with torch.no_grad():
        generator = seeded()
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return target_from_module(model, inputs=InputOptions(shape=shape), prune_also=also)


GROUPED = target_of(Grouped(), 2, 4, 4)
CHANNELS = {"first.weight": 0, "up.weight": 1, "down.weight": 0}


def channels_left(mask: Tensor, dim: int) -> int:
    """Count the channels that stay; a channel is whole or gone."""
    rows = mask.movedim(dim, 0).flatten(1)
    assert torch.equal(rows.all(1), rows.any(1))
    return int(rows.all(1).sum())


@pytest.mark.parametrize("norm", [1, 2, math.inf])
@pytest.mark.parametrize("shape", [(3, 5), (4, 2, 3), (3, 2, 2, 5)])
def test_norms_are_those_of_every_slice(shape: tuple[int, ...], norm: float) -> None:
    """One by one, along each dimension from both ends."""
    weight = torch.randn(shape, generator=seeded())
    for dim in range(-len(shape), len(shape)):
        norms = slice_norms(weight, dim, norm)
        expected = [
            float(torch.linalg.vector_norm(weight.select(dim, i).double(), norm))
            for i in range(shape[dim])
        ]
        assert norms.tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("norm", [1, 2, math.inf])
@pytest.mark.parametrize("sparsity", [0.3, 0.6, 0.85])
def test_masks_are_those_of_ln_structured_along_the_outputs(sparsity: float, norm: float) -> None:
    """Layer by layer, for the counts that the budget gives; the output layer stays whole."""
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
    """Never more than the budget, and nothing left that another channel could use."""
    masks = structured_masks(GROUPED, sparsity, 1)
    assert list(masks) == list(GROUPED.weights)
    slack = keep_total(GROUPED.layout, sparsity) - sum(int(m.sum()) for m in masks.values())
    assert slack >= 0
    for name, dim in CHANNELS.items():
        left, all_of_them = channels_left(masks[name], dim), masks[name].shape[dim]
        assert left >= 1
        assert left == all_of_them or slack < masks[name].numel() // all_of_them


@given(st.floats(0.05, 0.77))
def test_layers_lose_the_same_fraction(sparsity: float) -> None:
    """Where a channel costs the same everywhere, fractions differ by less than one channel."""
    widths = (8, 8, 8)
    layers = [nn.Linear(8, width) for width in widths]
    target = target_of(nn.Sequential(*layers, nn.Linear(8, 3)), 8)
    masks = structured_masks(target, sparsity, 2)
    left = [channels_left(masks[f"{i}.weight"], 0) for i in range(len(widths))]
    assert max(left) - min(left) <= 1


def test_the_message_of_an_impossible_sparsity_says_what_is_possible() -> None:
    """The number in it works; what is next to it in the budget does not."""
    with pytest.raises(InputError, match="reach at most") as caught:
        structured_masks(GROUPED, 0.95, 1)
    found = re.search(r"reach at most ([\d.]+)", str(caught.value))
    assert found
    most = float(found[1])
    masks = structured_masks(GROUPED, most, 1)
    assert [channels_left(masks[name], dim) for name, dim in CHANNELS.items()] == [1, 1, 1]
    with pytest.raises(InputError, match="reach at most"):
        structured_masks(GROUPED, most + 1 / GROUPED.layout.total, 1)


def test_biases_that_are_prunable_stay_whole() -> None:
    """Vectors have no channels; they count against the budget."""
    target = target_of(Grouped(), 2, 4, 4, also=("first.bias",))
    masks = structured_masks(target, 0.5, 1)
    assert masks["first.bias"].all()
    assert sum(int(m.sum()) for m in masks.values()) <= keep_total(target.layout, 0.5)


def test_the_output_layer_is_the_one_that_runs_last() -> None:
    """Not the one registered last; hooks are taken off again."""
    assert output_layer(GROUPED) == "head.weight"
    assert not any(module._forward_hooks for module in GROUPED.model.modules())
    tokens = target_from_module(Attention(), inputs=InputOptions(shape=(5,)))
    assert output_layer(tokens) == "head.weight"


def test_a_network_that_calls_no_layer_ends_with_its_last_weight() -> None:
    """Parameters may be used without their modules."""

    class Bare(Grouped):
        def forward(self, images: Tensor) -> Tensor:
            return nn.functional.linear(images.flatten(1), self.head.weight)

    target = target_from_module(Bare(), inputs=InputOptions(shape=(16,)))
    assert output_layer(target) == "down.weight"


def test_a_tied_output_layer_is_found_under_its_first_name() -> None:
    """Its weight is one, wherever it is used."""
    first, last = nn.Linear(4, 4), nn.Linear(4, 4)
    last.weight = first.weight
    target = target_of(nn.Sequential(first, nn.Linear(4, 4), last), 4)
    assert output_layer(target) == "0.weight"


def test_outputs_are_counted_along_dimension_1_of_transposed_convolutions() -> None:
    """And along 0 of all others."""
    assert {name: output_dim(GROUPED.model, name) for name in CHANNELS} == CHANNELS


def test_what_cannot_be_is_refused() -> None:
    """Other norms and sparsities, and networks without a layer's weight."""
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
