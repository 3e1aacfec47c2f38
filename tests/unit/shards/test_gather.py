"""The compiled reader: what it fills is the stream, and what it must not touch it leaves to Python."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import launcher.shards.gather
from launcher.shards.gather import Gather, compiled, leave_all

BLOCK = 64
STRIDE = WIDTH = 8
SHARDS = (40, 24, 100)
"""Tokens of each."""


@pytest.fixture(scope="module")
def gather() -> Gather:
    if compiled is None:
        reason = "not compiled: this machine had no C compiler when the project was installed"
        assert not os.environ.get("REQUIRE_CLUSTER"), reason  # the gate installs one
        pytest.skip(reason)
    return compiled


class Stream:
    """Shards of tokens in memory, all open and checked."""

    def __init__(self, dtype: Any = np.uint16, sizes: tuple[int, ...] = SHARDS) -> None:
        rng = np.random.default_rng(0)
        self.tokens = rng.integers(0, 1 << 16, sum(sizes)).astype(dtype)
        self.starts = np.cumsum([0, *sizes], dtype=np.int64)
        parts = np.split(self.tokens, self.starts[1:-1])
        self.asked: list[tuple[int, int]] = []
        """First and last block of each check."""
        self.shards: list[Any] = [
            (memoryview(part.tobytes()), bytearray(b"\1" * -(-part.nbytes // BLOCK)), self.check) for part in parts
        ]

    def check(self, first: int, last: int) -> None:
        self.asked.append((first, last))

    def filled(self, gather: Gather, out: np.ndarray, windows: np.ndarray, stride: int = STRIDE, row: int = 0) -> int:
        return gather(out, windows, stride, row, self.starts, self.shards, self.tokens.itemsize, BLOCK)


@given(
    dtype=st.sampled_from([np.uint16, np.int32]),
    out_dtype=st.sampled_from([np.int32, np.int64]),
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=5),
    width=st.integers(1, 70),
    stride=st.integers(1, 70),
    data=st.data(),
)
def test_rows_are_the_stream_up_to_the_first_that_no_shard_holds_whole(
    gather: Gather, dtype: Any, out_dtype: Any, sizes: list[int], width: int, stride: int, data: st.DataObject
) -> None:
    stream = Stream(dtype, tuple(sizes))
    windows = np.array(data.draw(st.lists(st.integers(-1, sum(sizes) // stride), min_size=1, max_size=9)))
    first = data.draw(st.integers(0, len(windows) - 1))
    out = np.full((len(windows), width), -7, dtype=out_dtype)
    edges = list(zip(stream.starts.tolist(), stream.starts[1:].tolist(), strict=False))
    whole = [any(begin <= w * stride and w * stride + width <= end for begin, end in edges) for w in windows.tolist()]
    expected = next((row for row in range(first, len(windows)) if not whole[row]), len(windows))
    assert stream.filled(gather, out, windows, stride, first) == expected
    for row, window in enumerate(windows.tolist()):
        if first <= row < expected:
            assert out[row].tolist() == stream.tokens[window * stride : window * stride + width].tolist()
        else:
            assert (out[row] == -7).all()


def close_the_second(stream: Stream) -> None:
    stream.shards[1] = None


def cut_a_file(stream: Stream) -> None:
    file, checked, check = stream.shards[1]
    stream.shards[1] = (file[:-1], checked, check)


def cut_the_flags(stream: Stream) -> None:
    file, _, check = stream.shards[1]
    stream.shards[1] = (file, bytearray(), check)


def tell_less(stream: Stream) -> None:
    stream.shards[1] = stream.shards[1][:2]


def forget_a_shard(stream: Stream) -> None:
    stream.shards.pop()


@pytest.mark.parametrize(
    ("harm", "left"),
    [
        pytest.param(close_the_second, 1, id="a shard that is not open"),
        pytest.param(cut_a_file, 1, id="a file shorter than its tokens"),
        pytest.param(cut_the_flags, 1, id="fewer flags than blocks"),
        pytest.param(tell_less, 1, id="a shard without a check"),
        pytest.param(forget_a_shard, 0, id="fewer shards than there are"),
    ],
)
def test_what_is_not_there_is_left(gather: Gather, harm: Callable[[Stream], None], left: int) -> None:
    stream, out = Stream(), np.zeros((3, WIDTH), dtype=np.int64)
    windows = np.array([0, 7, 9])  # the second ends the second shard
    assert stream.filled(gather, out, windows) == 3
    harm(stream)
    assert stream.filled(gather, out, windows) == left
    assert stream.asked == []


def test_blocks_that_nobody_has_checked_are_checked_first(gather: Gather) -> None:
    stream = Stream()
    checked = stream.shards[2][1]
    checked[:] = bytes(len(checked))

    def check(first: int, last: int) -> None:
        stream.check(first, last)
        checked[first : last + 1] = b"\1" * (last + 1 - first)

    stream.shards[2] = (stream.shards[2][0], checked, check)
    out = np.zeros((3, 40), dtype=np.int64)  # rows of 80 bytes, in two blocks of 64 each
    assert stream.filled(gather, out, np.array([8, 8, 12])) == 3
    assert stream.asked == [(0, 1), (1, 2)]
    assert out.tolist() == [stream.tokens[8 * window : 8 * window + 40].tolist() for window in (8, 8, 12)]


def test_of_a_block_that_is_not_what_was_written_nothing_is_served(gather: Gather) -> None:
    stream, out = Stream(), np.full((3, WIDTH), -7, dtype=np.int64)
    stream.shards[1][1][0] = 0

    def refuse(first: int, last: int) -> None:
        stream.shards[1] = None  # what it was called by must not go away with this
        raise ValueError(f"blocks {first} to {last}")

    stream.shards[1] = (*stream.shards[1][:2], refuse)
    with pytest.raises(ValueError, match="blocks 0 to 0"):
        stream.filled(gather, out, np.array([0, 7, 9]))
    assert (out == -7).all()


@pytest.mark.parametrize("window", [-1, 21, 1 << 61, (1 << 63) - 1, -(1 << 63)])
def test_a_window_outside_the_stream_is_left_however_far(gather: Gather, window: int) -> None:
    out = np.zeros((2, WIDTH), dtype=np.int64)
    assert Stream().filled(gather, out, np.array([0, window])) == 1


def read_only(shape: tuple[int, int]) -> np.ndarray:
    out = np.zeros(shape, dtype=np.int64)
    out.setflags(write=False)
    return out


@pytest.mark.parametrize(
    ("out", "windows"),
    [
        pytest.param(np.zeros((2, WIDTH), np.uint16), np.arange(2), id="a type of output it does not know"),
        pytest.param(np.zeros((2, WIDTH), np.float64), np.arange(2), id="floats of eight bytes"),
        pytest.param(np.zeros((2, WIDTH), ">i8"), np.arange(2), id="the other byte order"),
        pytest.param(np.zeros((2, 2 * WIDTH), np.int64)[:, ::2], np.arange(2), id="an output with gaps"),
        pytest.param(np.zeros(WIDTH, np.int64), np.arange(1), id="an output of one dimension"),
        pytest.param(read_only((2, WIDTH)), np.arange(2), id="an output that must not be written"),
        pytest.param(np.zeros((2, WIDTH), np.int64), np.arange(2, dtype=np.int32), id="windows of four bytes"),
        pytest.param(np.zeros((2, WIDTH), np.int64), np.arange(4)[::2], id="windows with gaps"),
        pytest.param(np.zeros((2, WIDTH), np.int64), np.arange(3), id="more windows than rows"),
        pytest.param(np.zeros((2, 0), np.int64), np.arange(2), id="rows of nothing"),
    ],
)
def test_arrays_of_another_kind_are_left_as_they_are(gather: Gather, out: np.ndarray, windows: np.ndarray) -> None:
    before = out.copy()
    assert Stream().filled(gather, out, windows) == 0
    assert (out == before).all()


def test_a_row_behind_the_last_is_the_end(gather: Gather) -> None:
    out = np.zeros((2, WIDTH), dtype=np.int64)
    assert Stream().filled(gather, out, np.arange(2), row=2) == 2


def test_a_row_before_the_first_is_left(gather: Gather) -> None:
    assert Stream().filled(gather, np.zeros((2, WIDTH), dtype=np.int64), np.arange(2), row=-1) == -1


def test_shards_that_a_check_takes_away_are_left(gather: Gather) -> None:
    stream = Stream()
    stream.shards[0][1][0] = 0
    stream.shards[0] = (*stream.shards[0][:2], lambda first, last: stream.shards.pop())
    assert stream.filled(gather, np.zeros((2, WIDTH), dtype=np.int64), np.array([0, 9])) == 1


def test_it_keeps_no_file(gather: Gather) -> None:
    stream, out = Stream(), np.zeros((4, WIDTH), dtype=np.int64)
    assert stream.filled(gather, out, np.array([0, 9, 3, -1])) == 3
    for file, _, _ in stream.shards:
        file.release()  # raises BufferError where somebody still holds it


def test_a_caller_who_does_not_know_it_is_told(gather: Gather) -> None:
    call: Any = gather
    with pytest.raises(TypeError, match=r"gather\(out, windows, stride"):
        call(1, 2)
    with pytest.raises(TypeError, match="integer"):
        call(np.zeros((1, 1)), np.zeros(1), "a", 0, np.zeros(1), [], 2, BLOCK)


@pytest.mark.parametrize("words", ["See gather.py.", None])
def test_what_was_compiled_before_an_update_is_not_called(words: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    old = SimpleNamespace(gather=SimpleNamespace(__doc__=words))
    monkeypatch.setitem(sys.modules, "launcher.shards._gather", old)
    monkeypatch.setattr(launcher.shards, "_gather", old, raising=False)
    spec = importlib.util.spec_from_file_location("gather_again", launcher.shards.gather.__file__)
    assert spec is not None
    assert spec.loader is not None
    again = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(again)
    assert again.compiled is None
    assert again.gather is again.leave_all


def test_without_a_compiler_every_row_is_left() -> None:
    assert Stream().filled(leave_all, np.zeros((2, WIDTH), dtype=np.int64), np.arange(2), row=1) == 1
