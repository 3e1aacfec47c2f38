"""A step covers its positions exactly, however it is cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.errors import BatchShapeError
from launcher.samples.passes import pass_positions

COUNTS = st.integers(1, 8)


@given(world_size=COUNTS, micro_batch=COUNTS, num_passes=COUNTS, first=st.integers(0, 10**9))
def test_the_passes_of_all_ranks_partition_the_step(
    world_size: int, micro_batch: int, num_passes: int, first: int
) -> None:
    global_batch = world_size * micro_batch * num_passes
    taken = [
        pass_positions(first, pass_index, rank, world_size, micro_batch, global_batch)
        for pass_index in range(num_passes)
        for rank in range(world_size)
    ]
    assert np.array_equal(np.concatenate(taken), np.arange(first, first + global_batch))


def test_a_small_cut_written_out() -> None:
    cut = {(a, r): pass_positions(12, a, r, 2, 3, 12).tolist() for a in range(2) for r in range(2)}
    assert cut == {(0, 0): [12, 13, 14], (0, 1): [15, 16, 17], (1, 0): [18, 19, 20], (1, 1): [21, 22, 23]}


def test_a_batch_that_is_not_whole_passes_is_an_error_that_names_the_numbers() -> None:
    with pytest.raises(BatchShapeError, match=r"256 .* passes of 48 \(4 per rank on 12 ranks\)"):
        pass_positions(0, 0, 0, 12, 4, 256)


@pytest.mark.parametrize(
    ("first", "pass_index", "rank"),
    [(-1, 0, 0), (0, 2, 0), (0, -1, 0), (0, 0, 2), (0, 0, -1)],
    ids=["position before the first", "pass after the last", "negative pass", "rank after the last", "negative rank"],
)
def test_a_place_outside_the_run_is_refused(first: int, pass_index: int, rank: int) -> None:
    with pytest.raises(IndexError, match="of 2"):
        pass_positions(first, pass_index, rank, 2, 2, 8)
