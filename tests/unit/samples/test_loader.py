"""A batch is a pure function of its positions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from launcher.samples.loader import Loader
from launcher.samples.order import Order
from launcher.samples.windows import TokenStream, Windows

Counting = Callable[[int], TokenStream]


def loader_of(stream: TokenStream, seed: int = 1, source: str = "shards") -> Loader:
    windows = Windows(stream, 4, 4, fill=0)
    return Loader(windows, Order(windows.num_samples, seed), source)


def test_two_epochs_serve_every_token_twice(counting_stream: Counting) -> None:
    loader = loader_of(counting_stream(50))
    batch = loader.fetch(np.arange(26, dtype=np.int64))
    tokens, counts = np.unique(batch.tokens_BL, return_counts=True)
    assert tokens[1:].tolist() == list(range(100, 150))
    assert (counts[1:] == 2).all()
    assert batch.num_tokens_B.sum() == 100
    assert batch.epochs_B.tolist() == [0] * 13 + [1] * 13
    assert batch.positions_B.tolist() == list(range(26))


def test_a_row_does_not_depend_on_the_rows_beside_it(counting_stream: Counting) -> None:
    loader = loader_of(counting_stream(50))
    whole = loader.fetch(np.arange(26, dtype=np.int64))
    alone = loader.fetch(np.array([17], dtype=np.int64))
    assert np.array_equal(alone.tokens_BL[0], whole.tokens_BL[17])
    assert alone.sample_ids_B[0] == whole.sample_ids_B[17]


def test_the_fingerprint_follows_data_shape_and_order(counting_stream: Counting) -> None:
    stream = counting_stream(50)
    other_shape = Windows(stream, 5, 4, fill=0)
    fingerprints = [
        loader_of(stream).fingerprint,
        loader_of(stream, seed=2).fingerprint,
        loader_of(stream, source="other shards").fingerprint,
        loader_of(counting_stream(49)).fingerprint,
        Loader(other_shape, Order(other_shape.num_samples, 1), "shards").fingerprint,
    ]
    assert len(set(fingerprints)) == len(fingerprints)
    assert loader_of(counting_stream(50)).fingerprint == fingerprints[0]


def test_an_order_of_another_length_is_refused(counting_stream: Counting) -> None:
    with pytest.raises(ValueError, match="an order of 12 for 13 samples"):
        Loader(Windows(counting_stream(50), 4, 4, fill=0), Order(12, 1))
