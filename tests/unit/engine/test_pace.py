"""Which rank is slow."""

from __future__ import annotations

import pytest

from launcher.engine.pace import is_slow, spread


@pytest.mark.parametrize(
    ("own_s", "rank", "slow"),
    [
        ([0.10, 0.10, 0.25, 0.11], 2, True),
        ([0.10, 0.25], 1, True),  # of two, the other is what is usual
        ([0.10, 0.10, 0.14, 0.11], 2, False),  # within the factor
        ([0.001, 0.001, 0.004, 0.001], 2, False),  # four times as slow, at next to nothing of a step
    ],
)
def test_a_rank_is_slow_where_it_costs_the_run_something(own_s: list[float], rank: int, slow: bool) -> None:
    found = spread(own_s)
    assert found.rank == rank
    assert is_slow(found, 1.5, 0.5) == slow
