"""What partitioning could get wrong without a word."""

from __future__ import annotations

import jobs
import pytest
from ranks import run_ranks


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_building_never_holds_more_than_the_partition_and_the_layer_that_is_drawn(precision: str) -> None:
    for held in run_ranks(jobs.building_memory, 2, precision):
        # A layer is drawn in fp32, and gloo gathers through a copy.
        assert held["peak"] < held["partition"] + 2 * held["largest_layer"] + (8 << 20)
        assert held["peak"] < 0.75 * held["whole"], "a rank that holds all would pass the line above"
