"""Training under fixed masks, against torch's own loop and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from search_cases import same_bits, seeded, tiny_model
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
    train,
)
from gaprune.errors import GapruneError, InputError
from gaprune.evaluation.objectives import relative_error
from gaprune.models.input_spec import InputOptions
from gaprune.models.target import target_from_module, trainable_copy

INPUTS = torch.rand(64, 6, generator=seeded(3))
LABELS = (INPUTS.sum(1) * 1.3).long() % 4


def data(count: int = 64) -> TrainingData:
    """Return labelled inputs for `tiny_model`."""
    return from_labels(Samples(INPUTS[:count], LABELS[:count], "random"))


def random_masks(model: nn.Module, keep: float = 0.4) -> dict[str, Tensor]:
    """Return a random mask for every matrix of a network."""
    return {
        name: torch.rand(weight.shape, generator=seeded(5)) < keep
        for name, weight in model.named_parameters()
        if weight.ndim > 1
    }


def plain_loop(
    model: nn.Module, options: TrainingOptions, steps: int, masks: dict[str, Tensor]
) -> nn.Module:
    """Train with torch's unfused optimisers, the gradients of dropped weights zeroed."""
    optimiser: torch.optim.Optimizer
    weights, rate, shrink = model.parameters(), options.learning_rate, options.weight_decay
    if options.optimiser == "adam":
        optimiser = torch.optim.Adam(weights, rate, weight_decay=shrink, foreach=False)
    else:
        optimiser = torch.optim.SGD(weights, rate, options.momentum, weight_decay=shrink)
    generator = seeded(8)
    decay = {"constant": lambda _: 1, "cosine": lambda t: 0.5 + 0.5 * math.cos(math.pi * t / steps)}
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, decay[options.decay])
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
        functional.cross_entropy(model(INPUTS[index]), LABELS[index]).backward()
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
    options = TrainingOptions(optimiser, 0.02, batch=16, weight_decay=0.01, decay=decay)
    model = trainable_copy(tiny_model())
    masks = random_masks(model) if masked else {}
    expected = plain_loop(trainable_copy(tiny_model()), options, 10, masks)
    train(model, data(), options, 2.5, seeded(8), masks=masks)
    for name, value in expected.state_dict().items():
        assert torch.allclose(model.state_dict()[name], value, atol=2e-6), name
    assert not same_bits(model, tiny_model())


class CheckZeros:
    """A penalty of 0 that checks the removed weights before every step."""

    def __init__(self, masks: dict[str, Tensor]) -> None:
        self.masks, self.steps = masks, 0

    def __call__(self, model: nn.Module) -> Tensor:
        for name, mask in self.masks.items():
            gone = model.get_parameter(name).detach()[~mask]
            assert torch.equal(gone.view(torch.int32), torch.zeros_like(gone, dtype=torch.int32))
        self.steps += 1
        return torch.zeros(())


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_removed_weights_are_zero_at_every_step(optimiser: str) -> None:
    """The bits of +0, before the first forward pass, between steps and at the end."""
    model = trainable_copy(tiny_model())
    masks = random_masks(model)
    check = CheckZeros(masks)
    options = TrainingOptions(optimiser, 0.05, batch=16, weight_decay=0.1)
    train(model, data(), options, 3, seeded(), masks=masks, penalty=check)
    assert check.steps == 12
    check(model)


@settings(max_examples=15)
@given(count=st.integers(1, 40), batch=st.integers(1, 50), quarters=st.integers(0, 10))
def test_fractions_of_epochs_are_whole_batches(count: int, batch: int, quarters: int) -> None:
    """Short batches are left out; there is at least one step; progress ends at the last one."""
    sizes: list[int] = []

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        sizes.append(len(labels))
        return label_loss(outputs, labels)

    progress: list[float] = []
    given_data = TrainingData(INPUTS[:count], LABELS[:count], loss)
    model = trainable_copy(tiny_model())
    options = TrainingOptions("sgd", 0.01, batch=batch)
    train(model, given_data, options, quarters / 4, seeded(), on_epoch=progress.append)
    per_epoch = max(1, count // batch)
    steps = max(round(quarters / 4 * per_epoch), int(quarters > 0))
    assert sizes == [min(batch, count)] * steps
    assert progress == list(range(1, steps // per_epoch + 1)) + (
        [steps / per_epoch] if steps % per_epoch else []
    )


def test_a_penalty_is_added_to_the_loss() -> None:
    """A bias that the loss ignores moves by learning rate · λ per step."""
    model = trainable_copy(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 4)))
    before = model.get_parameter("0.bias").detach().clone()
    ignored = TrainingData(INPUTS, LABELS, lambda outputs, _labels: 0 * outputs.sum())
    options = TrainingOptions("sgd", 0.01, batch=64, momentum=0.0)
    train(
        model,
        ignored,
        options,
        1,
        seeded(),
        penalty=lambda m: 0.5 * m.get_parameter("0.bias").sum(),
    )
    assert torch.allclose(model.get_parameter("0.bias"), before - 0.005)


