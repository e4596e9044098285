"""Labelled inputs in the form that a network takes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from search_cases import tiny_model
from torch import Tensor, nn

from gaprune.calibration.samples import Samples
from gaprune.errors import InputError
from gaprune.evaluation.labelled import check_labelled, read_labelled, zoo_test, zoo_train
from gaprune.models.input_spec import InputOptions
from gaprune.models.target import Target, load_target, target_from_module

VECTORS = torch.rand(5, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 3, 1, 2, 0])


def target(dtype: torch.dtype = torch.float32) -> Target:
    """Return a network that takes vectors of six numbers."""
    return target_from_module(tiny_model(dtype=dtype), inputs=InputOptions(range=(0, 1)))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_labels_become_int64_and_inputs_take_the_dtype_of_the_network(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    """From a file and from samples; values stay."""
    labels = LABELS.to(dtype)
    np.savez(tmp_path / "data.npz", x=VECTORS.numpy(), y=labels.numpy())
    for samples in (
        read_labelled("test", str(tmp_path / "data.npz"), target(torch.float64)),
        check_labelled("test", Samples(VECTORS, labels, "x"), target(torch.float64)),
    ):
        assert samples.labels is not None
        assert samples.labels.dtype == torch.int64
        assert samples.labels.equal(LABELS)
        assert samples.inputs.equal(VECTORS.double())


@pytest.mark.parametrize("file", ["plain.npz", "wide.npz", "none.npz"])
def test_errors_start_with_the_name_of_the_argument(tmp_path: Path, file: str) -> None:
    """A file without labels, with other inputs, or none at all."""
    np.savez(tmp_path / "plain.npz", x=VECTORS.numpy())
    np.savez(tmp_path / "wide.npz", x=VECTORS.numpy()[:, :4], y=LABELS.numpy())
    with pytest.raises(InputError, match=rf"^train: .*{file}"):
        read_labelled("train", str(tmp_path / file), target())


def test_tokens_stay_integers() -> None:
    """The network takes ids."""

    class TokenIds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.out = nn.Embedding(9, 4), nn.Linear(4, 2)

        def forward(self, ids: Tensor) -> Tensor:
            logits: Tensor = self.out(self.embedding(ids).mean(1))
            return logits

    words = target_from_module(TokenIds(), inputs=InputOptions(shape=(7,)))
    ids = torch.randint(9, (4, 7))
    assert check_labelled("test", Samples(ids, LABELS[:4] % 2, "x"), words).inputs.equal(ids)


@pytest.mark.parametrize(
    ("inputs", "labels", "message"),
    [
        (VECTORS, None, "test: .* 5 inputs"),
        (VECTORS, LABELS[:4], r"test: .*\(4,\)"),
        (VECTORS, LABELS.float(), "test: .*float32"),
        (VECTORS, LABELS[:, None], r"test: .*\(5, 1\)"),
        (VECTORS[:, :5], LABELS, r"test: .*\[N, 6\].*\(5, 5\)"),
        (VECTORS[:0], LABELS[:0], r"test: .*\[N, 6\].*\(0, 6\)"),
    ],
)
def test_samples_that_do_not_fit_are_refused(
    inputs: Tensor, labels: Tensor | None, message: str
) -> None:
    """Wrong shapes, dtypes and counts."""
    with pytest.raises(InputError, match=message):
        check_labelled("test", Samples(inputs, labels, "x"), target())


@pytest.mark.parametrize("shape", [(), (1,), (4, 3)])
def test_outputs_that_are_no_classes_have_no_accuracy(shape: tuple[int, ...]) -> None:
    """Numbers, single logits and pictures: the class with the largest output would mean nothing."""
    network = nn.Sequential(nn.Linear(6, math.prod(shape)), nn.Unflatten(1, shape or (1,)))
    if not shape:
        network.append(nn.Flatten(0))
    regressor = target_from_module(network, inputs=InputOptions(range=(0, 1)))
    with pytest.raises(InputError, match=r"^test: .*N"):
        check_labelled("test", Samples(VECTORS, LABELS, "x"), regressor)


@pytest.mark.parametrize("shift", [-1, 1])
def test_labels_are_classes_of_the_network(shift: int) -> None:
    """Labels that count from one would give another accuracy, or none."""
    with pytest.raises(InputError, match=r"^test: .* 0 to 3"):
        check_labelled("test", Samples(VECTORS, LABELS + shift, "x"), target())


def test_zoo_networks_have_mnist_data() -> None:
    """60,000 training and 10,000 test images; other networks have none."""
    zoo = load_target("mnist-mlp")
    train, test = zoo_train(zoo), zoo_test(zoo)
    assert train is not None
    assert test is not None
    assert (len(train.inputs), len(test.inputs)) == (60000, 10000)
    assert check_labelled("train", train, zoo).labels is not None
    assert zoo_train(target()) is None
    assert zoo_test(target()) is None
