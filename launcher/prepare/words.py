"""Which tokens continue a word, from where tokens stand in the text: for every tokenizer and language alike.

Shapes: N tokens, C characters.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from launcher.prepare.segmenters import cutter

HAN = "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Radicals, 々〆〇, numerals, and the unified ideographs with all extensions (Unicode blocks)."""
# A run of Han; or of letters, digits and marks, with an apostrophe inside ("don't", "l’heure").
_RUN = re.compile(rf"[{HAN}]+|(?:(?![{HAN}])[\w\u0300-\u036f])+(?:['’](?![{HAN}])\w+)*")
_IS_HAN = re.compile(rf"[{HAN}]")


class WordMarker:
    """Words are jieba's in runs of Han characters, and runs of letters and digits elsewhere; all else stands alone.

    Args:
        segmenter: Name and version of what cuts Chinese.

    Source: Cui et al. 2019, "Pre-training with whole word masking for Chinese BERT" (arXiv:1906.08101): a Chinese word
    is what a segmenter says, not what `##` says.
    """

    def __init__(self, segmenter: str) -> None:
        self._cut = cutter(segmenter)

    def marks(self, text: str, offsets: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each token continues the word of the token before it.

        Args:
            text: The text.
            offsets: First character of each token and one past the last, int64 [N, 2].

        Returns:
            bool [N]; never the first.
        """
        continues_N = np.zeros(len(offsets), dtype=np.bool_)
        if len(offsets) < 2:
            return continues_N
        words_C = self._words(text)
        # Of a token that takes in a space before its word, the last character tells.
        last_N = np.maximum(offsets[:, 1] - 1, offsets[:, 0])
        last_N = np.minimum(last_N, len(words_C) - 1)
        first_N = np.minimum(offsets[:, 0], len(words_C) - 1)
        before_N, word_N = words_C[last_N[:-1]], words_C[first_N[1:]]
        # Word 0 is no word. Pieces of one character (bytes of a byte-level tokenizer) continue it, whatever it is.
        same_character = (first_N[1:] == last_N[:-1]) & (offsets[1:, 1] > offsets[1:, 0])
        continues_N[1:] = ((word_N == before_N) & (word_N > 0)) | same_character
        return continues_N

    def _words(self, text: str) -> NDArray[np.int32]:
        """Number of the word of each character, int32 [C], from 1; 0 where there is none."""
        words_C = np.zeros(max(len(text), 1), dtype=np.int32)
        number = 0
        for run in _RUN.finditer(text):
            start, end = run.span()
            if _IS_HAN.match(text, start):
                for word in self._cut(run[0]):
                    number += 1
                    words_C[start : start + len(word)] = number
                    start += len(word)
            else:
                number += 1
                words_C[start:end] = number
        return words_C
