"""From a sparsity to exact keep counts, in total and per layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from gaprune.errors import InputError
from gaprune.masks.budget import apportion, check_sparsity, keep_total, uniform_counts
from gaprune.masks.supermask import Layout

SIZES = st.lists(st.integers(1, 300), min_size=1, max_size=8)
SPARSITY = st.decimals("0.001", "0.999", places=3).map(float)


def layout_of(*sizes: int) -> Layout:
    """Return a layout of vectors named l0, l1 and so on."""
    return Layout(tuple(f"l{i}" for i in range(len(sizes))), tuple((size,) for size in sizes))


@pytest.mark.parametrize("sparsity", [0, 1.0, -0.1, 95, math.nan, "0.9", None, True, 0.9j])
def test_a_sparsity_that_is_no_number_between_0_and_1_is_refused(sparsity: object) -> None:
    """The error repeats the value; valid numbers are returned."""
    with pytest.raises(InputError, match=r"^sparsity: ") as caught:
        check_sparsity(sparsity)
    assert str(caught.value).endswith(f"got {sparsity!r}")
    assert check_sparsity(1e-12) == 1e-12


@given(SIZES, st.integers(1, 999))
def test_the_total_is_rounded_half_up(sizes: list[int], permille: int) -> None:
    """Exactly, for the decimal that the user wrote; the oracle uses integers only."""
    expected = (2 * sum(sizes) * (1000 - permille) + 1000) // 2000
    assume(expected >= len(sizes))
    assert keep_total(layout_of(*sizes), permille / 1000) == expected


@pytest.mark.parametrize(
    ("total", "sparsity", "keep"),
    [(222_000, 0.95, 11_100), (1_199_648, 0.98, 23_993), (5, 0.9, 1), (15, 0.9, 2), (9, 0.95, 0)],
)
def test_totals_worked_out_by_hand(total: int, sparsity: float, keep: int) -> None:
    """0.9 of 5 and 15 weights are halves, which binary fractions miss."""
    if keep:
        assert keep_total(layout_of(total), sparsity) == keep
    else:
        with pytest.raises(InputError, match=r"^sparsity: .* 0 of 9"):
            keep_total(layout_of(total), sparsity)


@given(st.lists(st.integers(2, 300), min_size=2, max_size=8), st.data())
def test_an_impossible_sparsity_is_refused_with_advice_that_works(
    sizes: list[int], data: st.DataObject
) -> None:
    """The sparsity in the error is accepted."""
    layout = layout_of(*sizes)
    sparsity = 1 - data.draw(st.floats(1e-9, (len(sizes) - 0.6) / sum(sizes)))
    with pytest.raises(InputError, match=r"^sparsity: ") as caught:
        keep_total(layout, sparsity)
    offered = float(str(caught.value).rpartition("at most ")[2])
    assert keep_total(layout, offered) == len(sizes)


@given(SIZES, SPARSITY)
@example([7, 7, 90], 0.611)  # 40 of 40.456: the shares are those of whole weights
def test_uniform_counts_add_up_and_stay_near_the_same_density(
    sizes: list[int], sparsity: float
) -> None:
    """Every layer is less than one weight away from its share."""
    layout = layout_of(*sizes)
    assume(all(size * (1 - sparsity) >= 1 for size in sizes))
    counts = uniform_counts(layout, sparsity)
    assert sum(counts) == keep_total(layout, sparsity)
    for count, size in zip(counts, sizes, strict=True):
        assert abs(count - size * sum(counts) / sum(sizes)) < 1


def test_a_layer_that_would_become_empty_is_named() -> None:
    """Half a weight is enough."""
    with pytest.raises(InputError, match=r"'l1' \(4 .*scope='allocated'"):
        uniform_counts(layout_of(1000, 4), 0.9)
    assert uniform_counts(layout_of(1000, 5), 0.9) == [100, 1]


@given(SIZES, st.data())
def test_apportioned_counts_add_up_within_bounds(sizes: list[int], data: st.DataObject) -> None:
    """For any shares, also 0 and infinite ones, and any minimum."""
    low = [data.draw(st.integers(1, size)) for size in sizes]
    total = data.draw(st.integers(sum(low), sum(sizes)))
    share = st.floats(min_value=-5, allow_nan=False)
    shares = data.draw(st.lists(share, min_size=len(sizes), max_size=len(sizes)))
    counts = apportion(shares, total, sizes, low)
    assert sum(counts) == total
    assert all(n <= c <= size for n, c, size in zip(low, counts, sizes, strict=True))


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


def test_the_surplus_of_a_full_layer_goes_to_the_others_in_proportion() -> None:
    """A layer of 4 cannot keep 20; the rest is shared 2 to 3."""
    assert apportion([4, 6, 20], 24, [100, 100, 4]) == [8, 12, 4]


@pytest.mark.parametrize("total", [1, 31])
def test_a_total_that_does_not_fit_is_refused(total: int) -> None:
    """More weights than there are, fewer than one per layer, or NaN as a share."""
    with pytest.raises(InputError, match=f"^total: .*2 to 30.* {total}$"):
        apportion([5, 5], total, [10, 20])
    with pytest.raises(InputError, match=r"^shares: "):
        apportion([1.0, math.nan], 3, [10, 10])
