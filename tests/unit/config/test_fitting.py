"""The largest size that fits is found with few measurements, and none far above the memory there is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from launcher.config.fitting import GROWTH, largest_fitting, next_to_measure


def search(sizes: list[int], base: int, slope: int, budget: int) -> dict[int, int]:
    """Every size that is measured where a size takes base + slope × size."""
    measured: dict[int, int] = {}
    while (size := next_to_measure(sizes, measured, budget)) is not None:
        assert size not in measured
        measured[size] = base + slope * size
    return measured


@given(st.integers(1, 720), st.integers(0, 1000), st.integers(1, 100), st.integers(1, 20_000))
def test_the_answer_is_the_largest_that_fits(share: int, base: int, slope: int, budget: int) -> None:
    sizes = [size for size in range(1, share + 1) if share % size == 0]
    measured = search(sizes, base, slope, budget)
    fitting = [size for size in sizes if base + slope * size <= budget]
    assert largest_fitting(sizes, measured, budget) == (fitting[-1] if fitting else None)
    # Where memory grows evenly, one guess from a single measurement is all that may be too large.
    assert all(base + slope * size <= budget for size in measured if size > GROWTH)
    assert len(measured) <= 8


def test_a_small_search_written_out() -> None:
    assert list(search([1, 2, 4, 8, 16, 32, 64], base=100, slope=10, budget=500)) == [1, 4, 16, 32]
    assert list(search([1, 2, 4, 8], base=100, slope=10, budget=50)) == [1]
    assert list(search([1, 3], base=0, slope=10, budget=20)) == [1, 3]
    assert list(search([1, 97], base=0, slope=10, budget=2000)) == [1, 4, 16, 64, 97]


def test_memory_that_does_not_show_at_first_is_met_step_by_step() -> None:
    peaks = {1: 1000, 2: 1000, 4: 1000, 8: 1050, 16: 1400, 32: 2100, 64: 3500}  # little ones are lost in the rest
    measured: dict[int, int] = {}
    while (size := next_to_measure(sorted(peaks), measured, 2200)) is not None:
        measured[size] = peaks[size]
    assert largest_fitting(peaks, measured, 2200) == 32
    assert 64 not in measured
