"""Documents out of files: JSONL, or one big JSON array, whatever the file is called."""

from __future__ import annotations

import glob
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ijson
import orjson

from launcher.errors import CorpusError, did_you_mean

SUFFIXES = (".json", ".jsonl")


@dataclass(frozen=True, slots=True)
class Document:
    """One text and where it came from."""

    text: str
    source: str
    """The file."""
    line: int
    """Line of a JSONL file, or number of the object in an array, from 1."""


def find_files(corpus: Sequence[str]) -> list[Path]:
    """The files that paths, folders and globs mean, each once, in the order given (folders and globs sorted).

    Raises:
        CorpusError: A path is not there, or a folder or glob holds no JSON.
    """
    files: list[Path] = []
    for word in corpus:
        path = Path(word)
        if path.is_dir():
            # Hidden ones are somebody's unfinished or own business: .building-…, .ipynb_checkpoints, .cache
            found = sorted(
                file
                for file in path.rglob("*")
                if file.suffix in SUFFIXES
                and file.is_file()
                and not any(part.startswith(".") for part in file.relative_to(path).parts)
            )
        elif path.is_file():
            found = [path]
        else:
            found = sorted(Path(name) for name in glob.glob(word, recursive=True) if Path(name).is_file())
        if not found:
            what = "the folder holds no *.json or *.jsonl" if path.is_dir() else "there is no such file"
            raise CorpusError(what, word, "give JSONL or JSON-array files, a folder of them, or a glob in quotes")
        files += found
    return list(dict.fromkeys(files))


def read_documents(files: Sequence[Path], text_field: str, counts: Counter[str]) -> Iterator[Document]:
    """Read every document, in order; memory does not grow with the files.

    Args:
        files: JSONL files, or files of one JSON array of objects (told apart by their first character).
        text_field: The field that holds the text.
        counts: Filled on the way: `read`, `kept`, and what was dropped: `empty` (blank text), `not_text` (no string).

    Raises:
        CorpusError: A record is no JSON, no object, or has no such field; the message names file and record.
    """
    for file in files:
        records = _array_records(file) if _is_array(file) else _line_records(file)
        for number, record in records:
            where = f"{file}:{number}"
            if not isinstance(record, dict):
                raise CorpusError(
                    f"the record is {_kind(record)}, not an object", where, f'write {{"{text_field}": "…"}}'
                )
            if text_field not in record:
                fix = f"{did_you_mean(text_field, record)} (--text-field)" if record else "delete the empty record"
                raise CorpusError(f"the record has no field {text_field!r}", where, fix)
            counts["read"] += 1
            text = record[text_field]
            if not isinstance(text, str):
                counts["not_text"] += 1
            elif not text.strip():
                counts["empty"] += 1
            else:
                counts["kept"] += 1
                yield Document(text, str(file), number)


def _open(file: Path) -> BinaryIO:
    try:
        opened = file.open("rb")
    except OSError as error:
        raise CorpusError(f"the file cannot be read: {error.strerror}", str(file), "see that it is there") from None
    if opened.read(len(BOM_UTF8)) != BOM_UTF8:
        opened.seek(0)
    return opened


def _is_array(file: Path) -> bool:
    with _open(file) as opened:
        while block := opened.read(4096):
            start = block.lstrip()
            if start:
                return start.startswith(b"[")
    return False


def _line_records(file: Path) -> Iterator[tuple[int, Any]]:
    with _open(file) as opened:
        for number, line in enumerate(opened, start=1):
            if not line.strip():
                continue
            try:
                yield number, orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise CorpusError(
                    f"the line is not JSON: {error}",
                    f"{file}:{number}",
                    "mend or delete the line; a file holds one object a line, or is one array of objects",
                ) from None


def _array_records(file: Path) -> Iterator[tuple[int, Any]]:
    number = 0
    with _open(file) as opened:
        try:
            for number, record in enumerate(ijson.items(opened, "item"), start=1):
                yield number, record
        except (ijson.JSONError, UnicodeDecodeError) as error:
            raise CorpusError(
                f"the array is not JSON after record {number}: {' '.join(str(error).split())}",
                f"{file}:{number + 1}",
                "mend the file; `python -m json.tool FILE` names the line",
            ) from None


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a string", int: "a number", float: "a number", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
