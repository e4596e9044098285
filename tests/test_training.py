"""Training with masks held: against torch's own loop, closed forms, and what it must not touch."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from search_cases import seeded, tiny_model
from torch import Tensor, nn
from torch.nn import functional

from gaprune.calibration.samples import Samples
from gaprune.comparison.methods.training import (
    DECAYS,
    OPTIMISERS,
    TrainingData,
    TrainingOptions,
    from_labels,
    from_teacher,
    label_loss,
    relative_loss,
    teacher_loss,
    train,
)
from gaprune.errors import GapruneError, InputError
from gaprune.evaluation.objectives import relative_error
from gaprune.models.input_spec import InputOptions
from gaprune.models.target import target_from_module, trainable_copy

SHOWN = torch.rand(64, 6, generator=seeded(3))
LABELS = (SHOWN.sum(1) * 1.3).long() % 4


def data(count: int = 64) -> TrainingData:
    """Return labelled inputs for `tiny_model`."""
    return from_labels(Samples(SHOWN[:count], LABELS[:count], "random"))


def random_masks(model: nn.Module, keep: float = 0.4) -> dict[str, Tensor]:
    """Return a mask for every matrix of a network."""
    return {
        name: torch.rand(weight.shape, generator=seeded(5)) < keep
        for name, weight in model.named_parameters()
        if weight.ndim > 1
    }


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of all parameters and buffers."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: nn.Module, other: nn.Module) -> bool:
    """Tell whether two networks hold the same bits."""
    left, right = one.state_dict(), other.state_dict()
    return all(torch.equal(left[name], right[name]) for name in left)


def plain_loop(
    model: nn.Module, how: TrainingOptions, steps: int, masks: dict[str, Tensor]
) -> nn.Module:
    """Train with torch's unfused optimisers, the gradients of dropped weights zeroed."""
    optimiser: torch.optim.Optimizer
    if how.optimiser == "adam":
        optimiser = torch.optim.Adam(
            model.parameters(), how.learning_rate, weight_decay=how.weight_decay, foreach=False
        )
    else:
        optimiser = torch.optim.SGD(
            model.parameters(), how.learning_rate, how.momentum, weight_decay=how.weight_decay
        )
    generator = seeded(8)
    decay = {"constant": lambda _: 1, "cosine": lambda t: 0.5 + 0.5 * math.cos(math.pi * t / steps)}
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, decay[how.decay])
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).mul_(mask)
    order = torch.empty(0)
    torch.randint(2**63 - 1, (), generator=generator)  # the seed of dropout
    for step in range(steps):
        if step % 4 == 0:
            order = torch.randperm(64, generator=generator)
        index = order[step % 4 * 16 : step % 4 * 16 + 16]
        optimiser.zero_grad()
        functional.cross_entropy(model(SHOWN[index]), LABELS[index]).backward()
        for name, mask in masks.items():
            gradient = model.get_parameter(name).grad
            assert gradient is not None
            gradient.mul_(mask)
        optimiser.step()
        scheduler.step()
    return model


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_steps_are_those_of_torch(optimiser: str, decay: str, masked: bool) -> None:
    """Two and a half epochs end where torch's loop with masked gradients ends."""
    how = TrainingOptions(optimiser, 0.02, batch=16, weight_decay=0.01, decay=decay)
    model = trainable_copy(tiny_model())
    masks = random_masks(model) if masked else {}
    expected = plain_loop(trainable_copy(tiny_model()), how, 10, masks)
    train(model, data(), how, 2.5, seeded(8), masks=masks)
    for name, value in expected.state_dict().items():
        assert torch.allclose(model.state_dict()[name], value, atol=2e-6), name
    assert not same(model, tiny_model())


class Watch:
    """A penalty that sees the weights before every step and adds nothing."""

    def __init__(self, masks: dict[str, Tensor]) -> None:
        self.masks, self.seen = masks, 0

    def __call__(self, model: nn.Module) -> Tensor:
        for name, mask in self.masks.items():
            gone = model.get_parameter(name).detach()[~mask]
            assert torch.equal(gone.view(torch.int32), torch.zeros_like(gone, dtype=torch.int32))
        self.seen += 1
        return torch.zeros(())


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_dropped_weights_are_zero_at_every_step(optimiser: str) -> None:
    """The bits of +0, before the first forward pass, between steps and at the end."""
    model = trainable_copy(tiny_model())
    masks = random_masks(model)
    watch = Watch(masks)
    how = TrainingOptions(optimiser, 0.05, batch=16, weight_decay=0.1)
    train(model, data(), how, 3, seeded(), masks=masks, penalty=watch)
    assert watch.seen == 12
    watch(model)


