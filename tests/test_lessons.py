"""What a network is trained on: losses by their definitions, and what is refused."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from search_cases import seeded, tiny_model
from torch import nn

from gaprune.calibration.samples import Samples
from gaprune.comparison.methods.training_data import (
    from_labels,
    from_teacher,
    label_loss,
    relative_loss,
    teacher_loss,
)
from gaprune.errors import InputError
from gaprune.evaluation.objectives import relative_error
from gaprune.models.input_spec import InputOptions
from gaprune.models.target import target_from_module

SHOWN = torch.rand(64, 6, generator=seeded(3))
LABELS = (SHOWN.sum(1) * 1.3).long() % 4


def test_lessons_from_labels_are_cross_entropy() -> None:
    """Minus the log-probability of the label, in the mean; nothing is copied."""
    found = from_labels(Samples(SHOWN, LABELS, "random"))
    outputs = torch.randn(64, 4, generator=seeded())
    expected = -outputs.softmax(1)[torch.arange(64), LABELS].log().mean()
    assert float(found.loss(outputs, found.answers)) == pytest.approx(float(expected), rel=1e-5)
    assert found.inputs is SHOWN


def test_lessons_from_the_teacher_ask_for_its_predictions() -> None:
    """For logits the loss is KL divergence in its definition, zero for the network itself."""
    target = target_from_module(tiny_model(), inputs=InputOptions(shape=(6,)))
    found = from_teacher(target, SHOWN)
    assert found.loss is teacher_loss
    assert torch.allclose(found.answers, target.model(SHOWN))
    outputs = torch.randn(64, 4, generator=seeded())
    teacher, student = found.answers.softmax(1), outputs.softmax(1)
    expected = (teacher * (teacher.log() - student.log())).sum(1).mean()
    assert float(found.loss(outputs, found.answers)) == pytest.approx(float(expected), rel=1e-5)
    assert float(found.loss(found.answers, found.answers)) == pytest.approx(0, abs=1e-7)


def test_lessons_without_classes_ask_for_the_outputs() -> None:
    """One number per input gives the relative error over all lessons, also in parts."""
    model = nn.Linear(6, 1)
    target = target_from_module(model, inputs=InputOptions(shape=(6,)))
    found = from_teacher(target, SHOWN)
    outputs = torch.randn(64, 1, generator=seeded())
    whole = float(found.loss(outputs, found.answers))
    assert whole == pytest.approx(float(relative_error(outputs, found.answers)), rel=1e-5)
    halves = [
        float(found.loss(outputs[part], found.answers[part])) for part in (slice(32), slice(32, 64))
    ]
    assert sum(halves) / 2 == pytest.approx(whole, rel=1e-5)


def test_a_teacher_that_answers_the_same_to_all_is_learnt_too() -> None:
    """Its variance is zero, and the loss stays finite."""
    model = nn.Linear(6, 1)
    nn.init.zeros_(model.weight)
    found = from_teacher(target_from_module(model, inputs=InputOptions(shape=(6,))), SHOWN)
    assert isinstance(found.loss, partial)
    assert found.loss.func is relative_loss
    assert math.isfinite(float(found.loss(torch.ones(64, 1), found.answers)))


def test_labels_beyond_the_classes_are_refused() -> None:
    """The message shows the outputs' shape and the labels' range."""
    with pytest.raises(InputError, match=r"labels must be classes.*\[64, 4\]; got 4 to 7"):
        label_loss(torch.zeros(64, 4), torch.arange(64) % 4 + 4)


def test_lessons_without_answers_are_refused() -> None:
    """No labels, no inputs, or not as many: the message says which."""
    with pytest.raises(InputError, match="needs labelled inputs, and strokes has none"):
        from_labels(Samples(SHOWN, None, "strokes"))
    with pytest.raises(InputError, match="got 64 and 3"):
        from_labels(Samples(SHOWN, LABELS[:3], "random"))
    target = target_from_module(tiny_model(), inputs=InputOptions(shape=(6,)))
    with pytest.raises(InputError, match="got none"):
        from_teacher(target, SHOWN[:0])
