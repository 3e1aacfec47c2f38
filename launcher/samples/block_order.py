"""An order for samples that are cheap together and dear alone.

Shapes: N samples, K blocks of documents, G groups of blocks.
"""

from __future__ import annotations

import numpy as np
import xxhash
from numpy.typing import NDArray

from launcher import units
from launcher.samples.grouping import grouped
from launcher.samples.order import NUM_KEPT_BLOCKS, SampleOrder, refuse_none
from launcher.samples.permutation import Permutation
from launcher.samples.recent import Recent

ALGORITHM = "blocks of 64/feistel-6/splitmix64/1"
"""Part of the fingerprint: change it whenever the same seed would give another order."""

GROUP_BLOCKS = 64
"""Blocks whose samples are shuffled together (assumption): some 32,000 rows, and the plans of so many blocks fit in
memory."""

_BLOCK_LABEL = 0x626C6F636B  # "block"
_GROUP_LABEL = 0x67726F7570  # "group"


class BlockOrder(SampleOrder):
    """Blocks of samples in random order, and the samples of `GROUP_BLOCKS` neighbours in it shuffled together.

    Who reads on needs the blocks of one group, or of two. With no more blocks than a group holds this is a full
    shuffle of all samples.

    Args:
        starts_K: First sample of each block, and the number of samples at the end, int64 [K + 1].
        seed: Chooses the order of every epoch.

    Raises:
        ShardError: There is no sample to put in order.
    """

    def __init__(self, starts_K: NDArray[np.int64], seed: int) -> None:
        self.num_samples = int(starts_K[-1])
        self.seed = seed
        refuse_none(self.num_samples)
        self._starts_K = starts_K
        self._num_blocks = len(starts_K) - 1
        self._epochs: Recent[int, NDArray[np.int64]] = Recent(2)
        self._groups: Recent[tuple[int, int], tuple[NDArray[np.int64], NDArray[np.int64]]] = Recent(NUM_KEPT_BLOCKS)

    def shuffled(self, epoch: int, offsets_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """See `SampleOrder.shuffled`."""
        group_starts_G = self._epochs.get(epoch, self._group_starts)
        groups_N = np.searchsorted(group_starts_G, offsets_N, side="right") - 1
        samples_N = np.empty(offsets_N.shape, dtype=np.int64)
        for group, here in grouped(groups_N):
            blocks, row_starts = self._groups.get((epoch, group), self._group)
            rows = self._within(epoch, group, int(row_starts[-1]))(offsets_N[here] - group_starts_G[group])
            slots = np.searchsorted(row_starts, rows, side="right") - 1
            samples_N[here] = self._starts_K[blocks[slots]] + rows - row_starts[slots]
        return samples_N

    def positions_of(self, samples_N: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        """See `SampleOrder.positions_of`."""
        if samples_N.size and (samples_N.min() < 0 or samples_N.max() >= self.num_samples):
            raise IndexError(f"a sample lies outside range({self.num_samples})")
        group_starts_G = self._epochs.get(epoch, self._group_starts)
        blocks_N = np.searchsorted(self._starts_K, samples_N, side="right") - 1
        groups_N, slots_N = np.divmod(self._between(epoch).inverse(blocks_N), GROUP_BLOCKS)
        offsets_N = np.empty(samples_N.shape, dtype=np.int64)
        for group, here in grouped(groups_N):
            _, row_starts = self._groups.get((epoch, group), self._group)
            rows = row_starts[slots_N[here]] + samples_N[here] - self._starts_K[blocks_N[here]]
            permutation = self._within(epoch, group, int(row_starts[-1]))
            offsets_N[here] = permutation.inverse(rows) + group_starts_G[group]
        return offsets_N + epoch * self.num_samples

    @property
    def fingerprint(self) -> str:
        """See `SampleOrder.fingerprint`."""
        blocks = xxhash.xxh3_64_hexdigest(np.ascontiguousarray(self._starts_K, dtype="<i8").data)
        return xxhash.xxh3_64_hexdigest(f"{ALGORITHM} blocks={blocks} seed={self.seed}".encode())

    def _between(self, epoch: int) -> Permutation:
        """Place in the epoch → block."""
        return Permutation(self._num_blocks, units.derive(self.seed, _BLOCK_LABEL, epoch))

    def _within(self, epoch: int, group: int, num_rows: int) -> Permutation:
        """Offset in the group → row of the group, its blocks end to end."""
        return Permutation(num_rows, units.derive(self.seed, _GROUP_LABEL, epoch, group))

    def _group_starts(self, epoch: int) -> NDArray[np.int64]:
        """Offset of each group's first sample in the epoch, and the end: int64 [G + 1]."""
        blocks_K = self._between(epoch)(np.arange(self._num_blocks, dtype=np.int64))
        sizes_G = np.add.reduceat(np.diff(self._starts_K)[blocks_K], np.arange(0, self._num_blocks, GROUP_BLOCKS))
        return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(sizes_G)])

    def _group(self, key: tuple[int, int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The blocks of a group, and where the rows of each begin in it, and the end."""
        epoch, group = key
        first = group * GROUP_BLOCKS
        places = np.arange(first, min(first + GROUP_BLOCKS, self._num_blocks), dtype=np.int64)
        blocks = self._between(epoch)(places)
        sizes = self._starts_K[blocks + 1] - self._starts_K[blocks]
        return blocks, np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(sizes)])
