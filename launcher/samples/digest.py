"""Proof of what a step was trained on.

Shapes: B samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray


def digest(positions_B: NDArray[np.int64], arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.uint64]:
    """A digest per sample: its position and everything the model is given of it.

    Args:
        positions_B: Position of each sample, int64 [B].
        arrays: What the objective made, by name, each [B, …]; the order of the names does not matter.

    Returns:
        XXH3 of position, names and rows, uint64 [B].
    """
    rows_by_name = [(name.encode(), np.ascontiguousarray(arrays[name])) for name in sorted(arrays)]
    digests_B = np.empty(len(positions_B), dtype=np.uint64)
    for index, position in enumerate(positions_B.tolist()):
        state = xxhash.xxh3_64(position.to_bytes(8, "little", signed=True))
        for name, rows in rows_by_name:
            state.update(name)
            state.update(rows[index])
        digests_B[index] = state.intdigest()
    return digests_B


def combine(digests_N: NDArray[np.uint64]) -> int:
    """The digest of a set of samples, or of sets already combined: their sum modulo 2**64.

    A sum depends neither on the order of the samples nor on how they were cut into passes and ranks. An all-reduce
    in int64 wraps to the same bits.

    Args:
        digests_N: uint64 [N].

    Returns:
        In `range(2**64)`.
    """
    return int(np.sum(digests_N, dtype=np.uint64))
