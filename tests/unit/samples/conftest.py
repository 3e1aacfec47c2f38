"""A token stream held in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray


class MemoryStream:
    """Documents of these lengths, whose tokens count up from 100, so that a token tells its place.

    Every third token continues a word, but for the first of a document.
    """

    def __init__(self, lengths: Sequence[int], text: str = "") -> None:
        self.starts = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(np.array(lengths, dtype=np.int64))])
        self.num_tokens = int(self.starts[-1])
        self.num_documents = len(lengths)
        self.has_words = True
        self.tokens = np.arange(100, 100 + self.num_tokens, dtype=np.int32)
        self.words = self.tokens % 3 == 0
        self.words[self.starts[:-1][np.diff(self.starts) > 0]] = False
        self.fingerprint = hashlib.sha256(self.starts.tobytes() + text.encode()).hexdigest()[:16]
        self.advised: list[tuple[int, int]] = []
        self.asked: list[tuple[int, int]] = []
        """Ranges of documents whose places were asked for."""

    def read(self, start: int, out: NDArray[np.integer[Any]]) -> None:
        assert 0 <= start <= start + len(out) <= self.num_tokens, "a read outside the stream"
        out[:] = self.tokens[start : start + len(out)]

    def read_rows(
        self, starts_B: NDArray[np.int64], lengths_B: NDArray[np.int64], out_BL: NDArray[np.integer[Any]]
    ) -> None:
        for row_L, start, length in zip(out_BL, starts_B.tolist(), lengths_B.tolist(), strict=True):
            self.read(start, row_L[:length])

    def read_windows(self, windows_B: NDArray[np.int64], stride: int, out_BL: NDArray[np.integer[Any]]) -> bool:
        starts = (windows_B * stride).tolist()
        if not all(0 <= start <= self.num_tokens - out_BL.shape[1] for start in starts):
            return False
        for row_L, start in zip(out_BL, starts, strict=True):
            self.read(start, row_L)
        return True

    def read_words(self, start: int, out: NDArray[np.bool_]) -> None:
        assert 0 <= start <= start + len(out) <= self.num_tokens, "a read outside the stream"
        out[:] = self.words[start : start + len(out)]

    def document_starts(self, first: int, last: int) -> NDArray[np.int64]:
        assert 0 <= first <= last <= self.num_documents, "documents outside the stream"
        self.asked.append((first, last))
        return self.starts[first : last + 1].copy()

    def documents_at(self, tokens_N: NDArray[np.int64]) -> NDArray[np.int64]:
        assert all(0 <= token < self.num_tokens for token in tokens_N.tolist()), "a token outside the stream"
        return np.searchsorted(self.starts, tokens_N, side="right") - 1

    def advise(self, starts_B: NDArray[np.int64], lengths_B: NDArray[np.int64]) -> None:
        self.advised.extend(zip(starts_B.tolist(), lengths_B.tolist(), strict=True))


@pytest.fixture(scope="session")
def stream_of() -> Callable[..., MemoryStream]:
    """Makes a stream of documents of these lengths."""
    return MemoryStream


@pytest.fixture(scope="session")
def counting_stream() -> Callable[[int], MemoryStream]:
    """Makes a stream of so many tokens, ten a document."""
    return lambda num_tokens: MemoryStream([10] * (num_tokens // 10) + ([num_tokens % 10] if num_tokens % 10 else []))