class Stochastic(nn.Module):
    """Dropout and BatchNorm, which behave differently in training."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 8)
        self.norm, self.dropout, self.head = nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.dropout(self.norm(self.body(x))))
        return logits


def test_the_seed_decides_about_dropout_too() -> None:
    """Same generator, same bits; the global random state stays and has no influence."""
    original, models = Stochastic(), []
    for seed, state in ((1, 10), (1, 20), (2, 10)):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        model = trainable_copy(original)
        train(model, data(), TrainingOptions(batch=32), 2, seeded(seed))
        assert torch.equal(torch.get_rng_state(), before)
        models.append(model)
    assert same_bits(models[0], models[1])
    assert not same_bits(models[0], models[2])


def test_a_loss_that_is_not_finite_stops_training() -> None:
    """The error gives optimiser and learning rate; the network is in evaluation mode."""
    model = trainable_copy(tiny_model())
    broken = TrainingData(INPUTS * float("nan"), LABELS, label_loss)
    with pytest.raises(GapruneError, match=r"loss.*sgd.*0\.5"):
        train(model, broken, TrainingOptions("sgd", 0.5, batch=16), 1, seeded())
    assert not model.training


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": -1.0}, "epochs: .*0"),
        ({"epochs": math.nan}, "epochs: .*0"),
        ({"masks": {"nobody": torch.ones(2, 2, dtype=torch.bool)}}, "'nobody' is no parameter"),
        ({"masks": {"0.weight": torch.ones(6, 12, dtype=torch.bool)}}, r"shape \(12, 6\)"),
        ({"masks": {"0.weight": torch.ones(12, 6)}}, "must be bool"),
        ({"model": tiny_model()}, "trainable_copy"),
        (
            {"data": TrainingData(INPUTS, LABELS + 4, label_loss)},
            "labels must be classes.* 4 to 7",
        ),
    ],
)
def test_wrong_arguments_are_refused(change: dict[str, object], message: str) -> None:
    """The error names the argument, the rule and the value."""
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
    """The error gives the option and its rule."""
    with pytest.raises(InputError, match=message):
        TrainingOptions(**change)  # type: ignore[arg-type]


def test_labels_give_cross_entropy() -> None:
    """Mean of −log softmax at the label; the inputs are not copied."""
    training_data = from_labels(Samples(INPUTS, LABELS, "random"))
    outputs = torch.randn(64, 4, generator=seeded())
    expected = -outputs.softmax(1)[torch.arange(64), LABELS].log().mean()
    loss = training_data.loss(outputs, training_data.answers)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    assert training_data.inputs is INPUTS


def test_a_teacher_of_logits_gives_kl_divergence() -> None:
    """The loss is 0 for the network itself."""
    target = target_from_module(tiny_model(), inputs=InputOptions(shape=(6,)))
    training_data = from_teacher(target, INPUTS)
    outputs, answers = torch.randn(64, 4, generator=seeded()), training_data.answers
    teacher, student = answers.softmax(1), outputs.softmax(1)
    expected = (teacher * (teacher.log() - student.log())).sum(1).mean()
    assert float(training_data.loss(outputs, answers)) == pytest.approx(float(expected), rel=1e-5)
    assert float(training_data.loss(answers, answers)) == pytest.approx(0, abs=1e-7)


def test_a_teacher_of_one_output_gives_relative_error() -> None:
    """Over all training data, also in batches; a constant teacher gives a finite loss."""
    model = nn.Linear(6, 1)
    target = target_from_module(model, inputs=InputOptions(shape=(6,)))
    loss, answers = from_teacher(target, INPUTS).loss, from_teacher(target, INPUTS).answers
    outputs = torch.randn(64, 1, generator=seeded())
    whole = float(loss(outputs, answers))
    assert whole == pytest.approx(float(relative_error(outputs, answers)), rel=1e-5)
    halves = [float(loss(outputs[p], answers[p])) for p in (slice(32), slice(32, 64))]
    assert sum(halves) / 2 == pytest.approx(whole, rel=1e-5)
    nn.init.zeros_(model.weight)
    constant = from_teacher(target_from_module(model, inputs=InputOptions(shape=(6,))), INPUTS)
    assert math.isfinite(float(constant.loss(torch.ones(64, 1), constant.answers)))


def test_training_data_without_answers_are_refused() -> None:
    """Missing labels, a different count, or no inputs."""
    with pytest.raises(InputError, match="strokes"):
        from_labels(Samples(INPUTS, None, "strokes"))
    with pytest.raises(InputError, match="64 and 3"):
        from_labels(Samples(INPUTS, LABELS[:3], "random"))
    target = target_from_module(tiny_model(), inputs=InputOptions(shape=(6,)))
    with pytest.raises(InputError, match="none"):
        from_teacher(target, INPUTS[:0])
