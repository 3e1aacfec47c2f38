"""Which sample stands at which position of a run.

Shapes: N positions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import xxhash
from numpy.typing import NDArray

from launcher import units
from launcher.errors import ShardError
from launcher.samples.grouping import SMALL, bounds, grouped
from launcher.samples.permutation import Permutation
from launcher.samples.recent import Recent

ALGORITHM = "feistel-6/splitmix64/1"
"""Part of the fingerprint: change it whenever the same seed would give another order."""

BLOCK_POSITIONS = 1 << 14
"""Positions computed at once: numpy takes 1 to 3 µs an index in batches of 64, 115 ns in 4,096, 73 ns in 16,384, no
less in 65,536 (measured)."""
NUM_KEPT_BLOCKS = 8

_ORDER_LABEL = 0x6F72646572  # "order": keeps these keys apart from those that noise derives from the same seed


class SampleOrder(ABC):
    """Every sample once per epoch, each epoch in an order of its own.

    Positions count on through the epochs: position `p` is in epoch `p // num_samples`. An epoch's order follows from
    the seed and the epoch's number alone, so a longer run, or a resumed one, sees the same samples in the same places.
    """

    num_samples: int
    """Samples in one epoch."""

    @abstractmethod
    def shuffled(self, epoch: int, offsets_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """The samples at these offsets of an epoch, int64 [N], each in `range(num_samples)`; best asked for in bulk."""

    @abstractmethod
    def positions_of(self, samples_N: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        """Where these samples stand in an epoch, as positions of the run, int64 [N].

        Raises:
            IndexError: A sample lies outside `range(num_samples)`.
        """

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """16 hex digits of all that decides the order."""

    def epochs_at(self, positions_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """The epoch of each position, int64 [N], counted from 0."""
        return positions_N // self.num_samples

    def samples_at(self, positions_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """The sample at each position.

        Args:
            positions_N: int64 [N], from 0 on, in any order and across any epochs.

        Returns:
            Sample numbers in `range(num_samples)`, int64 [N].

        Raises:
            IndexError: A position is negative.
        """
        if positions_N.size == 0:
            return np.empty(positions_N.shape, dtype=np.int64)
        begin, end, begin_, samples = self._recent
        if positions_N.size <= SMALL:
            # A run asks for positions that follow each other: a slice takes half of the time of looking each up.
            positions = positions_N.tolist()
            lowest, behind = positions[0], positions[0] + len(positions)
            if begin <= lowest and behind <= end and positions == list(range(lowest, behind)):
                return samples[lowest - begin : behind - begin].copy()
        lowest, highest = bounds(positions_N)
        if lowest < 0:
            raise IndexError("a position is negative")
        if lowest < begin or highest >= end:
            epoch, first = divmod(lowest, self.num_samples)
            block = first // BLOCK_POSITIONS
            samples = self._blocks.get((epoch, block), self._block)
            begin = epoch * self.num_samples + block * BLOCK_POSITIONS
            if highest >= begin + len(samples):
                return self._spread(positions_N)
            # A run asks for one batch behind the other, nearly all out of one block.
            begin_ = np.array(begin)  # numpy takes an array in half of the time of a Python number
            self.__dict__["_recent"] = begin, begin + len(samples), begin_, samples
        found_N: NDArray[np.int64] = samples[positions_N - begin_]
        return found_N

    @cached_property
    def _recent(self) -> tuple[int, int, NDArray[np.int64], NDArray[np.int64]]:
        """The first position of the block asked for last, one past its last, the first once more, and its samples."""
        return 0, 0, np.array(0), np.empty(0, dtype=np.int64)

    @cached_property
    def _blocks(self) -> Recent[tuple[int, int], NDArray[np.int64]]:
        return Recent(NUM_KEPT_BLOCKS)

    def _block(self, key: tuple[int, int]) -> NDArray[np.int64]:
        epoch, block = key
        first = block * BLOCK_POSITIONS
        return self.shuffled(epoch, np.arange(first, min(first + BLOCK_POSITIONS, self.num_samples), dtype=np.int64))

    def _spread(self, positions_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions of several blocks: a few blocks are worth keeping, of many only what is asked for is computed."""
        epochs_N, offsets_N = np.divmod(positions_N, self.num_samples)
        blocks_N = offsets_N // BLOCK_POSITIONS
        samples_N = np.empty(positions_N.shape, dtype=np.int64)
        blocks_an_epoch = -(-self.num_samples // BLOCK_POSITIONS)
        keys_N = epochs_N * blocks_an_epoch + blocks_N
        if len(np.unique(keys_N)) <= NUM_KEPT_BLOCKS:
            for key, here in grouped(keys_N):
                epoch, block = divmod(key, blocks_an_epoch)
                kept = self._blocks.get((epoch, block), self._block)
                samples_N[here] = kept[offsets_N[here] - block * BLOCK_POSITIONS]
            return samples_N
        for epoch, here in grouped(epochs_N):
            samples_N[here] = self.shuffled(epoch, offsets_N[here])
        return samples_N


@dataclass(frozen=True)
class Order(SampleOrder):
    """All samples of an epoch shuffled together.

    Raises:
        ShardError: There is no sample to put in order.
    """

    num_samples: int
    """Samples in one epoch."""
    seed: int
    """Chooses the order of every epoch."""

    def __post_init__(self) -> None:
        refuse_none(self.num_samples)

    def shuffled(self, epoch: int, offsets_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """See `SampleOrder.shuffled`."""
        return self._permutation(epoch)(offsets_N)

    def positions_of(self, samples_N: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        """See `SampleOrder.positions_of`."""
        return self._permutation(epoch).inverse(samples_N) + epoch * self.num_samples

    def _permutation(self, epoch: int) -> Permutation:
        return Permutation(self.num_samples, units.derive(self.seed, _ORDER_LABEL, epoch))

    @property
    def fingerprint(self) -> str:
        """See `SampleOrder.fingerprint`."""
        return xxhash.xxh3_64_hexdigest(f"{ALGORITHM} samples={self.num_samples} seed={self.seed}".encode())


def refuse_none(num_samples: int) -> None:
    """Raises ShardError where there is nothing to put in order."""
    if num_samples < 1:
        raise ShardError(
            "there is no sample to train on: the split has fewer tokens than a sample needs",
            "data",
            "prepare a larger corpus, or a larger held-out share if this is the validation split",
        )
