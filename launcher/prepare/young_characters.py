"""Characters that two programs may know differently: each brings the tables of some year of Unicode's.

What is a letter, and which marks change places, is looked up in such tables: to gigatoken 0.10 (Unicode 17) U+323B0 is
a letter, to `tokenizers` 0.23 (16) it is nothing yet, and with "'s" behind it comes apart in two ways. A sample of a
corpus holds none of them, and the corpus may.

Shapes: C characters.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

NUM_CODES = 0x110000
FIRST = 0x300
"""No character below is young."""
PIECE = 1 << 14
"""Characters looked up at once: their codes, as numpy's 64-bit indices, stay in the second level's cache (measured, AMD
EPYC: 1.3 ns a character of English and 2.1 of Chinese text, against 5 and 3 in one go)."""
_EMPTY_PLANES = slice(0x40000, 0xE0000)  # of nothing but what may come


@lru_cache(maxsize=1)
def young_characters() -> NDArray[np.bool_]:
    """Whether each code is of a character this Python does not know (of 3.11 on: younger than Unicode 14 of 2021), or
    of a mark or a compound younger than Unicode 3.2, bool [NUM_CODES].

    Letters and signs keep what they are once they have it; how marks are ordered and compounds composed, libraries for
    normal forms know from tables that are older still (seen: `tokenizers` leaves U+1AC4, of 2021, where it is).
    """
    category, old_category = unicodedata.category, unicodedata.ucd_3_2_0.category
    young = np.zeros(NUM_CODES, dtype=np.bool_)
    young[_EMPTY_PLANES] = True
    for code in (*range(_EMPTY_PLANES.start), *range(_EMPTY_PLANES.stop, 0xE1000)):
        character = chr(code)
        if old_category(character) == "Cn":
            now = category(character)
            young[code] = now == "Cn" or now[0] == "M" or bool(unicodedata.decomposition(character))
    return young


def without_young_characters(text: str) -> str:
    """What is left of a text for a program that knows its other characters."""
    young = young_characters()
    return "".join(character for character in text if not young[ord(character)])


def with_young_characters(texts: Sequence[str]) -> list[int]:
    """Places of the texts that hold a young character, ascending."""
    others = [place for place, text in enumerate(texts) if not text.isascii()]
    if not others:
        return []
    young = young_characters()
    codes_C = np.frombuffer("".join(texts[place] for place in others).encode("utf-32-le"), dtype="<u4")
    found = []
    for start in range(0, len(codes_C), PIECE):
        piece = codes_C[start : start + PIECE]
        if piece.max() >= FIRST and (is_young_C := young.take(piece)).any():
            found.append(start + np.flatnonzero(is_young_C))
    if not found:
        return []
    ends = np.cumsum([len(texts[place]) for place in others])
    inside = np.unique(np.searchsorted(ends, np.concatenate(found), side="right"))
    return [others[number] for number in inside.tolist()]
