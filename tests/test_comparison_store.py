"""A folder of rows: each is there as soon as it is known, and a stopped comparison goes on."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from command_line import tree
from comparison_cases import Heard, ask, spec, timeless, tiny_data, tiny_target

from gaprune.comparison import (
    ComparisonData,
    MethodRequirements,
    Row,
    compare_target,
    open_store,
    read_rows,
)
from gaprune.comparison.methods.training import TrainingOptions
from gaprune.comparison.store import CSV, IDENTITY, LIST, ROWS, TABLE
from gaprune.config import NEUTRAL, Settings
from gaprune.errors import GapruneError, InputError

METHODS = ("magnitude", "random", "imp:linear", "evolved")
BROKEN = ("{}", "[]", "null", "7", "{torn", '{"target": 1}', "\x00" * 9, "")
ROW = Row("net", 0.5, "größe", 0, MethodRequirements(), 0.25, 0.5, actual=0.5)


def lines(folder: Path) -> list[bytes]:
    """Return what is in the file of rows, line by line."""
    return (folder / ROWS).read_bytes().splitlines()


def some(count: int) -> list[Row]:
    """Return rows of as many seeds."""
    return [
        Row("net", 0.5, "größe", seed, MethodRequirements(), 0.25, 0.5) for seed in range(count)
    ]


@pytest.mark.parametrize("stop_after", [1, 3, 5, 6, 9])
def test_a_stopped_comparison_goes_on_and_ends_with_the_same_rows(
    stop_after: int, tmp_path: Path
) -> None:
    """Rows of before the stop are not computed again, also in the middle of a path."""
    whole = ask(METHODS, seeds=(0, 1), out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        ask(METHODS, seeds=(0, 1), out=tmp_path / "rows", observer=Heard(stop_after))
    before = lines(tmp_path / "rows")
    assert len(before) == stop_after
    heard = Heard()
    resumed = ask(METHODS, seeds=(0, 1), out=tmp_path / "rows", observer=heard)
    assert timeless(resumed.rows) == timeless(whole.rows)
    assert lines(tmp_path / "rows")[:stop_after] == before
    assert len(lines(tmp_path / "rows")) == len(whole.rows)
    assert len(heard.rows) == len(whole.rows) - stop_after
    assert heard.counts[0] == (stop_after + 1, len(whole.rows))


def test_the_identity_holds_every_setting_that_rows_depend_on(tmp_path: Path) -> None:
    """All but those that rows state themselves, and those that change no result."""
    ask(("magnitude",), out=tmp_path)
    identity = json.loads((tmp_path / IDENTITY).read_text())
    assert set(Settings.model_fields) - set(identity) == {"sparsity", "method", "seed", *NEUTRAL}
    with pytest.raises(InputError, match=r"floor \(0.0 there, 0.05 now\)"):
        ask(("magnitude",), out=tmp_path, settings={"floor": 0.05})


def test_a_comparison_that_is_done_computes_nothing(tmp_path: Path) -> None:
    """The file of rows is not touched, and nobody hears of a row."""
    first = ask(METHODS, out=tmp_path)
    stamp = (tmp_path / ROWS).stat().st_mtime_ns
    heard = Heard()
    assert ask(METHODS, out=tmp_path, observer=heard).rows == first.rows
    assert heard.rows == []
    assert heard.progressed == []
    assert (tmp_path / ROWS).stat().st_mtime_ns == stamp


def test_the_files_hold_the_same_rows(tmp_path: Path) -> None:
    """As lines, as a list, and in the table; in memory alone they are the same."""
    found = ask(METHODS, out=tmp_path)
    records = [row.record() for row in found.rows]
    assert json.loads((tmp_path / LIST).read_text()) == json.loads(json.dumps(records))
    assert [json.loads(line) for line in lines(tmp_path)] == json.loads(json.dumps(records))
    assert read_rows(tmp_path) == list(found.rows)
    assert (tmp_path / CSV).read_text().count("\n") == len(records) + 1
    assert (tmp_path / TABLE).read_text().count("\n| ") == len(METHODS) + 3
    assert timeless(ask(METHODS).rows) == timeless(found.rows)
    assert (tmp_path / "accuracy.svg").read_text().rstrip().endswith("</svg>")
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_more_methods_and_seeds_are_added_to_what_is_there(tmp_path: Path) -> None:
    """Only what is new is computed; the new tables hold what was asked for last."""
    ask(("magnitude",), out=tmp_path)
    heard = Heard()
    found = ask(("random", "magnitude"), seeds=(0, 1), out=tmp_path, observer=heard)
    assert [row.method for row in found.rows] == ["random", "random", "magnitude", "magnitude"] + [
        "random"
    ] * 2
    assert {row.method for row in heard.rows} == {"random"}


def test_another_set_of_sparsities_makes_paths_anew_and_nothing_else(tmp_path: Path) -> None:
    """On a path each sparsity is reached from the one before, so its rows depend on all."""
    names = ("imp:linear", "imp:cubic", "magnitude")
    ask(names, out=tmp_path, sparsities=(0.5, 0.75))
    heard = Heard()
    found = ask(names, out=tmp_path, sparsities=(0.5, 0.6, 0.75), observer=heard)
    made = {(row.method, row.sparsity) for row in heard.rows}
    paths = {("imp:linear", sparsity) for sparsity in (0.5, 0.6, 0.75)}
    assert made == paths | {("imp:cubic", 0.6), ("magnitude", 0.6)}
    assert timeless(found.rows) == timeless(ask(names, sparsities=(0.5, 0.6, 0.75)).rows)
    assert all(row.path == (0.5, 0.6, 0.75) for row in found.rows if row.method == "imp:linear")


def test_what_failed_is_tried_again_and_told_once(tmp_path: Path) -> None:
    """The same failure adds no second line."""
    data = ComparisonData(None, tiny_data().test)
    for _ in range(3):
        found = ask(("imp:direct", "lamp"), data=data, out=tmp_path)
        assert [row.error is None for row in found.rows] == [False, False, True, True]
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
def test_rows_of_another_comparison_are_kept_apart(
    changes: dict[str, object], named: str, tmp_path: Path
) -> None:
    """The message names what differs and the two ways out; nothing is changed."""
    ask(("magnitude",), out=tmp_path)
    before = tree(tmp_path)
    with pytest.raises(InputError) as refused:
        ask(("magnitude",), out=tmp_path, **changes)  # type: ignore[arg-type]
    assert f"which differs in {named}" in str(refused.value)
    assert "--out" in str(refused.value)
    assert "--overwrite" in str(refused.value)
    assert tree(tmp_path) == before


def test_what_changes_nothing_but_the_time_does_not_matter(tmp_path: Path) -> None:
    """Workers, and an option that is stated with the value it has anyway."""
    ask(("magnitude",), out=tmp_path)
    heard = Heard()
    stated = {"workers": 2, "scope": "allocated"}
    ask(("magnitude",), out=tmp_path, settings=stated, observer=heard)
    assert heard.rows == []


def test_overwrite_throws_the_rows_away_and_what_was_made_of_them(tmp_path: Path) -> None:
    """Also where the comparison is then stopped: an old table beside new rows would be a lie."""
    ask(("magnitude", "lamp"), out=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        compare_target(
            tiny_target(),
            spec(("random",), epochs=3),
            data=tiny_data(),
            out=tmp_path,
            overwrite=True,
            observer=Heard(1),
        )
    assert [row.method for row in read_rows(tmp_path)] == ["random"]
    assert {path.name for path in tmp_path.iterdir()} == {ROWS, "comparison.json"}


def test_a_line_that_is_torn_anywhere_is_mended(tmp_path: Path) -> None:
    """The machine may go down in the middle of a letter; whole rows stay, the next one fits."""
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


@pytest.mark.parametrize("line", BROKEN)
def test_a_line_that_is_no_row_is_named(line: str, tmp_path: Path) -> None:
    """Nobody knows what it was, so it is for the user to decide."""
    with open_store(tmp_path, {}) as store:
        for row in some(2):
            store.add(row)
    first, second = (tmp_path / ROWS).read_text().splitlines()
    (tmp_path / ROWS).write_text(f"{first}\n{line}\n{second}\n")
    with pytest.raises(InputError, match=r"comparison: .*2.*rows.jsonl"):
        read_rows(tmp_path)
    with pytest.raises(InputError, match="line 2"), open_store(tmp_path, {}):
        pass


def test_two_comparisons_do_not_write_to_one_folder(tmp_path: Path) -> None:
    """The second one is refused, even with leave to overwrite; after the first it may."""
    with open_store(tmp_path, {"a": 1}) as store:
        store.add(ROW)
        for overwrite in (False, True):
            with (
                pytest.raises(InputError, match="another comparison writes to"),
                open_store(tmp_path, {"a": 1}, overwrite=overwrite),
            ):
                pass
    assert read_rows(tmp_path) == [ROW]
    with open_store(tmp_path, {"a": 1}, overwrite=True) as store:
        assert store.rows == {}


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    """Also with leave to overwrite: that is for rows."""
    (tmp_path / "thesis.tex").write_text("mine")
    with (
        pytest.raises(InputError, match=r"thesis.tex"),
        open_store(tmp_path, {}, overwrite=True),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(InputError, match="is a file; name a folder"):
        ask(("magnitude",), out=tmp_path / "thesis.tex")


@pytest.mark.parametrize("content", [None, "", "[]", "{torn"])
def test_rows_without_their_question_are_not_trusted(content: str | None, tmp_path: Path) -> None:
    """Missing or damaged, the message names the file and the way out."""
    with open_store(tmp_path, {"a": 1}) as store:
        store.add(ROW)
    path = tmp_path / "comparison.json"
    path.unlink() if content is None else path.write_text(content)
    with (
        pytest.raises(InputError, match=r"comparison.json|another comparison"),
        open_store(tmp_path, {"a": 1}),
    ):
        pass
    assert read_rows(tmp_path) == [ROW]


@contextmanager
def limited_files(size: int) -> Iterator[None]:
    """Let no file grow beyond so many bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_full_disk_is_said_and_costs_no_row_that_is_there(tmp_path: Path) -> None:
    """The row that did not fit is torn, and mended the next time."""
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


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_that_may_not_be_written_is_refused(tmp_path: Path) -> None:
    """With the reason."""
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="out: cannot write to"), open_store(tmp_path / "a", {}):
        pass


EDIT = """
import sys
from pathlib import Path
from comparison_cases import ask
found = ask((sys.argv[1] + ":score", "magnitude"), out=Path(sys.argv[2]))
print([row.agreement for row in found.rows])
"""


def test_an_edited_criterion_is_computed_again(tmp_path: Path) -> None:
    """Its rows are those of the file as it is now; other rows stay."""
    code = "def score(network, inputs, density, generator):\n    return {}network.flat.abs()\n"
    command = [sys.executable, "-c", EDIT, str(tmp_path / "own.py"), str(tmp_path / "rows")]
    printed = []
    for sign in ("", "-"):
        (tmp_path / "own.py").write_text(code.format(sign))
        ran = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        printed.append(json.loads(ran.stdout))
    assert printed[0][:2] != printed[1][:2]
    assert printed[0][2:] == printed[1][2:]
    added = [json.loads(line)["method"] for line in lines(tmp_path / "rows")[4:]]
    assert added == [f"{tmp_path / 'own.py'}:score"] * 2