def test_no_epochs_only_mask() -> None:
    """Zero epochs leave kept weights bit for bit and set the others to zero."""
    model = trainable_copy(tiny_model())
    masks = random_masks(model)
    train(model, data(), TrainingOptions(), 0, seeded(), masks=masks)
    before = tiny_model()
    for name, mask in masks.items():
        expected = torch.where(mask, before.get_parameter(name), torch.zeros(()))
        assert torch.equal(model.get_parameter(name), expected)


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 40), batch=st.integers(1, 50), quarters=st.integers(0, 10))
def test_epochs_may_be_fractions_and_short_batches_are_left_out(
    count: int, batch: int, quarters: int
) -> None:
    """The steps are those of whole batches, at least one; progress ends at what was asked."""
    sizes: list[int] = []

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        sizes.append(len(labels))
        return label_loss(outputs, labels)

    told: list[float] = []
    given_data = TrainingData(SHOWN[:count], LABELS[:count], loss)
    model = trainable_copy(tiny_model())
    how = TrainingOptions("sgd", 0.01, batch=batch)
    train(model, given_data, how, quarters / 4, seeded(), on_epoch=told.append)
    per_epoch = max(1, count // batch)
    steps = max(round(quarters / 4 * per_epoch), int(quarters > 0))
    assert sizes == [min(batch, count)] * steps
    assert told == list(range(1, steps // per_epoch + 1)) + (
        [steps / per_epoch] if steps % per_epoch else []
    )


def test_an_epoch_shows_every_input_once_in_a_new_order() -> None:
    """Batches of one epoch are a permutation, and the next epoch has another."""
    seen: list[Tensor] = []

    def loss(outputs: Tensor, numbers: Tensor) -> Tensor:
        seen.append(numbers)
        return outputs.square().mean()

    model = trainable_copy(tiny_model())
    train(
        model, TrainingData(SHOWN, torch.arange(64), loss), TrainingOptions(batch=16), 2, seeded()
    )
    first, second = torch.cat(seen[:4]), torch.cat(seen[4:])
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(64))
    assert not torch.equal(first, second)


def test_a_penalty_is_added_to_the_loss() -> None:
    """An L1 penalty on a weight that the loss does not see moves it by rate · λ a step."""
    model = trainable_copy(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 4)))
    before = model.get_parameter("0.bias").detach().clone()
    ignored = TrainingData(SHOWN, LABELS, lambda outputs, _labels: 0 * outputs.sum())
    how = TrainingOptions("sgd", 0.01, batch=64, momentum=0.0)
    train(model, ignored, how, 1, seeded(), penalty=lambda m: 0.5 * m.get_parameter("0.bias").sum())
    assert torch.allclose(model.get_parameter("0.bias"), before - 0.005)


