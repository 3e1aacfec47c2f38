"""Windows of the data that no step trains on."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.errors import CheckpointError
from launcher.samples.passed_over import FILE, Kept, moved_on, put_back, read_kept, with_window


@st.composite
def windows(draw: st.DrawFn) -> list[list[int]]:
    """What a run that goes back now and then ends up with."""
    found: list[list[int]] = []
    step = 0
    for _ in range(draw(st.integers(0, 5))):
        step += draw(st.integers(0, 20))
        back = draw(st.integers(0, step))
        found = with_window(found, moved_on(back, found), moved_on(step, found))
        step = back
    return [window for window in found if window[1]]


@given(windows())
def test_no_position_is_lost_or_repeated_but_those_of_the_windows(passed_over: list[list[int]]) -> None:
    trained = [moved_on(position, passed_over) for position in range(200)]
    left = {first + i for first, number in passed_over for i in range(number)}
    assert trained == sorted(set(range(trained[-1] + 1)) - left)
    assert [put_back(position, passed_over) for position in trained] == list(range(200))
    assert all(put_back(position, passed_over) is None for position in left)


@given(windows(), st.integers(0, 30), st.integers(0, 30))
def test_going_back_moves_nothing_before_it(passed_over: list[list[int]], back: int, more: int) -> None:
    now = back + more
    after = with_window(passed_over, moved_on(back, passed_over), moved_on(now, passed_over))
    assert [moved_on(p, after) for p in range(back)] == [moved_on(p, passed_over) for p in range(back)]
    assert moved_on(back, after) == moved_on(now, passed_over)


def test_what_was_passed_over_is_kept(tmp_path: Path) -> None:
    assert read_kept(tmp_path) is None
    Kept([[8, 16]], 1).write(tmp_path)
    assert read_kept(tmp_path) == Kept([[8, 16]], 1)


@pytest.mark.parametrize("text", ["", "{}", '{"windows": [[1]], "num_rewinds": 1}', '{"windows": 3, "num_rewinds": 1}'])
def test_a_damaged_file_is_told_with_the_way_to_mend_it(text: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(CheckpointError, match="which data the run passed over cannot be read") as told:
        read_kept(tmp_path)
    assert "`rewind` events in metrics.jsonl" in told.value.fix
