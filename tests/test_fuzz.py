"""Damaged files are refused or read as they were written: no traceback, no silent change.

`GAPRUNE_FUZZ=20000 pytest tests/test_fuzz.py -k any_number` tries more, from the seed
`GAPRUNE_FUZZ_SEED` on.
"""

from __future__ import annotations

import os

import pytest
from fuzz_files import FileFormat, fuzz, make_formats

QUICK, THOROUGH = 500, 5000


@pytest.fixture(scope="module")
def formats(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FileFormat]:
    """Return a file of every format."""
    return make_formats(tmp_path_factory.mktemp("formats"))


@pytest.mark.slow
def test_a_few_hundred_mutations(formats: dict[str, FileFormat]) -> None:
    """Every format is damaged some ten times."""
    faults = fuzz(formats, QUICK)
    assert not faults, "\n".join(faults)


@pytest.mark.slow
def test_thousands_of_mutations(formats: dict[str, FileFormat]) -> None:
    """Other seeds than the quick test's."""
    faults = fuzz(formats, THOROUGH, first_seed=QUICK)
    assert not faults, "\n".join(faults)


@pytest.mark.skipif("GAPRUNE_FUZZ" not in os.environ, reason="GAPRUNE_FUZZ states no number")
def test_any_number_of_mutations(formats: dict[str, FileFormat]) -> None:
    """As many as the environment asks for."""
    faults = fuzz(
        formats, int(os.environ["GAPRUNE_FUZZ"]), int(os.environ.get("GAPRUNE_FUZZ_SEED", "0"))
    )
    assert not faults, "\n".join(faults)
