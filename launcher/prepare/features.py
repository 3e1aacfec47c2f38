"""What is told beside ids: which tokens continue a word, which make a sentence.

Imported by workers that need it: nothing here may import torch or transformers.

Shapes: N tokens, D texts, Q sentences.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from launcher.prepare.encoders import Encoded, flat, plain_tokenizer, typed
from launcher.prepare.sentences import sentence_lengths
from launcher.prepare.words import WordMarker


class FeatureEncoder:
    """`tokenizers`, with the places of the tokens in the text: what words and sentences are told from."""

    def __init__(self, tokenizer_json: str, *, segmenter: str, sentences: bool) -> None:
        self._tokenizer = plain_tokenizer(tokenizer_json)
        self._marker = WordMarker(segmenter) if segmenter else None
        self._sentences = sentences

    def encode(self, texts: Sequence[str]) -> Encoded:
        """See `Encoder.encode`."""
        with typed():
            encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        told = flat(encodings)
        places = [np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2) for encoding in encodings]
        continues_N = sentences_D = lengths_Q = None
        if self._marker is not None:
            marks = [self._marker.marks(text, place) for text, place in zip(texts, places, strict=True)]
            continues_N = np.concatenate([np.empty(0, dtype=np.bool_), *marks])
        if self._sentences:
            lengths = [sentence_lengths(text, place[:, 0]) for text, place in zip(texts, places, strict=True)]
            sentences_D = np.array([len(each) for each in lengths], dtype=np.int32)
            lengths_Q = np.concatenate([np.empty(0, dtype=np.int32), *lengths])
        return Encoded(told.ids_N, told.lengths_D, continues_N, sentences_D, lengths_Q)
