"""Exact duplicates, out of core: of texts with the same xxh3-128 the first in the order of the corpus is kept.

Shapes: D documents of one file of digests; C digests held in memory; K of them in use.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from launcher.shards.faults import naming

DIGEST_BYTES = 16
MEMORY = 1 << 30
"""Bytes in use at once: 13 million digests a pass over the files, 75 passes for 10^9 documents."""
BYTES_PER_DIGEST = 72
"""A digest and its place (24), the order of their sort and what numpy needs to find it (12), and what is alike where
all are (33)."""
FILL = 0.9
"""Share of memory that a range of digests is expected to take; they are spread evenly, and 10 % is room enough."""


def text_digest(text: str | bytes) -> bytes:
    """The 16 bytes by which a text, or its UTF-8, is known: xxh3-128, as 128-bit big-endian number."""
    return xxhash.xxh3_128_digest(text.encode() if isinstance(text, str) else text)


def find_duplicates(hash_files: Sequence[Path], max_bytes: int = MEMORY) -> Iterator[NDArray[np.bool_]]:
    """Say of every digest whether an earlier one, in its file or one before, is the same.

    The files are read once for each range of the digests' leading bits that can be sorted in memory; a byte a document
    lies in a temporary file beside them.

    Args:
        hash_files: Files of 16-byte digests, in the order of the corpus.
        max_bytes: Of memory, whatever the number of documents; at least a few kilobytes.

    Yields:
        bool [D] for each file; True: an earlier document has the same text.

    Raises:
        OSError: The disk is full.
    """
    counts = [path.stat().st_size // DIGEST_BYTES for path in hash_files]
    starts = np.cumsum([0, *counts]).tolist()
    total = starts[-1]
    if not total:
        yield from (np.zeros(0, dtype=np.bool_) for _ in hash_files)
        return
    capacity = min(max(64, max_bytes // BYTES_PER_DIGEST), 2 * total)
    num_ranges = -(-total // max(1, int(capacity * FILL)))
    edges = [(number << 64) // num_ranges for number in range(num_ranges + 1)]
    folder = hash_files[0].parent
    with tempfile.TemporaryFile(dir=folder) as file:
        with naming(folder):
            os.posix_fallocate(file.fileno(), 0, total)  # a hole in a mapped file on a full disk is a bus error
        masks = np.memmap(file, dtype=np.bool_, mode="r+", shape=(total,)).view(np.ndarray)
        seen = _Seen(capacity)
        ranges = list(pairwise(edges))
        while ranges:
            low, high = ranges.pop()
            if not _mark_range(hash_files, starts, low, high, seen, masks):
                # More different digests than expected: not of xxh3. What is marked is right, and is marked again.
                middle = (low + high) // 2
                ranges += [(low, middle), (middle, high)]
        for first, last in pairwise(starts):
            yield masks[first:last].copy()


class _Seen:
    """The first of each digest met so far, then those not yet looked at; in the order of the corpus.

    Args:
        capacity: Digests to hold.
    """

    def __init__(self, capacity: int) -> None:
        self.digests_C2 = np.empty((2, capacity), dtype=np.uint64)
        self.places_C = np.empty(capacity, dtype=np.int64)
        self.num_used = 0

    @property
    def room(self) -> int:
        """Digests it takes before `settle`."""
        return len(self.places_C) - self.num_used

    def add(self, digests_K2: NDArray[np.uint64], places_K: NDArray[np.int64]) -> None:
        """Take some that come behind those taken before."""
        stretch = slice(self.num_used, self.num_used + len(places_K))
        self.digests_C2[:, stretch] = digests_K2.T
        self.places_C[stretch] = places_K
        self.num_used = stretch.stop

    def settle(self, masks: NDArray[np.bool_]) -> None:
        """Mark what is there twice, and keep the first of each."""
        firsts_K, seconds_K = self.digests_C2[:, : self.num_used]
        order_K = np.argsort(firsts_K, kind="stable")
        same = _alike(firsts_K, order_K)
        is_equal = seconds_K[order_K[same]] == seconds_K[order_K[same + 1]]
        if not is_equal.all():  # once in 2^64 pairs; what is equal need not stand side by side then
            order_K = np.lexsort((seconds_K, firsts_K))  # stable too
            same = _alike(firsts_K, order_K)
            is_equal = seconds_K[order_K[same]] == seconds_K[order_K[same + 1]]
        is_repeated_K = np.zeros(self.num_used, dtype=np.bool_)
        is_repeated_K[order_K[same[is_equal] + 1]] = True
        del order_K, same, is_equal
        places_K = self.places_C[: self.num_used]
        masks[places_K[is_repeated_K]] = True
        kept = np.flatnonzero(~is_repeated_K)
        for row in (firsts_K, seconds_K, places_K):
            row[: len(kept)] = row[kept]
        self.num_used = len(kept)


def _alike(firsts_K: NDArray[np.uint64], order_K: NDArray[np.int64]) -> NDArray[np.int64]:
    """Places in the order where the next digest has the same first half."""
    sorted_K = firsts_K[order_K]
    return np.flatnonzero(sorted_K[1:] == sorted_K[:-1])


def _mark_range(
    hash_files: Sequence[Path], starts: Sequence[int], low: int, high: int, seen: _Seen, masks: NDArray[np.bool_]
) -> bool:
    """Mark the duplicates among digests whose first half is in [low, high); False where they are too many to hold."""
    seen.num_used = 0
    step = max(16, len(seen.places_C) // 16)
    for path, start in zip(hash_files, starts, strict=False):
        if not path.stat().st_size:
            continue
        digests_D2 = np.memmap(path, ">u8", mode="r").view(np.ndarray).reshape(-1, 2)
        for first in range(0, len(digests_D2), step):
            halves = digests_D2[first : first + step, 0].astype(np.uint64)
            found = np.flatnonzero((halves >= np.uint64(low)) & (halves <= np.uint64(high - 1)))
            if len(found) > seen.room:
                seen.settle(masks)
                if len(found) > seen.room:
                    if high - low == 1:
                        raise MemoryError("too many digests with the same first half")
                    return False
            seen.add(digests_D2[first : first + step][found].astype(np.uint64), found + (start + first))
    seen.settle(masks)
    return True
