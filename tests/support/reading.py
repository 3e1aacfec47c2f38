"""Records and the layouts they are written in; a source read from its first record to its last, however it is cut."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from launcher.prepare.readers import ReadOptions, Record, SegmentReader
from launcher.prepare.sources import SourceFile, cut, find_sources

RECORDS: list[dict[str, Any]] = [
    {"completion": "一", "score": 1.5},
    {"completion": "  ", "score": 2},
    {"completion": None, "score": None},
    {"completion": "二\u2028三", "score": 1e300},
]


def read(path: Path | str, options: ReadOptions | None = None, part_bytes: int = 1 << 40) -> list[Record]:
    """Records of a source, cut into parts, with their numbers in the whole."""
    options = options or ReadOptions()
    sources = find_sources([str(path)])
    return [record for reader in readers(sources, options, part_bytes) for record in numbered(reader)]


def readers(sources: list[SourceFile], options: ReadOptions, part_bytes: int = 1 << 40) -> Iterator[SegmentReader]:
    for part in cut(sources, part_bytes, options.txt):
        for segment in part:
            yield SegmentReader(sources[segment.source], segment, options)


def numbered(reader: SegmentReader) -> list[Record]:
    with reader:
        return [Record(int(reader.where(record).rpartition(":")[2]), record.fields) for record in reader]


def texts(records: list[Record]) -> list[Any]:
    return [record.fields["completion"] for record in records]


def as_zstd(raw: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(raw)
    return bytes(sink.getvalue().to_pybytes())


def write_stream(path: Path, table: Any, rows: int = 2, compression: str | None = None) -> None:
    with pa.ipc.new_stream(path, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table, max_chunksize=rows)


def write_feather(path: Path, table: Any) -> None:
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


def write_dictionary(path: Path, table: Any) -> None:
    write_stream(path, table.set_column(0, "completion", table["completion"].dictionary_encode()))
