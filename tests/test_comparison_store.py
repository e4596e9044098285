"""The folder of a comparison: rows are written one by one and survive a stop."""

from __future__ import annotations

import json
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import tree
from comparison_cases import RecordingObserver, compare_tiny, spec, timeless, tiny_data, tiny_target

from gaprune.comparison import (
    Comparison,
    ComparisonData,
    MethodRequirements,
    Row,
    compare_target,
    open_store,
    read_rows,
)
from gaprune.comparison.methods.training import TrainingOptions
from gaprune.comparison.store import CSV, LIST, ROWS, TABLE
from gaprune.config import NEUTRAL, Settings
from gaprune.errors import GapruneError, InputError
from gaprune.io.file_hash import content_of
from gaprune.io.manifest import IDENTITY, sealed
from gaprune.io.user_code import PREFIX

METHODS = ("magnitude", "random", "imp:linear", "evolved")
ROW = Row("net", 0.5, "größe", 0, MethodRequirements(), 0.25, 0.5, actual=0.5)


CRITERION = "def score(network, inputs, density, generator):\n    return {}network.flat.abs()\n"


def lines(folder: Path) -> list[bytes]:
    """Return the lines of the file of rows."""
    return (folder / ROWS).read_bytes().splitlines()


def some(count: int) -> list[Row]:
    """Return rows of `count` seeds."""
    return [replace(ROW, seed=seed, actual=None) for seed in range(count)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Path]:
    """A finished comparison and its folder, which no test may change."""
    folder = tmp_path_factory.mktemp("rows")
    return compare_tiny(METHODS, seeds=(0, 1), out=folder), folder


@pytest.mark.parametrize("stop_after", [1, 6])
def test_a_stopped_comparison_resumes(
    stop_after: int, finished: tuple[Comparison, Path], tmp_path: Path
) -> None:
    """No row is computed twice, and all rows equal those of an uninterrupted comparison."""
    expected = finished[0].rows
    with pytest.raises(KeyboardInterrupt):
        compare_tiny(METHODS, seeds=(0, 1), out=tmp_path, observer=RecordingObserver(stop_after))
    before = lines(tmp_path)
    assert len(before) == stop_after
    observer = RecordingObserver()
    resumed = compare_tiny(METHODS, seeds=(0, 1), out=tmp_path, observer=observer)
    assert timeless(resumed.rows) == timeless(expected)
    assert lines(tmp_path)[:stop_after] == before
    assert len(lines(tmp_path)) == len(expected)
    assert len(observer.rows) == len(expected) - stop_after
    assert observer.counts[0] == (stop_after + 1, len(expected))


def test_the_identity_holds_every_setting_that_rows_depend_on(tmp_path: Path) -> None:
    """All but those that rows state themselves, and those that change no result."""
    compare_tiny(("magnitude",), out=tmp_path)
    identity = json.loads((tmp_path / IDENTITY).read_text())
    assert set(Settings.model_fields) - set(identity) == {"sparsity", "method", "seed", *NEUTRAL}
    with pytest.raises(InputError, match=r"floor \(0.0 there, 0.05 now\)"):
        compare_tiny(("magnitude",), out=tmp_path, settings={"floor": 0.05})


