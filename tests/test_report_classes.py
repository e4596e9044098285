"""Which classes a report lists: all of few, and of many those that changed."""

from __future__ import annotations

from gaprune.report.classes import MAX_CLASSES, class_accuracies


def confusion(dense: list[int], pruned: list[int]) -> dict[str, object]:
    """Of five inputs of every class, so many are answered right."""
    return {"of": [5] * len(dense), "right": {"dense": dense, "pruned": pruned}}


def test_few_classes_are_all_listed_the_largest_loss_first() -> None:
    """Also those that are as before."""
    found = class_accuracies(confusion([3, 5, 4], [3, 1, 5]))
    assert found is not None
    assert [row[0] for row in found.rows] == ["1", "0", "2"]
    assert found.rest == ""


def test_of_many_classes_those_that_changed_are_listed() -> None:
    """The others are counted."""
    dense, pruned = [4] * 3 * MAX_CLASSES, [4] * 3 * MAX_CLASSES
    pruned[7], pruned[9] = 0, 5
    found = class_accuracies(confusion(dense, pruned))
    assert found is not None
    assert [row[0] for row in found.rows] == ["7", "9"]
    assert found.rest == f"{3 * MAX_CLASSES - 2} did not change"


def test_too_many_that_changed_are_cut_and_counted() -> None:
    """None disappears silently."""
    many = 3 * MAX_CLASSES
    found = class_accuracies(confusion([4] * (many + 1), [3] * many + [4]))
    assert found is not None
    assert len(found.rows) == MAX_CLASSES
    assert str(many - MAX_CLASSES) in found.rest
    assert "1 did not change" in found.rest
