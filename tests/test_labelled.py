"""Inputs with labels, as a network takes them."""

from __future__ import annotations

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


def test_a_file_is_read_with_its_labels(tmp_path: Path) -> None:
    """Inputs in the dtype of the network."""
    np.savez(tmp_path / "held.npz", x=VECTORS.numpy(), y=LABELS.numpy())
    found = read_labelled("test", str(tmp_path / "held.npz"), target(torch.float64))
    assert found.inputs.dtype == torch.float64
    assert found.inputs.equal(VECTORS.double())
    assert found.labels is not None
    assert found.labels.equal(LABELS)


def test_messages_begin_with_what_the_user_calls_the_file(tmp_path: Path) -> None:
    """`train: …` for --train, whatever is wrong."""
    np.savez(tmp_path / "plain.npz", x=VECTORS.numpy())
    np.savez(tmp_path / "wide.npz", x=VECTORS.numpy()[:, :4], y=LABELS.numpy())
    for name, complaint in {
        "plain.npz": "labels",
        "wide.npz": "must have shape",
        "none.npz": "there is no file",
    }.items():
        with pytest.raises(InputError, match=rf"^train: .*{complaint}"):
            read_labelled("train", str(tmp_path / name), target())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_labels_become_int64_and_inputs_take_the_dtype_of_the_network(dtype: torch.dtype) -> None:
    """As cross-entropy wants them; values stay."""
    found = check_labelled("test", Samples(VECTORS, LABELS.to(dtype), "x"), target(torch.float64))
    assert found.labels is not None
    assert found.labels.dtype == torch.int64
    assert found.labels.equal(LABELS)
    assert found.inputs.equal(VECTORS.double())


def test_tokens_stay_integers() -> None:
    """They are no numbers to compute with."""

    class TokenIds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.out = nn.Embedding(9, 4), nn.Linear(4, 2)

        def forward(self, ids: Tensor) -> Tensor:
            logits: Tensor = self.out(self.embedding(ids).mean(1))
            return logits

    words = target_from_module(TokenIds(), inputs=InputOptions(shape=(7,)))
    ids = torch.randint(9, (4, 7))
    assert check_labelled("test", Samples(ids, LABELS[:4], "x"), words).inputs.equal(ids)


@pytest.mark.parametrize(
    ("inputs", "labels", "message"),
    [
        (VECTORS, None, "test: needs one integer label for each of the 5 inputs, got none"),
        (VECTORS, LABELS[:4], r"test: needs one integer label .*shape \(4,\)"),
        (VECTORS, LABELS.float(), "test: needs one integer label .*float32"),
        (VECTORS, LABELS[:, None], r"test: needs one integer label .*shape \(5, 1\)"),
        (VECTORS[:, :5], LABELS, r"test: needs inputs of shape \[N, 6\], got \(5, 5\)"),
        (VECTORS[:0], LABELS[:0], r"test: needs inputs of shape \[N, 6\], got \(0, 6\)"),
    ],
)
def test_what_does_not_fit_is_refused(inputs: Tensor, labels: Tensor | None, message: str) -> None:
    """Before anything is computed."""
    with pytest.raises(InputError, match=message):
        check_labelled("test", Samples(inputs, labels, "x"), target())


def test_a_zoo_network_brings_mnist() -> None:
    """60,000 images to train with and 10,000 others to measure on; other networks bring nothing."""
    zoo = load_target("mnist-mlp")
    train, test = zoo_train(zoo), zoo_test(zoo)
    assert train is not None
    assert test is not None
    assert (len(train.inputs), len(test.inputs)) == (60000, 10000)
    assert check_labelled("train", train, zoo).labels is not None
    assert zoo_train(target()) is None
    assert zoo_test(target()) is None
