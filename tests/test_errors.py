"""Errors as callers meet them: types for `except`, and names for typing mistakes."""

from __future__ import annotations

import pickle

import pytest

from gaprune.errors import GapruneError, InputError, nearest, unknown_name


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
