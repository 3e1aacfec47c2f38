"""Sentences of a text, for objectives that pair them. No more than punctuation tells: no model, no dictionary.

Shapes: N tokens, Q sentences.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

_CLOSING = "”’」』）)】》〉\"'\\]"
# Chinese ends need nothing behind them. A full stop ends a sentence where a space and something that can begin one
# follow, and it does not stand behind a single capital (J. Smith) or between digits (3.14).
_END = re.compile(
    rf"[。！？!?；…]+[{_CLOSING}]*(?=\S|\s)"
    rf"|(?<![A-Z])(?<!\b[A-Z])\.[{_CLOSING}]*(?=\s+[\"'“‘(\[]?[A-Z0-9\u4e00-\u9fff])"
    r"|\n+"
)


def sentence_starts(text: str) -> list[int]:
    """Where the sentences of a text begin: characters, ascending, the first 0; none of an empty text."""
    starts = [0] if text else []
    for end in _END.finditer(text):
        place = end.end()
        while place < len(text) and text[place].isspace():
            place += 1
        if place < len(text) and place > starts[-1]:
            starts.append(place)
    return starts


def sentence_lengths(text: str, first_characters_N: NDArray[np.int64]) -> NDArray[np.int32]:
    """Tokens of each sentence of a text that was tokenized as a whole, int32 [Q]; a sentence without any is left out.

    Args:
        text: The text.
        first_characters_N: First character of each token, int64 [N], ascending.
    """
    if not len(first_characters_N):
        return np.empty(0, dtype=np.int32)
    # A token that takes in the space before a sentence begins before it; its own text is what counts.
    edges = np.searchsorted(first_characters_N, _reach(text, sentence_starts(text)), side="left")
    edges[0] = 0
    lengths = np.diff(np.append(edges, len(first_characters_N)))
    return lengths[lengths > 0].astype(np.int32)


def _reach(text: str, starts: list[int]) -> list[int]:
    """Each start, moved back over one space: a byte-level token " The" begins there."""
    return [start - 1 if start and text[start - 1] == " " else start for start in starts]
