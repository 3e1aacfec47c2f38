"""What is slow is judged by the others, and a few bad values cannot bend the judgement."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.probe.outliers import slow_ones


@pytest.mark.parametrize(
    ("speeds", "slow", "reason"),
    [
        ([], [], "nobody"),
        ([1.0], [], "alone there is nothing to compare with"),
        ([10.0, 4.0], [1], "of two, the better one is what can be had"),
        ([10.0, 6.0], [], "within the tolerance"),
        ([10.0, 10.0, 1.0, 1.0], [2, 3], "half of them may be bad"),
        ([10.0, 9.0, 10.5, 0.0], [3], "what does not work at all"),
        ([0.0, 0.0], [], "nothing works: nobody is worse than the others"),
        ([10.0, 7.0, 5.0, 3.6, 2.5, 4.9], [], "values all over the place are noise, not outliers"),
    ],
)
def test_slow_ones(speeds: list[float], slow: list[int], reason: str) -> None:
    assert list(slow_ones(dict(enumerate(speeds)), 0.5)) == slow, reason


def test_the_share_of_what_others_reach_is_told() -> None:
    assert slow_ones({"a": 10.0, "b": 10.0, "c": 2.5}, 0.5) == {"c": 0.25}


@given(
    good=st.lists(st.floats(0.95, 1.05), min_size=7, max_size=60),
    bad=st.lists(st.floats(0.0, 0.55), max_size=2),
    scale=st.floats(1e3, 1e15),
)
def test_bad_ones_are_found_among_good_ones_at_any_scale(good: list[float], bad: list[float], scale: float) -> None:
    speeds = {number: value * scale for number, value in enumerate([*good, *bad])}
    assert set(slow_ones(speeds, 0.8)) == set(range(len(good), len(good) + len(bad)))
