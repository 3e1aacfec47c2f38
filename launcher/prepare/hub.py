"""Data sets of the Hugging Face hub, streamed: `hub:OWNER/NAME[/CONFIGURATION][@SPLIT]`, or `hub:./FOLDER[@SPLIT]`.

The prefix is asked for so that nothing reaches out by a mistyped path. What is in a data set is found out once, and its
revision with it: whoever reads a shard reads that one, so that nothing is mixed where the data set changes meanwhile.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import xxhash

from launcher.errors import CorpusError, LauncherError, RequeueError
from launcher.prepare.raw_files import COMPRESSIONS, READ_BYTES, Meter, Readable, decompressed, opened

HUB = "hub:"
JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
Layout = Literal["lines", "array"]
_FORM = "write hub:OWNER/NAME, hub:OWNER/NAME/CONFIGURATION@SPLIT, or hub:./FOLDER"
_FIX = "see its name, configuration and split on the hub, and the network"
_NO_ORDERS = {"name", "version", "data_dir", "data_files", "description"}
_REVISION = re.compile(r"^(hf://datasets/[^@]+)@[^/]+/")
_TOO_MANY, _SERVER_ERROR = 429, 500
_LOOK_AT = 1 << 16
"""Bytes read at once to tell how a JSON file is laid out (assumption: a line, mostly)."""


@dataclass(frozen=True, slots=True)
class HubName:
    """A data set of the hub, or a folder laid out like one."""

    repository: str
    """OWNER/NAME, or a folder."""
    config: str | None
    """Its configuration."""
    split: str
    """Its split."""
    is_local: bool
    """Whether it is a folder."""


@dataclass(frozen=True, slots=True)
class HubShard:
    """What `datasets` reads in one go of a split: a file of it."""

    word: str
    """`hub:…`, as it was given."""
    revision: str | None
    """The commit of the hub that is read; None of a folder."""
    name: str
    """The file, with its revision."""
    number: int
    """Which it is, from 0, in the order of the stream."""
    of: int
    """How many there are."""
    num_bytes: int
    """Its size; 0 where nobody tells."""
    content: str
    """What the hub calls its bytes by; of a file of a folder when it was written; empty where nobody tells."""
    orders: str = ""
    """How `datasets` is to read it, where a README says something of it: a field to look into, what parts columns."""
    is_json: bool = False
    """Whether it is a JSON file about which there are no orders."""


def parse_hub_name(word: str) -> HubName:
    """Understand `hub:…`.

    Raises:
        CorpusError: It is not written so, or names a folder that is not there.
    """
    name, at, split = word.removeprefix(HUB).partition("@")
    if at and not split:
        raise CorpusError("no split stands behind the @", word, _FORM)
    split = split or "train"
    if name.startswith((".", "/", "~")):
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise CorpusError("there is no such folder", word, _FORM)
        return HubName(str(folder.resolve()), None, split, is_local=True)
    words = name.split("/")
    if not all(words) or len(words) > 3:
        raise CorpusError("this names no data set", word, _FORM)
    return HubName("/".join(words[:2]), words[2] if len(words) == 3 else None, split, is_local=False)


def without_revision(name: str) -> str:
    """A shard's name without the commit: one that changed another file leaves this one as it was."""
    return _REVISION.sub(r"\1/", name)


def kept_offline_by(env: Mapping[str, str]) -> str:
    """The variable that says that the hub is not to be reached; empty where none does."""
    own = "HF_HUB_OFFLINE" if env.get("HF_HUB_OFFLINE") else "TRANSFORMERS_OFFLINE"  # as huggingface_hub has it
    keys = (own, "HF_DATASETS_OFFLINE")
    return next((key for key in keys if env.get(key, "").upper() in ("1", "ON", "YES", "TRUE")), "")


