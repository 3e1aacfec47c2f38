"""The files of one shard, mapped into memory, each opened when it is first wanted.

Shapes: D documents.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from launcher.errors import ShardError
from launcher.shards.blocks import FIX, GuardedFile
from launcher.shards.index import Index
from launcher.shards.manifest import ShardEntry
from launcher.shards.origins import ORIGIN


class Shard:
    """The files of a shard, mapped."""

    def __init__(
        self,
        folder: Path,
        entry: ShardEntry,
        sums: dict[str, NDArray[np.uint64]],
        dtype: np.dtype[np.generic],
        guard: bool,
    ) -> None:
        self._folder, self._entry, self._sums, self._guard = folder, entry, sums, guard
        self.file = self._open(".bin")
        self.itemsize = dtype.itemsize
        if self.file.num_bytes != entry.num_tokens * dtype.itemsize:
            what = f"the file has {self.file.num_bytes} bytes, the manifest says {entry.num_tokens} {dtype.name} tokens"
            raise ShardError(what, str(self.file.path), FIX)
        self.array: NDArray[np.generic] = self.file.array(dtype)
        self._dtype = dtype

    def tokens(self, first: int, last: int) -> NDArray[np.generic]:
        """Tokens [first, last), fewer where the shard ends: a view."""
        self.check(first, last)
        return self.array[first:last]

    def check(self, first: int, last: int) -> None:
        """Hold the blocks of tokens [first, last), as far as the shard goes, against their checksums."""
        self.file.check(first * self.itemsize, min(last * self.itemsize, self.file.num_bytes))

    def advise(self, first: int, last: int) -> None:
        """Ask for tokens [first, last) to be read ahead."""
        self.file.advise(first * self.itemsize, last * self.itemsize)

    @cached_property
    def index(self) -> Index:
        """Where its documents begin."""
        file = self._open(".idx")
        index = Index(file, self._entry.num_tokens)
        header = index.header
        if header.dtype != self._dtype or header.num_documents != self._entry.num_documents:
            what = f"the index tells of {header.num_documents} documents of {header.dtype.name}, the manifest of others"
            raise ShardError(what, str(file.path), FIX)
        return index

    def words(self, first: int, last: int) -> NDArray[np.bool_]:
        """Whether each of the tokens [first, last) continues a word."""
        file = self._words_file
        start, end = first // 8, -(-last // 8)
        file.check(start, end)
        bits = np.unpackbits(np.frombuffer(file.bytes_[start:end], dtype=np.uint8), bitorder="little")
        return bits[first - 8 * start : last - 8 * start].view(np.bool_)

    def origins(self, first: int, count: int) -> NDArray[np.void]:
        """Origins of documents [first, first + count), ORIGIN [D]."""
        file = self._origins_file
        file.check(first * ORIGIN.itemsize, (first + count) * ORIGIN.itemsize)
        return file.array(ORIGIN)[first : first + count]  # type: ignore[return-value]

    def check_all(self) -> None:
        """Check every block of every file."""
        self.file.check_all()
        self.index  # noqa: B018  its header is read
        for entry in self._entry.files:
            if not entry.name.endswith(".bin"):
                self._open(entry.name[entry.name.rindex(".") :]).check_all()

    @cached_property
    def _words_file(self) -> GuardedFile:
        return self._open(".words")

    @cached_property
    def _origins_file(self) -> GuardedFile:
        return self._open(".docs")

    def _open(self, suffix: str) -> GuardedFile:
        entry = self._entry.file(suffix)
        if entry is None:
            fix = "prepare them with --words" if suffix == ".words" else FIX
            raise ShardError(f"the shards hold no {suffix} files", str(self._folder), fix)
        return GuardedFile(self._folder / entry.name, entry.num_bytes, self._sums[entry.name], self._guard)
