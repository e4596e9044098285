"""What users write as text or TOML: one rule and one message for both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaprune.errors import InputError
from gaprune.runs import option_keys as keys


@given(st.lists(st.floats(allow_nan=False), min_size=1))
def test_numbers_read_what_python_writes(values: list[float]) -> None:
    """From text joined by commas and from a list of TOML alike."""
    assert keys.numbers(",".join(map(repr, values)), "range") == tuple(values)
    assert keys.numbers(values, "range") == tuple(values)


@given(st.lists(st.integers(-(2**40), 2**40), min_size=1))
def test_sizes_read_whole_numbers(values: list[int]) -> None:
    """As integers, whatever they came as."""
    assert keys.sizes(", ".join(map(str, values)), "shape") == tuple(values)
    assert keys.sizes([float(value) for value in values], "shape") == tuple(values)


def test_one_number_is_read_alone() -> None:
    """Text or TOML."""
    assert keys.single_number("0.25", "epochs") == 0.25
    assert keys.single_number(3, "epochs") == 3.0
    assert keys.count("16", "clusters") == 16


@pytest.mark.parametrize(
    ("read", "value", "message"),
    [
        (keys.numbers, "", "key: .*got ''"),
        (keys.numbers, "1,,2", "key: .*got '1,,2'"),
        (keys.numbers, True, "key: .*got True"),
        (keys.numbers, [0.5, None], "key: "),
        (keys.numbers, {"a": 1}, "key: "),
        (keys.sizes, "1.5", "key: .*got '1.5'"),
        (keys.sizes, "inf", "key: .*got 'inf'"),
        (keys.sizes, "nan", "key: .*got 'nan'"),
        (keys.single_number, "1,2", "key: .*got '1,2'"),
        (keys.single_number, "abc", "key: .*got 'abc'"),
        (keys.single_number, [], "key: .*got []"),
        (keys.count, "1.5", "key: .*got '1.5'"),
        (keys.count, "x", "key: .*got 'x'"),
        (keys.count, [1, 2], "key: .*got [1, 2]"),
        (keys.text, "", "key: .*got ''"),
        (keys.text, 3, "key: .*got 3"),
        (keys.names, "a,,b", "key: "),
        (keys.names, 3, "key: .*got 3"),
    ],
)
def test_what_cannot_be_read_is_named(
    read: Callable[[object, str], object], value: object, message: str
) -> None:
    """The message holds the key, its rule and what came."""
    with pytest.raises(InputError, match="^" + message.replace("[", r"\[")):
        read(value, "key")


def test_names_split_at_commas_and_keep_lists() -> None:
    """Blanks around a name go."""
    assert keys.names("magnitude, lamp,erk", "methods") == ("magnitude", "lamp", "erk")
    assert keys.names(["magnitude,lamp", "erk"], "methods") == ("magnitude", "lamp", "erk")


@pytest.mark.parametrize("form", ["{}", "labelled:{}", "{}:score"])
def test_a_comma_in_the_path_of_a_file_does_not_split(form: str, tmp_path: Path) -> None:
    """Whether it stands alone, behind a prefix or before a function; if the file exists."""
    path = tmp_path / "a,b.py"
    name = form.format(path)
    assert len(keys.names(name, "methods")) == 2
    path.write_text("")
    assert keys.names(name, "methods") == (name,)


def test_a_file_that_is_named_like_a_function_joins_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`lamp,mine.py:score` stays two names where a folder `score` lies about."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "score").mkdir()
    (tmp_path / "mine.py").write_text("")
    assert keys.names("lamp,mine.py:score", "methods") == ("lamp", "mine.py:score")


def test_a_list_longer_than_any_file_name_is_split() -> None:
    """Systems refuse to look for such a file."""
    many = [f"method-{number}" for number in range(1000)]
    assert keys.names(",".join(many), "methods") == tuple(many)
