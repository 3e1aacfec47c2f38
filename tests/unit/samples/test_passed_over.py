"""Windows of the data that no step trains on."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.errors import CheckpointError
from launcher.samples.passed_over import (
    FILE,
    Kept,
    first_of_change,
    moved_on,
    put_back,
    read_kept,
    with_changes,
    with_window,
)


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


@given(st.data(), st.integers(1, 60), st.integers(1, 60))
def test_weights_change_at_their_step_or_stay_where_they_came_in_amid_what_was_passed_over(
    data: st.DataObject, one: int, two: int
) -> None:
    """Steps of one sample; whatever was read at a position has the same weights there for ever."""
    steps = sorted({0, one, two})
    passed_over: list[list[int]] = []
    changes: list[list[int]] = []
    read: dict[int, int] = {}
    step = furthest = 0
    for _ in range(data.draw(st.integers(0, 5))):
        now = step + data.draw(st.integers(0, 20))
        firsts = {at: first_of_change(at, at, passed_over, changes) for at in steps}
        taken = [moved_on(s, passed_over) for s in range(step, now)]
        assert not read.keys() & taken
        read |= {position: _weights(position, firsts) for position in taken}
        assert all(
            _weights(moved_on(s, passed_over), firsts) == max(at for at in steps if at <= s)
            for s in range(furthest, now)
        )
        furthest = max(furthest, now)
        step = data.draw(st.integers(0, now))
        first, last = moved_on(step, passed_over), moved_on(now, passed_over)
        passed_over, changes = with_window(passed_over, first, last), with_changes(changes, firsts, first, last)
        assert {
            p: _weights(p, {at: first_of_change(at, at, passed_over, changes) for at in steps}) for p in read
        } == read


def _weights(position: int, firsts: Mapping[int, int]) -> int:
    """The step whose weights a position has."""
    return max(step for step, first in firsts.items() if first <= position)


def test_what_was_passed_over_is_kept(tmp_path: Path) -> None:
    assert read_kept(tmp_path) is None
    Kept([[8, 16]], 1, [[2, 12]]).write(tmp_path)
    assert read_kept(tmp_path) == Kept([[8, 16]], 1, [[2, 12]])
    (tmp_path / FILE).write_text('{"windows": [[8, 16]], "num_rewinds": 1}')  # of an earlier version
    assert read_kept(tmp_path) == Kept([[8, 16]], 1)


@pytest.mark.parametrize("text", ["", "{}", '{"windows": [[1]], "num_rewinds": 1}', '{"windows": 3, "num_rewinds": 1}'])
def test_a_damaged_file_is_told_with_the_way_to_mend_it(text: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(CheckpointError, match="which data the run passed over cannot be read") as told:
        read_kept(tmp_path)
    assert "`rewind` events in metrics.jsonl" in told.value.fix


def test_a_file_system_that_is_gone_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Kept([[8, 16]], 1).write(tmp_path)

    def gone(*_: object, **__: object) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(Path, "read_text", gone)
    with pytest.raises(OSError, match="Stale file handle"):  # `launcher.train` ends with 75, and asks nobody to mend it
        read_kept(tmp_path)
