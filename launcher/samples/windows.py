"""Samples as windows of one long token stream (`concat`).

Shapes: B samples, L tokens of a window, P pieces.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import xxhash
from numpy.typing import NDArray

from launcher.samples.order import Order
from launcher.samples.pieces import Pieces
from launcher.samples.shapes import Integers, TokenStream, check_samples, document_edges, fill_behind, ranges


@dataclass(frozen=True)
class Windows:
    """Sample `i` is the tokens `[i * stride, i * stride + length)` of the stream.

    Windows may overlap: the first `length - stride` tokens of a window are context that an earlier window, if there is
    one, has predicted already, the others are its targets. A window counts as a sample when it holds at least one
    target, so no token is lost; what lies beyond the end of the stream is `fill`.

    With `length = stride` each token is in one sample (mlm, span); with `length = stride + 1` each token but the
    stream's first is predicted once (clm).

    Raises:
        ValueError: `length` and `stride` do not satisfy 1 <= stride <= length.
    """

    stream: TokenStream
    """Where the tokens come from."""
    length: int
    """Tokens in a window."""
    stride: int
    """Tokens from the start of a window to the start of the next."""
    fill: int
    """Token id behind the end of the stream."""

    def __post_init__(self) -> None:
        if not 1 <= self.stride <= self.length:
            raise ValueError(f"windows of {self.length} tokens cannot start every {self.stride} tokens")

    @cached_property
    def num_samples(self) -> int:
        """Windows with at least one target; 0 where the stream has none."""
        num_targets = self.stream.num_tokens - (self.length - self.stride)
        return max(0, -(-num_targets // self.stride))

    @property
    def padding_share(self) -> float:
        """Share of the places of all windows that hold no token: those behind the end of the stream."""
        if not self.num_samples:
            return 0.0
        num_behind = (self.num_samples - 1) * self.stride + self.length - self.stream.num_tokens
        return max(0, num_behind) / (self.num_samples * self.length)

    @property
    def fingerprint(self) -> str:
        """16 hex digits of all but the tokens that decides which of them a window holds."""
        return xxhash.xxh3_64_hexdigest(f"concat/1 length={self.length} stride={self.stride}".encode())

    def order(self, seed: int) -> Order:
        """All windows shuffled together; raises ShardError where there is none."""
        return Order(self.num_samples, seed)

    def num_real(self, sample_ids_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens of each window that come from the stream, int64 [B]; the rest of the row is fill."""
        return np.minimum(self.stream.num_tokens - sample_ids_B * self.stride, self.length)

    def read(self, sample_ids_B: NDArray[np.int64], out_BL: Integers) -> NDArray[np.int64]:
        """Fill a row with each of these windows; see `Samples.read`."""
        if not sample_ids_B.size:
            return np.empty(0, dtype=np.int64)
        # Only the last window can reach beyond the stream, and what is no window at all does.
        if self.stream.read_windows(sample_ids_B, self.stride, out_BL):
            return _full(len(sample_ids_B), self.length)
        check_samples(sample_ids_B, self.num_samples)
        lengths_B = self.num_real(sample_ids_B)
        self.stream.read_rows(sample_ids_B * self.stride, lengths_B, out_BL)
        fill_behind(out_BL, lengths_B, self.fill)
        return lengths_B

    def read_words(self, sample_ids_B: NDArray[np.int64], out_BL: NDArray[np.bool_]) -> None:
        """Mark the tokens that continue a word; see `Samples.read_words`."""
        check_samples(sample_ids_B, self.num_samples)
        starts, lengths = (sample_ids_B * self.stride).tolist(), self.num_real(sample_ids_B).tolist()
        for row_L, start, length in zip(out_BL, starts, lengths, strict=True):
            self.stream.read_words(start, row_L[:length])
            row_L[length:] = False
        out_BL[:, 0] = False

    def pieces(self, sample_ids_B: NDArray[np.int64]) -> Pieces:
        """Where documents begin and end in these windows."""
        check_samples(sample_ids_B, self.num_samples)
        starts_B = sample_ids_B * self.stride
        ends_B = starts_B + self.num_real(sample_ids_B)
        first_B, last_B = self.stream.documents_at(starts_B), self.stream.documents_at(ends_B - 1)
        edges = [
            self.stream.document_starts(first, last + 1)
            for first, last in zip(first_B.tolist(), last_B.tolist(), strict=True)
        ]
        counts_B = last_B - first_B + 1
        rows_P = np.repeat(np.arange(len(starts_B)), counts_B)
        begins_P = np.concatenate([np.empty(0, dtype=np.int64), *(edge[:-1] for edge in edges)])
        ends_P = np.concatenate([np.empty(0, dtype=np.int64), *(edge[1:] for edge in edges)])
        documents_P = np.arange(len(rows_P)) + np.repeat(first_B - (np.cumsum(counts_B) - counts_B), counts_B)
        starts_P = np.maximum(begins_P, starts_B[rows_P])
        lengths_P = np.minimum(ends_P, ends_B[rows_P]) - starts_P
        real_P = lengths_P > 0  # a document of a foreign index may be empty
        return Pieces(
            rows_P=rows_P[real_P],
            columns_P=(starts_P - starts_B[rows_P])[real_P],
            lengths_P=lengths_P[real_P],
            documents_P=documents_P[real_P],
            offsets_P=(starts_P - begins_P)[real_P],
        )

    def samples_of(self, documents_K: NDArray[np.int64]) -> NDArray[np.int64]:
        """The windows that hold tokens of any of these documents; see `Samples.samples_of`."""
        starts_K, ends_K = document_edges(self.stream, documents_K)
        full_K = starts_K < ends_K
        starts_K, ends_K = starts_K[full_K], ends_K[full_K]
        first_K = np.maximum((starts_K - self.length) // self.stride + 1, 0)
        last_K = np.minimum((ends_K - 1) // self.stride, self.num_samples - 1)
        return ranges(first_K, last_K + 1)

    def advise(self, sample_ids_B: NDArray[np.int64]) -> None:
        """Say which windows are read next; never waits."""
        check_samples(sample_ids_B, self.num_samples)
        self.stream.advise(sample_ids_B * self.stride, self.num_real(sample_ids_B))


@lru_cache(maxsize=16)
def _full(num_rows: int, length: int) -> NDArray[np.int64]:
    lengths_B = np.full(num_rows, length, dtype=np.int64)
    lengths_B.setflags(write=False)
    return lengths_B
