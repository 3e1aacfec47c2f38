"""What the rest of the program sees of samples, and what samples see of shards.

Shapes: B samples, L tokens of a row, N tokens, documents or anything else wanted, P pieces, K chosen documents.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from launcher.samples.order import SampleOrder
from launcher.samples.pieces import Pieces

Integers = NDArray[np.integer[Any]]

NEAR_DOCUMENTS = 4096
"""Documents whose edges are asked for at once where several of them are wanted: half a block of the index (assumption:
to read them costs no more than to ask once more, 16 µs)."""


class TokenStream(Protocol):
    """The tokens of a split, its documents end to end; a document's tokens include its end token."""

    @property
    def num_tokens(self) -> int:
        """Tokens in the stream."""
        ...

    @property
    def num_documents(self) -> int:
        """Documents in the stream."""
        ...

    @property
    def has_words(self) -> bool:
        """Whether it knows which tokens continue a word."""
        ...

    @property
    def fingerprint(self) -> str:
        """Of the tokens and where documents end."""
        ...

    def read(self, start: int, out: Integers) -> None:
        """Copy the tokens `[start, start + len(out))` into `out`."""
        ...

    def read_rows(self, starts_B: NDArray[np.int64], lengths_B: NDArray[np.int64], out_BL: Integers) -> None:
        """Copy `lengths_B[i]` tokens from `starts_B[i]` on to the beginning of row i; the rest of it stays."""
        ...

    def read_windows(self, windows_B: NDArray[np.int64], stride: int, out_BL: Integers) -> bool:
        """Fill each row, of at least one, with the tokens from `window * stride` on; False where some do not reach."""
        ...

    def read_words(self, start: int, out: NDArray[np.bool_]) -> None:
        """Whether each token from `start` on continues the word of the token before it."""
        ...

    def document_starts(self, first: int, last: int) -> NDArray[np.int64]:
        """Where the documents `[first, last)` begin in the stream, and where the last of them ends."""
        ...

    def documents_at(self, tokens_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """The document that holds each token of the stream, int64 [N]."""
        ...

    def advise(self, starts_B: NDArray[np.int64], lengths_B: NDArray[np.int64]) -> None:
        """Say which ranges are read next; never waits."""
        ...


class Samples(Protocol):
    """Rows of L tokens made of the documents of a split."""

    @property
    def stream(self) -> TokenStream:
        """Where the tokens come from."""
        ...

    @property
    def length(self) -> int:
        """Tokens of a row."""
        ...

    @property
    def fill(self) -> int:
        """Token id behind the real tokens of a row."""
        ...

    @property
    def num_samples(self) -> int:
        """How many there are."""
        ...

    @property
    def padding_share(self) -> float:
        """Share of the places of all rows that hold no token; may ask for the length of every document once."""
        ...

    @property
    def fingerprint(self) -> str:
        """16 hex digits of all but the tokens that decides which of them a sample holds."""
        ...

    def order(self, seed: int) -> SampleOrder:
        """The order that suits them.

        Raises:
            ShardError: There is no sample.
        """
        ...

    def read(self, sample_ids_B: NDArray[np.int64], out_BL: Integers) -> NDArray[np.int64]:
        """Fill a row with each of these samples, and with `fill` behind its tokens.

        Args:
            sample_ids_B: int64 [B], each in `range(num_samples)`.
            out_BL: Any integer type, [B, L].

        Returns:
            Real tokens of each row, int64 [B].

        Raises:
            IndexError: A sample lies outside `range(num_samples)`.
        """
        ...

    def read_words(self, sample_ids_B: NDArray[np.int64], out_BL: NDArray[np.bool_]) -> None:
        """Mark the tokens that continue the word of the token before them in the row; never the first of a piece."""
        ...

    def pieces(self, sample_ids_B: NDArray[np.int64]) -> Pieces:
        """Where documents begin and end in the rows of these samples."""
        ...

    def samples_of(self, documents_K: NDArray[np.int64]) -> NDArray[np.int64]:
        """The samples that hold tokens of any of these documents, ascending.

        Args:
            documents_K: Ascending.

        Raises:
            IndexError: There is no such document.
        """
        ...

    def advise(self, sample_ids_B: NDArray[np.int64]) -> None:
        """Say which samples are read next; never waits."""
        ...


def check_samples(sample_ids_B: NDArray[np.int64], num_samples: int) -> None:
    """Raises IndexError where a sample lies outside `range(num_samples)`."""
    if sample_ids_B.size and (sample_ids_B.min() < 0 or sample_ids_B.max() >= num_samples):
        raise IndexError(f"a sample lies outside range({num_samples})")


def check_documents(documents_K: NDArray[np.int64], num_documents: int) -> None:
    """Raises IndexError where a document does not exist."""
    outside = documents_K[(documents_K < 0) | (documents_K >= num_documents)]
    if outside.size:
        raise IndexError(f"document {outside[0]} of {num_documents}")


def document_edges(stream: TokenStream, documents_K: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where documents begin and end in the stream, int64 [K] each; those near to one another are asked for at once.

    Args:
        stream: Where they lie.
        documents_K: Ascending.

    Raises:
        IndexError: There is no such document.
    """
    check_documents(documents_K, stream.num_documents)
    edges_2K = np.empty((2, len(documents_K)), dtype=np.int64)
    cuts = np.flatnonzero(np.diff(documents_K // NEAR_DOCUMENTS)) + 1
    for group in np.split(np.arange(len(documents_K)), cuts) if len(documents_K) else ():
        near = documents_K[group]
        starts = stream.document_starts(int(near[0]), int(near[-1]) + 1)
        edges_2K[:, group] = starts[near - near[0]], starts[near - near[0] + 1]
    return edges_2K[0], edges_2K[1]


def ranges(first_K: NDArray[np.int64], last_K: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers that lie in any of the ranges [first, last), ascending."""
    counts_K = np.maximum(last_K - first_K, 0)
    before_K = np.cumsum(counts_K) - counts_K
    return np.unique(np.arange(int(counts_K.sum())) + np.repeat(first_K - before_K, counts_K))


def fill_behind(out_BL: Integers, lengths_B: NDArray[np.int64], fill: int) -> None:
    """Put `fill` behind the first `lengths_B[i]` tokens of each row."""
    width = out_BL.shape[1]
    for row, length in enumerate(lengths_B.tolist()):
        if length < width:
            out_BL[row, length:] = fill
