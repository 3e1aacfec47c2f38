"""Parquet and arrow: records of stretches of row groups and record batches, and the bytes they lie in.

pyarrow is imported where a table is met, and only there. A record is a dict of Python values.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISREG
from typing import Any

from launcher.errors import CorpusError
from launcher.prepare.raw_files import READ_BYTES, Meter, damaged, mode_of, reading

ROWS = 1024
"""Rows of a parquet file turned into Python at once (assumption)."""
_MAGIC = b"ARROW1"
_MAGIC_BYTES = 8
_STATE, _DICT = "state.json", "dataset_dict.json"

Columns = Sequence[str] | None
"""Columns to read; None: all."""


# Parquet: a unit is a row group.


def num_row_groups(name: str) -> int:
    """Row groups of a parquet file.

    Raises:
        CorpusError: It is no sound parquet file.
    """
    with _parquet(name) as file:
        return int(file.num_row_groups)


def parquet_records(name: str, start: int, end: int, columns: Columns, meter: Meter) -> Iterator[dict[str, Any]]:
    """The records of row groups [start, end).

    Raises:
        CorpusError: The file cannot be read or is damaged.
    """
    with _parquet(name) as file:
        wanted = _wanted(file.schema_arrow.names, columns)
        for group in range(start, end):
            _hash_row_group(name, file.metadata.row_group(group), wanted, meter)
            for batch in file.iter_batches(ROWS, row_groups=[group], columns=wanted):
                yield from _records(name, batch, meter)


def parquet_rows_before(name: str, start: int) -> int:
    """Records before a row group."""
    with _parquet(name) as file:
        return sum(file.metadata.row_group(group).num_rows for group in range(start))


def hash_parquet(name: str, start: int, end: int, columns: Columns, meter: Meter) -> None:
    """Hash what `parquet_records` reads, and read no more than that."""
    with _parquet(name) as file:
        wanted = _wanted(file.schema_arrow.names, columns)
        for group in range(start, end):
            _hash_row_group(name, file.metadata.row_group(group), wanted, meter)


def _hash_row_group(name: str, group: Any, columns: list[str] | None, meter: Meter) -> None:
    """Hash the bytes of the columns that are read; progress counts the others too, as they need not be read."""
    done = meter.bytes_done
    with Path(name).open("rb") as file:
        for i in range(group.num_columns):
            column = group.column(i)
            if columns is not None and not _is_part_of(column.path_in_schema, columns):
                done += column.total_compressed_size
                continue
            start = min(column.dictionary_page_offset or column.data_page_offset, column.data_page_offset)
            _hash_stretch(file, start, column.total_compressed_size, meter)
            done += column.total_compressed_size
    meter.bytes_done = done


def _is_part_of(path: str, columns: list[str]) -> bool:
    """Whether bytes are of one of the columns; "a.b" is the name of one, or part b of a."""
    return any(path == column or path.startswith(f"{column}.") for column in columns)


@contextmanager
def _parquet(name: str) -> Iterator[Any]:
    from pyarrow import parquet

    # Pages have a checksum where whoever wrote them made one.
    with _sound(name), reading(name), parquet.ParquetFile(name, page_checksum_verification=True) as file:
        yield file


# Arrow: a unit is a record batch, counted through all files of a saved data set.


def is_saved_dataset(path: Path) -> bool:
    """Whether a folder was written by `save_to_disk` of the `datasets` library."""
    if S_ISREG(mode_of(path / _DICT)):
        return True
    return S_ISREG(mode_of(path / _STATE)) and S_ISREG(mode_of(path / "dataset_info.json"))


def saved_dataset(path: Path) -> Path:
    """The folder to read of a folder `save_to_disk` wrote: of several splits, the train split's.

    Raises:
        CorpusError: There is no such split.
    """
    if not (path / _DICT).is_file():
        return path
    splits = _json(path / _DICT).get("splits", [])
    if "train" not in splits:
        told = f"the saved data set has no train split, only {', '.join(splits) or 'an empty list of splits'}"
        raise CorpusError(told, str(path), f"give the folder of one of them, e.g. {path / (splits or ['train'])[0]}")
    return path / "train"


def arrow_files(name: str) -> list[Path]:
    """The files of a saved data set in their order, or the one file.

    Raises:
        CorpusError: The folder is not as `save_to_disk` leaves it.
    """
    path = Path(name)
    if not path.is_dir():
        return [path]
    state = _json(path / _STATE)
    if any("indices" in key and value for key, value in state.items()):
        # Versions of `datasets` from 2.0 on write rows as they are; today's ignores the key and would serve other rows.
        raise CorpusError(
            "the saved data set is a selection by index, which an old version of `datasets` wrote",
            str(path / _STATE),
            "load it with that version, call flatten_indices() and save it again",
        )
    try:
        return [path / entry["filename"] for entry in state["_data_files"]]
    except (KeyError, TypeError):
        raise damaged(str(path / _STATE), KeyError("it names no _data_files")) from None


def num_record_batches(name: str) -> int | None:
    """Record batches of an arrow file or saved data set; None where it can only be read from its beginning.

    Raises:
        CorpusError: It is no sound arrow file.
    """
    count = 0
    for file in arrow_files(name):
        for kind, _, _, _ in _messages(file):
            if kind == "dictionary":
                return None
            count += kind == "record batch"
    return count


def arrow_records(name: str, start: int, end: int, columns: Columns, meter: Meter) -> Iterator[dict[str, Any]]:
    """The records of record batches [start, end).

    Raises:
        CorpusError: A file cannot be read or is damaged.
    """
    for batch in _batches(name, start, end, meter):
        yield from _records(name, batch.select(_wanted(batch.schema.names, columns) or batch.schema.names), meter)


def whole_arrow_records(name: str, columns: Columns, meter: Meter) -> Iterator[dict[str, Any]]:
    """The records of files that can only be read from their beginning: values are given once and referred to."""
    import pyarrow as pa

    for path in arrow_files(name):
        with _mapped(path) as file:
            _hash_stretch(file, 0, file.size(), meter)
            _skip_magic(file)
            for batch in pa.ipc.open_stream(file):
                yield from _records(
                    name, batch.select(_wanted(batch.schema.names, columns) or batch.schema.names), meter
                )


def arrow_rows_before(name: str, start: int) -> int:
    """Records before a record batch."""
    return sum(batch.num_rows for batch in _batches(name, 0, start, Meter()))


def hash_arrow(name: str, start: int, end: int | None, meter: Meter) -> None:
    """Hash what `arrow_records`, or without an end `whole_arrow_records`, reads."""
    if end is not None:
        for _ in _batches(name, start, end, meter):
            pass
        return
    for path in arrow_files(name):
        with _mapped(path) as file:
            _hash_stretch(file, 0, file.size(), meter)


def _batches(name: str, start: int, end: int, meter: Meter) -> Iterator[Any]:
    """Record batches [start, end); of those before only the headers are looked at."""
    import pyarrow as pa

    count, schema = 0, None
    for path in arrow_files(name):
        with _mapped(path) as file:
            for kind, message, first, size in _messages(path):
                if kind == "schema":
                    schema = pa.ipc.read_schema(message)
                elif start <= count < end:
                    _hash_stretch(file, first, size, meter)
                    yield pa.ipc.read_record_batch(message, schema)
                count += kind == "record batch"
                if count >= end:
                    return


def _messages(path: Path) -> Iterator[tuple[str, Any, int, int]]:
    """Kind, message, first byte and bytes of each; nothing is read but their headers.

    `datasets` writes streams. Others write files: a stream between two marks, with an index at the end.
    """
    import pyarrow as pa

    with _mapped(path) as file:
        _skip_magic(file)
        reader = pa.ipc.MessageReader.open_stream(file)
        position = file.tell()
        while True:
            try:
                message = reader.read_next_message()
            except StopIteration:
                break
            yield message.type, message, position, file.tell() - position
            position = file.tell()
        if file.tell() == position:  # whoever completes a stream marks its end
            raise damaged(str(path), EOFError("the mark of the end is missing"))


def _skip_magic(file: Any) -> None:
    if file.read(len(_MAGIC)) == _MAGIC:
        file.seek(_MAGIC_BYTES)
    else:
        file.seek(0)


@contextmanager
def _mapped(path: Path) -> Iterator[Any]:
    import pyarrow as pa

    with _sound(str(path)), reading(str(path)), pa.memory_map(str(path)) as file:
        yield file


# Both.


@contextmanager
def _sound(name: str) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise damaged(name, error) from None


def _records(name: str, batch: Any, meter: Meter) -> Iterator[dict[str, Any]]:
    with _sound(name):  # text that is no UTF-8 shows itself when it becomes Python's
        rows = batch.to_pylist()
    for fields in rows:
        meter.num_rows += 1
        yield fields


def _wanted(names: Sequence[str], columns: Columns) -> list[str] | None:
    """The columns to read; all where one is missing, for the message that names those that are there."""
    return list(columns) if columns is not None and set(columns) <= set(names) else None


def _hash_stretch(file: Any, start: int, size: int, meter: Meter) -> None:
    file.seek(start)
    while size and (block := file.read(min(READ_BYTES, size))):
        meter.take(block)
        size -= len(block)


def _json(path: Path) -> dict[str, Any]:
    with reading(str(path)):
        try:
            tree = json.loads(path.read_bytes())
        except ValueError as error:
            raise damaged(str(path), error) from None
    if not isinstance(tree, dict):
        raise damaged(str(path), ValueError("it holds no object"))
    return tree
