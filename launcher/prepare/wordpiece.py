"""WordPiece ids without asking twice: each character is classified once, each word encoded once, by `tokenizers`.

BERT's normalizer works on single characters, and its pre-tokenizer cuts at every white space and around every
punctuation mark and Chinese character. So a text is a row of units, characters that stand alone and the words between
them, and the ids of a unit do not depend on its neighbours. The units of a batch are found by numpy in one pass, and
their ids looked up, those of short words by numpy too; what was never seen before is given to `tokenizers`.

Shapes: C characters of a batch, U units, W words, N tokens, D texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from launcher.errors import TokenizerError
from launcher.prepare.short_words import UNKNOWN, ShortWords, keys_of

VERSION = "2"
"""Change it with anything that could change an id: the gate's findings are remembered by it."""

_NUM_CODES = 0x110000
_UNKNOWN, _ALONE, _SPACE, _WORD = -4, -3, -2, -1
"""What a character is: not looked at yet, a unit without its number, a mere separator, part of a word."""

_MAX_UNITS = 1_000_000
"""Units kept, about 200 bytes each; a batch that finds more of them begins anew."""


def fits(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer cuts texts as this module does."""
    return (
        isinstance(tokenizer.normalizer, BertNormalizer)
        and isinstance(tokenizer.pre_tokenizer, BertPreTokenizer)
        and isinstance(tokenizer.model, WordPiece)
        # An added token that is no special one is found across words.
        and all(token.special for token in tokenizer.get_added_tokens_decoder().values())
    )


class CachedWordPiece:
    """A WordPiece tokenizer that remembers the ids of every word.

    Args:
        tokenizer: Of the kind that `fits`; without special tokens in texts.

    Raises:
        TokenizerError: It cuts texts in another way.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        if not fits(tokenizer):
            raise TokenizerError("the tokenizer does not cut texts as BERT's does", "tokenizer.json")
        self._tokenizer = tokenizer
        self._begin()

    def _begin(self) -> None:
        self._code_of = np.full(_NUM_CODES, _UNKNOWN, dtype=np.int32)
        self._units: dict[str, int] = {}
        self._short = ShortWords()
        self._num_units = self._num_ids = 0
        self._ids_N = np.empty(1 << 16, dtype=np.int32)
        self._starts_U, self._lengths_U = np.empty((2, 1 << 15), dtype=np.int64)

    def encode(self, texts: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The ids of all texts end to end, int32 [N], and the number of each text's, int32 [D].

        Raises:
            UnicodeEncodeError: A text holds half of a surrogate pair.
        """
        if self._num_units > _MAX_UNITS:
            self._begin()
        joined = "\n".join([*texts, ""])
        characters_C = np.frombuffer(joined.encode("utf-32-le"), dtype=np.uint32)
        codes_C = self._classes(characters_C)
        in_word_C = codes_C == _WORD
        # A word is a unit where it begins; a character that stands alone where it stands.
        begins_C = in_word_C.copy()
        begins_C[1:] &= ~in_word_C[:-1]
        units_C = np.flatnonzero(begins_C | (codes_C >= 0))
        units_U = codes_C[units_C]
        units_U[units_U == _WORD] = self._numbers(joined, characters_C, in_word_C, np.flatnonzero(begins_C))
        starts_U, lengths_U = self._starts_U[units_U], self._lengths_U[units_U]
        ends_U = np.cumsum(lengths_U)
        num_ids = int(ends_U[-1]) if ends_U.size else 0
        if num_ids == len(units_U) and lengths_U.all():  # one id each, as in most Chinese text
            ids_N = self._ids_N[starts_U]
        else:
            places_N = np.arange(num_ids) + np.repeat(starts_U - (ends_U - lengths_U), lengths_U)
            ids_N = self._ids_N[places_N]
        # A text ends at the line feed behind it: as many tokens are before that as before the next unit.
        text_ends_D = np.cumsum(np.fromiter(map(len, texts), dtype=np.int64, count=len(texts)) + 1)
        num_units_D = np.searchsorted(units_C, text_ends_D)
        num_tokens_D = np.concatenate([[0], ends_U])[num_units_D]
        return ids_N, np.diff(num_tokens_D, prepend=0).astype(np.int32)

    def _classes(self, characters_C: NDArray[np.uint32]) -> NDArray[np.int32]:
        places_C = characters_C.astype(np.intp)  # numpy takes indices of another type in twice the time
        codes_C: NDArray[np.int32] = self._code_of[places_C]
        if codes_C.size and int(codes_C.min()) == _UNKNOWN:
            new = np.unique(characters_C[codes_C == _UNKNOWN])
            classes = np.array([self._classify(chr(code)) for code in new.tolist()], dtype=np.int32)
            alone = classes == _ALONE
            classes[alone] = self._learn([chr(code) for code in new[alone].tolist()])
            self._code_of[new] = classes  # last: whoever breaks off before it has learnt nothing wrong
            codes_C = self._code_of[places_C]
        return codes_C

    def _classify(self, character: str) -> int:
        """What a character is, found by setting it between two letters."""
        normal = self._tokenizer.normalizer.normalize_str(f"a{character}a")
        pieces = [piece for piece, _ in self._tokenizer.pre_tokenizer.pre_tokenize_str(normal)]
        if len(pieces) < 2 or pieces[0] != "a" or pieces[-1] != "a":
            return _WORD
        return _SPACE if len(pieces) == 2 else _ALONE

    def _numbers(
        self,
        joined: str,
        characters_C: NDArray[np.uint32],
        in_word_C: NDArray[np.bool_],
        starts_W: NDArray[np.int64],
    ) -> NDArray[np.int32]:
        """The units that the words of a batch are, int32 [W]."""
        # The line feed behind the last text ends its last word.
        ends_W = np.flatnonzero(in_word_C[:-1] & ~in_word_C[1:]) + 1
        keys_W = keys_of(characters_C, in_word_C, starts_W, ends_W - starts_W)
        numbers_W = self._short.find(keys_W)
        rest = np.flatnonzero(numbers_W == UNKNOWN)  # long, of other characters, or new
        places = zip(starts_W[rest].tolist(), ends_W[rest].tolist(), strict=True)
        numbers_W[rest] = self._look_up([joined[start:end] for start, end in places])
        new_keys, first = np.unique(keys_W[rest], return_index=True)
        has_key = new_keys > 0
        self._short.add(new_keys[has_key], numbers_W[rest[first[has_key]]])
        return numbers_W

    def _look_up(self, words: list[str]) -> list[int]:
        """The units that these words are."""
        found = list(map(self._units.get, words))
        if None in found:
            missing = list({word: None for word, number in zip(words, found, strict=True) if number is None})
            self._units.update(zip(missing, self._learn(missing), strict=True))
            found = [self._units[word] for word in words]
        return found  # type: ignore[return-value]  # no None is left

    def _learn(self, texts: list[str]) -> list[int]:
        """New units, with the ids that `tokenizers` gives them."""
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        lengths = np.array([len(encoding.ids) for encoding in encodings], dtype=np.int64)
        ids = np.array([number for encoding in encodings for number in encoding.ids], dtype=np.int32)
        first = self._num_units
        last = first + len(texts)
        self._starts_U = _grown(self._starts_U, last)
        self._lengths_U = _grown(self._lengths_U, last)
        self._ids_N = _grown(self._ids_N, self._num_ids + len(ids))
        self._starts_U[first:last] = self._num_ids + np.cumsum(lengths) - lengths
        self._lengths_U[first:last] = lengths
        self._ids_N[self._num_ids : self._num_ids + len(ids)] = ids
        self._num_ids += len(ids)
        self._num_units = last
        return list(range(first, last))


def _grown(array: NDArray[Any], size: int) -> NDArray[Any]:
    """The array, or one at least twice as long that begins with it, so that `size` fits."""
    if size <= len(array):
        return array
    larger = np.empty(max(size, 2 * len(array)), dtype=array.dtype)
    larger[: len(array)] = array
    return larger
