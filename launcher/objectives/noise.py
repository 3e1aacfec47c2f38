"""Random bits that follow from seed, position and token index, and from nothing else.

A generator has a state, so what it gives depends on what was drawn before: on the world size, the micro batch, the
row. A hash of the counter has none.

Shapes: B samples, L places of a sample.
"""

from __future__ import annotations

from functools import lru_cache

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
    return units.mix(positions_B.astype(np.uint64) ^ _run_key(seed, label))


def draws(keys_B: NDArray[np.uint64], num_places: int) -> NDArray[np.uint64]:
    """64 random bits for each place of each sample: the splitmix64 stream that starts at the sample's key.

    Args:
        keys_B: uint64 [B], of `sample_keys`.
        num_places: L.

    Returns:
        uint64 [B, L]; the draw at a place does not depend on how many places there are.

    Source: Steele, Lea and Flood 2014 (doi:10.1145/2660193.2660195).
    """
    return units.mix(keys_B[:, None] + _steps(num_places))


def draws_at(keys_N: NDArray[np.uint64], places_N: NDArray[np.int64]) -> NDArray[np.uint64]:
    """64 random bits for some places: what `draws` gives there, uint64 [N].

    Args:
        keys_N: Key of the sample of each place, uint64 [N].
        places_N: int64 [N].
    """
    return units.mix(keys_N + places_N.astype(np.uint64) * _STEP)


def short_draws(keys_B: NDArray[np.uint64], num_places: int) -> NDArray[np.uint16]:
    """16 random bits for each place of each sample: four of a 64-bit draw, which cost a quarter of four.

    Args:
        keys_B: uint64 [B], of `sample_keys`.
        num_places: L.

    Returns:
        uint16 [B, L]; the draw at a place does not depend on how many places there are.
    """
    fours = draws(keys_B, -(-num_places // 4)).astype("<u8", copy=False)
    return fours.view("<u2")[:, :num_places]


def short_threshold(share: float) -> np.uint16:
    """The short draw below which a `share` of all short draws lies, to the nearest 65,536th; neither none nor all."""
    return np.uint16(min(max(round(share * 2**16), 1), 2**16 - 1))


# Every batch asks for the same, and at 32 rows of 512 tokens each numpy call is one percent of the time.
@lru_cache(maxsize=16)
def _run_key(seed: int, label: int) -> np.uint64:
    return np.uint64(units.derive(seed, label))


@lru_cache(maxsize=16)
def _steps(num_places: int) -> NDArray[np.uint64]:
    steps = np.arange(num_places, dtype=np.uint64) * _STEP
    steps.setflags(write=False)
    return steps
