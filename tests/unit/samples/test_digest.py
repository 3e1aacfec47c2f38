"""A step's digest proves what it was trained on, not how it was cut."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from launcher.samples.digest import combine, digest

POSITIONS = np.arange(40, 52, dtype=np.int64)
INPUTS = np.arange(12 * 5, dtype=np.int64).reshape(12, 5)
LABELS = INPUTS + 1


@given(cuts=st.sets(st.integers(1, 11)), seed=st.integers(0, 1000))
def test_the_sum_does_not_depend_on_how_the_step_was_cut(cuts: set[int], seed: int) -> None:
    shuffled = np.random.default_rng(seed).permutation(12)
    partial = [
        combine(digest(POSITIONS[rows], {"labels": LABELS[rows], "input_ids": INPUTS[rows]}))
        for rows in np.split(shuffled, sorted(cuts))
    ]
    whole = combine(digest(POSITIONS, {"input_ids": INPUTS, "labels": LABELS}))
    assert combine(np.array(partial, dtype=np.uint64)) == whole


def test_a_change_anywhere_changes_it() -> None:
    arrays = {"input_ids": INPUTS, "labels": LABELS}
    changed = LABELS.copy()
    changed[7, 3] += 1
    original = digest(POSITIONS, arrays)
    assert np.flatnonzero(digest(POSITIONS, {**arrays, "labels": changed}) != original).tolist() == [7]
    assert (digest(POSITIONS + 1, arrays) != original).all()
    assert (digest(POSITIONS, {"input_ids": LABELS, "labels": INPUTS}) != original).all()


def test_rows_of_a_strided_view_count_like_their_copy() -> None:
    wide = np.arange(40, dtype=np.int64).reshape(4, 10)
    view = wide[:, ::2]
    positions = np.arange(4, dtype=np.int64)
    assert np.array_equal(digest(positions, {"a": view}), digest(positions, {"a": view.copy()}))


def test_an_empty_step_sums_to_nothing() -> None:
    assert combine(np.empty(0, dtype=np.uint64)) == 0
