"""Megatron's `.idx`: where each document of a `.bin` begins and how long it is.

Layout (Megatron-LM's MMapIndexedDataset, little-endian): 9 bytes magic | u64 version 1 | u8 dtype code |
u64 sequences | u64 documents + 1 | i32 lengths[] | i64 byte pointers[] | i64 document index[]. Shards written here hold
one sequence a document, so the document index is 0, 1, 2, …

Shapes: N sequences, D documents.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from launcher.errors import ShardError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
DTYPES: dict[int, np.dtype[np.generic]] = {4: np.dtype("<i4"), 8: np.dtype("<u2")}
CODES = {dtype: code for code, dtype in DTYPES.items()}
# Megatron-LM's limit (megatron/core/datasets/indexed_dataset.py): below it ids fit in 16 bits with room to spare.
SMALL_VOCABULARY = 65_500


@dataclass(frozen=True, slots=True)
class Index:
    """A read index."""

    dtype: np.dtype[np.generic]
    """Of the tokens in the `.bin`: uint16 or int32."""
    lengths_N: NDArray[np.int32]
    """Tokens of each sequence."""
    pointers_N: NDArray[np.int64]
    """Byte at which each sequence begins."""
    document_index: NDArray[np.int64]
    """First sequence of each document, and one past the last: int64 [D + 1]."""

    @property
    def num_documents(self) -> int:
        """D."""
        return len(self.document_index) - 1

    @property
    def num_tokens(self) -> int:
        """Of all sequences."""
        return int(self.lengths_N.sum(dtype=np.int64))


def token_dtype(vocab_size: int) -> np.dtype[np.generic]:
    """The smallest type the format has for ids below `vocab_size`."""
    return DTYPES[8] if vocab_size < SMALL_VOCABULARY else DTYPES[4]


def write_index(path: Path, dtype: np.dtype[np.generic], lengths_N: NDArray[np.int32]) -> None:
    """Write the index of a `.bin` whose documents lie one after another.

    Args:
        path: File to write.
        dtype: Of the tokens.
        lengths_N: Tokens of each document, int32 [N].
    """
    ends_N = np.cumsum(lengths_N, dtype=np.int64) * dtype.itemsize
    pointers_N = np.concatenate([np.zeros(1, dtype=np.int64), ends_N[:-1]]) if len(lengths_N) else ends_N
    with path.open("wb") as file:
        file.write(HEADER.pack(MAGIC, VERSION, CODES[dtype], len(lengths_N), len(lengths_N) + 1))
        file.write(lengths_N.astype("<i4").tobytes())
        file.write(pointers_N.astype("<i8").tobytes())
        file.write(np.arange(len(lengths_N) + 1, dtype="<i8").tobytes())


def read_index(path: Path, bin_bytes: int) -> Index:
    """Read an index and hold it against the `.bin` beside it.

    Args:
        path: The `.idx`.
        bin_bytes: Size of the `.bin`.

    Raises:
        ShardError: It is no such index, is cut off, or points outside the `.bin`.
    """
    fix = "restore the file, or prepare the shards again"
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ShardError(f"the index cannot be read: {error.strerror}", str(path), fix) from None
    if len(raw) < HEADER.size or not raw.startswith(MAGIC):
        raise ShardError("this is no Megatron index (it does not begin with MMIDIDX)", str(path), fix)
    _, version, code, num_sequences, num_marks = HEADER.unpack_from(raw)
    if version != VERSION or code not in DTYPES:
        raise ShardError(
            f"index version {version} with dtype code {code}: "
            f"this program reads version {VERSION} with 4 (int32) or 8 (uint16)",
            str(path),
            fix,
        )
    expected = HEADER.size + 12 * num_sequences + 8 * num_marks
    if len(raw) != expected:
        raise ShardError(f"the index has {len(raw)} bytes, its header says {expected}", str(path), fix)
    lengths_N = np.frombuffer(raw, "<i4", num_sequences, HEADER.size)
    pointers_N = np.frombuffer(raw, "<i8", num_sequences, HEADER.size + 4 * num_sequences)
    document_index = np.frombuffer(raw, "<i8", num_marks, HEADER.size + 12 * num_sequences)
    ends_N = pointers_N + lengths_N.astype(np.int64) * DTYPES[code].itemsize
    marks_in_order = num_marks > 0 and document_index[0] == 0 and document_index[-1] == num_sequences
    if not marks_in_order or bool(np.any(np.diff(document_index) < 0)):
        raise ShardError(f"the document index does not run from 0 to its {num_sequences} sequences", str(path), fix)
    if num_sequences and (lengths_N.min() < 0 or pointers_N.min() < 0 or ends_N.max() > bin_bytes):
        raise ShardError(f"the index points outside the {bin_bytes} bytes of its .bin", str(path), fix)
    return Index(DTYPES[code], lengths_N, pointers_N, document_index)
