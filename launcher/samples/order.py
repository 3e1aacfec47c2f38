"""Which sample stands at which position of a run.

Shapes: N positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from launcher import units
from launcher.errors import ShardError
from launcher.samples.permutation import Permutation

ALGORITHM = "feistel-6/splitmix64/1"
"""Part of the fingerprint: change it whenever the same seed would give another order."""

_ORDER_LABEL = 0x6F72646572  # "order": keeps these keys apart from those that noise derives from the same seed


@dataclass(frozen=True)
class Order:
    """Every sample once per epoch, each epoch in an order of its own.

    Positions count on through the epochs: position `p` is in epoch `p // num_samples`. An epoch's order follows from
    the seed and the epoch's number alone, so a longer run, or a resumed one, sees the same samples in the same places.

    Raises:
        ShardError: There is no sample to put in order.
    """

    num_samples: int
    """Samples in one epoch."""
    seed: int
    """Chooses the order of every epoch."""

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise ShardError(
                "there is no sample to train on: the split has fewer tokens than a sample needs",
                "data",
                "prepare a larger corpus, or a larger held-out share if this is the validation split",
            )

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
        if positions_N.size and positions_N.min() < 0:
            raise IndexError("a position is negative")
        epochs_N, offsets_N = np.divmod(positions_N, self.num_samples)
        samples_N = np.empty(positions_N.shape, dtype=np.int64)
        for epoch in np.unique(epochs_N).tolist():
            here_N = epochs_N == epoch
            permutation = Permutation(self.num_samples, units.derive(self.seed, _ORDER_LABEL, epoch))
            samples_N[here_N] = permutation(offsets_N[here_N])
        return samples_N

    @property
    def fingerprint(self) -> str:
        """16 hex digits of all that decides the order."""
        return xxhash.xxh3_64_hexdigest(f"{ALGORITHM} samples={self.num_samples} seed={self.seed}".encode())
