"""From positions of a run to the tokens that stand there.

Shapes: B samples, L tokens of a window.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from launcher.samples.order import Order
from launcher.samples.windows import Windows


@dataclass(frozen=True)
class SampleBatch:
    """Raw samples and where each stands in the run."""

    tokens_BL: NDArray[np.int32]
    """Token ids, int32 [B, L]; fill behind the real ones."""
    num_tokens_B: NDArray[np.int64]
    """Real tokens of each row."""
    positions_B: NDArray[np.int64]
    """Position in the run, counted on through the epochs."""
    epochs_B: NDArray[np.int64]
    """Epoch of each position, from 0."""
    sample_ids_B: NDArray[np.int64]
    """Number of the sample in the split."""


@dataclass(frozen=True)
class Loader:
    """The samples of a split in the order of a run.

    It keeps no state: a batch is a pure function of the positions asked for, so what a run must remember is one
    integer (`launcher.samples.cursor`).

    Raises:
        ValueError: The order was made for another number of samples.
    """

    windows: Windows
    """The samples of the split."""
    order: Order
    """Which of them stands at which position."""
    source: str = ""
    """What identifies the tokens, for the fingerprint: a hash of the shards' manifest."""

    def __post_init__(self) -> None:
        if self.order.num_samples != self.windows.num_samples:
            raise ValueError(f"an order of {self.order.num_samples} for {self.windows.num_samples} samples")

    def fetch(self, positions_B: NDArray[np.int64]) -> SampleBatch:
        """The samples at these positions, one row each in the order given.

        Args:
            positions_B: int64 [B], from 0 on.

        Raises:
            IndexError: A position is negative.
        """
        sample_ids_B = self.order.samples_at(positions_B)
        return SampleBatch(
            tokens_BL=self.windows.read(sample_ids_B),
            num_tokens_B=self.windows.num_real(sample_ids_B),
            positions_B=positions_B,
            epochs_B=self.order.epochs_at(positions_B),
            sample_ids_B=sample_ids_B,
        )

    @property
    def fingerprint(self) -> str:
        """16 hex digits of all that decides which tokens stand at a position."""
        windows = self.windows
        shape = f"length={windows.length} stride={windows.stride} tokens={windows.stream.num_tokens}"
        return xxhash.xxh3_64_hexdigest(f"source={self.source} {shape} order={self.order.fingerprint}".encode())
