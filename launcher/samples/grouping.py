"""Doing once what many rows of a batch have in common.

Shapes: N items.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

SMALL = 256


def grouped(keys_N: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """Each different key, ascending, and the places where it stands, ascending.

    Args:
        keys_N: int64 [N].
    """
    if keys_N.size == 0:
        return
    first = int(keys_N[0])
    if (keys_N == first).all():
        yield first, np.arange(len(keys_N))
        return
    order_N = np.argsort(keys_N, kind="stable")
    sorted_N = keys_N[order_N]
    begins = np.flatnonzero(np.diff(sorted_N, prepend=sorted_N[0] - 1))
    yield from zip(sorted_N[begins].tolist(), np.split(order_N, begins[1:]), strict=True)


def bounds(values_N: NDArray[np.int64]) -> tuple[int, int]:
    """The lowest and the highest of some values, at least one.

    Of a batch the builtins tell in a fifth of numpy's time, whose calls cost 3 µs each whatever there is to do.
    """
    if values_N.size > SMALL:
        return int(values_N.min()), int(values_N.max())
    values = values_N.tolist()
    return min(values), max(values)
