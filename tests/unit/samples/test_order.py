"""The order of a run is a pure function of seed and position."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher import units
from launcher.errors import ShardError
from launcher.samples.order import BLOCK_POSITIONS, Order

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


@given(num_samples=st.integers(1, 500), seed=SEEDS, epoch=st.integers(0, 1000))
def test_a_sample_is_found_where_it_stands(num_samples: int, seed: int, epoch: int) -> None:
    order = Order(num_samples, seed)
    positions = np.arange(epoch * num_samples, (epoch + 1) * num_samples, dtype=np.int64)
    assert np.array_equal(order.positions_of(order.samples_at(positions), epoch), positions)


@pytest.mark.parametrize(
    "asked",
    [
        np.arange(4090, 4103),
        np.arange(9990, 10_010),
        np.arange(0, 200_000, 977),
        np.array([5, 99_999, 4096, 5, 4095]),
        np.arange(30_000),
    ],
    ids=["over a block's end", "over an epoch's end", "few of many blocks", "here and there, one twice", "a bulk"],
)
def test_blocks_change_nothing_about_the_order(asked: np.ndarray) -> None:
    order = Order(10_000, 7)
    expected = [
        int(order.shuffled(p // 10_000, np.array([p % 10_000], dtype=np.int64))[0]) for p in asked[::50].tolist()
    ]
    for _ in range(2):  # computed, then kept
        assert order.samples_at(asked.astype(np.int64))[::50].tolist() == expected


def test_a_run_computes_each_block_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    shuffled = Order.shuffled

    def counted(order: Order, epoch: int, offsets: np.ndarray) -> np.ndarray:
        asked.append(len(offsets))
        return shuffled(order, epoch, offsets)

    monkeypatch.setattr(Order, "shuffled", counted)
    num_samples, rest = 2 * BLOCK_POSITIONS + 1808, 1808
    order = Order(num_samples, 7)
    for first in range(0, 2 * num_samples, 24):
        order.samples_at(np.arange(first, first + 24, dtype=np.int64))
    an_epoch = [BLOCK_POSITIONS, BLOCK_POSITIONS, rest]
    assert asked == [*an_epoch, *an_epoch, BLOCK_POSITIONS]


def test_a_batch_that_is_kept_cannot_be_changed_by_who_asked_for_it() -> None:
    order, positions = Order(100, 7), np.arange(10, dtype=np.int64)
    before = order.samples_at(positions).tolist()
    order.samples_at(positions)[:] = 0
    assert order.samples_at(positions).tolist() == before


@pytest.mark.parametrize("num_samples", [10**5, 10**8, 10**12])
def test_opening_and_a_first_batch_cost_the_same_however_many_samples_there_are(
    num_samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed: list[int] = []
    mix = units.mix

    def counted(values: np.ndarray) -> np.ndarray:
        mixed.append(values.size)
        return mix(values)

    Order(num_samples, 1).samples_at(np.arange(64, dtype=np.int64))
    monkeypatch.setattr(units, "mix", counted)
    tracemalloc.start()
    Order(num_samples, 1).samples_at(np.arange(64, dtype=np.int64))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(mixed) < 6 * 3 * BLOCK_POSITIONS  # rounds, and fewer than two walks in the mean
    assert peak_bytes < 2 << 20


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


def test_a_sample_outside_has_no_position() -> None:
    with pytest.raises(IndexError, match=r"outside range\(10\)"):
        Order(10, 1).positions_of(np.array([10], dtype=np.int64), 0)
