"""`manifest.json`: what a folder of shards holds, made from what, by which tokenizer."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from launcher.errors import ShardError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
SPLITS = ("train", "validation")
_AGAIN = "prepare the shards again, with --overwrite"


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
    """One file of a split."""

    name: str
    """Inside the folder."""
    num_bytes: int
    """Size of the file."""
    xxh3: str
    """xxh3-128 of its bytes, hexadecimal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One file of the corpus."""

    path: str
    """As it was given."""
    num_bytes: int
    """Size of the file."""
    xxh3: str
    """xxh3-128 of its bytes, hexadecimal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitStats:
    """Training or validation documents."""

    num_documents: int
    """Documents in the split."""
    num_tokens: int
    """Document ends included."""
    num_chars: int
    """Of their text."""
    unigram_entropy: float
    """Of the split's own tokens without document ends, nats a token: what guessing by frequency alone cannot beat."""
    files: tuple[FileEntry, ...]
    """Every `.bin` and `.idx`, in the order of the stream."""


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
    splits: dict[str, SplitStats]
    """`train` and `validation`."""
    sources: tuple[Source, ...]
    """The corpus."""
    filters: dict[str, int]
    """Records `read`, `kept`, and dropped by reason: `empty`, `not_text`."""
    text_field: str
    """Field of a record that held its text."""
    validation_share: float
    """Expected share of documents held out."""


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json`; no time stands in it, so that a rebuild is byte-identical."""
    text = json.dumps(asdict(manifest), ensure_ascii=False, indent=1)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Read `manifest.json`.

    Raises:
        ShardError: There are no shards here, or the manifest is damaged or of another version.
    """
    path = folder / MANIFEST
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        command = f"pretrain prepare CORPUS --tokenizer DIR --out {folder}"
        raise ShardError("there are no shards here", str(folder), command) from None
    except (OSError, ValueError) as error:
        raise ShardError(f"the manifest cannot be read: {error}", str(path), _AGAIN) from None
    if not isinstance(fields, dict) or fields.get("format_version") != FORMAT_VERSION:
        found = fields.get("format_version") if isinstance(fields, dict) else None
        raise ShardError(
            f"the manifest has version {found}, this program reads {FORMAT_VERSION}",
            str(path),
            _AGAIN,
        )
    try:
        return _from_json(fields)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ShardError(
            f"the manifest's fields are not those of version {FORMAT_VERSION}: {error}", str(path), _AGAIN
        ) from None


def checksum(path: Path) -> str:
    """xxh3-128 of a file's bytes, hexadecimal; read in blocks.

    Source: https://xxhash.com (a checksum against damage, not against malice).
    """
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


def file_entry(path: Path) -> FileEntry:
    """Size and checksum of a file of a split."""
    return FileEntry(name=path.name, num_bytes=path.stat().st_size, xxh3=checksum(path))


def _from_json(fields: dict[str, Any]) -> Manifest:
    tokenizer = fields["tokenizer"]
    special = tokenizer["special"]
    special |= {"sentinels": tuple(special["sentinels"]), "all_ids": tuple(special["all_ids"])}
    if set(fields["splits"]) != set(SPLITS):
        raise ValueError(f"splits are {', '.join(fields['splits'])}, not {' and '.join(SPLITS)}")
    splits = {}
    for name in SPLITS:
        split = fields["splits"][name]
        splits[name] = SplitStats(**{**split, "files": tuple(FileEntry(**entry) for entry in split["files"])})
    for name, kind in (("dtype", str), ("fingerprint", str), ("filters", dict), ("validation_share", float)):
        if not isinstance(fields[name], kind):
            raise TypeError(f"{name} is not a {kind.__name__}")
    return Manifest(
        **{
            **fields,
            "tokenizer": TokenizerInfo(**{**tokenizer, "special": SpecialTokens(**special)}),
            "splits": splits,
            "sources": tuple(Source(**entry) for entry in fields["sources"]),
        }
    )
