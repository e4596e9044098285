"""What a comparison refuses before anything is computed, and how a search is kept out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from comparison_cases import EPOCHS, ask, spec
from search_cases import tiny_model

from gaprune import InputOptions
from gaprune.comparison import compare
from gaprune.comparison.comparison_request import make_request
from gaprune.comparison.methods.iterative import PruningStep
from gaprune.errors import InputError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": ()}, "sparsity: "),
        ({"sparsity": 1.0}, "sparsity: .*0.*1"),
        ({"sparsity": (0.5, float("nan"))}, "sparsity: .*0.*1"),
        ({"sparsity": (0.5, -0.5)}, "sparsity: .*-0.5"),
        ({"sparsity": (0.5, 0.999)}, "sparsity: .*0.999.*0.*200.*0.985"),
        ({"methods": ()}, "methods: "),
        ({"methods": "lmap"}, r"methods: .*'lmap'.*'lamp'"),
        ({"methods": "none.py:score"}, "methods: .*none.py"),
        ({"seeds": -1}, "seeds: must be .*got -1"),
        ({"seeds": (0, 2**32)}, "seeds: must be .*got 0, 4294967296"),
        ({"seeds": ()}, "seeds: "),
        ({"epochs": 0}, "epochs: .*0.*0"),
        ({"epochs": -1.0}, "epochs: .*0.*-1.0"),
        ({"epochs": float("nan")}, "epochs: must be above 0"),
        ({"clusters": 0}, "clusters: .*1.*0"),
        ({"methods": "imp-cubic"}, "methods: .*imp:cubic"),
        ({"methods": "imp-schedule"}, "methods: .*--schedule"),
        ({"methods": "imp:cubik"}, "methods: .*'cubic'"),
        ({"schedule": "cubik"}, "schedule: .*'cubic'"),
        ({"seed": 3}, "seed: "),
        ({"method": "lamp"}, "method: "),
        ({"pareto": True}, "pareto: "),
        ({"repair": True}, "repair: "),
        ({"repair_in_loop": True}, "repair_in_loop: "),
        ({"sparsity": (0.5, 0.9), "floor": 0.2}, "floor: .*0.2.*--floor.*0.1"),
        ({"sede": 3}, "setting: unknown name 'sede'"),
        ({"preset": "fast"}, "preset: unknown name 'fast'"),
        ({"calibration": ("nois",)}, "calibration.*'nois'"),
        ({"calibration": ("none.npz",)}, ".*none.npz"),
        ({"validation": "nois"}, "validation: unknown name 'nois'"),
        ({"validation": "none.npz"}, ".*none.npz"),
        ({"objective": "klo"}, "objective: unknown name 'klo'"),
        ({"train": (torch.rand(4, 5), torch.zeros(4).long())}, "train: "),
        ({"test": (torch.rand(4, 6), torch.zeros(4))}, "test: "),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    options: dict[str, object], message: str, tmp_path: Path
) -> None:
    """One message names the argument; the folder is not made."""
    stated = {"sparsity": 0.5, "methods": "magnitude", "inputs": InputOptions(range=(0, 1))}
    with pytest.raises(InputError, match=f"^{message}"):
        compare(tiny_model(), **{**stated, **options}, out=tmp_path / "rows")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_an_own_schedule_must_pass_through_what_is_compared() -> None:
    """The message says what is missing."""
    steps = [PruningStep(0.5, EPOCHS), PruningStep(0.75, EPOCHS)]
    rows = ask(("imp",), schedule=steps).rows
    assert [row.epochs for row in rows] == [pytest.approx(EPOCHS), pytest.approx(2 * EPOCHS)]
    assert [row.actual for row in rows] == [0.5, 0.75]
    with pytest.raises(InputError, match=r"0.75.*0.9.*0.75.*1"):
        ask(("imp",), sparsities=(0.9, 0.75), schedule=steps[:1])


def test_a_configuration_may_state_that_nothing_is_asked() -> None:
    """`repair = false` is in files from before a comparison refused to repair."""
    request = make_request({"target": "mnist-mlp", "repair": False, "pareto": False})
    assert request == make_request({"target": "mnist-mlp"})
    with pytest.raises(InputError, match=r"config key: .*'repair'"):
        make_request({"target": "mnist-mlp", "repair": True})


def test_a_search_for_a_front_is_no_method() -> None:
    """Settings made elsewhere may ask for it, or for another method than evolution."""
    for changes in ({"pareto": True}, {"method": "lamp"}, {"repair": True}):
        with pytest.raises(InputError, match=r"settings: "):
            spec(("evolved",), settings=changes)
