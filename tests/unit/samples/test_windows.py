"""Windows lose no token and read none that is not there."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.samples.shapes import TokenStream
from launcher.samples.windows import Windows

Counting = Callable[[int], TokenStream]


def all_rows(windows: Windows) -> np.ndarray:
    tokens = np.empty((windows.num_samples, windows.length), dtype=np.int32)
    windows.read(np.arange(windows.num_samples, dtype=np.int64), tokens)
    return tokens


@given(num_tokens=st.integers(0, 200), length=st.integers(1, 20))
def test_without_overlap_every_token_is_in_one_sample(counting_stream: Counting, num_tokens: int, length: int) -> None:
    tokens = all_rows(Windows(counting_stream(num_tokens), length, length, fill=-1))
    assert tokens[tokens >= 0].tolist() == list(range(100, 100 + num_tokens))


@given(num_tokens=st.integers(0, 200), stride=st.integers(1, 20))
def test_with_an_overlap_of_one_every_token_but_the_first_is_a_target_once(
    counting_stream: Counting, num_tokens: int, stride: int
) -> None:
    targets = all_rows(Windows(counting_stream(num_tokens), stride + 1, stride, fill=-1))[:, 1:]
    assert targets[targets >= 0].tolist() == list(range(101, 100 + num_tokens))
    assert (targets >= 0).any(axis=1).all()


def test_rows_come_in_the_order_asked_for_with_fill_behind_the_end(counting_stream: Counting) -> None:
    windows = Windows(counting_stream(10), 4, 4, fill=7)
    tokens = np.zeros((2, 4), dtype=np.int16)
    num_real = windows.read(np.array([2, 0], dtype=np.int64), tokens)
    assert tokens.tolist() == [[108, 109, 7, 7], [100, 101, 102, 103]]
    assert num_real.tolist() == [2, 4]


@pytest.mark.parametrize(("length", "stride"), [(0, 0), (4, 5), (4, 0)], ids=["no length", "gaps", "no stride"])
def test_windows_that_would_skip_tokens_are_refused(counting_stream: Counting, length: int, stride: int) -> None:
    with pytest.raises(ValueError, match="cannot start every"):
        Windows(counting_stream(10), length, stride, fill=0)
