"""Files as bytes: opened, decompressed, hashed and measured on the way."""

from __future__ import annotations

import errno
import lzma
import os
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import xxhash

from launcher.errors import CorpusError

READ_BYTES = 4 << 20
"""Read at once (assumption: large against a system call, small against memory)."""
NOTHING_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd", ".xz": "xz"}


class Readable(Protocol):
    """Something that bytes come out of."""

    def read(self, size: int, /) -> bytes:
        """The next bytes, at most `size`; none at the end."""


@dataclass(slots=True)
class Meter:
    """What is told of a segment while it is read."""

    num_rows: int = 0
    """Lines or records begun."""
    bytes_done: int = 0
    """Of the source, as it lies on the disk."""
    digest: xxhash.xxh3_128 = field(default_factory=xxhash.xxh3_128)
    """Of these bytes."""

    def take(self, raw: bytes | memoryview) -> None:
        """Bytes of the source went by."""
        self.digest.update(raw)
        self.bytes_done += len(raw)


@contextmanager
def opened(name: str, compression: str | None, meter: Meter) -> Iterator[Readable]:
    """A file's bytes, decompressed and without the mark that some put before UTF-8.

    Raises:
        CorpusError: It cannot be opened, or, while it is read, is damaged or cut off.
    """
    with reading(name), Path(name).open("rb") as file:
        yield decompressed(file, compression, meter)


def decompressed(file: Readable, compression: str | None, meter: Meter) -> Readable:
    """What is in a file that is open, without the mark that some put before UTF-8.

    Args:
        file: Its bytes, from the first on.
        compression: Of `COMPRESSIONS`.
        meter: Told of the bytes of the file.
    """
    metered = _Metered(file, meter)
    return _Unmarked(metered if compression is None else _unpacked(metered, compression))


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Say in our words what goes wrong with the bytes of a file.

    Raises:
        CorpusError: It cannot be opened or read, is damaged or cut off.
    """
    try:
        yield
    except (OSError, EOFError, lzma.LZMAError) as error:
        if isinstance(error, OSError) and error.errno:  # the system's; a decompressor tells no number
            what = f"the file cannot be read: {os.strerror(error.errno)}"
            raise CorpusError(what, name, "see that it is there and may be read") from None
        raise damaged(name, error) from None


def mode_of(path: Path) -> int:
    """What stands under a name, as `stat` tells it; 0 where nothing does.

    Raises:
        CorpusError: The folder it would lie in may not be looked into.
    """
    try:
        return path.stat().st_mode
    except OSError as error:
        if error.errno in NOTHING_THERE:
            return 0
        what = f"the folder cannot be looked into: {error.strerror}"
        folder = path.resolve().parent if os.access(path.parent, os.X_OK) else path.parent  # or where a link leads
        raise CorpusError(what, str(folder), "see that it is there and may be read (chmod a+rx)") from None


def damaged(name: str, error: Exception) -> CorpusError:
    """What to say of a file that is no sound file of its kind."""
    told = " ".join(str(error).split())
    return CorpusError(
        f"the file is damaged or cut off, or its name is wrong: {told}", name, "fetch it again, or leave it out"
    )


def not_utf8(where: str, error: UnicodeDecodeError) -> CorpusError:
    """What to say of text in another encoding."""
    encoding = "UTF-16" if error.object[:2] in (BOM_UTF16_LE, BOM_UTF16_BE) else "GB18030"
    return CorpusError(
        f"the text is not UTF-8: {error.reason} at byte {error.start}",
        where,
        f"convert it: iconv -f {encoding} -t UTF-8 (if {encoding} is what it is in), or mend the place",
    )


def _unpacked(file: _Metered, compression: str) -> Readable:
    if compression == "xz":
        return _Xz(file)
    import pyarrow as pa

    stream: Readable = pa.CompressedInputStream(pa.PythonFile(file, mode="r"), compression)
    return stream


class _Xz:
    """The bytes of streams of xz, one behind the other.

    `lzma.LZMAFile` takes for the end of a file what stands behind a stream and is none: with a byte of a later stream's
    head flipped, all that follows would be left out without a word.
    """

    def __init__(self, file: Readable) -> None:
        self._file = file
        self._stream = lzma.LZMADecompressor(lzma.FORMAT_XZ)

    def read(self, size: int, /) -> bytes:
        """The next bytes."""
        while True:
            raw = b""
            if self._stream.eof:
                raw = self._stream.unused_data.lstrip(b"\0")  # with which a stream may be padded
                while not raw:
                    if not (block := self._file.read(READ_BYTES)):
                        return b""
                    raw = block.lstrip(b"\0")
                self._stream = lzma.LZMADecompressor(lzma.FORMAT_XZ)
            elif self._stream.needs_input and not (raw := self._file.read(READ_BYTES)):
                raise EOFError("it ends before its stream does")
            if block := self._stream.decompress(raw, size):
                return block


class _Metered:
    """A file that tells a meter what passes."""

    closed = False
    """Whether it is, as pyarrow asks: whoever opened it closes it, when nobody reads any more."""

    def __init__(self, file: Readable, meter: Meter) -> None:
        self._file, self._meter = file, meter

    def close(self) -> None:
        """Nothing: pyarrow closes what it reads from, and here whoever opened the file does."""

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        block = self._file.read(size)
        self._meter.take(block)
        return block


class _Unmarked:
    """Bytes without the byte order mark they may begin with."""

    def __init__(self, file: Readable) -> None:
        self._file = file
        self._begun = False

    def read(self, size: int, /) -> bytes:
        """The next bytes."""
        if not size:  # ijson asks for nothing to see what it would get
            return b""
        if self._begun:
            return self._file.read(size)
        self._begun = True
        start = self._file.read(max(size, len(BOM_UTF8)))
        return start.removeprefix(BOM_UTF8) or self._file.read(size)