def hub_shards(word: str) -> list[HubShard]:
    """The shards of a split in the order of its stream.

    Raises:
        CorpusError: There is no such data set, it cannot be reached or read, or the hub is not to be reached.
        RequeueError: The hub has too much to do.
    """
    name = parse_hub_name(word)
    for cached in (_builder, _rows):  # of a folder that is another by now
        cached.cache_clear()
    with _told(word):
        revision = None if name.is_local else _present_revision(name, word)
        config = _builder(name, revision).config
        if not config.data_files:
            raise CorpusError("the data set is not made of files", word, _FIX)
        if name.split not in config.data_files:
            fix = f"write @ and one of {', '.join(map(str, config.data_files))}"
            raise CorpusError(f"there is no split {name.split!r}", word, fix)
        files, orders = _files(name, revision), _orders(config)
        is_json = not orders and type(config).__module__.startswith("datasets.packaged_modules.json.")
        num_shards = len(files) if is_json else _rows(name, revision).num_shards
        contents = [_content(file) for file in files]
        if num_shards == len(files):
            return [
                HubShard(
                    word, revision, file, number, num_shards, size, content, orders, is_json and _has_json_name(file)
                )
                for number, (file, (size, content)) in enumerate(zip(files, contents, strict=True))
            ]
        # What such a data set is made of is its own business.
        num_bytes, content = sum(size for size, _ in contents) // num_shards, " ".join(one for _, one in contents)
        named = [f"{word} {number + 1} of {num_shards}" for number in range(num_shards)]
        return [HubShard(word, revision, one, n, num_shards, num_bytes, content, orders) for n, one in enumerate(named)]


