"""Errors as callers meet them: types for `except`, and names for typing mistakes."""

from __future__ import annotations

import pickle

import pytest

from gaprune.errors import GapruneError, InputError, unknown_name


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
    ("name", "message"),
    [
        (
            "lmap",
            "method: unknown name 'lmap' (did you mean 'lamp'?); valid names: erk, lamp, snip",
        ),
        ("xyz", "method: unknown name 'xyz'; valid names: erk, lamp, snip"),
        (None, "method: unknown name None; valid names: erk, lamp, snip"),
    ],
)
def test_an_unknown_name_lists_the_valid_ones(name: object, message: str) -> None:
    """The nearest one first if one is near, then all, sorted."""
    error = unknown_name("method", name, ["snip", "lamp", "erk"])
    assert isinstance(error, InputError)
    assert str(error) == message
