"""One document a row, and what that costs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from launcher.samples.padded import Padded
from launcher.samples.shapes import TokenStream

Streams = Callable[[list[int]], TokenStream]


def test_a_document_is_a_row_and_its_end_is_cut_off(stream_of: Streams) -> None:
    padded = Padded(stream_of([2, 6, 3]), 4, fill=0)
    tokens = np.empty((3, 4), dtype=np.int32)
    assert padded.read(np.array([1, 2, 0], dtype=np.int64), tokens).tolist() == [4, 3, 2]
    assert tokens.tolist() == [[102, 103, 104, 105], [108, 109, 110, 0], [100, 101, 0, 0]]


def test_the_shares_cut_and_padded_are_told(stream_of: Streams) -> None:
    padded = Padded(stream_of([2, 6, 3]), 4, fill=0)
    assert padded.cut_share == pytest.approx(2 / 11)
    assert padded.padding_share == pytest.approx(3 / 12)


def test_an_empty_split_cuts_nothing(stream_of: Streams) -> None:
    padded = Padded(stream_of([]), 4, fill=0)
    assert (padded.num_samples, padded.cut_share, padded.padding_share) == (0, 0, 0)


def test_a_row_without_tokens_is_refused(stream_of: Streams) -> None:
    with pytest.raises(ValueError, match="rows of 0 tokens"):
        Padded(stream_of([2]), 0, fill=0)
