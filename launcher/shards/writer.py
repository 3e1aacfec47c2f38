"""Writing one shard: tokens as they come, the index and the rest when the last document is in.

Shapes: N tokens, D documents, Q sequences of one batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from launcher.shards.blocks import BlockHasher
from launcher.shards.faults import naming
from launcher.shards.index import index_bytes, token_dtype
from launcher.shards.manifest import FileEntry
from launcher.shards.origins import ORIGIN


@dataclass(frozen=True, slots=True, kw_only=True)
class Documents:
    """A batch of documents."""

    tokens_N: NDArray[np.int32]
    """Ids of all documents end to end, each document's end token included."""
    lengths_D: NDArray[np.int32]
    """Tokens of each document."""
    origins_D: NDArray[np.void]
    """Where each came from, ORIGIN."""
    continues_N: NDArray[np.bool_] | None = None
    """Whether a token continues the word of the token before it."""
    sequence_lengths_Q: NDArray[np.int32] | None = None
    """Tokens of each sequence, where a document has several."""
    sequences_D: NDArray[np.int32] | None = None
    """Sequences of each document, where it has several."""


class ShardWriter:
    """Appends documents to a shard; a context manager that completes it when it is left without an error.

    Args:
        stem: Path without suffix.
        vocab_size: Decides the token type: uint16 where it suffices.
        words: Whether `.words` is written; every batch must then tell.
    """

    def __init__(self, stem: Path, vocab_size: int, *, words: bool = False) -> None:
        self.num_documents = self.num_tokens = 0
        self.sums: dict[str, NDArray[np.uint64]] = {}
        """Checksums of the blocks of each file, uint64 [K]; complete when the shard is."""
        self._vocab_size = vocab_size
        self._dtype = token_dtype(vocab_size)
        self._lengths: list[NDArray[np.int32]] = []
        self._sequences: list[NDArray[np.int32]] = []
        self._stem = stem
        self._tokens = HashedFile(_with_suffix(stem, ".bin"))
        self._origins = HashedFile(_with_suffix(stem, ".docs"))
        self._words = HashedFile(_with_suffix(stem, ".words")) if words else None
        self._bits_left = np.empty(0, dtype=np.bool_)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        files = [file for file in (self._tokens, self._origins, self._words) if file is not None]
        if error is None:
            if self._words is not None:
                self._words.write(np.packbits(self._bits_left, bitorder="little").tobytes())
            index = HashedFile(_with_suffix(self._stem, ".idx"))
            index.write(self._index())
            files.insert(1, index)
        for file in files:
            file.close()
        self.sums = {file.path.name: file.hasher.sums() for file in files}

    def append(self, documents: Documents) -> None:
        """Add documents.

        Raises:
            ValueError: An id is not in the vocabulary (16 bits would wrap it into another token unseen), or what is
                told of the documents does not add up to them.
        """
        tokens_N = documents.tokens_N
        lengths = documents.lengths_D if documents.sequence_lengths_Q is None else documents.sequence_lengths_Q
        if len(tokens_N) and not 0 <= int(tokens_N.min()) <= int(tokens_N.max()) < self._vocab_size:
            raise ValueError(f"ids {tokens_N.min()} to {tokens_N.max()} in a vocabulary of {self._vocab_size}")
        if int(lengths.sum()) != len(tokens_N) or len(documents.origins_D) != len(documents.lengths_D):
            raise ValueError(f"{lengths.sum()} tokens of documents told, {len(tokens_N)} given")
        self._tokens.write(np.ascontiguousarray(tokens_N, self._dtype).data)
        self._origins.write(np.ascontiguousarray(documents.origins_D, ORIGIN).tobytes())
        if self._words is not None:
            if documents.continues_N is None or len(documents.continues_N) != len(tokens_N):
                raise ValueError("a batch does not tell which of its tokens continue a word")
            bits = np.concatenate([self._bits_left, documents.continues_N])
            whole = len(bits) // 8 * 8
            self._words.write(np.packbits(bits[:whole], bitorder="little").tobytes())
            self._bits_left = bits[whole:]
        self._lengths.append(np.asarray(lengths, dtype=np.int32))
        if documents.sequences_D is not None:
            self._sequences.append(documents.sequences_D)
        self.num_documents += len(documents.lengths_D)
        self.num_tokens += len(tokens_N)

    def files(self) -> tuple[FileEntry, ...]:
        """The files of the complete shard."""
        suffixes = (".bin", ".idx", ".docs", ".words")
        paths = [_with_suffix(self._stem, suffix) for suffix in suffixes]
        return tuple(FileEntry(name=p.name, num_bytes=p.stat().st_size) for p in paths if p.name in self.sums)

    def _index(self) -> bytes:
        lengths = np.concatenate([np.empty(0, np.int32), *self._lengths])
        return index_bytes(self._dtype, lengths, np.concatenate(self._sequences) if self._sequences else None)


class HashedFile:
    """A file that is hashed while it is written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.hasher = BlockHasher()
        self._file: BinaryIO = path.open("wb")

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        with naming(self.path):
            self._file.write(data)
        self.hasher.update(data)

    def close(self) -> None:
        """Close the file."""
        with naming(self.path):
            self._file.close()


def _with_suffix(stem: Path, suffix: str) -> Path:
    return stem.with_name(stem.name + suffix)
