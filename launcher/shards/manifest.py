"""`manifest.json`: what a folder of shards holds, made from what, by which tokenizer.

The manifest holds a checksum of itself, of the tokenizer, and of `checksums.xxh3`, which holds one of every block of
every other file: nothing in the folder can change unseen.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import xxhash
from numpy.typing import NDArray

from launcher.errors import ShardError
from launcher.shards.blocks import FIX, MADE_AGAIN, check_size, num_blocks, refuse_unreadable
from launcher.shards.faults import naming

FORMAT_VERSION = 3
MANIFEST = "manifest.json"
CHECKSUMS = "checksums.xxh3"
SPLITS = ("train", "validation")
_SELF = "xxh3"


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecialTokens:
    """Ids of the tokens that mean something to an objective; None where the tokenizer has none."""

    pad: int | None
    """Fills a row behind its text."""
    unk: int | None
    """Stands for what the vocabulary lacks."""
    cls: int | None
    """Begins a row of a masked model."""
    sep: int | None
    """Ends a row of a masked model."""
    mask: int | None
    """Hides a token."""
    bos: int | None
    """Begins a text."""
    eos: int | None
    """Ends a text."""
    sentinels: tuple[int, ...]
    """`<extra_id_0>`, `<extra_id_1>`, … in that order."""
    all_ids: tuple[int, ...]
    """Every special token: never masked, never drawn at random."""
    document_end: int
    """Stands after each document: eos, or sep, or bos."""
    fim_prefix: int | None = None
    """Stands before the beginning of a text whose middle is to be filled in."""
    fim_middle: int | None = None
    """Stands before the middle."""
    fim_suffix: int | None = None
    """Stands before the end of the text."""
    modes: tuple[int, ...] = ()
    """UL2's R, S and X, in that order; all of them or none."""

    @property
    def row_begin(self) -> int | None:
        """Begins a row of a masked model: cls, or the beginning of a text as RoBERTa has it."""
        return self.bos if self.cls is None else self.cls

    @property
    def row_end(self) -> int | None:
        """Ends a row of a masked model: sep, or the end of a text as RoBERTa has it."""
        return self.eos if self.sep is None else self.sep


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerInfo:
    """The tokenizer that made the ids."""

    sha256: str
    """Of its canonical JSON: two tokenizers with the same give the same ids."""
    vocab_size: int
    """Number of ids, added tokens included."""
    name: str
    """Of its folder."""
    special: SpecialTokens
    """Its special tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file of a shard."""

    name: str
    """Inside the folder."""
    num_bytes: int
    """Size of the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardEntry:
    """The documents of one part of the corpus that fell into a split."""

    part: int
    """Index into `Manifest.parts`."""
    num_documents: int
    """Documents in the shard."""
    num_tokens: int
    """Document ends included."""
    files: tuple[FileEntry, ...]
    """`.bin`, `.idx`, `.docs` and, where words are marked, `.words`."""

    def file(self, suffix: str) -> FileEntry | None:
        """The file with this suffix, if the shard has one."""
        return next((entry for entry in self.files if entry.name.endswith(suffix)), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitStats:
    """Training or validation documents."""

    num_documents: int
    """Documents in the split."""
    num_tokens: int
    """Document ends included."""
    text_bytes: int
    """Of their text in UTF-8; 0 where only tokens are known (adopted shards)."""
    unigram_entropy: float
    """Of the split's own tokens without document ends, nats a token: what guessing by frequency alone cannot beat."""
    shards: tuple[ShardEntry, ...]
    """In the order of the stream."""
    num_unknown: int = 0
    """Tokens that are the unknown token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One file of the corpus."""

    path: str
    """As it was given."""
    num_bytes: int
    """Size of the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentEntry:
    """A stretch of a source that one process read."""

    source: int
    """Index into `Manifest.sources`."""
    start: int
    """First byte, row group or record batch."""
    end: int
    """One past the last."""
    num_rows: int
    """Lines or records in it."""
    xxh3: str | None
    """xxh3-128 of its bytes, hexadecimal; None where they never lay in a file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything about a folder of shards."""

    format_version: int
    """FORMAT_VERSION of the program that wrote it."""
    launcher_version: str
    """Of that program."""
    fingerprint: str
    """Of all that decides the shards: corpus, tokenizer, settings."""
    dtype: str
    """`uint16` or `int32`."""
    tokenizer: TokenizerInfo
    """What made the ids; a copy of it lies in `tokenizer/`."""
    encoder: str
    """The program that made the ids, and why it was trusted to."""
    words: bool
    """Whether `.words` tells which tokens continue a word."""
    sentences: bool
    """Whether a document has a sequence for each of its sentences."""
    splits: dict[str, SplitStats]
    """`train` and `validation`."""
    sources: tuple[Source, ...]
    """The corpus."""
    parts: tuple[tuple[SegmentEntry, ...], ...]
    """What was read in one go, shard by shard."""
    filters: dict[str, int]
    """Records `read`, `kept`, and dropped by reason: `empty`, `not_text`, …"""
    settings: dict[str, Any]
    """What the user chose: text field, share held out, filters."""
    segmenter: str = ""
    """The program that cut Chinese into words; empty where words are not marked."""
    tokenizer_files: dict[str, str] = field(default_factory=dict)
    """xxh3-128 of the files of `tokenizer/`, by name."""
    checksums_xxh3: str = ""
    """xxh3-128 of `checksums.xxh3`, hexadecimal."""

    def files(self) -> Iterator[FileEntry]:
        """Every file that `checksums.xxh3` covers, in its order."""
        for name in SPLITS:
            for shard in self.splits[name].shards:
                yield from shard.files


def complete_folder(folder: Path, manifest: Manifest, sums: Mapping[str, NDArray[np.uint64]]) -> Manifest:
    """Write `checksums.xxh3`, and `manifest.json` last: with it a folder of files is a folder of shards.

    No time stands in them, so that a rebuild is byte-identical.

    Args:
        folder: Holds the shards and `tokenizer/`.
        manifest: All but `tokenizer_files` and `checksums_xxh3`, which are filled in.
        sums: Checksums of the blocks of every file, uint64 [K] by its name.

    Returns:
        The manifest as it was written.
    """
    checksums = b"".join(sums[entry.name].astype("<u8").tobytes() for entry in manifest.files())
    _write_at_once(folder / CHECKSUMS, checksums)
    manifest = replace(
        manifest,
        tokenizer_files={path.name: checksum(path) for path in sorted((folder / "tokenizer").iterdir())},
        checksums_xxh3=xxhash.xxh3_128_hexdigest(checksums),
    )
    fields = asdict(manifest)
    text = json.dumps({**fields, _SELF: _own_checksum(fields)}, ensure_ascii=False, indent=1)
    _write_at_once(folder / MANIFEST, (text + "\n").encode())
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Read `manifest.json`.

    Raises:
        ShardError: There are no shards here, or the manifest is damaged or of another version.
    """
    path = folder / MANIFEST
    try:
        raw = path.read_bytes()
        fields = orjson.loads(raw)
    except (FileNotFoundError, NotADirectoryError):
        if any(folder.glob("*.bin")):
            raise ShardError("the manifest is missing beside files of shards", str(path), MADE_AGAIN) from None
        command = f"pretrain prepare CORPUS --tokenizer DIR --out {folder}"
        raise ShardError("there are no shards here", str(folder), command) from None
    except OSError as error:
        refuse_unreadable(error, path)
    except ValueError as error:
        raise ShardError(f"the manifest cannot be read: {error}", str(path), MADE_AGAIN) from None
    if not isinstance(fields, dict) or fields.get("format_version") != FORMAT_VERSION:
        found = fields.get("format_version") if isinstance(fields, dict) else None
        what = f"the manifest has version {found}, this program reads {FORMAT_VERSION}"
        raise ShardError(what, str(path), MADE_AGAIN)
    # The last byte is the one that JSON would not miss.
    if fields.pop(_SELF, None) != _own_checksum(fields) or not raw.endswith(b"}\n"):
        raise ShardError("the manifest is not what was written: its own checksum differs", str(path), MADE_AGAIN)
    try:
        return _from_json(fields)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ShardError(
            f"the manifest's fields are not those of version {FORMAT_VERSION}: {error}", str(path), MADE_AGAIN
        ) from None


