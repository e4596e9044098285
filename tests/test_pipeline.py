"""`prune` from end to end on small networks: what it promises of the result and of its input."""

from __future__ import annotations

import copy
import doctest
import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from search_cases import seeded, tiny_model
from torch import Tensor, nn

import gaprune.runs.prune
from gaprune import GapruneError, InputError, InputOptions, Result, prune
from gaprune.callbacks import Callbacks
from gaprune.criteria import CRITERIA, DenseNetwork, score
from gaprune.masks.budget import keep_total, uniform_counts
from gaprune.masks.supermask import Supermask, global_mask, layered_mask
from gaprune.records import Generation

UNIT = InputOptions(range=(0, 1))
SMALL: dict[str, Any] = {
    "inputs": UNIT,
    "sparsity": 0.7,
    "calibration_count": 64,
    "validation_count": 64,
    "generations": 2,
    "steps": 5,
    "batch": 16,
}


def run(model: nn.Module | None = None, **changes: Any) -> Result:
    """Prune a tiny network in a small run."""
    return prune(tiny_model() if model is None else model, **{**SMALL, **changes})


@pytest.fixture(scope="module")
def pruned() -> Result:
    """The result of a small run with the default preset."""
    return run()


def same_masks(one: Result, other: Result) -> bool:
    """Compare the masks of two results bit for bit."""
    return all(torch.equal(one.masks[name], other.masks[name]) for name in one.masks)


def assert_frozen(result: Result, dense: Mapping[str, Tensor]) -> None:
    """Check that kept weights have the dense network's bits, dropped ones are exactly 0."""
    state = result.state_dict()
    assert list(state) == list(dense)
    for name, value in state.items():
        mask = result.masks.get(name)
        if mask is None:
            assert torch.equal(value, dense[name]), name
            continue
        assert torch.equal(value[mask], dense[name][mask])
        assert torch.equal(value[~mask], torch.zeros_like(value[~mask]))


@pytest.mark.parametrize("preset", ["default", "black-box"])
def test_the_network_itself_is_not_touched(preset: str) -> None:
    """Bits, training mode, gradient switches, gradients, hooks: all as before."""
    model = tiny_model().requires_grad_(True).train()
    next(model.parameters()).requires_grad_(False)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = copy.deepcopy(model)
    result = run(model, preset=preset, population=4, offspring=4)
    assert all(map(torch.equal, model.state_dict().values(), before.state_dict().values()))
    assert model.training
    for now, old in zip(model.parameters(), before.parameters(), strict=True):
        assert now.requires_grad == old.requires_grad
        assert now.grad is not None
        assert torch.equal(now.grad, torch.ones_like(now))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert_frozen(result, before.state_dict())


@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.983])
@pytest.mark.parametrize("scope", ["allocated", "global", "layer"])
def test_the_budget_is_exact_in_every_scope(scope: str, sparsity: float) -> None:
    """As many weights stay as asked, in scope `layer` at the same density everywhere."""
    result = run(scope=scope, sparsity=sparsity, generations=1)
    layout = result.target.layout
    kept = [layer.kept for layer in result.layers]
    assert result.kept == sum(kept) == keep_total(layout, sparsity)
    assert min(kept) >= 1
    assert result.actual_sparsity == pytest.approx(sparsity, abs=0.5 / layout.total + 1e-9)
    if scope == "layer":
        assert kept == uniform_counts(layout, sparsity)
    assert_frozen(result, tiny_model().state_dict())


def test_pruned_and_masked_models_give_the_same_outputs(pruned: Result) -> None:
    """Zeros written in, masks attached, or the state loaded into a fresh network: equal bits."""
    inputs = torch.rand(20, 6, generator=seeded())
    outputs = pruned.pruned_model()(inputs)
    masked = pruned.masked_model()
    assert torch.equal(masked(inputs), outputs)
    assert any(isinstance(module, Supermask) for module in masked.modules())
    fresh = tiny_model(seed=99)
    fresh.load_state_dict(pruned.state_dict())
    assert torch.equal(fresh(inputs), outputs)
    assert not torch.equal(pruned.target.model(inputs), outputs)
    zeros = sum(int((p == 0).sum()) for p in pruned.pruned_model().parameters())
    assert zeros == pruned.target.layout.total - pruned.kept


