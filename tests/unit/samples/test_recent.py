"""The last few values are kept, and equal keys are found together."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from launcher.samples.grouping import bounds, grouped
from launcher.samples.recent import Recent


def test_what_was_not_asked_for_the_longest_goes_first() -> None:
    computed: list[int] = []

    def square(number: int) -> int:
        computed.append(number)
        return number * number

    recent: Recent[int, int] = Recent(2)
    assert [recent.get(number, square) for number in (1, 2, 1, 3, 1, 2)] == [1, 4, 1, 9, 1, 4]
    assert computed == [1, 2, 3, 2]


@given(keys=st.lists(st.integers(-3, 3), max_size=300))
def test_each_key_comes_once_with_all_its_places(keys: list[int]) -> None:
    found = {key: places.tolist() for key, places in grouped(np.array(keys, dtype=np.int64))}
    assert list(found) == sorted(set(keys))
    assert all(places == [place for place, at in enumerate(keys) if at == key] for key, places in found.items())


@given(values=st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=600))
def test_bounds_are_the_lowest_and_the_highest(values: list[int]) -> None:
    assert bounds(np.array(values, dtype=np.int64)) == (min(values), max(values))
