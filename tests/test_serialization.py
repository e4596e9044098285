"""The standard library reads our TOML and JSON back unchanged."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gaprune.io.serialization import to_json, to_toml

TEXT = st.text(st.characters(codec="utf-8"))
SCALARS = st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | TEXT


@settings(max_examples=30)
@given(
    st.dictionaries(
        st.from_regex("[A-Za-z0-9_-]+", fullmatch=True), SCALARS | st.lists(SCALARS), max_size=3
    )
)
def test_toml_is_read_back_as_it_was(values: dict[str, Any]) -> None:
    """Any text, number, boolean or list of them: the standard library's reader is the oracle."""
    read = tomllib.loads(to_toml(values))
    assert read == values
    assert [type(value) for value in read.values()] == [type(value) for value in values.values()]


def test_toml_refuses_other_types() -> None:
    """None, tables and tensors raise a TypeError."""
    for value in (None, {"a": 1}, torch.ones(1)):
        with pytest.raises(TypeError, match="no TOML"):
            to_toml({"key": value})


@settings(max_examples=30)
@given(st.recursive(st.floats() | st.integers() | TEXT, st.lists, max_leaves=8))
def test_json_is_strict(value: object) -> None:
    """NaN and infinities become null, which every reader of JSON takes."""

    def refuse(name: str) -> None:
        raise AssertionError(name)

    json.loads(to_json({"value": value}), parse_constant=refuse)
