"""Data sets of the Hugging Face hub, streamed: `hub:OWNER/NAME[/CONFIGURATION][@SPLIT]`, or `hub:./FOLDER[@SPLIT]`.

The prefix is asked for so that nothing reaches out by a mistyped path. What is in a data set is found out once, and its
revision with it: whoever reads a shard reads that one, so that nothing is mixed where the data set changes meanwhile.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import xxhash

from launcher.errors import CorpusError, LauncherError, RequeueError
from launcher.prepare.raw_files import COMPRESSIONS, READ_BYTES, Meter, Readable, decompressed, opened

HUB = "hub:"
_FORM = "write hub:OWNER/NAME, hub:OWNER/NAME/CONFIGURATION@SPLIT, or hub:./FOLDER"
_FIX = "see its name, configuration and split on the hub, and the network"
_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
_REVISION = re.compile(r"^(hf://datasets/[^@]+)@[^/]+/")
_TOO_MANY, _SERVER_ERROR = 429, 500
_LOOK_AT = 4096
"""Bytes that tell what a JSON file holds."""


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


def hub_shards(word: str) -> list[HubShard]:
    """The shards of a split in the order of its stream.

    Raises:
        CorpusError: There is no such data set, it cannot be reached or read, or the hub is not to be reached.
    """
    name = parse_hub_name(word)
    _split.cache_clear()  # of a folder that is another by now
    with _told(word):
        revision = None if name.is_local else _present_revision(name, word)
        split = _split(word, name, revision)
        num_shards = split.rows.num_shards
        if num_shards != len(split.files):  # what it is made of is its own business
            contents = [_content(file) for file in split.files]
            num_bytes = sum(size for size, _ in contents) // num_shards
            content = " ".join(name for _, name in contents)
            named = [f"{word} {number + 1} of {num_shards}" for number in range(num_shards)]
            return [HubShard(word, revision, one, n, num_shards, num_bytes, content) for n, one in enumerate(named)]
        return [
            HubShard(word, revision, file, number, num_shards, *_content(file))
            for number, file in enumerate(split.files)
        ]


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
        rows = _split_of(shard).rows.shard(shard.of, shard.number)
        if columns is not None and rows.column_names is not None and set(columns) <= set(rows.column_names):
            rows = rows.select_columns(list(columns))
        yield from rows


@contextmanager
def opened_array(shard: HubShard, meter: Meter) -> Iterator[Readable | None]:
    """The bytes of a file that holds one JSON array of objects, decompressed; None of any other.

    `datasets` reads such a file at once (measured, 5.2: 8 bytes of memory for each of its).

    Raises:
        CorpusError: It cannot be read.
        RequeueError: The connection was lost on the way, and did not come back.
    """
    with _told(shard.name), _reached(shard.name):
        if not _split_of(shard).is_plain_json:
            yield None
            return
        from datasets.utils.file_utils import xopen  # tries again when a connection is lost

        compression = COMPRESSIONS.get(Path(shard.name).suffix.lower())
        with xopen(shard.name, "rb") as file:
            start = decompressed(file, compression, Meter()).read(_LOOK_AT).lstrip()
        if start[:1] != b"[" or start[1:].lstrip()[:1] != b"{":
            yield None
            return
        with xopen(shard.name, "rb") as file:
            yield decompressed(file, compression, meter)


def content_digest(shard: HubShard) -> str | None:
    """xxh3-128, hexadecimal, of what tells a shard's bytes from others: their name on the hub, or of a folder the bytes
    themselves; None where nobody tells.
    """
    path = Path(shard.name)
    if shard.revision is None and path.is_file():
        meter = Meter()
        with opened(shard.name, None, meter) as file:
            while file.read(READ_BYTES):
                pass
        return meter.digest.hexdigest()
    return xxhash.xxh3_128_hexdigest(shard.content.encode()) if shard.content else None


@dataclass(frozen=True, slots=True)
class _Split:
    """A split as `datasets` has it."""

    rows: Any
    """Its `IterableDataset`."""
    files: tuple[str, ...]
    """Paths or URLs."""
    is_plain_json: bool
    """Whether files hold objects and nothing is to be done about them."""


@lru_cache(maxsize=8)
def _split(word: str, name: HubName, revision: str | None) -> _Split:
    """A split at a revision: once in a process, as it takes several questions to the hub."""
    import datasets

    builder = datasets.load_dataset_builder(name.repository, name.config, revision=revision)
    files = builder.config.data_files
    if not files:
        raise CorpusError("the data set is not made of files", word, _FIX)
    if name.split not in files:
        raise CorpusError(f"there is no split {name.split!r}", word, f"write @ and one of {', '.join(map(str, files))}")
    config = builder.config
    is_json = type(builder).__module__.startswith("datasets.packaged_modules.json.")
    return _Split(
        builder.as_streaming_dataset(split=name.split),
        tuple(map(str, files[name.split])),
        is_json and config.field is None and config.features is None and config.encoding == "utf-8",
    )


def _split_of(shard: HubShard) -> _Split:
    split = _split(shard.word, parse_hub_name(shard.word), shard.revision)
    is_file = shard.of == len(split.files)
    if split.rows.num_shards != shard.of or (is_file and split.files[shard.number] != shard.name):
        raise CorpusError("other files are there than a moment ago", shard.name, "run the same command again")
    return split


def _present_revision(name: HubName, word: str) -> str:
    refused = [key for key in _OFFLINE if os.environ.get(key, "").upper() in ("1", "ON", "YES", "TRUE")]
    if refused:
        raise CorpusError(
            f"the hub is not to be reached: {refused[0]} is set",
            word,
            "unset it, or download the data set and give its folder",
        )
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

    response = getattr(error, "response", None)
    if response is not None:
        return bool(response.status_code == _TOO_MANY or response.status_code >= _SERVER_ERROR)
    return isinstance(error, (ConnectionError, TimeoutError, HTTPError))


def _in_words(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
