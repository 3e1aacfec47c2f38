"""The order of a run is a pure function of seed and position."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.errors import ShardError
from launcher.samples.order import Order

SEEDS = st.integers(min_value=0, max_value=2**63 - 1)


@given(num_samples=st.integers(1, 500), seed=SEEDS, epoch=st.integers(0, 1000))
def test_every_sample_once_per_epoch(num_samples: int, seed: int, epoch: int) -> None:
    order = Order(num_samples, seed)
    positions = np.arange(epoch * num_samples, (epoch + 1) * num_samples, dtype=np.int64)
    assert np.array_equal(np.sort(order.samples_at(positions)), np.arange(num_samples))
    assert (order.epochs_at(positions) == epoch).all()


@given(num_samples=st.integers(1, 200), seed=SEEDS, data=st.data())
def test_a_position_holds_the_same_sample_however_it_is_asked_for(
    num_samples: int, seed: int, data: st.DataObject
) -> None:
    order = Order(num_samples, seed)
    whole = order.samples_at(np.arange(4 * num_samples, dtype=np.int64))
    asked = np.array(data.draw(st.lists(st.integers(0, 4 * num_samples - 1), max_size=30)), dtype=np.int64)
    assert np.array_equal(order.samples_at(asked), whole[asked])


def test_each_epoch_and_each_seed_has_an_order_of_its_own() -> None:
    positions = np.arange(2000, dtype=np.int64)
    first = Order(1000, 1).samples_at(positions)
    other = Order(1000, 2).samples_at(positions)
    assert np.count_nonzero(first[:1000] == first[1000:]) < 10
    assert np.count_nonzero(first[:1000] == other[:1000]) < 10


def test_the_fingerprint_follows_what_decides_the_order() -> None:
    fingerprints = {Order(10, 1).fingerprint, Order(10, 2).fingerprint, Order(11, 1).fingerprint}
    assert len(fingerprints) == 3
    assert Order(10, 1).fingerprint == Order(10, 1).fingerprint
    assert all(len(fingerprint) == 16 for fingerprint in fingerprints)


def test_no_samples_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(ShardError, match=r"no sample to train on[\s\S]*fix: +prepare a larger corpus"):
        Order(0, 1)


def test_a_negative_position_is_refused() -> None:
    with pytest.raises(IndexError, match="negative"):
        Order(10, 1).samples_at(np.array([-1], dtype=np.int64))