class Chancy(nn.Module):
    """Dropout and BatchNorm: what behaves differently in training."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 8)
        self.norm, self.dropout, self.head = nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.dropout(self.norm(self.body(x))))
        return logits


def test_layers_are_in_training_mode_while_training() -> None:
    """Running statistics move during training and the network ends in evaluation mode."""
    model = trainable_copy(Chancy())
    assert not model.training
    modes: list[bool] = []

    def watch(network: nn.Module) -> Tensor:
        modes.append(network.get_submodule("dropout").training)
        return torch.zeros(())

    train(model, data(), TrainingOptions(batch=32), 1, seeded(), penalty=watch)
    assert modes == [True, True]
    assert not any(module.training for module in model.modules())
    assert model.state_dict()["norm.running_mean"].abs().max() > 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_seed_decides_also_what_dropout_drops_and_nothing_global_moves() -> None:
    """Same generator, same bits, whatever the global state; another one, others."""
    original, found = Chancy(), []
    for seed, state in ((1, 10), (1, 20), (2, 10)):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        model = trainable_copy(original)
        train(model, data(), TrainingOptions(batch=32), 2, seeded(seed))
        assert torch.equal(torch.get_rng_state(), before)
        found.append(model)
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


def test_only_dropout_may_differ_between_generators_of_one_batch() -> None:
    """With one batch that holds everything the order is no matter, dropout is."""
    original, found = Chancy(), []
    for seed in (1, 2):
        model = trainable_copy(original)
        train(model, data(), TrainingOptions(batch=64), 1, seeded(seed))
        found.append(model.get_parameter("head.weight"))
    assert not torch.allclose(found[0], found[1], atol=1e-4)


def test_the_original_stays_as_it_is() -> None:
    """A trainable copy takes gradients and shares nothing with a frozen network."""
    original = tiny_model()
    before = state_of(original)
    model = trainable_copy(original)
    train(
        model,
        data(),
        TrainingOptions(learning_rate=0.1, batch=16),
        2,
        seeded(),
        masks=random_masks(model),
    )
    assert all(torch.equal(before[name], now) for name, now in original.state_dict().items())
    assert all(not p.requires_grad and p.grad is None for p in original.parameters())
    assert all(p.requires_grad for p in model.parameters())
    assert not same(model, original)


def test_training_on_the_teacher_brings_a_pruned_network_back() -> None:
    """Its divergence from the dense network falls clearly."""
    target = target_from_module(tiny_model(), inputs=InputOptions(shape=(6,)))
    given_data = from_teacher(target, torch.rand(512, 6, generator=seeded(4)))
    model = trainable_copy(target.model)
    masks = random_masks(model, 0.5)
    train(model, given_data, TrainingOptions(), 0, seeded(), masks=masks)
    before = float(teacher_loss(model(SHOWN), target.model(SHOWN)).detach())
    how = TrainingOptions(learning_rate=0.01, batch=32, decay="cosine")
    train(model, given_data, how, 10, seeded(), masks=masks)
    assert float(teacher_loss(model(SHOWN), target.model(SHOWN)).detach()) < before / 5


def test_other_dtypes_are_trained_in_their_own() -> None:
    """Float32 inputs are turned into what a float64 network computes in."""
    model = trainable_copy(tiny_model(dtype=torch.float64))
    train(model, data(), TrainingOptions(batch=16), 1, seeded())
    narrow = trainable_copy(tiny_model())
    train(narrow, data(), TrainingOptions(batch=16), 1, seeded())
    for name, value in narrow.state_dict().items():
        assert torch.allclose(model.state_dict()[name].float(), value, atol=1e-4)


def test_a_loss_that_is_not_finite_stops_training() -> None:
    """The message names the rate and the way out; the network is left in evaluation mode."""
    model = trainable_copy(tiny_model())
    broken = TrainingData(SHOWN * float("nan"), LABELS, label_loss)
    with pytest.raises(GapruneError, match=r"loss.*sgd.*0\.5"):
        train(model, broken, TrainingOptions("sgd", 0.5, batch=16), 1, seeded())
    assert not model.training


def test_weights_that_overflow_in_the_last_step_are_found() -> None:
    """A finite loss whose step makes weights infinite is an error as well."""
    model = trainable_copy(tiny_model())
    with pytest.raises(GapruneError, match=r"'0\.weight'"):
        train(
            model,
            TrainingData(SHOWN, LABELS, lambda outputs, _labels: outputs.square().mean()),
            TrainingOptions("sgd", 1e38, batch=64),
            1,
            seeded(),
            penalty=lambda m: 1e3 * m.get_parameter("0.weight").sum(),
        )


class Pair(nn.Module):
    """A network with a second output in training mode, as Inception has."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        logits: Tensor = self.body(x)
        return (logits, logits) if self.training else logits


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": -1.0}, "epochs: .*0"),
        ({"epochs": math.nan}, "epochs: .*0"),
        ({"masks": {"nobody": torch.ones(2, 2, dtype=torch.bool)}}, "'nobody' is no parameter"),
        ({"masks": {"0.weight": torch.ones(6, 12, dtype=torch.bool)}}, r"shape \(12, 6\)"),
        ({"masks": {"0.weight": torch.ones(12, 6)}}, "must be bool"),
        ({"model": tiny_model()}, "trainable_copy"),
        ({"model": trainable_copy(Pair())}, "in training mode.*tuple"),
        (
            {"data": TrainingData(SHOWN, LABELS + 4, label_loss)},
            "labels must be classes.* 4 to 7",
        ),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, object], message: str) -> None:
    """The message names the argument, the rule and what came."""
    arguments: dict[str, object] = {
        "model": trainable_copy(tiny_model()),
        "data": data(),
        "epochs": 1.0,
        "masks": None,
    } | change
    with pytest.raises(InputError, match=message):
        train(options=TrainingOptions(), generator=seeded(), **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimiser": "adm"}, "did you mean 'adam'"),
        ({"decay": "cosin"}, "did you mean 'cosine'"),
        ({"learning_rate": 0.0}, "rate: must be above 0"),
        ({"learning_rate": math.inf}, "rate: .*0"),
        ({"batch": 0}, "batch: .*1"),
        ({"weight_decay": -0.1}, "weight_decay: .*0"),
        ({"momentum": 1.0}, "momentum: .*0.*1"),
    ],
)
def test_settings_outside_their_range_are_refused(change: dict[str, object], message: str) -> None:
    """Each number has its rule."""
    with pytest.raises(InputError, match=message):
        TrainingOptions(**change)  # type: ignore[arg-type]


