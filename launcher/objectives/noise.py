"""Random bits that follow from seed, position and token index, and from nothing else.

A generator has a state, so what it gives depends on what was drawn before: on the world size, the micro batch, the
row. A hash of the counter has none.

Shapes: B samples, L places of a sample.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from launcher import units

_STEP = np.uint64(0x9E3779B97F4A7C15)  # splitmix64's increment, 2**64 over the golden ratio


def sample_keys(seed: int, label: int, positions_B: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A key for each sample of a run.

    Args:
        seed: Seed of the run.
        label: What the bits are for: uses with different labels are independent.
        positions_B: Position of each sample, counted on through the epochs, so that an epoch draws afresh; int64 [B].

    Returns:
        uint64 [B].
    """
    return units.mix(units.mix(positions_B.astype(np.uint64)) ^ np.uint64(units.derive(seed, label)))


def draws(keys_B: NDArray[np.uint64], num_places: int) -> NDArray[np.uint64]:
    """64 random bits for each place of each sample: the splitmix64 stream that starts at the sample's key.

    Args:
        keys_B: uint64 [B], of `sample_keys`.
        num_places: L.

    Returns:
        uint64 [B, L]; the draw at a place does not depend on how many places there are.

    Source: Steele, Lea and Flood 2014 (doi:10.1145/2660193.2660195).
    """
    return units.mix(keys_B[:, None] + np.arange(num_places, dtype=np.uint64) * _STEP)


def threshold(share: float) -> np.uint64:
    """The draw below which a `share` of all draws lies, for a share from 0 to 1."""
    return np.uint64(min(int(share * 2.0**64), 2**64 - 1))
