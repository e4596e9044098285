"""From a sparsity to exact keep counts, in total and per layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gaprune.errors import InputError
from gaprune.masks.budget import apportion, check_sparsity, keep_total, uniform_counts
from gaprune.masks.supermask import Layout

SIZES = st.lists(st.integers(1, 300), min_size=1, max_size=8)
SPARSITY = st.decimals("0.001", "0.999", places=3).map(float)


def layout_of(*sizes: int) -> Layout:
    """Return a layout of vectors named l0, l1 and so on."""
    return Layout(tuple(f"l{i}" for i in range(len(sizes))), tuple((size,) for size in sizes))


@pytest.mark.parametrize("sparsity", [0.5, 1e-12, 1 - 1e-12])
def test_a_sparsity_between_0_and_1_passes(sparsity: float) -> None:
    """It comes back unchanged."""
    assert check_sparsity(sparsity) == sparsity


@pytest.mark.parametrize("sparsity", [0, 1, 0.0, 1.0, -0.1, 1.5, 95, math.nan, math.inf, -math.inf])
def test_a_number_outside_0_to_1_is_refused(sparsity: float) -> None:
    """The message says what the number means and repeats it."""
    with pytest.raises(InputError, match="^sparsity: .*90 %.*got") as e:
        check_sparsity(sparsity)
    assert str(e.value).endswith(f"got {sparsity!r}")


@pytest.mark.parametrize("sparsity", ["0.9", None, True, [0.9], 0.9j], ids=repr)
def test_what_is_no_number_is_refused(sparsity: object) -> None:
    """Strings are not parsed, booleans are no numbers."""
    with pytest.raises(InputError, match=r"^sparsity: .*0 and 1, got"):
        check_sparsity(sparsity)


@given(SIZES, st.integers(1, 999))
def test_the_total_is_rounded_half_up(sizes: list[int], permille: int) -> None:
    """In the decimals that the user wrote: whole numbers only in this oracle."""
    expected = (2 * sum(sizes) * (1000 - permille) + 1000) // 2000
    assume(expected >= len(sizes))
    assert keep_total(layout_of(*sizes), permille / 1000) == expected


@pytest.mark.parametrize(
    ("total", "sparsity", "kept"),
    [(222_000, 0.95, 11_100), (1_199_648, 0.98, 23_993), (5, 0.9, 1), (15, 0.9, 2), (9, 0.95, 0)],
)
def test_totals_worked_out_by_hand(total: int, sparsity: float, kept: int) -> None:
    """5 and 15 weights at 0.9 are halves, which binary fractions miss; 0.45 of a weight is none."""
    if kept:
        assert keep_total(layout_of(total), sparsity) == kept
    else:
        with pytest.raises(InputError, match="^sparsity: .* 0 of 9"):
            keep_total(layout_of(total), sparsity)


@given(st.lists(st.integers(2, 300), min_size=2, max_size=8), st.data())
def test_an_impossible_sparsity_is_refused_with_advice_that_works(
    sizes: list[int], data: st.DataObject
) -> None:
    """Fewer weights than layers: the sparsity that the message offers is accepted."""
    layout = layout_of(*sizes)
    sparsity = 1 - data.draw(st.floats(1e-9, (len(sizes) - 0.6) / sum(sizes)))
    with pytest.raises(InputError, match=r"^sparsity: ") as caught:
        keep_total(layout, sparsity)
    offered = float(str(caught.value).rpartition("at most ")[2])
    assert keep_total(layout, offered) == len(sizes)


@given(SIZES, SPARSITY)
def test_uniform_counts_add_up_and_stay_near_the_same_density(
    sizes: list[int], sparsity: float
) -> None:
    """The total is exact and no layer is a whole weight away from its share, bar the forced one."""
    layout = layout_of(*sizes)
    assume(all(size * (1 - sparsity) >= 1 for size in sizes))
    counts = uniform_counts(layout, sparsity)
    assert sum(counts) == keep_total(layout, sparsity)
    for count, size in zip(counts, sizes, strict=True):
        assert abs(count - size * (1 - sparsity)) < 1


def test_a_layer_that_would_run_empty_is_named() -> None:
    """With the way out in the message."""
    message = r"'l1' \(4 .*--scope allocated"
    with pytest.raises(InputError, match=message):
        uniform_counts(layout_of(1000, 4), 0.9)
    assert uniform_counts(layout_of(1000, 5), 0.9) == [100, 1]  # exactly half a weight is enough


@given(SIZES, st.data())
def test_apportioned_counts_add_up_within_bounds(sizes: list[int], data: st.DataObject) -> None:
    """Whatever the shares, zero, huge and infinite ones too."""
    total = data.draw(st.integers(len(sizes), sum(sizes)))
    share = st.floats(min_value=-5, allow_nan=False)
    shares = data.draw(st.lists(share, min_size=len(sizes), max_size=len(sizes)))
    counts = apportion(shares, total, sizes)
    assert sum(counts) == total
    assert all(1 <= count <= size for count, size in zip(counts, sizes, strict=True))


def largest_remainders(shares: Sequence[Fraction], total: int) -> list[int]:
    """Hamilton's method in exact fractions: floors, then one more for the largest remainders."""
    counts = [math.floor(share) for share in shares]
    order = sorted(range(len(shares)), key=lambda i: (counts[i] - shares[i], i))
    for index in order[: total - sum(counts)]:
        counts[index] += 1
    return counts


@given(st.lists(st.integers(64, 640), min_size=1, max_size=8))
def test_shares_that_fit_are_rounded_by_largest_remainder(parts: list[int]) -> None:
    """Shares in 64ths, exact in binary, that add up to the total; ties go to the lower index."""
    parts[-1] += -sum(parts) % 64
    shares = [Fraction(part, 64) for part in parts]
    total = int(sum(shares))
    counts = apportion([float(share) for share in shares], total, [1000] * len(parts))
    assert counts == largest_remainders(shares, total)


def test_what_a_full_layer_cannot_take_goes_to_the_others_in_proportion() -> None:
    """20 of 24 asked do not fit in 4 places; 8 and 12 of the rest keep their ratio of 2 to 3."""
    assert apportion([4, 6, 20], 24, [100, 100, 4]) == [8, 12, 4]


@pytest.mark.parametrize("total", [1, 31])
def test_a_total_that_does_not_fit_is_refused(total: int) -> None:
    """More weights than there are, or fewer than one for each layer."""
    with pytest.raises(InputError, match=f"^total: .*2 to 30.* {total}$"):
        apportion([5, 5], total, [10, 20])


def test_a_share_that_is_no_number_is_refused() -> None:
    """NaN cannot be compared with a size."""
    with pytest.raises(InputError, match="^shares: "):
        apportion([1.0, math.nan], 3, [10, 10])
