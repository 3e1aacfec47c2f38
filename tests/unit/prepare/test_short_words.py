"""Short words are known by their characters alone, and found again however many there are."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from launcher.prepare.short_words import LONGEST, UNKNOWN, ShortWords, keys_of

# U+0000 and what lies beyond U+00FF lose themselves in a byte.
WORDS = st.lists(st.text(st.sampled_from("ab\x00\x01\xff\u0100\u0161法"), min_size=1, max_size=10), max_size=30)


def keys(words: list[str]) -> NDArray[np.uint64]:
    text = " ".join([*words, ""])
    characters_C = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    lengths_W = np.array([len(word) for word in words], dtype=np.int64)
    starts_W = np.cumsum(lengths_W + 1) - lengths_W - 1
    return keys_of(characters_C, characters_C != ord(" "), starts_W, lengths_W)


@given(WORDS)
def test_a_key_is_the_word_itself_and_other_words_have_none(words: list[str]) -> None:
    for word, key in zip(words, keys(words).tolist(), strict=True):
        is_short = len(word) <= LONGEST and all(0 < ord(character) < 256 for character in word)
        assert key == (int.from_bytes(word.encode("latin-1"), "little") if is_short else 0)


@given(st.lists(st.lists(st.integers(1, 40), max_size=30), max_size=6), st.sampled_from([1, 1 << 32, 1 << 63]))
def test_what_was_added_is_found_and_nothing_else(batches: list[list[int]], step: int) -> None:
    """Keys far apart in their low or high bits alone, so that they come together in the table."""
    table, known = ShortWords(), {}
    everything = np.array([number * step % (1 << 64) for number in range(41)], dtype=np.uint64)
    for batch in batches:
        new = sorted({key for number in batch if (key := number * step % (1 << 64)) and key not in known})
        numbers = range(len(known), len(known) + len(new))
        known |= dict(zip(new, numbers, strict=True))
        table.add(np.array(new, dtype=np.uint64), np.array(numbers, dtype=np.int32))
        assert table.find(everything).tolist() == [known.get(key, UNKNOWN) for key in everything.tolist()]


def test_it_grows_with_what_is_added() -> None:
    table = ShortWords()
    for first in range(1, 40_000, 7_000):
        added = np.arange(first, first + 7_000, dtype=np.uint64)
        assert (table.find(added) == UNKNOWN).all()
        table.add(added, added.astype(np.int32))
    everything = np.arange(1, 42_001, dtype=np.uint64)
    assert np.array_equal(table.find(everything), everything.astype(np.int32))
