"""Files whose bytes are held against their checksums, block by block, when they are first touched.

A flipped byte in token files is training data like any other to every reader that does not look. Here a block of
64 KiB is hashed once, the first time a byte of it is wanted, and never again.

Shapes: K blocks.
"""

from __future__ import annotations

import errno
import mmap
import resource
import stat
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NoReturn

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64, xxh3_64_intdigest

from launcher.errors import RequeueError, ShardError
from launcher.shards import faults

BLOCK_BYTES = 1 << 16
"""Smaller blocks cost a call more often, larger ones read more than a sample needs from a cold disk.
measured: 3 to 6 µs to hash one from memory, against 0.6 to 1 µs for a sample of 2,048 tokens, of which it holds 16."""
_SHIFT = 16
_UNCHECKED = b"\x00"
MADE_AGAIN = "make the shards again (pretrain prepare --overwrite, or adopt)"
FIX = f"restore the file, or {MADE_AGAIN}"
FREE_DESCRIPTORS = 256
"""Left to whoever else opens files and sockets (assumption)."""


def num_blocks(num_bytes: int) -> int:
    """K of a file of this size."""
    return -(-num_bytes // BLOCK_BYTES)


def block_sum(block: bytes | memoryview) -> int:
    """xxh3-64 of a block.

    Source: https://xxhash.com (a checksum against damage, not against malice).
    """
    return xxh3_64_intdigest(block)


class BlockHasher:
    """Checksums of a file's blocks while it is written."""

    def __init__(self) -> None:
        self.num_bytes = 0
        self._sums: list[int] = []
        self._open = xxh3_64()

    def update(self, written: bytes | memoryview) -> None:
        """Take in the next bytes of the file."""
        view = memoryview(written).cast("B")
        room = BLOCK_BYTES - self.num_bytes % BLOCK_BYTES
        self.num_bytes += len(view)
        while len(view) >= room:
            self._open.update(view[:room])
            self._sums.append(self._open.intdigest())
            self._open.reset()
            view, room = view[room:], BLOCK_BYTES
        self._open.update(view)

    def sums(self) -> NDArray[np.uint64]:
        """Checksums of all blocks, the last one as far as it goes, uint64 [K]."""
        last = [self._open.intdigest()] if self.num_bytes % BLOCK_BYTES else []
        return np.array([*self._sums, *last], dtype=np.uint64)


def file_sums(path: Path) -> NDArray[np.uint64]:
    """Checksums of a file's blocks, uint64 [K]; reads all of it."""
    hasher = BlockHasher()
    with path.open("rb") as file:
        while piece := file.read(BLOCK_BYTES * 64):
            hasher.update(piece)
    return hasher.sums()


class GuardedFile:
    """A file mapped into memory; `check` before reading from `bytes_`.

    Args:
        path: The file.
        num_bytes: The size it was written with.
        sums_K: Checksums of its blocks, uint64 [K].
        guard: Whether blocks are checked at all.

    Raises:
        ShardError: It is missing or has another size.
    """

    def __init__(self, path: Path, num_bytes: int, sums_K: NDArray[np.uint64], guard: bool) -> None:
        self.path = path
        self.num_bytes = num_bytes
        self._sums = memoryview(sums_K.data)  # gives Python's numbers: numpy's compare ten times as slowly
        # One byte a block: `find` over a range of them is a single call.
        self.checked = bytearray(num_blocks(num_bytes)) if guard else bytearray(b"\x01") * num_blocks(num_bytes)
        self.num_unchecked = self.checked.count(_UNCHECKED)
        """Blocks that nobody has checked yet: at 0, who is in a hurry need not ask."""
        self._counting = threading.Lock()
        check_size(path, num_bytes)
        self._map: mmap.mmap | None = None
        self.bytes_: memoryview = memoryview(b"")
        if num_bytes:  # an empty file cannot be mapped
            self._map = _map(path, num_bytes)
            # Samples are asked for in random order: what lies around one is not wanted next.
            self._map.madvise(mmap.MADV_RANDOM)
            self.bytes_ = memoryview(self._map)

    def array(self, dtype: np.dtype[np.generic], offset: int = 0, count: int = -1) -> NDArray[np.generic]:
        """A view of the bytes. A plain ndarray: a slice of an np.memmap costs ten times one of it."""
        return np.frombuffer(self.bytes_, dtype, count, offset) if self.num_bytes else np.empty(0, dtype)

    def check(self, start: int, stop: int) -> None:
        """Hold the blocks that hold bytes [start, stop) against their checksums, where nobody has yet.

        Raises:
            ShardError: A block is not what was written.
        """
        if self.num_unchecked and stop > start:
            first, last = start >> _SHIFT, (stop - 1) >> _SHIFT
            if self.checked.find(_UNCHECKED, first, last + 1) >= 0:
                self.check_blocks(first, last)

    def check_blocks(self, first: int, last: int) -> None:
        """Hold blocks first to last against their checksums, where nobody has yet.

        Raises:
            ShardError: A block is not what was written.
        """
        if last > first:  # a single block was announced by whoever is in a hurry, and asking again costs half its hash
            self.advise(first << _SHIFT, min((last + 1) << _SHIFT, self.num_bytes))
        for number in range(first, last + 1):
            if self.checked[number]:
                continue
            begin = number << _SHIFT
            if xxh3_64_intdigest(self.bytes_[begin : begin + BLOCK_BYTES]) != self._sums[number]:
                raise ShardError(damage([number]), str(self.path), FIX)
            with self._counting:  # a block that two threads hash at once counts once, or another would pass for checked
                self.num_unchecked -= not self.checked[number]
                self.checked[number] = 1

    def check_all(self) -> None:
        """Hold every block against its checksum.

        Raises:
            ShardError: A block is not what was written.
        """
        self.check(0, self.num_bytes)

    def advise(self, start: int, stop: int) -> None:
        """Ask the kernel to read bytes [start, stop) ahead; returns at once."""
        if self._map is not None and stop > start:
            # Whole blocks where they are still to be checked, whole pages otherwise.
            unit = BLOCK_BYTES if self.num_unchecked else mmap.PAGESIZE
            begin = start // unit * unit
            self._map.madvise(mmap.MADV_WILLNEED, begin, min(-(-stop // unit) * unit, self.num_bytes) - begin)

    def damaged_blocks(self) -> list[int]:
        """Numbers of the blocks that are not what was written."""
        with self.path.open("rb") as file:  # in order, so that the disk reads ahead
            return [number for number, expected in enumerate(self._sums) if _next_sum(file) != expected]


def damage(blocks: Sequence[int]) -> str:
    """What to say of blocks that are not what was written."""
    places = ", ".join(f"{number} (bytes {number * BLOCK_BYTES} on)" for number in blocks[:8])
    more = f" and {len(blocks) - 8} more" if len(blocks) > 8 else ""
    return f"the bytes are not those that were written: block {places}{more}"


def check_size(path: Path, num_bytes: int) -> None:
    """Hold a file's size against what was written.

    Raises:
        ShardError: It is missing, out of reach, or has another size.
    """
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise ShardError(f"a file of the shards is missing ({num_bytes} bytes)", str(path), FIX) from None
    except OSError as error:
        refuse_unreadable(error, path)
    if not stat.S_ISREG(found.st_mode):
        raise ShardError("there is something else where a file of the shards was", str(path), FIX)
    if found.st_size != num_bytes:
        raise ShardError(f"the file has {found.st_size} bytes, {num_bytes} were written", str(path), FIX)


def refuse_unreadable(error: OSError, path: Path) -> NoReturn:
    """Say what an error of the file system means of a file of the shards.

    Raises:
        RequeueError: It is of the place: another start may find it as it should be.
        ShardError: Any other.
    """
    if error.errno in faults.OF_PLACE:
        fix = "mend it; the same command goes on"
        raise RequeueError(f"the file system failed: {error.strerror}", str(path), fix) from None
    fix = FIX
    if error.errno in (errno.EACCES, errno.EPERM):
        fix = "let whoever trains read it (chmod a+r)"
    if error.errno == errno.EMFILE:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        fix = f"ask for a hard limit above {hard} (`ulimit -Hn`): a rank keeps every file of its shards open"
    if error.errno == errno.ENOMEM:
        fix = "raise vm.max_map_count (sysctl), or free memory: a rank keeps every file of its shards mapped"
    raise ShardError(f"the file cannot be read: {error.strerror}", str(path), fix) from None


def _map(path: Path, num_bytes: int) -> mmap.mmap:
    """Map a file.

    A mapping keeps a descriptor, and a corpus in 256 parts has 1,500 files, where most shells allow 1,024: the limit is
    raised on the way, as far as the system lets a process raise its own.
    """
    try:
        with path.open("rb") as file:
            _keep_descriptors_free(file.fileno())
            return mmap.mmap(file.fileno(), num_bytes, prot=mmap.PROT_READ)
    except OSError as error:
        refuse_unreadable(error, path)


def _keep_descriptors_free(newest: int) -> None:
    """Raise the limit of open files once the newest comes near to it: the lowest free number is always the next."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and newest + FREE_DESCRIPTORS >= soft:
        more = newest + 2 * FREE_DESCRIPTORS
        resource.setrlimit(resource.RLIMIT_NOFILE, (more if hard == resource.RLIM_INFINITY else min(more, hard), hard))


def _next_sum(file: BinaryIO) -> int:
    return block_sum(file.read(BLOCK_BYTES))
