"""A permutation that is computed must still be one, and look like one."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from launcher.samples.permutation import MAX_SIZE, Permutation

KEYS = st.integers(min_value=0, max_value=2**64 - 1)


@given(size=st.integers(min_value=1, max_value=5000), key=KEYS)
@example(size=1, key=0)
@example(size=2, key=0)
@example(size=3, key=1)
@example(size=1024, key=7)
@example(size=1025, key=7)
@example(size=4095, key=7)
def test_every_index_goes_to_a_place_of_its_own(size: int, key: int) -> None:
    permuted = Permutation(size, key)(np.arange(size, dtype=np.int64))
    assert permuted.dtype == np.int64
    assert np.array_equal(np.sort(permuted), np.arange(size))


@given(size=st.integers(min_value=1, max_value=MAX_SIZE), key=KEYS, seed=st.integers(0, 2**32 - 1))
@example(size=MAX_SIZE, key=3, seed=0)
@example(size=2**40 + 1, key=3, seed=0)
def test_at_any_size_results_stay_in_range_and_apart(size: int, key: int, seed: int) -> None:
    indices = np.unique(np.random.default_rng(seed).integers(0, size, 100, dtype=np.int64))
    permuted = Permutation(size, key)(indices)
    assert permuted.min() >= 0
    assert permuted.max() < size
    assert len(np.unique(permuted)) == len(indices)


@given(size=st.integers(min_value=1, max_value=MAX_SIZE), key=KEYS, seed=st.integers(0, 2**32 - 1))
@example(size=1, key=0, seed=0)
@example(size=2, key=0, seed=0)
@example(size=1025, key=7, seed=0)
@example(size=MAX_SIZE, key=3, seed=0)
def test_the_inverse_leads_back(size: int, key: int, seed: int) -> None:
    permutation = Permutation(size, key)
    indices = np.random.default_rng(seed).integers(0, size, 100, dtype=np.int64)
    assert np.array_equal(permutation.inverse(permutation(indices)), indices)
    assert np.array_equal(permutation(permutation.inverse(indices)), indices)


@given(size=st.integers(min_value=1, max_value=3000), key=KEYS)
def test_an_index_goes_to_the_same_place_alone_as_in_a_block(size: int, key: int) -> None:
    permutation = Permutation(size, key)
    index = np.array([size // 2], dtype=np.int64)
    assert permutation(index)[0] == permutation(np.arange(size, dtype=np.int64))[size // 2]


def test_two_keys_give_unrelated_orders() -> None:
    indices = np.arange(10_000, dtype=np.int64)
    same_place = np.count_nonzero(Permutation(10_000, 1)(indices) == Permutation(10_000, 2)(indices))
    assert same_place < 10  # one is expected of two independent permutations


def test_memory_does_not_grow_with_the_size() -> None:
    indices = np.arange(4096, dtype=np.int64)
    Permutation(10, 0)(indices[:10])
    tracemalloc.start()
    Permutation(10**12, 5)(indices)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 1 << 20


def test_the_places_look_uniform() -> None:
    # Old place against new place in 20 × 20 cells: chi-square with 19 × 19 degrees of freedom, mean 361, sd 27.
    size = 100_003
    indices = np.arange(size, dtype=np.int64)
    for key in range(5):
        permuted = Permutation(size, key)(indices)
        cells = np.histogram2d(indices, permuted, bins=20)[0]
        expected = size / 400
        chi_square = ((cells - expected) ** 2 / expected).sum()
        assert 361 - 5 * 27 < chi_square < 361 + 5 * 27


def test_neighbours_do_not_stay_together() -> None:
    permuted = Permutation(50_000, 11)(np.arange(50_000, dtype=np.int64))
    correlation = np.corrcoef(permuted[:-1], permuted[1:])[0, 1]
    assert abs(correlation) < 4 / np.sqrt(50_000)
    assert np.count_nonzero(permuted == np.arange(50_000)) < 10


@pytest.mark.parametrize("size", [0, -1, MAX_SIZE + 1])
def test_a_size_without_places_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=r"1 to 2\*\*62 places"):
        Permutation(size, 0)


@pytest.mark.parametrize("index", [-1, 10])
def test_an_index_outside_is_refused(index: int) -> None:
    with pytest.raises(IndexError, match=r"outside range\(10\)"):
        Permutation(10, 0)(np.array([index], dtype=np.int64))
    with pytest.raises(IndexError, match=r"outside range\(10\)"):
        Permutation(10, 0).inverse(np.array([index], dtype=np.int64))


def test_no_index_is_no_work() -> None:
    assert Permutation(10, 0)(np.empty(0, dtype=np.int64)).shape == (0,)


def test_the_order_of_a_key_never_changes() -> None:
    # A resumed run counts on this: whoever changes it changes ALGORITHM in samples/order.py too.
    assert Permutation(10, 42)(np.arange(10, dtype=np.int64)).tolist() == [7, 0, 8, 4, 1, 3, 5, 6, 9, 2]
