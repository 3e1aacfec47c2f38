"""Excluded documents disappear where they stand, whatever the shape, and nothing else moves."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.samples.bestfit import BestFit
from launcher.samples.loader import Corpus, Loader
from launcher.samples.padded import Padded
from launcher.samples.shapes import Samples, TokenStream
from launcher.samples.windows import Windows

Streams = Callable[[list[int]], TokenStream]
Shape = Callable[[TokenStream], Samples]


@pytest.mark.parametrize(
    "shape",
    [
        lambda stream: Windows(stream, 9, 8, fill=0),
        lambda stream: BestFit(stream, 9, 8, fill=0),
        lambda stream: Padded(stream, 9, fill=0),
    ],
    ids=["concat", "bestfit", "pad"],
)
@given(lengths=st.lists(st.integers(1, 25), min_size=2, max_size=40), data=st.data())
def test_their_tokens_are_fill_and_every_other_token_stays(
    stream_of: Streams, shape: Shape, lengths: list[int], data: st.DataObject
) -> None:
    excluded = sorted(data.draw(st.sets(st.integers(0, len(lengths) - 1))))
    stream = stream_of(lengths)
    samples = shape(stream)
    if not samples.num_samples:
        return
    plain = Loader((Corpus("law", samples, samples.order(1)),))
    loader = Loader((Corpus("law", samples, samples.order(1), np.array(excluded, dtype=np.int64)),))
    positions = np.arange(samples.num_samples, dtype=np.int64)
    before, after = plain.fetch(positions), loader.fetch(positions)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    gone = np.zeros(before.tokens_BL.shape, dtype=np.bool_)
    real = before.tokens_BL > 0
    gone[real] = np.isin(owner[before.tokens_BL[real] - 100], excluded)
    assert np.array_equal(after.tokens_BL, np.where(gone, 0, before.tokens_BL))
    assert after.sample_ids_B.tolist() == before.sample_ids_B.tolist()
    assert after.num_tokens_B.tolist() == before.num_tokens_B.tolist()
    if gone.any():
        assert np.array_equal(after.hidden_BL, gone)
    else:
        assert after.hidden_BL is None


def test_the_documents_of_a_batch_without_any_are_not_asked_for(stream_of: Streams) -> None:
    stream = stream_of([8] * 1000)
    windows = Windows(stream, 8, 8, fill=0)
    loader = Loader((Corpus("law", windows, windows.order(1), np.array([500], dtype=np.int64)),))
    place = int(windows.order(1).positions_of(np.array([500], dtype=np.int64), 0)[0])
    assert loader.fetch(np.array([place], dtype=np.int64)).hidden_BL is not None
    stream.asked.clear()  # type: ignore[attr-defined]
    loader.fetch(np.arange(place + 1, place + 9, dtype=np.int64))
    assert not stream.asked  # type: ignore[attr-defined]