def test_training_data_from_labels_are_cross_entropy() -> None:
    """Minus the log-probability of the label, in the mean; nothing is copied."""
    taught = from_labels(Samples(SHOWN, LABELS, "random"))
    outputs = torch.randn(64, 4, generator=seeded())
    expected = -outputs.softmax(1)[torch.arange(64), LABELS].log().mean()
    assert float(taught.loss(outputs, taught.answers)) == pytest.approx(float(expected), rel=1e-5)
    assert taught.inputs is SHOWN


def test_training_data_from_the_teacher_ask_for_its_predictions() -> None:
    """For logits the loss is KL divergence in its definition, zero for the network itself."""
    target = target_from_module(tiny_model(), inputs=InputOptions(shape=(6,)))
    taught = from_teacher(target, SHOWN)
    assert taught.loss is teacher_loss
    assert torch.allclose(taught.answers, target.model(SHOWN))
    outputs = torch.randn(64, 4, generator=seeded())
    teacher, student = taught.answers.softmax(1), outputs.softmax(1)
    expected = (teacher * (teacher.log() - student.log())).sum(1).mean()
    assert float(taught.loss(outputs, taught.answers)) == pytest.approx(float(expected), rel=1e-5)
    assert float(taught.loss(taught.answers, taught.answers)) == pytest.approx(0, abs=1e-7)


def test_training_data_without_classes_ask_for_the_outputs() -> None:
    """One number per input gives the relative error over all training data, also in parts."""
    model = nn.Linear(6, 1)
    target = target_from_module(model, inputs=InputOptions(shape=(6,)))
    taught = from_teacher(target, SHOWN)
    outputs = torch.randn(64, 1, generator=seeded())
    whole = float(taught.loss(outputs, taught.answers))
    assert whole == pytest.approx(float(relative_error(outputs, taught.answers)), rel=1e-5)
    halves = [
        float(taught.loss(outputs[part], taught.answers[part]))
        for part in (slice(32), slice(32, 64))
    ]
    assert sum(halves) / 2 == pytest.approx(whole, rel=1e-5)


def test_a_teacher_that_answers_the_same_to_all_is_learnt_too() -> None:
    """Its variance is zero, and the loss stays finite."""
    model = nn.Linear(6, 1)
    nn.init.zeros_(model.weight)
    taught = from_teacher(target_from_module(model, inputs=InputOptions(shape=(6,))), SHOWN)
    assert isinstance(taught.loss, partial)
    assert taught.loss.func is relative_loss
    assert math.isfinite(float(taught.loss(torch.ones(64, 1), taught.answers)))


def test_labels_beyond_the_classes_are_refused() -> None:
    """The message shows the outputs' shape and the labels' range."""
    with pytest.raises(InputError, match=r"64.*4.*4.*7"):
        label_loss(torch.zeros(64, 4), torch.arange(64) % 4 + 4)


def test_training_data_without_answers_are_refused() -> None:
    """No labels, no inputs, or not as many: the message says which."""
    with pytest.raises(InputError, match="strokes"):
        from_labels(Samples(SHOWN, None, "strokes"))
    with pytest.raises(InputError, match="got 64 and 3"):
        from_labels(Samples(SHOWN, LABELS[:3], "random"))
    target = target_from_module(tiny_model(), inputs=InputOptions(shape=(6,)))
    with pytest.raises(InputError, match="got none"):
        from_teacher(target, SHOWN[:0])
