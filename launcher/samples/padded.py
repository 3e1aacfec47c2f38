"""Samples as one document a row (`pad`), as tutorials do.

Shapes: B samples, L tokens of a row, N documents.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import xxhash
from numpy.typing import NDArray

from launcher.samples.order import Order
from launcher.samples.pieces import Pieces
from launcher.samples.shapes import Integers, TokenStream, check_samples, document_edges, fill_behind

_CHUNK_DOCUMENTS = 1 << 20  # 8 MiB of document starts at a time


@dataclass(frozen=True)
class Padded:
    """Sample `i` is the first `length` tokens of document `i`; what a longer document has beyond them is never read.

    Raises:
        ValueError: A row holds no token.
    """

    stream: TokenStream
    """Where the tokens come from."""
    length: int
    """Tokens of a row."""
    fill: int
    """Token id behind the end of the document."""

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"rows of {self.length} tokens")

    @property
    def num_samples(self) -> int:
        """One a document."""
        return self.stream.num_documents

    @property
    def fingerprint(self) -> str:
        """16 hex digits of all but the tokens that decides which of them a row holds."""
        return xxhash.xxh3_64_hexdigest(f"pad/1 length={self.length}".encode())

    @property
    def cut_share(self) -> float:
        """Share of the split's tokens that are cut off; asks for the length of every document once."""
        return 1 - self._num_kept / self.stream.num_tokens if self.stream.num_tokens else 0.0

    @property
    def padding_share(self) -> float:
        """Share of the places of all rows that hold no token; asks for the length of every document once."""
        num_places = self.stream.num_documents * self.length
        return 1 - self._num_kept / num_places if num_places else 0.0

    @cached_property
    def _num_kept(self) -> int:
        num_documents = self.stream.num_documents
        kept = 0
        for first in range(0, num_documents, _CHUNK_DOCUMENTS):
            starts = self.stream.document_starts(first, min(first + _CHUNK_DOCUMENTS, num_documents))
            kept += int(np.minimum(np.diff(starts), self.length).sum())
        return kept

    def order(self, seed: int) -> Order:
        """All documents shuffled together; raises ShardError where there is none."""
        return Order(self.num_samples, seed)

    def read(self, sample_ids_B: NDArray[np.int64], out_BL: Integers) -> NDArray[np.int64]:
        """Fill a row with the beginning of each of these documents; see `Samples.read`."""
        starts_B, lengths_B = self._ranges(sample_ids_B)
        self.stream.read_rows(starts_B, lengths_B, out_BL)
        fill_behind(out_BL, lengths_B, self.fill)
        return lengths_B

    def read_words(self, sample_ids_B: NDArray[np.int64], out_BL: NDArray[np.bool_]) -> None:
        """Mark the tokens that continue a word; see `Samples.read_words`."""
        starts_B, lengths_B = self._ranges(sample_ids_B)
        for row_L, start, length in zip(out_BL, starts_B.tolist(), lengths_B.tolist(), strict=True):
            self.stream.read_words(start, row_L[:length])
            row_L[length:] = False
        out_BL[:, 0] = False

    def pieces(self, sample_ids_B: NDArray[np.int64]) -> Pieces:
        """One piece a row, none in the row of an empty document."""
        lengths_B = self._ranges(sample_ids_B)[1]
        rows_P = np.flatnonzero(lengths_B)
        zeros_P = np.zeros(len(rows_P), dtype=np.int64)
        return Pieces(rows_P, zeros_P, lengths_B[rows_P], sample_ids_B[rows_P], zeros_P)

    def samples_of(self, documents_K: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows of these documents, but of those that are empty; see `Samples.samples_of`."""
        starts_K, ends_K = document_edges(self.stream, documents_K)
        return documents_K[starts_K < ends_K]

    def advise(self, sample_ids_B: NDArray[np.int64]) -> None:
        """Say which rows are read next; never waits."""
        self.stream.advise(*self._ranges(sample_ids_B))

    def _ranges(self, sample_ids_B: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where each document begins, and its tokens that fit."""
        check_samples(sample_ids_B, self.num_samples)
        edges = [self.stream.document_starts(number, number + 1) for number in sample_ids_B.tolist()]
        edges_B2 = np.stack(edges) if edges else np.empty((0, 2), dtype=np.int64)
        return edges_B2[:, 0], np.minimum(edges_B2[:, 1] - edges_B2[:, 0], self.length)