def read_checksums(folder: Path, manifest: Manifest) -> dict[str, NDArray[np.uint64]]:
    """Checksums of every block of every file, uint64 [K] by the file's name.

    Raises:
        ShardError: They are missing or damaged.
    """
    path = folder / CHECKSUMS
    entries = list(manifest.files())
    check_size(path, 8 * sum(num_blocks(entry.num_bytes) for entry in entries))
    try:
        raw = path.read_bytes()
    except OSError as error:
        refuse_unreadable(error, path)
    if xxhash.xxh3_128_hexdigest(raw) != manifest.checksums_xxh3:
        raise ShardError("the checksums are not those that were written", str(path), FIX)
    sums = np.frombuffer(raw, dtype="<u8")
    by_name, start = {}, 0
    for entry in entries:
        end = start + num_blocks(entry.num_bytes)
        by_name[entry.name], start = sums[start:end], end
    return by_name


def checksum(path: Path) -> str:
    """xxh3-128 of a file's bytes, hexadecimal; read in pieces."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while piece := file.read(1 << 24):
            digest.update(piece)
    return digest.hexdigest()


def _write_at_once(path: Path, content: bytes) -> None:
    writing = path.with_name(f"{path.name}.{os.uname().nodename}-{os.getpid()}")
    with naming(writing):
        writing.write_bytes(content)
    os.replace(writing, path)


def fingerprint(decides: dict[str, Any]) -> str:
    """sha256 of everything that decides something, hexadecimal."""
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def _own_checksum(fields: dict[str, Any]) -> str:
    """Of the fields, not of their layout: the file may be printed more prettily."""
    return xxhash.xxh3_128_hexdigest(orjson.dumps(fields, option=orjson.OPT_SORT_KEYS | orjson.OPT_SERIALIZE_DATACLASS))


def _from_json(fields: dict[str, Any]) -> Manifest:
    tokenizer = fields["tokenizer"]
    special = tokenizer["special"]
    special |= {name: tuple(special[name]) for name in ("sentinels", "all_ids", "modes") if name in special}
    if set(fields["splits"]) != set(SPLITS):
        raise ValueError(f"splits are {', '.join(fields['splits'])}, not {' and '.join(SPLITS)}")
    return Manifest(
        **{
            **fields,
            "tokenizer": TokenizerInfo(**{**tokenizer, "special": SpecialTokens(**special)}),
            "splits": {name: split_from_json(fields["splits"][name]) for name in SPLITS},
            "sources": tuple(Source(**entry) for entry in fields["sources"]),
            "parts": tuple(tuple(SegmentEntry(**segment) for segment in part) for part in fields["parts"]),
        }
    )


def shard_from_json(fields: dict[str, Any]) -> ShardEntry:
    """A shard's entry from its JSON."""
    return ShardEntry(**{**fields, "files": tuple(FileEntry(**entry) for entry in fields["files"])})


def split_from_json(fields: dict[str, Any]) -> SplitStats:
    """A split's statistics from their JSON."""
    return SplitStats(**{**fields, "shards": tuple(shard_from_json(entry) for entry in fields["shards"])})
