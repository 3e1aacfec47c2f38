"""Reading shards: one stream of tokens over all shards of a split, memory-mapped, never loaded.

A shard is opened when the first of its tokens is wanted, and a block is held against its checksum when it is first
touched, so that opening a terabyte takes no longer than reading its manifest.

Shapes: B rows, L places of a row, N tokens, D documents.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xxhash
from numpy.typing import NDArray

from launcher.errors import ShardError, did_you_mean
from launcher.shards.blocks import BLOCK_BYTES, FIX, check_size
from launcher.shards.gather import OpenShard, gather
from launcher.shards.manifest import Manifest, read_checksums, read_manifest
from launcher.shards.origins import UNTOLD_HASH, Origin
from launcher.shards.shard import Shard

Verify = Literal["open", "touch", "off"]
"""When blocks are held against their checksums: all of them at opening, each when it is first touched, never."""


class Split:
    """The documents of a split, and the stream of tokens they make one after another.

    Args:
        folder: The shards' folder.
        name: `train` or `validation`.
        manifest: The folder's.
        verify: When blocks are checked. Sizes are checked in any case.

    Raises:
        ShardError: A file is missing or has another size, or the folder has no such split; with `verify` also where a
            block is not what was written, here or when it is touched.
    """

    def __init__(self, folder: Path, name: str, manifest: Manifest, verify: Verify = "touch") -> None:
        if name not in manifest.splits:
            raise ShardError(f"there is no split {name!r}", str(folder), did_you_mean(name, manifest.splits))
        self.folder = folder
        self.name = name
        self.manifest = manifest
        self.vocab_size = manifest.tokenizer.vocab_size
        self.has_words = manifest.words
        self.has_sentences = manifest.sentences
        stats = manifest.splits[name]
        self._entries = stats.shards
        self._sums = read_checksums(folder, manifest)
        self._guard = verify != "off"
        self._dtype = np.dtype(manifest.dtype).newbyteorder("<")
        self._shards: list[Shard | None] = [None] * len(self._entries)
        self._open: list[OpenShard | None] = [None] * len(self._entries)
        self._starts = np.cumsum([0, *(entry.num_tokens for entry in self._entries)], dtype=np.int64)
        self._token_starts: list[int] = self._starts.tolist()
        self._document_starts = np.cumsum([0, *(entry.num_documents for entry in self._entries)]).tolist()
        self.num_tokens: int = self._token_starts[-1]
        """Tokens of all documents, document ends included."""
        self.num_documents: int = self._document_starts[-1]
        """Documents of the split."""
        for entry in self._entries:
            for file in entry.files:
                check_size(folder / file.name, file.num_bytes)
        if verify == "open":
            for number in range(len(self._entries)):
                self._shard(number).check_all()

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of the tokens and of where documents begin."""
        digest = xxhash.xxh3_64()
        for entry in self._entries:
            for suffix in (".bin", ".idx"):
                file = entry.file(suffix)
                if file is not None:
                    digest.update(self._sums[file.name].tobytes())
        return digest.hexdigest()

    def read(self, start: int, out: NDArray[Any]) -> None:
        """Copy tokens [start, start + N) of the stream into `out`.

        Args:
            start: First token.
            out: Any integer type, [N], filled.

        Raises:
            IndexError: The range lies outside the stream.
            ShardError: A block of it is not what was written.
        """
        end = start + len(out)
        if start < 0 or end > self.num_tokens:
            raise IndexError(f"tokens {start} to {end} of {self.num_tokens}")
        number = bisect_right(self._token_starts, start) - 1
        if number < len(self._shards) and end <= self._token_starts[number + 1]:  # nearly always: half the price
            begin = self._token_starts[number]
            out[:] = (self._shards[number] or self._shard(number)).tokens(start - begin, end - begin)
            return
        done = 0
        for number, first, last in _stretches(self._token_starts, start, end):
            out[done : done + last - first] = self._shard(number).tokens(first, last)
            done += last - first

    def read_rows(self, starts_B: NDArray[np.int64], lengths_B: NDArray[np.int64], out_BL: NDArray[Any]) -> None:
        """Copy tokens [start, start + length) of the stream to the beginning of each row of `out_BL`.

        Args:
            starts_B: First token of each row, int64 [B].
            lengths_B: Tokens of each row, int64 [B].
            out_BL: Any integer type, [B, L]; what lies behind a row's tokens is left as it is.

        Raises:
            IndexError: A row lies outside the stream.
            ShardError: A block is not what was written.
        """
        for row_L, start, length in zip(out_BL, starts_B.tolist(), lengths_B.tolist(), strict=True):
            self.read(start, row_L[:length])

    def read_windows(self, windows_B: NDArray[np.int64], stride: int, out_BL: NDArray[Any]) -> bool:
        """Fill each row with a window of the stream: number `w` begins at token `w * stride` and fills the row.

        Args:
            windows_B: Number of the window of each row, int64 [B].
            stride: Tokens from the start of a window to the start of the next.
            out_BL: Any integer type, [B, L], filled.

        Returns:
            False where a window does not lie inside the stream; what the rows hold then is undefined.

        Raises:
            ShardError: A block is not what was written.
        """
        token_bytes, row = self._dtype.itemsize, 0
        while True:
            row = gather(out_BL, windows_B, stride, row, self._starts, self._open, token_bytes, BLOCK_BYTES)
            if row == len(windows_B):
                return True
            start = int(windows_B[row]) * stride
            if start < 0 or start + out_BL.shape[1] > self.num_tokens:
                return False
            self.read(start, out_BL[row])
            row += 1

    def read_words(self, start: int, out: NDArray[np.bool_]) -> None:
        """Which of the tokens [start, start + N) continue the word of the token before.

        Args:
            start: First token.
            out: bool [N], filled.

        Raises:
            IndexError: The range lies outside the stream.
            ShardError: The shards do not tell, or a block is not what was written.
        """
        end = start + len(out)
        if start < 0 or end > self.num_tokens:
            raise IndexError(f"tokens {start} to {end} of {self.num_tokens}")
        done = 0
        for number, first, last in _stretches(self._token_starts, start, end):
            out[done : done + last - first] = self._shard(number).words(first, last)
            done += last - first

    def document_starts(self, first: int, last: int) -> NDArray[np.int64]:
        """First token of each of the documents [first, last), and the token behind the last, int64 [D + 1].

        Raises:
            IndexError: There are no such documents.
            ShardError: A block of the index is not what was written.
        """
        if not 0 <= first <= last <= self.num_documents:
            raise IndexError(f"documents {first} to {last} of {self.num_documents}")
        if first == last:
            behind = np.array([self.num_tokens], dtype=np.int64)
            return behind if first == self.num_documents else self.document_starts(first, first + 1)[:1]
        parts = []
        for number, begin, end in _stretches(self._document_starts, first, last):
            parts.append(self._shard(number).index.starts(begin, end) + self._token_starts[number])
        return np.concatenate([*(part[:-1] for part in parts[:-1]), parts[-1]])

    def documents_at(self, tokens_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """The document that holds each of these tokens of the stream, int64 [N].

        Raises:
            IndexError: A token lies outside the stream.
            ShardError: The index is not what was written.
        """
        documents_N = np.empty(len(tokens_N), dtype=np.int64)
        for place, token in enumerate(tokens_N.tolist()):
            if not 0 <= token < self.num_tokens:
                raise IndexError(f"token {token} of {self.num_tokens}")
            number = bisect_right(self._token_starts, token) - 1
            inside = self._shard(number).index.document_at(token - self._token_starts[number])
            documents_N[place] = self._document_starts[number] + inside
        return documents_N

    def document(self, number: int) -> NDArray[np.int32]:
        """One document's tokens, int32 [N], its end token included.

        Raises:
            IndexError: There is no such document.
            ShardError: A block is not what was written.
        """
        start, end = self.document_starts(number, number + 1).tolist()
        tokens_N = np.empty(end - start, dtype=np.int32)
        self.read(start, tokens_N)
        return tokens_N

    def sequence_starts(self, document: int) -> NDArray[np.int64]:
        """First token of each sequence (sentence) of a document and the token behind the last, int64 [Q + 1].

        Raises:
            IndexError: There is no such document.
            ShardError: A block of the index is not what was written.
        """
        if not 0 <= document < self.num_documents:
            raise IndexError(f"document {document} of {self.num_documents}")
        number = bisect_right(self._document_starts, document) - 1
        starts = self._shard(number).index.sequences(document - self._document_starts[number])
        starts += self._token_starts[number]
        return starts

    def sequence_lengths(self, first: int, last: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """The sequences (sentences) of the documents [first, last).

        Returns:
            Tokens of each, int32 [Q], and how many of them each document has, int64 [D].

        Raises:
            IndexError: There are no such documents.
            ShardError: A block of the index is not what was written.
        """
        if not 0 <= first <= last <= self.num_documents:
            raise IndexError(f"documents {first} to {last} of {self.num_documents}")
        lengths, counts = [np.empty(0, dtype=np.int32)], [np.empty(0, dtype=np.int64)]
        for number, begin, end in _stretches(self._document_starts, first, last):
            starts, marks = self._shard(number).index.all_sequences(begin, end)
            lengths.append(np.diff(starts).astype(np.int32))
            counts.append(np.diff(marks))
        return np.concatenate(lengths), np.concatenate(counts)

    def origin(self, document: int) -> Origin:
        """Where a document came from.

        Raises:
            IndexError: There is no such document.
            ShardError: The shards do not tell, or a block is not what was written.
        """
        if not 0 <= document < self.num_documents:
            raise IndexError(f"document {document} of {self.num_documents}")
        number = bisect_right(self._document_starts, document) - 1
        entry = self._entries[number]
        record = self._origins(number, document - self._document_starts[number], 1)[0]
        segment = self.manifest.parts[entry.part][int(record["segment"])]
        return Origin(
            source=self.manifest.sources[segment.source].path,
            number=self.rows_before(entry.part, int(record["segment"])) + int(record["number"]),
            num_chars=int(record["num_chars"]),
            text_hash="" if (text_hash := bytes(record["text_hash"])) == UNTOLD_HASH else text_hash.hex(),
        )

    def origin_blocks(self) -> Iterator[tuple[int, int, NDArray[np.void]]]:
        """Of every shard: its first document, its part of the corpus, and the origins of its documents, ORIGIN [D]."""
        for number, entry in enumerate(self._entries):
            yield self._document_starts[number], entry.part, self._origins(number, 0, entry.num_documents)

    def _origins(self, number: int, first: int, count: int) -> NDArray[np.void]:
        """Of documents [first, first + count) of a shard, ORIGIN [D]; each of a segment that there is."""
        origins_D = self._shard(number).origins(first, count)
        num_segments = len(self.manifest.parts[self._entries[number].part])
        if (origins_D["segment"] >= num_segments).any():
            entry = self._entries[number].file(".docs")
            where = str(self.folder / entry.name) if entry else str(self.folder)
            what = f"a document is said to be of a segment that there is not, at document {first} or behind it"
            raise ShardError(what, where, FIX)
        return origins_D

    def advise(self, starts_B: NDArray[np.int64], lengths_B: NDArray[np.int64]) -> None:
        """Ask the kernel to read these rows ahead; returns at once."""
        for start, length in zip(starts_B.tolist(), lengths_B.tolist(), strict=True):
            number = bisect_right(self._token_starts, start) - 1
            if 0 <= number < len(self._entries):
                first = start - self._token_starts[number]
                self._shard(number).advise(first, min(first + length, self._entries[number].num_tokens))

    def rows_before(self, part: int, segment: int) -> int:
        """Rows of the same source in the segments before this one: what its numbers count on from."""
        return self._rows_before[part][segment]

    @cached_property
    def _rows_before(self) -> list[list[int]]:
        read = [0] * len(self.manifest.sources)
        before = []
        for part in self.manifest.parts:
            row = []
            for entry in part:
                row.append(read[entry.source])
                read[entry.source] += entry.num_rows
            before.append(row)
        return before

    def _shard(self, number: int) -> Shard:
        shard = self._shards[number]
        if shard is None:
            shard = Shard(self.folder, self._entries[number], self._sums, self._dtype, self._guard)
            self._shards[number] = shard
            self._open[number] = (shard.file.bytes_, shard.file.checked, shard.file.check_blocks)
        return shard


def _stretches(starts: list[int], first: int, last: int) -> Iterator[tuple[int, int, int]]:
    """The shards that hold [first, last) of the split, and which of their own that is.

    Args:
        starts: First token, or document, of each shard, and their number at the end.
        first: In the split.
        last: One past the last.
    """
    while first < last:
        number = bisect_right(starts, first) - 1
        begin, end = starts[number], min(last, starts[number + 1])
        yield number, first - begin, end - begin
        first = end


def open_split(folder: Path, name: str, verify: Verify = "touch") -> Split:
    """Open the `train` or `validation` documents of a folder of shards.

    Raises:
        ShardError: They are missing or damaged, or there is no such split.
    """
    return Split(folder, name, read_manifest(folder), verify)
