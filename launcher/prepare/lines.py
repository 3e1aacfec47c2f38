"""Lines of files: the stretch of bytes that holds those of a segment, and blocks cut into lines."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO

from launcher.errors import CorpusError
from launcher.prepare.raw_files import READ_BYTES, Meter, Readable, reading


class LineStretch:
    """The bytes of the lines that begin in [start, end): the last of them may reach beyond.

    Args:
        name: The file.
        num_bytes: Its size when it was listed.
        start: First byte in which a line may begin.
        end: One past the last.
        meter: Told what passes.

    Raises:
        CorpusError: The file cannot be read, or is of another size than it was.
    """

    def __init__(self, name: str, num_bytes: int, start: int, end: int, meter: Meter) -> None:
        self._name, self._num_bytes, self._start, self._end, self._meter = name, num_bytes, start, end, meter
        self._left = 0
        self._may_be_marked = start == 0

    def __enter__(self) -> LineStretch:
        with reading(self._name):
            self._file = Path(self._name).open("rb")
            size = self._file.seek(0, 2)
            if size != self._num_bytes:
                self._file.close()
                told = f"the file is {size} bytes long, and was {self._num_bytes} when it was listed"
                raise CorpusError(told, self._name, "let nothing write to it, and run the command again")
            start = line_start(self._file, self._start)
            self._left = line_start(self._file, self._end) - start
            self._file.seek(start)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def read(self, size: int, /) -> bytes:
        """The next bytes."""
        with reading(self._name):
            block = self._file.read(min(size, self._left))
        self._left -= len(block)
        self._meter.take(block)
        if self._may_be_marked and block:
            self._may_be_marked = False
            return block.removeprefix(BOM_UTF8) or self.read(size)
        return block


def line_start(file: IO[bytes], position: int) -> int:
    """Where the first line begins that begins at a byte or behind it."""
    if not position:
        return 0
    position = file.seek(position - 1)
    while part := file.readline(READ_BYTES):
        position += len(part)
        if part.endswith(b"\n"):
            break
    return position


def lines_before(name: str, position: int) -> int:
    """How many lines begin before a byte.

    Raises:
        CorpusError: The file cannot be read.
    """
    count = 0
    with reading(name), Path(name).open("rb") as file:
        left = line_start(file, position)
        file.seek(0)
        while left and (block := file.read(min(READ_BYTES, left))):
            count += block.count(b"\n")
            left -= len(block)
    return count


def line_lists(file: Readable) -> Iterator[list[bytes]]:
    """Lines without their ends, those of a block at a time: a call for each line costs as much as its JSON."""
    rest: list[bytes] = []
    while block := file.read(READ_BYTES):
        lines = block.split(b"\n")
        last = lines.pop()
        if lines:
            if rest:
                lines[0] = b"".join((*rest, lines[0]))
            rest = []
            yield lines
        if last:
            rest.append(last)
    if rest:
        yield [b"".join(rest)]