class Tied(nn.Module):
    """Two layers that share one weight matrix, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 4)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.head(self.second(self.first(x).tanh()).tanh())
        return logits


def test_tied_weights_count_once_and_stay_tied() -> None:
    """60 weights, not 96; both places show the same mask."""
    result = run(Tied(), sparsity=0.5)
    assert result.target.layout.total == 60
    assert result.kept == 30
    state, model = result.state_dict(), result.pruned_model()
    assert torch.equal(state["first.weight"], state["second.weight"])
    assert torch.equal(state["first.weight"] != 0, result.masks["first.weight"])
    assert model.get_parameter("first.weight") is model.get_parameter("second.weight")
    inputs = torch.rand(5, 6, generator=seeded())
    assert torch.equal(model(inputs), result.masked_model()(inputs))


@pytest.mark.parametrize("scope", ["allocated", "layer"])
@pytest.mark.parametrize("method", ["magnitude", "lamp", "synflow"])
def test_a_one_shot_method_gives_its_own_mask(method: str, scope: str) -> None:
    """The mask is that of the criterion's scores; nothing is searched, and the result says so."""
    result = run(method=method, scope=scope)
    target = result.target
    network = DenseNetwork(target.model, target.weights, target.layout, target.inputs)
    scores = score(method, network, None, seeded(), density=1 - 0.7)
    if scope == "layer":
        expected = layered_mask(scores, target.layout, uniform_counts(target.layout, 0.7))
    else:
        expected = global_mask(scores, target.layout, keep_total(target.layout, 0.7))
    assert torch.equal(target.layout.flatten(result.masks), expected)
    assert (result.method, result.preset, result.origin) == (method, None, method)
    assert (result.stopped, result.evaluations, list(result.history)) == ("one-shot", 0, [])
    assert result.validation_agreement == result.baselines[method].agreement
    assert result.gain is not None
    assert result.gain <= 0


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"preset": "black-box", "population": 4, "offspring": 8, "generations": 4},
        {"scope": "layer"},
        {"scope": "global"},
        {"calibration": ("noise",)},
        {"calibration": ("impressions",), "impressions": 32},
        {"objective": "agreement"},
        {"objective": "relative-error"},
    ],
    ids=str,
)
def test_the_result_is_never_worse_than_a_baseline(changes: dict[str, Any]) -> None:
    """The gain over the best baseline is at least 0 on the validation inputs, for all settings."""
    result = run(**changes)
    assert set(result.baselines) >= {"magnitude", "lamp", "random", "erk", "wanda"}
    best = max(one.agreement for one in result.baselines.values())
    assert result.best_baseline is not None
    assert result.baselines[result.best_baseline].agreement == best
    assert result.gain == result.validation_agreement - best >= 0


def test_a_one_shot_run_scores_only_what_was_asked_for() -> None:
    """No other criterion costs anything."""
    for method in ("lamp", "magnitude"):
        assert set(run(method=method).baselines) == {method}
        assert set(run(method=method, scope="layer").baselines) == {method}


