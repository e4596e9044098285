"""The GPU benchmark: its CPU rows run anywhere, and without a GPU it says what is missing."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.gpu import PARTS, PRECISIONS, main, rate

TINY = ("--networks", "mnist-mlp", "--calibration", "16", "--seconds", "0")

cuda = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="torch sees no CUDA GPU on this machine"
)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA GPU")
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_without_a_gpu_it_ends_at_once(
    options: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """One line says why and what to do; there are no rows, and the exit status is 1."""
    assert main(options) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(f"gpu: torch {torch.__version__} sees no CUDA GPU here; run it on")
    assert told.err.endswith("or add --device cpu for the CPU's rows alone\n")


def rows_of(capsys: pytest.CaptureFixture[str], *options: str) -> list[dict[str, object]]:
    """Run it, and return what it prints as JSON."""
    assert main([*TINY, *options, "--json"]) == 0
    rows: list[dict[str, object]] = json.loads(capsys.readouterr().out)
    return rows


def test_the_rows_of_the_cpu_run_anywhere(capsys: pytest.CaptureFixture[str]) -> None:
    """Every precision, masks in groups and alone; all speeds are positive."""
    rows = rows_of(capsys, "--device", "cpu", "--only", "devices", "together")
    found = [(row["part"], row["precision"], row["what"]) for row in rows]
    kinds = ("score", "steps, held calibration inputs", "steps, fresh calibration inputs")
    expected = [("devices", precision, kind) for precision in PRECISIONS["cpu"] for kind in kinds]
    expected += [("together", "float32", kind) for kind in ("score", "score together")]
    assert found == expected
    assert all(row["device"] == "cpu" and row["per_second"] > 0 for row in rows)  # type: ignore[operator]


def test_actors_are_measured(ray_session: None, capsys: pytest.CaptureFixture[str]) -> None:
    """As many as asked, here without a GPU; the table has a line for each."""
    options = ("--device", "cpu", "--only", "actors", "--actors", "1")
    assert main([*TINY, *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith(
        "| actors | mnist-mlp | cpu | float32 | steps, held calibration inputs | 1 | "
    )
    assert lines[-1].startswith(f"torch {torch.__version__}, one CPU thread, ")


def test_the_rate_counts_what_ends_in_time() -> None:
    """The first run warms up and does not count; there is always one that does."""
    ran: list[int] = []
    assert rate(lambda: ran.append(1), 3, 0.0) > 0
    assert len(ran) == 2


@cuda
def test_the_rows_of_a_gpu(ray_session: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Every part, in every precision that it has, beside the CPU's."""
    rows = rows_of(capsys, "--actors", "1", "2")
    assert {row["part"] for row in rows} == set(PARTS)
    on_gpu = [row for row in rows if row["device"] == "cuda"]
    assert {row["precision"] for row in on_gpu} == set(PRECISIONS["cuda"])
    assert {row["actors"] for row in on_gpu} == {0, 1, 2}