def test_all_files_have_the_same_rows(finished: tuple[Comparison, Path]) -> None:
    """Lines, list, CSV and Markdown table; the plot is there as SVG and PNG."""
    comparison, folder = finished
    records = json.loads(json.dumps([row.record() for row in comparison.rows]))
    assert json.loads((folder / LIST).read_text()) == records
    assert [json.loads(line) for line in lines(folder)] == [sealed(row) for row in records]
    assert read_rows(folder) == list(comparison.rows)
    assert (folder / CSV).read_text().count("\n") == len(records) + 1
    assert (folder / TABLE).read_text().count("\n| ") == len(METHODS) + 3
    assert (folder / "accuracy.svg").read_text().rstrip().endswith("</svg>")
    assert (folder / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_other_sparsities_repeat_paths_only(tmp_path: Path) -> None:
    """On a path each sparsity starts from the one before, so its rows depend on all of them."""
    names = ("imp:linear", "imp:cubic", "magnitude")
    compare_tiny(names, out=tmp_path, sparsities=(0.5, 0.75))
    observer = RecordingObserver()
    rows = compare_tiny(names, out=tmp_path, sparsities=(0.5, 0.6, 0.75), observer=observer).rows
    paths = {("imp:linear", sparsity) for sparsity in (0.5, 0.6, 0.75)}
    assert {(row.method, row.sparsity) for row in observer.rows} == paths | {
        ("imp:cubic", 0.6),
        ("magnitude", 0.6),
    }
    assert timeless(rows) == timeless(compare_tiny(names, sparsities=(0.5, 0.6, 0.75)).rows)
    assert all(row.path == (0.5, 0.6, 0.75) for row in rows if row.method == "imp:linear")


def test_failed_rows_are_tried_again(tmp_path: Path) -> None:
    """The same failure adds no second line."""
    data = ComparisonData(None, tiny_data().test)
    for _ in range(2):
        rows = compare_tiny(("imp:direct", "lamp"), data=data, out=tmp_path).rows
        assert [row.error is None for row in rows] == [False, False, True, True]
        assert len(lines(tmp_path)) == 4


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"settings": {"calibration_count": 16}}, "calibration_count (32 there, 16 now)"),
        ({"settings": {"preset": "black-box"}}, 'preset ("default" there, "black-box" now)'),
        ({"epochs": 1.0}, "epochs (0.5 there, 1.0 now)"),
        ({"clusters": 8}, "clusters (16 there, 8 now)"),
        (
            {"training": TrainingOptions(batch=8)},
            "training_learning_rate (0.02 there, 0.001 now), training_batch",
        ),
        ({"data": ComparisonData(None, tiny_data().test)}, "train ("),
        ({"data": ComparisonData(tiny_data().train, None)}, "test ("),
    ],
)
def test_rows_of_other_options_are_refused(
    changes: dict[str, Any], named: str, finished: tuple[Comparison, Path]
) -> None:
    """The error names what differs and `--overwrite`; no file changes."""
    before = tree(finished[1])
    with pytest.raises(InputError) as refused:
        compare_tiny(("magnitude",), out=finished[1], **changes)
    assert named in str(refused.value)
    assert "overwrite=True" in str(refused.value)
    assert tree(finished[1]) == before