class Opaque(nn.Module):
    """A network without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny_model()

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        outputs: Tensor = self.inner(x)
        return outputs


def test_a_black_box_search_takes_no_gradient() -> None:
    """No baseline that differentiates is scored; presets and criteria that do are refused."""
    result = run(Opaque(), preset="black-box", population=4, offspring=4)
    takes_gradients = {name for name, rule in CRITERIA.items() if rule.takes_gradients}
    assert not takes_gradients & set(result.baselines)
    assert result.stopped == "generations"
    with pytest.raises(InputError, match="preset='black-box'"):
        run(Opaque())
    with pytest.raises(GapruneError, match=r"'snip'.*magnitude"):
        run(Opaque(), method="snip", preset="black-box")


def test_the_seed_fixes_the_masks_whatever_the_global_generators_hold() -> None:
    """Same seed, same masks; global generators are left alone; another seed, other masks."""
    found = []
    for outside in (1, 2):
        torch.manual_seed(outside)
        np.random.seed(outside)  # noqa: NPY002 - the global one is the point
        state = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index] # noqa: NPY002
        found.append(run(seed=5))
        assert torch.equal(torch.get_rng_state(), state[0])
        assert np.random.get_state()[1].tolist() == state[1]  # type: ignore[index] # noqa: NPY002
    assert same_masks(*found)
    assert found[0].provenance == found[1].provenance
    assert not same_masks(found[0], run(seed=6))


def test_test_data_never_reach_the_search(pruned: Result) -> None:
    """With and without them: the same masks, the same provenance; only accuracies are added."""
    inputs = torch.rand(50, 6, generator=seeded(8))
    labels = tiny_model()(inputs).argmax(1)
    tested = run(test=(inputs, labels))
    assert same_masks(pruned, tested)
    assert pruned.provenance == tested.provenance
    assert (pruned.accuracy, pruned.dense_accuracy) == (None, None)
    assert tested.dense_accuracy == 1.0
    model = tested.pruned_model()
    assert tested.accuracy == (model(inputs).argmax(1) == labels).double().mean().item()
    assert all(one.accuracy is None for one in pruned.baselines.values())
    assert all(one.accuracy is not None for one in tested.baselines.values())


@pytest.mark.slow
def test_two_workers_find_what_one_finds(ray_session: None, pruned: Result) -> None:
    """The same masks, bit for bit, on real Ray actors."""
    assert same_masks(pruned, run(workers=2))
    one_shot = [run(method="swaps", generations=None, workers=count) for count in (1, 2)]
    assert same_masks(*one_shot)


def test_a_regressor_is_compared_by_its_numbers() -> None:
    """One output has no classes: `auto` takes the relative error, agreement is what it explains."""
    model = nn.Sequential(tiny_model(), nn.Linear(4, 1))
    result = run(model, sparsity=0.4)
    assert 0 <= result.validation_agreement <= 1
    assert result.gain is not None
    assert result.gain >= 0
    with pytest.raises(InputError, match=r"'agreement'.*\(64, 1\)"):
        run(model, objective="agreement")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_networks_of_another_dtype_are_pruned_in_it(dtype: torch.dtype) -> None:
    """Kept weights keep their bits in float64 and bfloat16 too."""
    model = tiny_model(dtype=dtype)
    result = run(model, generations=1)
    assert result.kept == keep_total(result.target.layout, 0.7)
    assert_frozen(result, model.state_dict())
    assert next(result.pruned_model().parameters()).dtype == dtype


def test_more_parameters_are_pruned_on_demand() -> None:
    """A bias by its name; the others stay dense."""
    result = run(prune_also=("0.bias",), sparsity=0.5)
    assert set(result.masks) == {"0.weight", "0.bias", "2.weight", "4.weight"}
    assert result.target.layout.total == 212
    assert result.kept == 106


def test_a_result_shares_no_memory_with_the_network_of_the_caller() -> None:
    """Training the network afterwards does not change it."""
    model = tiny_model()
    result = run(model, method="magnitude")
    dense, pruned = copy.deepcopy(model.state_dict()), result.state_dict()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    kept = result.target.model.state_dict()
    assert all(torch.equal(value, dense[name]) for name, value in kept.items())
    assert all(torch.equal(value, pruned[n]) for n, value in result.state_dict().items())


def test_a_network_that_changes_while_it_is_pruned_has_no_result() -> None:
    """A callback that trains it, for example, is an error."""
    model = tiny_model()

    def train(_: Generation) -> None:
        with torch.no_grad():
            next(model.parameters()).add_(1)

    with pytest.raises(GapruneError, match=r"^model: "):
        run(model, on_generation=train, preset="black-box", population=4, offspring=4)


@pytest.mark.parametrize("inputs", [None, UNIT])
def test_an_assumed_range_gives_a_warning(inputs: InputOptions | None) -> None:
    """It says that 0 to 1 was taken, and how to state it."""
    warnings: list[str] = []
    observer = Callbacks(on_warning=warnings.append)
    result = run(inputs=inputs, observer=observer, method="magnitude")
    assert result.target.inputs.assumed == (inputs is None)
    assert any("range=" in text for text in warnings) == (inputs is None)


def interrupt(record: Generation) -> None:
    """Press Ctrl-C at the second generation."""
    if record.generation == 1:
        raise KeyboardInterrupt


def test_an_interrupted_run_has_a_result() -> None:
    """The best so far, at the exact budget, no worse than the baselines, with all accuracies."""
    test = torch.rand(16, 6, generator=seeded(5)), torch.arange(16) % 4
    result = run(on_generation=interrupt, generations=50, test=test)
    assert all(score.accuracy is not None for score in result.baselines.values())
    assert result.stopped == "interrupted"
    assert result.kept == keep_total(result.target.layout, 0.7)
    assert result.gain is not None
    assert result.gain >= 0


def test_the_record_is_the_content_of_result_json(pruned: Result) -> None:
    """Plain data with all keys of the schema, and the numbers of the result."""
    record = json.loads(json.dumps(pruned.record(), allow_nan=False))
    assert set(record) >= {"schema", "target", "seconds"}
    assert record["sparsity"] == {"asked": 0.7, "actual": pruned.actual_sparsity}
    assert [layer["name"] for layer in record["layers"]] == ["0.weight", "2.weight", "4.weight"]
    assert sum(layer["kept"] for layer in record["layers"]) == pruned.kept == 60
    assert sum(layer["total"] for layer in record["layers"]) == 200
    assert record["agreement"] == {
        "calibration": pruned.calibration_agreement,
        "validation": pruned.validation_agreement,
    }
    assert record["accuracy"] == {"dense": None, "pruned": None}
    assert set(record["baselines"]["magnitude"]) == {"agreement", "accuracy"}
    assert record["provenance"]["level"] == pruned.provenance.level == "inversion"
    assert record["seed"] == 0
    assert record["settings"]["sparsity"] == 0.7
    assert record["evaluations"] == pruned.history[-1].evaluations > 0
    assert {"gaprune", "torch", "numpy", "deap", "ray", "python"} <= set(record["versions"])
    assert len(record["weights_sha256"]) == 64


def test_a_pareto_run_has_a_front_with_masks() -> None:
    """Sparsest first; masks keep what the points say; the result itself keeps what was asked."""
    result = run(pareto=True, population=6, offspring=8, generations=3, preset="black-box")
    assert result.kept == keep_total(result.target.layout, 0.7)
    assert len(result.front) == len(result.front_masks) > 0
    total = result.target.layout.total
    for point, masks in zip(result.front, result.front_masks, strict=True):
        kept = sum(int(mask.count_nonzero()) for mask in masks.values())
        assert point["sparsity"] == pytest.approx(1 - kept / total)
        assert 0.35 - 0.5 / total <= point["sparsity"] <= 0.7
    sparsities = [point["sparsity"] for point in result.front]
    assert sparsities == sorted(sparsities, reverse=True)
    assert result.gain is not None
    assert result.gain >= 0
    json.dumps(result.record(), allow_nan=False)


def test_the_classic_preset_learns_from_labelled_calibration(tmp_path: Path) -> None:
    """From random scores its best fitness, the accuracy on the file, rises."""
    x = torch.rand(200, 6, generator=seeded(3))
    y = tiny_model()(x).argmax(1)
    np.savez(tmp_path / "data.npz", x=x.numpy(), y=y.numpy())
    result = run(
        preset="classic",
        calibration=(f"labelled:{tmp_path}/data.npz",),
        population=20,
        offspring=20,
        generations=8,
    )
    assert result.history[-1].mean > result.history[0].mean
    assert [layer.kept for layer in result.layers] == uniform_counts(result.target.layout, 0.7)
    assert result.provenance.level == "labelled"
    assert result.settings["objective"] == "accuracy"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sparsity": 0.0}, "sparsity: .*got 0"),
        ({"sparsity": 1.0}, "sparsity: .*got 1"),
        ({"sparsity": float("nan")}, "sparsity: .*got nan"),
        ({"sparsity": "much"}, "sparsity: .*'much'"),
        ({"sparsity": 0.99}, "sparsity: 0.99 .*2 of 200"),
        ({"sparsity": 0.99, "scope": "layer"}, "2 of 200"),
        ({"sparsity": 0.985, "scope": "layer"}, "'4.weight'"),
        ({"scope": "layers"}, "scope: .*'layers'.*'layer'"),
        ({"method": "magnitud"}, "method: .*'magnitude'"),
        ({"preset": "defalt"}, "preset: .*'default'"),
        ({"objective": "k"}, "objective: .*'k'"),
        ({"calibration": ("strokes",)}, "'strokes'.*sparse"),
        ({"generatons": 3}, "setting: .*'generations'"),
        ({"objective": "accuracy"}, "^objective: .*labelled:FILE"),
        ({"workers": 0}, "workers: .*got 0"),
        ({"pareto": True, "scope": "layer"}, "^scope: .*scope='global'"),
    ],
    ids=str,
)
def test_bad_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    """One message that names the argument, the rule and what came."""
    with pytest.raises(InputError, match=message):
        run(**changes)


def test_a_black_box_objective_needs_a_black_box_search(tmp_path: Path) -> None:
    """The default preset refuses a user's function; the black-box preset maximises it."""
    path = tmp_path / "own.py"
    path.write_text("def close(a, b, labels):\n    return -float((a - b).abs().mean())\n")
    objective = f"{path}:close"
    with pytest.raises(InputError, match="preset='black-box'"):
        run(objective=objective)
    result = run(objective=objective, preset="black-box", population=4, offspring=8)
    best = [record.best for record in result.history]
    assert best[-1] > best[0]


