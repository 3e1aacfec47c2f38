"""Records out of a stretch of a source, in order, with what it takes to find each again.

Memory does not grow with the source, but for a `.txt` that is one document. Nothing here imports torch or
transformers; pyarrow, ijson and datasets are imported by the reader that needs them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from decimal import Decimal
from types import TracebackType
from typing import Any, Literal, NamedTuple

import orjson

from launcher.errors import CorpusError, UsageError, did_you_mean
from launcher.prepare.hub import content_digest, hub_records, opened_json
from launcher.prepare.lines import LineStretch, line_lists, lines_before
from launcher.prepare.raw_files import READ_BYTES, Meter, Readable, not_utf8, opened
from launcher.prepare.sources import Segment, SourceFile, is_cut_by_lines
from launcher.prepare.tables import (
    arrow_records,
    arrow_rows_before,
    hash_arrow,
    hash_parquet,
    parquet_records,
    parquet_rows_before,
    whole_arrow_records,
)

_NOT_JSON = "mend or delete the line; a file holds one object a line, or is one array of objects"


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How records are read.

    Raises:
        UsageError: `txt` is none of its words.
    """

    text_field: str = "completion"
    """Field of a record that holds its text."""
    txt: Literal["file", "blank", "line"] = "file"
    """What is a document of a `.txt`: the file, what stands between blank lines, or a line."""
    columns: tuple[str, ...] | None = None
    """Columns of a table to read; None: all. Other sources are read as they are."""

    def __post_init__(self) -> None:
        if self.txt not in TEXTS:
            raise UsageError(f"a document of a text is no {self.txt!r}", "txt", did_you_mean(self.txt, TEXTS))


class Record(NamedTuple):
    """One record (a tuple: a frozen dataclass takes three times as long to make, a tenth of the reading)."""

    number: int
    """Line or record inside the segment, from 1."""
    fields: Any
    """What it holds: a dict, where all is well."""


class SegmentReader:
    """The records of a segment; a context manager to iterate over once.

    Args:
        source: The file.
        segment: The stretch of it.
        options: How records are read.

    Raises:
        CorpusError: While iterating: the file is missing, damaged, or no JSON; names file and record.
    """

    def __init__(self, source: SourceFile, segment: Segment, options: ReadOptions) -> None:
        self._source, self._segment, self._options = source, segment, options
        self._meter = Meter()
        self._records: Generator[Record, None, None] | None = None
        self._stream: Readable | None = None
        self._done = False

    def __enter__(self) -> SegmentReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._records is not None:
            self._records.close()  # it may hold a file

    def __iter__(self) -> Iterator[Record]:
        # Lines come straight from their reader: a generator around it costs a tenth of reading short ones.
        self._records = self._lines() if self._source.kind == "lines" else self._read()
        return self._records

    @property
    def num_rows(self) -> int:
        """Lines or records; until it is exhausted, of lines those of whole blocks."""
        return self._meter.num_rows

    @property
    def bytes_done(self) -> int:
        """Of the source as it lies on the disk, for progress."""
        return self._meter.bytes_done

    @property
    def xxh3(self) -> str | None:
        """xxh3-128 of the bytes the segment lies in, as they are on the disk (of a table: of the columns read), once it
        is exhausted; of a hub's see `content_digest`.
        """
        if not self._done:
            return None
        return self._meter.digest.hexdigest() if self._source.hub is None else content_digest(self._source.hub)

    def skim(self) -> None:
        """Read the bytes without looking into them: `xxh3` is as after reading, `num_rows` stays 0."""
        source, segment = self._source, self._segment
        if source.kind == "parquet":
            hash_parquet(source.name, segment.start, segment.end, self._options.columns, self._meter)
        elif source.kind == "arrow":
            hash_arrow(source.name, segment.start, None if source.num_units is None else segment.end, self._meter)
        elif source.hub is None:
            with self._opened(None) as file:
                while file.read(READ_BYTES):
                    pass
        self._done = True

    def where(self, record: Record) -> str:
        """The record's file and absolute number, for an error message; counts those before the segment."""
        return self._where(record.number)

    def _where(self, number: int) -> str:
        return f"{self._source.name}:{self._rows_before() + number}"

    def _rows_before(self) -> int:
        source, start = self._source, self._segment.start
        if source.kind == "parquet":
            return parquet_rows_before(source.name, start)
        if source.kind == "arrow":
            return arrow_rows_before(source.name, start)
        return lines_before(source.name, start) if start else 0

    def _read(self) -> Generator[Record, None, None]:
        yield from READERS[self._source.kind](self)
        self._done = True

    def _opened(self, compression: str | None) -> AbstractContextManager[Readable]:
        if self._stream is not None:
            return nullcontext(self._stream)
        source, segment = self._source, self._segment
        if is_cut_by_lines(source, self._options.txt):
            return LineStretch(source.name, source.num_bytes, segment.start, segment.end, self._meter)
        return opened(source.name, compression, self._meter)

    # The readers, one for each kind of source.

    def _lines(self) -> Generator[Record, None, None]:
        loads, record, meter = orjson.loads, tuple.__new__, self._meter  # Record(…) takes a third longer
        with self._opened(self._source.compression) as file:
            for lines in line_lists(file):
                for number, line in enumerate(lines, start=meter.num_rows + 1):
                    try:
                        fields = loads(line)
                    except orjson.JSONDecodeError as error:
                        if not line or line.isspace():
                            continue
                        fields = self._loads_other(line, number, error)
                    yield record(Record, (number, fields))
                meter.num_rows += len(lines)
        self._done = True

    def _loads_other(self, line: bytes, number: int, error: orjson.JSONDecodeError) -> Any:
        """What Python's own json writes and orjson refuses: NaN, and halves of surrogate pairs."""
        try:
            text = line.decode()
        except UnicodeDecodeError as wrong:
            raise not_utf8(self._where(number), wrong) from None
        try:
            return _with_characters(json.loads(text))
        except (ValueError, RecursionError):
            raise CorpusError(f"the line is not JSON: {error}", self._where(number), _NOT_JSON) from None

    def _array(self) -> Iterator[Record]:
        import ijson

        meter = self._meter
        with self._opened(self._source.compression) as file:
            try:
                for record in ijson.items(file, "item"):
                    meter.num_rows += 1
                    yield Record(meter.num_rows, _plain(record))
            except (ijson.JSONError, UnicodeDecodeError, RecursionError) as error:
                first = error.args[0]  # of ijson's sometimes the bytes around the place
                told = first.decode("utf-8", "replace") if isinstance(first, bytes) else str(error)
                raise CorpusError(
                    f"the array is not JSON after record {meter.num_rows}: {' '.join(told.split())}",
                    self._where(meter.num_rows + 1),
                    "mend the file; `python -m json.tool FILE` names the line",
                ) from None

    def _text(self) -> Iterator[Record]:
        with self._opened(self._source.compression) as file:
            for number, text in TEXTS[self._options.txt](file, self._meter):
                try:
                    yield Record(number, {self._options.text_field: text.decode()})
                except UnicodeDecodeError as error:
                    raise not_utf8(self._where(number), error) from None

    def _parquet(self) -> Iterator[Record]:
        segment = self._segment
        return self._numbered(
            parquet_records(self._source.name, segment.start, segment.end, self._options.columns, self._meter)
        )

    def _arrow(self) -> Iterator[Record]:
        name, segment, columns = self._source.name, self._segment, self._options.columns
        if self._source.num_units is None:
            return self._numbered(whole_arrow_records(name, columns, self._meter))
        return self._numbered(arrow_records(name, segment.start, segment.end, columns, self._meter))

    def _hub(self) -> Iterator[Record]:
        shard = self._source.hub
        if shard is None:
            raise ValueError(f"{self._source.name} is no shard of a hub's data set")
        with opened_json(shard, self._meter) as found:
            if found is not None:
                layout, self._stream = found
                yield from READERS[layout](self)
                return
        for number, fields in enumerate(hub_records(shard, self._options.columns), start=1):
            self._meter.num_rows = number
            yield Record(number, fields)
        self._meter.bytes_done = self._source.num_bytes  # how far it is on the way `datasets` does not tell

    def _numbered(self, records: Iterator[dict[str, Any]]) -> Iterator[Record]:
        for number, fields in enumerate(records, start=1):
            yield Record(number, fields)


