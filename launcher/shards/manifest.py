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


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecialTokens:
    """Ids of the tokens that mean something to an objective; None where the tokenizer has none."""

    pad: int | None
    unk: int | None
    cls: int | None
    sep: int | None
    mask: int | None
    bos: int | None
    eos: int | None
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


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file of a split, or one of the corpus."""

    name: str
    num_bytes: int
    xxh3: str
    """xxh3-128 of its bytes, hexadecimal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitStats:
    """Training or validation documents."""

    num_documents: int
    num_tokens: int
    """Document ends included."""
    num_chars: int
    unigram_entropy: float
    """Of the split's own tokens without document ends, nats a token: what guessing by frequency alone cannot beat."""
    files: tuple[FileEntry, ...]
    """Every `.bin` and `.idx`, in the order of the stream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything about a folder of shards."""

    format_version: int
    launcher_version: str
    fingerprint: str
    """Of all that decides the shards: corpus, tokenizer, settings."""
    dtype: str
    """`uint16` or `int32`."""
    tokenizer: TokenizerInfo
    splits: dict[str, SplitStats]
    """`train` and `validation`."""
    sources: tuple[FileEntry, ...]
    """The corpus."""
    filters: dict[str, int]
    """Records `read`, `kept`, and dropped by reason."""
    text_field: str
    validation_share: float


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
        raise ShardError(f"the manifest cannot be read: {error}", str(path), "prepare the shards again") from None
    if not isinstance(fields, dict) or fields.get("format_version") != FORMAT_VERSION:
        found = fields.get("format_version") if isinstance(fields, dict) else None
        raise ShardError(
            f"the manifest has version {found}, this program reads {FORMAT_VERSION}", str(path), "prepare the shards again"
        )
    try:
        return _from_json(fields)
    except (KeyError, TypeError, AttributeError) as error:
        raise ShardError(f"the manifest lacks a field: {error}", str(path), "prepare the shards again") from None


def file_entry(path: Path, name: str | None = None) -> FileEntry:
    """Size and checksum of a file, read in blocks."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return FileEntry(name=name or path.name, num_bytes=path.stat().st_size, xxh3=digest.hexdigest())


def _from_json(fields: dict[str, Any]) -> Manifest:
    tokenizer = dict(fields["tokenizer"])
    special = {**tokenizer["special"]}
    special |= {"sentinels": tuple(special["sentinels"]), "all_ids": tuple(special["all_ids"])}
    tokenizer["special"] = SpecialTokens(**special)
    splits = {
        name: SplitStats(**{**fields["splits"][name], "files": _entries(fields["splits"][name]["files"])}) for name in SPLITS
    }
    return Manifest(
        **{
            **fields,
            "tokenizer": TokenizerInfo(**tokenizer),
            "splits": splits,
            "sources": _entries(fields["sources"]),
        }
    )


def _entries(entries: list[dict[str, Any]]) -> tuple[FileEntry, ...]:
    return tuple(FileEntry(**entry) for entry in entries)