def test_the_documented_example_runs() -> None:
    """The doctest of `prune`."""
    finder = doctest.DocTestFinder(recurse=False)
    (example,) = finder.find(gaprune.runs.prune.prune, "prune", globs={})
    assert len(example.examples) >= 4
    assert doctest.DocTestRunner().run(example).failed == 0


def test_test_data_is_checked_before_the_search() -> None:
    """Wrong test data is refused at once, not after an hour."""
    with pytest.raises(InputError, match=r"torch\.float32"):
        run(test=(torch.rand(5, 6), torch.zeros(5)), generations=10**6)


def test_a_validation_of_real_data_is_on_the_provenance(tmp_path: Path) -> None:
    """The validation picks the final candidate, so its rung counts."""
    path = tmp_path / "real.npy"
    np.save(path, np.random.default_rng(0).random((20, 6), dtype=np.float32))
    assert run(validation=str(path)).provenance.level == "unlabelled"
    noise = run(validation="noise", calibration=("procedural",))
    assert noise.provenance.level == "procedural"


@pytest.mark.parametrize(
    "off", [pytest.param(torch.no_grad, marks=pytest.mark.slow), torch.inference_mode]
)
@pytest.mark.parametrize("calibration", ["inversion", "impressions"])
def test_it_makes_no_difference_what_the_caller_has_switched_off(
    off: Callable[[], AbstractContextManager[None]],
    calibration: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Evaluation code often runs without gradients; calibration inputs and steps need them."""
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    model(torch.rand(64, 4, generator=seeded()))
    changes = {"calibration": [calibration], "inversions": 8, "impressions": 8}
    monkeypatch.setenv("GAPRUNE_CACHE", str(tmp_path / "inside"))
    with off():
        inside = run(model.eval(), **changes)
    monkeypatch.setenv("GAPRUNE_CACHE", str(tmp_path / "outside"))
    assert same_masks(inside, run(model, **changes))
