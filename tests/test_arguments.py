"""Networks with several inputs are pruned on examples of all their arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gaprune
from gaprune.choices import FEW_EXAMPLES as FEW
from gaprune.errors import InputError
from gaprune.models.arguments import GENERATED, ArgumentRows
from gaprune.models.target import load_target, target_from_module
from gaprune.runs.job import make_job

QUICK: dict[str, Any] = {"sparsity": 0.5, "calibration_count": 16, "validation_count": 8}
SEARCH: dict[str, Any] = {**QUICK, "generations": 1, "offspring": 2, "steps": 1}
FACTORY = """
import sys
sys.path.insert(0, {folder!r})
from test_arguments import Pair

def make():
    return Pair()
"""


class Pair(nn.Module):
    """Words, a mask of them and a picture, as of a network for questions about pictures."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.picture, self.head = nn.Embedding(9, 6), nn.Linear(4, 6), nn.Linear(12, 3)

    def forward(self, ids: Tensor, picture: Tensor, mask: Tensor | None = None) -> Tensor:
        words = self.words(ids)
        if mask is not None:
            words = words * mask[..., None]
        joined = torch.cat([words.sum(1), self.picture(picture).relu()], dim=1)
        answer: Tensor = self.head(joined)
        return answer


def arguments(count: int) -> dict[str, Tensor]:
    """Return examples of all arguments."""
    generator = torch.Generator().manual_seed(1)
    return {
        "ids": torch.randint(2, 9, (count, 5), generator=generator),
        "picture": 5 + 2 * torch.randn(count, 4, generator=generator),
        "mask": torch.arange(5)[None] < torch.randint(1, 6, (count, 1), generator=generator),
    }


def test_many_examples_are_the_calibration_inputs() -> None:
    """The dense outputs on the rows are those of the arguments; the pruned model takes them."""
    model, examples = Pair(), arguments(FEW)
    target = target_from_module(model, example_inputs=examples)
    numbers = torch.tensor([[3], [0]])
    expected = model(**{name: value[[3, 0]] for name, value in examples.items()})
    assert torch.equal(target.model(numbers), expected)
    result = gaprune.prune(model, example_inputs=examples, **SEARCH)
    assert result.provenance.level == "unlabelled"
    assert result.pruned_model()(**examples).shape == (FEW, 3)
    named = {name: value.half() if name == "picture" else value for name, value in examples.items()}
    assert target_from_module(model, example_inputs=named).example().shape == (1, 1)


def test_few_examples_are_generated_around() -> None:
    """Integers stay in their range, other numbers have mean and deviation, masks repeat."""
    examples = arguments(4)
    rows = ArgumentRows.of(examples).generated().named
    assert {len(value) for value in rows.values()} == {GENERATED}
    assert set(rows["ids"].unique().tolist()) <= set(range(2, 9))
    mean = float(examples["picture"].mean())
    assert float(rows["picture"].mean()) == pytest.approx(mean, abs=0.2)
    assert torch.equal(rows["mask"], examples["mask"].repeat(GENERATED // 4, 1))
    result = gaprune.prune(Pair(), example_inputs=examples, **SEARCH)
    assert result.provenance.level == "proxy"
    again = gaprune.prune(Pair(), example_inputs=examples, **SEARCH)
    assert all(torch.equal(again.masks[name], mask) for name, mask in result.masks.items())


@pytest.mark.parametrize("method", ["synflow", "snip", "wanda"])
def test_criteria_score_them(method: str) -> None:
    """Criteria with and without inputs rank the weights."""
    examples = tuple(arguments(FEW).values())
    result = gaprune.prune(Pair(), example_inputs=examples, method=method, **QUICK)
    assert result.kept == result.target.layout.total // 2


def test_the_command_line_reads_a_file(tmp_path: Path) -> None:
    """`--inputs FILE.npz` holds one array per argument; the run directory remembers it."""
    arrays: dict[str, Any] = {name: value.numpy() for name, value in arguments(FEW).items()}
    np.savez(tmp_path / "examples.npz", **arrays)
    (tmp_path / "net.py").write_text(FACTORY.format(folder=str(Path(__file__).parent)))
    spec = f"{tmp_path / 'net.py'}:make"
    job = make_job({"target": spec, "inputs": str(tmp_path / "examples.npz"), **QUICK})
    assert make_job(job.as_config()).example_inputs == job.example_inputs
    assert "--inputs" in job.command()
    assert job.load()[0].inputs.vocabulary == FEW
    with pytest.raises(InputError, match="inputs="):
        load_target(spec)
    with pytest.raises(InputError, match="inputs: "):
        load_target(spec, example_inputs=tmp_path / "net.py")
    with pytest.raises(InputError, match="test: "):
        make_job({**job.as_config(), "test": "mnist-test"}).load()


def test_a_run_is_resumed_with_its_examples(tmp_path: Path) -> None:
    """A finished run gives its result again; other examples are refused."""
    model, examples = Pair(), arguments(FEW)
    result = gaprune.prune(model, example_inputs=examples, out=tmp_path / "run", **SEARCH)
    again = gaprune.resume(tmp_path / "run", model=model, example_inputs=examples)
    assert all(torch.equal(again.masks[name], mask) for name, mask in result.masks.items())
    for name in ("onnx", "compact"):
        with pytest.raises(InputError, match="several inputs"):
            gaprune.export(result, format=name, out=tmp_path / name)
    with pytest.raises(InputError):
        gaprune.resume(tmp_path / "run", model=model, example_inputs=arguments(FEW + 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calibration": torch.rand(8, 4)}, "calibration.*example_inputs="),
        ({"test": (torch.rand(8, 4), torch.zeros(8).long())}, "test: .*several"),
    ],
)
def test_data_of_one_argument_is_refused(options: dict[str, Any], message: str) -> None:
    """The message says where all arguments are stated."""
    with pytest.raises(InputError, match=message):
        gaprune.prune(Pair(), example_inputs=arguments(FEW), **{**SEARCH, **options})


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ({"ids": torch.zeros(2, 5)[0, 0]}, "first axis"),
        ({"ids": torch.zeros(2, 5), "picture": torch.zeros(3, 4)}, "first axis"),
        ({"other": torch.zeros(2, 5)}, "ids, picture, mask"),
        ({"ids": torch.zeros(2, 5), "picture": torch.full((2, 4), torch.nan)}, "finite"),
        ({"ids": ["a", "b"]}, "'ids'"),
        ((), "no arrays"),
    ],
)
def test_examples_that_do_not_fit(examples: object, message: str) -> None:
    """Arrays of other names, counts or kinds are refused with the reason."""
    with pytest.raises(InputError, match=message):
        target_from_module(Pair(), example_inputs=examples)