def test_overwrite_deletes_rows_and_tables(tmp_path: Path) -> None:
    """Tables of the old rows are gone even if the new comparison stops early."""
    compare_tiny(("magnitude", "lamp"), out=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        compare_target(
            tiny_target(),
            spec(("random",), epochs=3),
            data=tiny_data(),
            out=tmp_path,
            overwrite=True,
            observer=RecordingObserver(1),
        )
    assert [row.method for row in read_rows(tmp_path)] == ["random"]
    assert {path.name for path in tmp_path.iterdir()} == {ROWS, "comparison.json"}


def test_a_torn_line_is_dropped(tmp_path: Path) -> None:
    """A crash may cut a row anywhere, even inside a UTF-8 character; complete rows stay."""
    with open_store(tmp_path, {"a": 1}) as store:
        for row in some(3):
            store.add(row)
    content = (tmp_path / ROWS).read_bytes()
    ends = [index + 1 for index, byte in enumerate(content) if byte == ord("\n")]
    assert len(ends) == 3
    letters = [index + 1 for index, byte in enumerate(content) if byte > 127]  # of two bytes each
    cuts = {0, 1, *letters[:4], *(end + step for end in ends for step in (-2, -1, 0, 1))}
    for length in sorted(cut for cut in cuts if cut <= len(content)):
        (tmp_path / ROWS).write_bytes(content[:length])
        whole = sum(end <= length for end in ends)
        assert read_rows(tmp_path) == some(whole)
        with open_store(tmp_path, {"a": 1}) as store:
            assert list(store.rows.values()) == some(whole)
            store.add(ROW)
        assert read_rows(tmp_path) == list({row.key: row for row in [*some(whole), ROW]}.values())


@pytest.mark.parametrize("line", ["{}", "[]", '{"target": 1}', "\x00" * 9, ""])
def test_a_line_that_is_no_row_is_an_error(line: str, tmp_path: Path) -> None:
    """The error gives the file and the line."""
    with open_store(tmp_path, {}) as store:
        for row in some(2):
            store.add(row)
    first, second = (tmp_path / ROWS).read_text().splitlines()
    (tmp_path / ROWS).write_text(f"{first}\n{line}\n{second}\n")
    with pytest.raises(InputError, match=r"comparison: .*2.*rows.jsonl"):
        read_rows(tmp_path)
    with pytest.raises(InputError, match="line 2"), open_store(tmp_path, {}):
        pass


def test_one_comparison_writes_to_a_folder(tmp_path: Path) -> None:
    """A second one is refused while the first is open, even with `overwrite`."""
    with open_store(tmp_path, {"a": 1}) as store:
        store.add(ROW)
        for overwrite in (False, True):
            with (
                pytest.raises(InputError, match=r"^out: "),
                open_store(tmp_path, {"a": 1}, overwrite=overwrite),
            ):
                pass
    assert read_rows(tmp_path) == [ROW]
    with open_store(tmp_path, {"a": 1}, overwrite=True) as store:
        assert store.rows == {}


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    """Even with `overwrite`, which deletes rows only."""
    (tmp_path / "thesis.tex").write_text("mine")
    with (
        pytest.raises(InputError, match=r"thesis.tex"),
        open_store(tmp_path, {}, overwrite=True),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(InputError, match=r"thesis\.tex"):
        compare_tiny(("magnitude",), out=tmp_path / "thesis.tex")


@pytest.mark.parametrize("content", [None, "[]", "{torn"])
def test_rows_without_valid_options_are_refused(content: str | None, tmp_path: Path) -> None:
    """`comparison.json` may be missing or damaged; rows stay."""
    with open_store(tmp_path, {"a": 1}) as store:
        store.add(ROW)
    path = tmp_path / "comparison.json"
    path.unlink() if content is None else path.write_text(content)
    with (
        pytest.raises(InputError, match=r"comparison.json|another comparison"),
        open_store(tmp_path, {"a": 1}),
    ):
        pass
    path.unlink(missing_ok=True)
    assert read_rows(tmp_path) == [ROW]


@contextmanager
def limited_files(size: int) -> Iterator[None]:
    """Limit the size of files, which fails like a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_full_disk_is_an_error_and_loses_no_row(tmp_path: Path) -> None:
    """The incomplete row is dropped by the next comparison."""
    with open_store(tmp_path, {}) as store:
        store.add(ROW)
    size = (tmp_path / ROWS).stat().st_size
    with (
        pytest.raises(GapruneError, match=r"^out: "),
        open_store(tmp_path, {}) as store,
        limited_files(size + 20),
    ):
        store.add(some(2)[1])
    assert (tmp_path / ROWS).stat().st_size == size + 20
    with open_store(tmp_path, {}) as store:
        store.add(some(2)[1])
    assert read_rows(tmp_path) == [ROW, some(2)[1]]


def test_rows_of_an_edited_criterion_are_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of other methods stay."""
    path, folder = tmp_path / "own.py", tmp_path / "rows"
    figures = []
    for sign in ("", "-"):
        path.write_text(CRITERION.format(sign))
        for name in [name for name in sys.modules if name.startswith(PREFIX)]:
            monkeypatch.delitem(sys.modules, name)  # a new process would import the file again
        content_of.cache_clear()
        rows = compare_tiny((f"{path}:score", "magnitude"), out=folder).rows
        figures.append([row.agreement for row in rows])
    assert figures[0][:2] != figures[1][:2]
    assert figures[0][2:] == figures[1][2:]
    assert [json.loads(line)["method"] for line in lines(folder)[4:]] == [f"{path}:score"] * 2
