"""The largest of some sizes whose memory fits, from as few measurements as it takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

MARGIN = 0.1
"""Share of the memory that stays free: for fragments and for what other libraries take later (assumption)."""
MARGIN_OF_KEPT = 0.05
"""The same for a size that a run had before, which should not change because two measurements differ a little."""
GROWTH = 4
"""A size is tried once one of at least a fourth of it has been measured (assumption): activations grow evenly with the
size, but what little ones show is lost among all the rest."""


def next_to_measure(sizes: Sequence[int], measured: Mapping[int, int], budget: float) -> int | None:
    """The size to measure next; None once `largest_fitting` is the answer.

    Args:
        sizes: Ascending.
        measured: Peak of memory in bytes, by size.
        budget: Bytes that may be taken.
    """
    if not measured:
        return sizes[0]
    done = largest_fitting(measured, measured, budget)
    if done is None:
        return None
    too_large = min((size for size, peak in measured.items() if peak > budget), default=sizes[-1] + 1)
    hopeful = [size for size in sizes if done < size < too_large and _expected(size, measured) <= budget]
    if not hopeful:
        return None
    near = [size for size in hopeful if size <= GROWTH * done]
    return near[-1] if near else GROWTH * done  # no size at all, but it shows what the next one will take


def largest_fitting(sizes: Iterable[int], measured: Mapping[int, int], budget: float) -> int | None:
    """The largest of some sizes that was measured and keeps to the budget; None if none does."""
    return max((size for size in sizes if size in measured and measured[size] <= budget), default=None)


def _expected(size: int, measured: Mapping[int, int]) -> float:
    """The peak at a size by the steepest line through two measurements, from the largest one that lies below."""
    known = sorted((done, peak) for done, peak in measured.items())
    slopes = [(after - before) / (larger - smaller) for (smaller, before), (larger, after) in pairwise(known)]
    below, peak = max((done, peak) for done, peak in known if done < size)
    return peak + max([*slopes, 0.0]) * (size - below)