READERS: dict[str, Callable[[SegmentReader], Iterator[Record]]] = {
    "lines": SegmentReader._lines,
    "array": SegmentReader._array,
    "text": SegmentReader._text,
    "parquet": SegmentReader._parquet,
    "arrow": SegmentReader._arrow,
    "hub": SegmentReader._hub,
}


def _texts_of_lines(file: Readable, meter: Meter) -> Iterator[tuple[int, bytes]]:
    for lines in line_lists(file):
        for line in lines:
            meter.num_rows += 1
            if line and not line.isspace():
                yield meter.num_rows, line.removesuffix(b"\r")


def _texts_between_blanks(file: Readable, meter: Meter) -> Iterator[tuple[int, bytes]]:
    block: list[bytes] = []
    for lines in line_lists(file):
        for line in lines:
            if line and not line.isspace():
                block.append(line.removesuffix(b"\r"))
            elif block:
                meter.num_rows += 1
                yield meter.num_rows, b"\n".join(block)
                block = []
    if block:
        meter.num_rows += 1
        yield meter.num_rows, b"\n".join(block)


def _whole_text(file: Readable, meter: Meter) -> Iterator[tuple[int, bytes]]:
    blocks = []
    while block := file.read(READ_BYTES):
        blocks.append(block)
    meter.num_rows = 1
    yield 1, b"".join(blocks).replace(b"\r\n", b"\n")


TEXTS: dict[str, Callable[[Readable, Meter], Iterator[tuple[int, bytes]]]] = {
    "file": _whole_text,
    "blank": _texts_between_blanks,
    "line": _texts_of_lines,
}


def _plain(value: Any) -> Any:
    """A record of ijson's as orjson gives it: its exact fractions are floats."""
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _with_characters(value: Any) -> Any:
    """A value of Python's json with a question mark for what is no character, as ijson gives it."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_with_characters(key): _with_characters(item) for key, item in value.items()}
    return [_with_characters(item) for item in value] if isinstance(value, list) else value
