"""Numbers of short words, found for a batch at a time: a word's characters, a byte each, are the key itself.

A Python string and its look-up take 130 ns a word, this 15 (measured, AMD Zen 5), and nine of ten words of English text
are short enough.

Shapes: C characters of a batch, W words, T places of the table.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LONGEST = 8
"""Characters of a word that fits in 64 bits."""
UNKNOWN = -1
_NONE = np.uint64(0)
"""The key of no word, and of a place without one."""
_MASKS = np.array([(1 << 8 * length) - 1 for length in range(LONGEST + 1)], dtype=np.uint64)
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio: Knuth, TAOCP vol. 3, section 6.4


def keys_of(
    characters_C: NDArray[np.uint32],
    in_word_C: NDArray[np.bool_],
    starts_W: NDArray[np.int64],
    lengths_W: NDArray[np.int64],
) -> NDArray[np.uint64]:
    """The characters of each word of at most eight from U+0001 to U+00FF, and 0 of any other, uint64 [W].

    Args:
        characters_C: Code points.
        in_word_C: Whether each is part of a word.
        starts_W: First character of each word, ascending.
        lengths_W: Its characters.
    """
    bytes_C = np.zeros(len(characters_C) + LONGEST, dtype=np.uint8)
    np.copyto(bytes_C[: len(characters_C)], characters_C, casting="unsafe")
    windows_C = np.ndarray(len(characters_C), dtype="<u8", buffer=bytes_C, strides=(1,))
    keys_W: NDArray[np.uint64] = windows_C[starts_W] & _MASKS[np.minimum(lengths_W, LONGEST)]
    keys_W[lengths_W > LONGEST] = _NONE
    # What a byte does not hold lost something; U+0000 behind a word would be as if it were not there.
    lossy = np.flatnonzero(in_word_C & (characters_C - np.uint32(1) > 0xFE))
    keys_W[np.searchsorted(starts_W, lossy, side="right") - 1] = _NONE
    return keys_W


class ShortWords:
    """A table of keys and numbers: open addressing, at most half full."""

    def __init__(self) -> None:
        self._num_keys = 0
        self._make(1 << 12)

    def _make(self, num_places: int) -> None:
        self._keys_T = np.zeros(num_places, dtype=np.uint64)
        self._numbers_T = np.full(num_places, UNKNOWN, dtype=np.int32)
        self._shift = np.uint64(64 - (num_places.bit_length() - 1))

    def find(self, keys_W: NDArray[np.uint64]) -> NDArray[np.int32]:
        """The number of each word, int32 [W]; UNKNOWN where it was not added, or has no key."""
        places_W = self._places(keys_W)
        found_W, numbers_W = self._keys_T[places_W], self._numbers_T[places_W]
        going_on = np.flatnonzero((found_W != keys_W) & (found_W != _NONE))
        while going_on.size:  # the place is another word's
            places_W[going_on] = places = self._next(places_W[going_on])
            found, numbers_W[going_on] = self._keys_T[places], self._numbers_T[places]
            going_on = going_on[(found != keys_W[going_on]) & (found != _NONE)]
        return numbers_W

    def add(self, keys_W: NDArray[np.uint64], numbers_W: NDArray[np.int32]) -> None:
        """Add words that are not there: keys that differ, none of them 0."""
        self._num_keys += len(keys_W)
        if 2 * self._num_keys > len(self._keys_T):
            known = np.flatnonzero(self._keys_T)
            keys_W = np.concatenate([self._keys_T[known], keys_W])
            numbers_W = np.concatenate([self._numbers_T[known], numbers_W])
            self._make(1 << (4 * self._num_keys).bit_length())
        places_W = self._places(keys_W)
        left = np.arange(len(keys_W))
        while left.size:
            places = places_W[left]
            free = self._keys_T[places] == _NONE
            self._keys_T[places[free]] = keys_W[left[free]]  # of several that want a place, one gets it
            has_place = self._keys_T[places] == keys_W[left]
            self._numbers_T[places[has_place]] = numbers_W[left[has_place]]
            left = left[~has_place]
            places_W[left] = self._next(places_W[left])

    def _places(self, keys_W: NDArray[np.uint64]) -> NDArray[np.int64]:
        return ((keys_W * _MULTIPLIER) >> self._shift).view(np.int64)

    def _next(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        return (places + 1) & (len(self._keys_T) - 1)
