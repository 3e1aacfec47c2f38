"""Which of several speeds are slow, judged by the others."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)
SPREADS = 3.5
"""Robust standard deviations beyond which a value is no noise. Source: Iglewicz and Hoaglin 1993, "How to detect and
handle outliers", chapter 3."""
_TO_SIGMA = 1.4826
"""Median absolute deviation → standard deviation of normal noise."""


def slow_ones(speeds: Mapping[Key, float], tolerance: float) -> dict[Key, float]:
    """Find what is slower than the rest by a rule that a few bad values cannot bend.

    The reference is the median, the better one of an even number: half of the values may be bad. A value is slow where
    it is below `tolerance` of it, and below it by more than noise.

    Args:
        speeds: By whatever they belong to; zero for what did not work.
        tolerance: Share of the reference that is still good.

    Returns:
        Those that are slow, with their share of the reference.
    """
    if not speeds:
        return {}
    reference = sorted(speeds.values(), reverse=True)[(len(speeds) - 1) // 2]
    if reference <= 0.0:
        return {}
    behind = {key: math.log(reference / speed) if speed > 0.0 else math.inf for key, speed in speeds.items()}
    spread = sorted(abs(value) for value in behind.values())[(len(speeds) - 1) // 2]
    least = max(-math.log(tolerance), SPREADS * _TO_SIGMA * spread)
    return {key: speeds[key] / reference for key, value in behind.items() if value > least}