def hub_records(shard: HubShard, columns: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    """The records of a shard, one after another; none of them stays.

    Args:
        shard: Of `hub_shards`.
        columns: Columns wanted; None: all.

    Raises:
        CorpusError: It cannot be read, or the folder holds other files than it did.
        RequeueError: The connection was lost on the way, and did not come back.
    """
    with _told(shard.name), _reached(shard.name):
        rows = _rows_of(shard).shard(shard.of, shard.number)
        if columns is not None and rows.column_names is not None and set(columns) <= set(rows.column_names):
            rows = rows.select_columns(list(columns))
        yield from rows


@contextmanager
def opened_json(shard: HubShard, meter: Meter) -> Iterator[tuple[Layout, Readable] | None]:
    """How a JSON file is laid out, and its bytes, decompressed; None of any other, which is for `hub_records`.

    `datasets` holds an array at once (measured, 5.2: 8 bytes of memory for each of its), and refuses lines with other
    keys than the first file's.

    Raises:
        CorpusError: It cannot be read.
        RequeueError: The connection was lost on the way, and did not come back.
    """
    if not shard.is_json:
        yield None
        return
    with _told(shard.name), _reached(shard.name):
        from datasets.utils.file_utils import xopen  # tries again when a connection is lost

        with xopen(shard.name, "rb") as file:
            stream = decompressed(file, COMPRESSIONS.get(Path(shard.name).suffix.lower()), meter)
            start = _first_line(stream)
            layout = _layout(start)
            yield None if layout is None else (layout, _Begun(start, stream))


def _first_line(stream: Readable) -> bytes:
    """The bytes up to a first line that says something, and some more; of an endless one the beginning."""
    start = b""
    while len(start) < READ_BYTES and b"\n" not in start.lstrip():
        block = stream.read(_LOOK_AT)
        if not block:
            break
        start += block
    return start


def _layout(start: bytes) -> Layout | None:
    text = start.lstrip()
    if text[:1] == b"[":
        return "array" if text[1:].lstrip()[:1] in (b"{", b"") else None
    line, end, _ = text.partition(b"\n")
    if not end and len(start) >= READ_BYTES:  # as long as a book; an object over many lines has short ones
        return "lines" if line.startswith(b"{") else None
    try:
        json.loads(line)  # not orjson, which refuses NaN; the reader of lines takes it
    except (ValueError, RecursionError):
        return None if text else "lines"
    return "lines"


class _Begun:
    """A stream of which the beginning was read."""

    def __init__(self, start: bytes, stream: Readable) -> None:
        self._start, self._stream = start, stream

    def read(self, size: int, /) -> bytes:
        """The next bytes."""
        if not self._start:
            return self._stream.read(size)
        block, self._start = self._start[:size], self._start[size:]
        return block


def content_digest(shard: HubShard) -> str | None:
    """xxh3-128, hexadecimal, of what tells a shard's bytes from others: their name on the hub, or of a folder the bytes
    themselves; and of how they are read. None where nobody tells.
    """
    path = Path(shard.name)
    if shard.revision is None and path.is_file():
        meter = Meter()
        with opened(shard.name, None, meter) as file:
            while file.read(READ_BYTES):
                pass
        meter.digest.update(shard.orders.encode())
        return meter.digest.hexdigest()
    return xxhash.xxh3_128_hexdigest(f"{shard.content}{shard.orders}".encode()) if shard.content else None


@lru_cache(maxsize=8)
def _builder(name: HubName, revision: str | None) -> Any:
    """What `datasets` knows of a data set: once in a process, as it takes several questions to the hub."""
    import datasets

    return datasets.load_dataset_builder(name.repository, name.config, revision=revision)


@lru_cache(maxsize=8)
def _rows(name: HubName, revision: str | None) -> Any:
    """The `IterableDataset` of a split; its first file tells it the columns."""
    return _builder(name, revision).as_streaming_dataset(split=name.split)


def _files(name: HubName, revision: str | None) -> list[str]:
    return [str(file) for file in _builder(name, revision).config.data_files[name.split]]


def _rows_of(shard: HubShard) -> Any:
    name = parse_hub_name(shard.word)
    files, rows = _files(name, shard.revision), _rows(name, shard.revision)
    if rows.num_shards != shard.of or (shard.of == len(files) and files[shard.number] != shard.name):
        raise CorpusError("other files are there than a moment ago", shard.name, "run the same command again")
    return rows


def _orders(config: Any) -> str:
    """What a configuration says that it does not by itself, but for which files there are."""
    told, own = ({field.name: getattr(one, field.name) for field in fields(one)} for one in (config, type(config)()))
    orders = {key: told[key] for key in sorted(told.keys() - _NO_ORDERS) if repr(told[key]) != repr(own[key])}
    return repr(orders) if orders else ""


def _has_json_name(file: str) -> bool:
    path = Path(file)
    return (Path(path.stem) if path.suffix.lower() in COMPRESSIONS else path).suffix.lower() in JSON_SUFFIXES


def _refuse_unreachable(word: str) -> None:
    if key := kept_offline_by(os.environ):
        fix = "unset it, or download the data set and give its folder"
        raise CorpusError(f"the hub is not to be reached: {key} is set", word, fix)
    endpoint = os.environ.get("HF_ENDPOINT", "")
    if endpoint.endswith("/"):
        told = f"`datasets` finds nothing at an address that ends with a slash: HF_ENDPOINT is {endpoint}"
        raise CorpusError(told, word, f"HF_ENDPOINT={endpoint.rstrip('/')}")


def _present_revision(name: HubName, word: str) -> str:
    _refuse_unreachable(word)
    import datasets
    from huggingface_hub import HfApi

    return str(HfApi(endpoint=datasets.config.HF_ENDPOINT).dataset_info(name.repository).sha)


def _content(file: str) -> tuple[int, str]:
    """Size of a file, and what tells its bytes from others."""
    if "://" not in file:
        state = Path(file).stat()
        return state.st_size, str(state.st_mtime_ns)
    import datasets
    from fsspec.core import url_to_fs

    # As `datasets` asks for it, so that the list of files it has got is looked into, and the hub not asked for each.
    options = {"endpoint": datasets.config.HF_ENDPOINT, "token": None} if file.startswith("hf://") else {}
    system, path = url_to_fs(file, **options)
    told = system.info(path)
    lfs = told.get("lfs")
    names = (lfs.sha256 if lfs else None, told.get("blob_id"), told.get("ETag"), told.get("etag"))
    return int(told.get("size") or 0), next((str(name) for name in names if name), "")


@contextmanager
def _told(where: str) -> Iterator[None]:
    """Say in our words what goes wrong: of datasets, huggingface_hub, fsspec, httpx, pandas, pyarrow, which have no
    error in common.
    """
    try:
        yield
    except LauncherError:
        raise
    except Exception as error:
        if _is_busy(error):
            told = f"the hub cannot answer now: {_in_words(error)}"
            raise RequeueError(told, where, "run the same command again, in a while") from None
        raise CorpusError(f"the data set cannot be read: {_in_words(error)}", where, _FIX) from None


@contextmanager
def _reached(where: str) -> Iterator[None]:
    """Say that it is worth to begin again where a connection is lost that was there."""
    try:
        yield
    except Exception as error:
        if not _is_lost(error):
            raise
        raise RequeueError(
            f"the connection was lost, and did not come back: {_in_words(error)}",
            where,
            "run the same command again: the parts that are finished are kept",
        ) from None


def _is_lost(error: BaseException) -> bool:
    from huggingface_hub.errors import HTTPError  # of the library it reaches out by, whichever that is

    if getattr(error, "response", None) is not None:
        return _is_busy(error)
    return isinstance(error, (ConnectionError, TimeoutError, HTTPError))


def _is_busy(error: BaseException) -> bool:
    """Whether the hub has answered, and will answer otherwise later."""
    status = getattr(getattr(error, "response", None), "status_code", 0)
    return bool(status == _TOO_MANY or status >= _SERVER_ERROR)


def _in_words(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
