"""Errors as callers meet them: types for `except`, and names for typing mistakes."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from gaprune.errors import (
    GapruneError,
    InputError,
    describe,
    nearest,
    options_of_the_command_line,
    unknown_name,
)


def test_wrong_input_is_a_value_error_and_a_gaprune_error() -> None:
    """Callers may catch either; a failed run is no ValueError."""
    assert issubclass(InputError, ValueError)
    assert issubclass(InputError, GapruneError)
    assert not issubclass(GapruneError, ValueError)


@pytest.mark.parametrize("kind", [GapruneError, InputError])
def test_errors_travel_between_processes(kind: type[GapruneError]) -> None:
    """A worker's error arrives as what it was."""
    returned = pickle.loads(pickle.dumps(kind("the reason")))
    assert type(returned) is kind
    assert str(returned) == "the reason"


@pytest.mark.parametrize(
    ("written", "in_python", "on_the_command_line"),
    [
        ("--scope", "scope=", "--scope"),
        ("(--scope=global, or", "(scope='global', or", "(--scope global, or"),
        ("--workers=1;", "workers=1;", "--workers 1;"),
        ("--overwrite", "overwrite=True", "--overwrite"),
        ("--allow-download=yes", "allow_download=True", "--allow-download yes"),
        (
            "--calibration=labelled:FILE",
            "calibration='labelled:FILE'",
            "--calibration labelled:FILE",
        ),
        ("--input-shape=784", "inputs=InputOptions(shape=(784,))", "--input-shape 784"),
        ("--range=LOW,HIGH.", "inputs=InputOptions(range=(LOW, HIGH)).", "--range LOW,HIGH."),
        ("--input-kind", "InputOptions(kind=…)", "--input-kind"),
        (
            "gaprune resume runs/a.b goes",
            "gaprune.resume('runs/a.b') goes",
            "gaprune resume runs/a.b goes",
        ),
    ],
)
def test_messages_name_options_as_the_caller_writes_them(
    written: str, in_python: str, on_the_command_line: str
) -> None:
    """A message is written once; Python and the command line each get their form."""
    error = InputError(written)
    assert str(error) == in_python
    with options_of_the_command_line():
        assert str(error) == on_the_command_line
    assert str(error) == in_python


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ((torch.zeros(2, 3),), "tuple of Tensor [2, 3] of torch.float32"),
        (np.zeros((2, 3)), "ndarray [2, 3] of float64"),
        (list(range(100)), "a list"),
        (0.5, "0.5"),
    ],
    ids=str,
)
def test_a_value_takes_few_words(value: object, text: str) -> None:
    """The content of an array does not fit into a message."""
    assert describe(value) == text


@pytest.mark.parametrize(("name", "near"), [("lmap", "'lamp'"), ("xyz", ""), (None, "")])
def test_an_unknown_name_lists_the_valid_ones(name: object, near: str) -> None:
    """The nearest one first if one is near, then all, sorted."""
    error = unknown_name("method", name, ["snip", "lamp", "erk"])
    assert isinstance(error, InputError)
    assert str(error).startswith(f"method: unknown name {name!r}")
    assert ("did you mean" in str(error)) == bool(near)
    assert near in str(error)
    assert str(error).endswith(": erk, lamp, snip")


def test_of_a_long_list_the_nearest_are_told() -> None:
    """Five at most; where none is near the first ones, and where there are none that."""
    known = [f"resnet{n}" for n in range(100)]
    said = nearest("resnet-18", known, "it has")
    assert "100 names it has: resnet18, " in said
    assert said.count(",") == 4
    assert nearest("zzz", known, "it has").endswith(": resnet0, resnet1, resnet2, resnet3, resnet4")
    assert "no names in it" in nearest("zzz", [], "in it")
