"""Megatron's `.idx`: where each document of a `.bin` begins and how long it is.

Layout (Megatron-LM's MMapIndexedDataset, little-endian): 9 bytes magic | u64 version 1 | u8 dtype code |
u64 sequences | u64 documents + 1 | i32 lengths[] | i64 byte pointers[] | i64 document index[]. A document is one
sequence, or one sequence for each of its sentences.

Shapes: N sequences, D documents.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from launcher.errors import ShardError
from launcher.shards.blocks import FIX, GuardedFile

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
DTYPES: dict[int, np.dtype[np.generic]] = {4: np.dtype("<i4"), 8: np.dtype("<u2")}
CODES = {dtype: code for code, dtype in DTYPES.items()}
# Megatron-LM's limit (megatron/core/datasets/indexed_dataset.py): below it ids fit in 16 bits with room to spare.
SMALL_VOCABULARY = 65_500


@dataclass(frozen=True, slots=True)
class Header:
    """The first 34 bytes of an index."""

    dtype: np.dtype[np.generic]
    """Of the tokens in the `.bin`: uint16 or int32."""
    num_sequences: int
    """N."""
    num_documents: int
    """D."""

    @property
    def num_bytes(self) -> int:
        """Size of the whole index."""
        return HEADER.size + 12 * self.num_sequences + 8 * (self.num_documents + 1)


def token_dtype(vocab_size: int) -> np.dtype[np.generic]:
    """The smallest type the format has for ids below `vocab_size`."""
    return DTYPES[8] if vocab_size < SMALL_VOCABULARY else DTYPES[4]


def index_bytes(
    dtype: np.dtype[np.generic], lengths_N: NDArray[np.int32], sequences_D: NDArray[np.int32] | None = None
) -> bytes:
    """The index of a `.bin` whose sequences lie one after another.

    Args:
        dtype: Of the tokens.
        lengths_N: Tokens of each sequence, int32 [N].
        sequences_D: Sequences of each document, int32 [D]; without it, one each.
    """
    starts_N = np.zeros(len(lengths_N), dtype="<i8")
    np.cumsum(lengths_N[:-1], dtype=np.int64, out=starts_N[1:])
    counts_D = np.ones(len(lengths_N), dtype=np.int32) if sequences_D is None else sequences_D
    documents = np.zeros(len(counts_D) + 1, dtype="<i8")
    np.cumsum(counts_D, dtype=np.int64, out=documents[1:])
    header = HEADER.pack(MAGIC, VERSION, CODES[dtype], len(lengths_N), len(documents))
    return b"".join(
        (header, lengths_N.astype("<i4").tobytes(), (starts_N * dtype.itemsize).tobytes(), documents.tobytes())
    )


def read_header(raw: bytes | memoryview, path: Path) -> Header:
    """Read the head of an index.

    Raises:
        ShardError: It is no such index, or of a version or token type that is not read here.
    """
    if len(raw) < HEADER.size or bytes(raw[: len(MAGIC)]) != MAGIC:
        raise ShardError("this is no Megatron index (it does not begin with MMIDIDX)", str(path), FIX)
    _, version, code, num_sequences, num_marks = HEADER.unpack_from(raw)
    if version != VERSION or code not in DTYPES or num_marks < 1:
        raise ShardError(
            f"index version {version} with dtype code {code}: "
            f"this program reads version {VERSION} with 4 (int32) or 8 (uint16)",
            str(path),
            FIX,
        )
    return Header(DTYPES[code], num_sequences, num_marks - 1)


class Index:
    """The documents of a `.bin`; reads no more of the file than it is asked for.

    Args:
        file: The `.idx`, mapped.
        num_tokens: Of the `.bin`; what points outside of it is refused, whether blocks are checked or not.

    Raises:
        ShardError: It is no such index, is cut off, or is not what was written.
    """

    def __init__(self, file: GuardedFile, num_tokens: int) -> None:
        self._file = file
        self._num_tokens = num_tokens
        file.check(0, HEADER.size)
        self.header = header = read_header(file.bytes_, file.path)
        if header.num_bytes != file.num_bytes:
            what = f"the index has {file.num_bytes} bytes, its header says {header.num_bytes}"
            raise ShardError(what, str(file.path), FIX)
        num_sequences = header.num_sequences
        self._pointers_at = HEADER.size + 4 * num_sequences
        self._documents_at = self._pointers_at + 8 * num_sequences
        # Not aligned (34 bytes of header), so numpy would copy them whole to search or add: only elements and slices.
        self._lengths_N = file.array(np.dtype("<i4"), HEADER.size, num_sequences)
        self._pointers_N = file.array(np.dtype("<i8"), self._pointers_at, num_sequences)
        self._documents = file.array(np.dtype("<i8"), self._documents_at, header.num_documents + 1)

    @property
    def _itemsize(self) -> int:
        return self.header.dtype.itemsize

    def starts(self, first: int, last: int) -> NDArray[np.int64]:
        """First token of documents [first, last) and the token behind the last of them, int64 [last - first + 1].

        Raises:
            ShardError: Their entries are damaged.
        """
        marks = self._marks(first, last)
        starts: NDArray[np.int64] = self._sequence_starts(int(marks[0]), int(marks[-1]))[marks - marks[0]]
        return starts

    def sequences(self, document: int) -> NDArray[np.int64]:
        """First token of each sequence of a document and the token behind the last, int64 [N + 1]."""
        marks = self._marks(document, document + 1)
        return self._sequence_starts(int(marks[0]), int(marks[-1]))

    def all_sequences(self, first: int, last: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The sequences of documents [first, last): their starts and the token behind the last, int64 [N + 1]; and the
        first sequence of each document, counted from 0, and their number, int64 [last - first + 1].
        """
        marks = self._marks(first, last)
        return self._sequence_starts(int(marks[0]), int(marks[-1])), marks - marks[0]

    def document_at(self, token: int) -> int:
        """The document that holds a token of the `.bin`.

        Raises:
            ShardError: The index is damaged.
        """
        target = token * self._itemsize
        sequence = bisect_right(self._pointers_N, target) - 1  # probes blocks nobody has checked yet …
        if sequence >= 0:
            start, end = self._sequence_starts(sequence, sequence + 1)
            if start <= token < end:  # … and is held against one that is
                return self._document_of(sequence)
        self._file.check_all()
        raise ShardError(f"the index knows no document for token {token}", str(self._file.path), FIX)

    def _document_of(self, sequence: int) -> int:
        if self.header.num_documents == self.header.num_sequences:
            return sequence
        document = bisect_right(self._documents, sequence) - 1
        if 0 <= document < self.header.num_documents:
            first, last = self._marks(document, document + 1)
            if first <= sequence < last:
                return document
        self._file.check_all()
        raise ShardError(f"the index knows no document for sequence {sequence}", str(self._file.path), FIX)

    def _marks(self, first: int, last: int) -> NDArray[np.int64]:
        self._file.check(self._documents_at + 8 * first, self._documents_at + 8 * (last + 1))
        marks = self._documents[first : last + 1].astype(np.int64)
        self._refuse_outside(marks, self.header.num_sequences, f"document {first}")
        return marks

    def _sequence_starts(self, first: int, last: int) -> NDArray[np.int64]:
        """First token of sequences [first, last) and the token behind the last of them."""
        starts = np.zeros(last - first + 1, dtype=np.int64)
        if last > first:
            self._file.check(self._pointers_at + 8 * first, self._pointers_at + 8 * last)
            self._file.check(HEADER.size + 4 * (last - 1), HEADER.size + 4 * last)
            starts[:-1] = self._pointers_N[first:last]
            starts[:-1] //= self._itemsize
            starts[-1] = starts[-2] + int(self._lengths_N[last - 1])
            self._refuse_outside(starts, self._num_tokens, f"sequence {first}")
        elif first:
            starts[0] = self._sequence_starts(first - 1, first)[-1]
        return starts

    def _refuse_outside(self, places: NDArray[np.int64], end: int, where: str) -> None:
        """Raises ShardError where places do not ascend from 0 to `end`: only unchecked blocks can hold such."""
        if places[0] < 0 or places[-1] > end or (places[1:] < places[:-1]).any():
            what = f"the index points outside of its .bin, at {where} or behind it"
            raise ShardError(what, str(self._file.path), FIX)
