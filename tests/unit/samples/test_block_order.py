"""Rows of neighbouring blocks shuffled together, blocks shuffled before."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.errors import ShardError
from launcher.samples.block_order import GROUP_BLOCKS, BlockOrder

SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=300).filter(any)
SEEDS = st.integers(0, 2**63 - 1)


def order_of(sizes: list[int], seed: int = 1) -> BlockOrder:
    return BlockOrder(np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64), seed)


@given(sizes=SIZES, seed=SEEDS, epoch=st.integers(0, 1000))
def test_every_sample_once_per_epoch(sizes: list[int], seed: int, epoch: int) -> None:
    order = order_of(sizes, seed)
    positions = np.arange(epoch * sum(sizes), (epoch + 1) * sum(sizes), dtype=np.int64)
    samples = order.samples_at(positions)
    assert np.array_equal(np.sort(samples), np.arange(sum(sizes)))
    assert np.array_equal(order.positions_of(samples, epoch), positions)
    assert (order.epochs_at(positions) == epoch).all()


@given(sizes=SIZES, seed=SEEDS, data=st.data())
def test_a_position_holds_the_same_sample_however_it_is_asked_for(
    sizes: list[int], seed: int, data: st.DataObject
) -> None:
    total = sum(sizes)
    whole = order_of(sizes, seed).samples_at(np.arange(3 * total, dtype=np.int64))
    asked = np.array(data.draw(st.lists(st.integers(0, 3 * total - 1), max_size=30)), dtype=np.int64)
    assert np.array_equal(order_of(sizes, seed).samples_at(asked), whole[asked])


def test_who_reads_on_needs_the_blocks_of_two_groups_at_most() -> None:
    order = order_of([100] * 1000)
    for first in range(0, 100_000, 3000):
        samples = order.samples_at(np.arange(first, first + 3000, dtype=np.int64))
        assert len(np.unique(samples // 100)) <= 2 * GROUP_BLOCKS


def test_a_batch_draws_on_many_blocks() -> None:
    samples = order_of([100] * 1000).samples_at(np.arange(256, dtype=np.int64))
    assert len(np.unique(samples // 100)) > 55  # 63 are expected of 64
    assert np.unique(samples // 100).max() - np.unique(samples // 100).min() > 900


def test_each_epoch_and_each_seed_has_an_order_of_its_own() -> None:
    positions = np.arange(20_000, dtype=np.int64)
    first = order_of([100] * 100, 1).samples_at(positions)
    other = order_of([100] * 100, 2).samples_at(positions)
    assert np.count_nonzero(first[:10_000] == first[10_000:]) < 20
    assert np.count_nonzero(first[:10_000] == other[:10_000]) < 20


def test_the_fingerprint_follows_blocks_and_seed() -> None:
    orders = [order_of([3, 4]), order_of([4, 3]), order_of([3, 4], seed=2), order_of([3, 4, 5])]
    assert len({order.fingerprint for order in orders}) == 4
    assert order_of([3, 4]).fingerprint == orders[0].fingerprint


def test_the_order_of_a_seed_never_changes() -> None:
    # A resumed run counts on this: whoever changes it changes ALGORITHM in samples/block_order.py too.
    samples = order_of([4, 0, 3, 5], seed=42).samples_at(np.arange(12, dtype=np.int64))
    assert samples.tolist() == [0, 7, 5, 10, 4, 11, 2, 8, 9, 3, 6, 1]


def test_what_lies_outside_is_refused() -> None:
    with pytest.raises(IndexError, match="negative"):
        order_of([5]).samples_at(np.array([-1], dtype=np.int64))
    with pytest.raises(IndexError, match=r"outside range\(5\)"):
        order_of([5]).positions_of(np.array([5], dtype=np.int64), 0)
    with pytest.raises(ShardError, match="no sample to train on"):
        order_of([0, 0])
