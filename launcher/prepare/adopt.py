"""Token files that others wrote, taken as they are: Megatron's and GPT-NeoX's `.bin`/`.idx`, datatrove's `.ds`, flat
uint16 or uint32 as nanoGPT and OLMo keep them.

Nothing is copied: the folder holds links to the tokens, an index where there is none, and the manifest with a checksum
of every block, so that from here on a flipped byte is found as in any other shards.

Shapes: N tokens, D documents, V ids of the vocabulary.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from launcher import __version__
from launcher.errors import ShardError
from launcher.prepare.merge import entropy
from launcher.prepare.tokenizer import TokenizerHandle, load_tokenizer, save_tokenizer
from launcher.shards.blocks import file_sums
from launcher.shards.index import DTYPES, HEADER, Header, index_bytes, read_header
from launcher.shards.manifest import (
    FORMAT_VERSION,
    SPLITS,
    FileEntry,
    Manifest,
    SegmentEntry,
    ShardEntry,
    Source,
    SplitStats,
    complete_folder,
    fingerprint,
)
from launcher.shards.origins import ORIGIN

FLAT_DTYPES = {"uint16": DTYPES[8], "uint32": DTYPES[4], "int32": DTYPES[4]}
"""uint32 is read as int32: the same bytes for every id below 2**31."""
CHUNK_TOKENS = 1 << 24
"""Tokens looked at in one go: 64 MiB of memory at most (assumption)."""
_FIX = "give Megatron .bin/.idx, datatrove .ds, or a flat file of tokens with --dtype uint16 or uint32"
_OF_MEGATRON = "restore the file, or write it again with Megatron's tools"


@dataclass(frozen=True, slots=True)
class TokenFile:
    """A file of tokens and where its documents end."""

    path: Path
    dtype: np.dtype[np.generic]
    lengths_D: NDArray[np.int32]
    """Tokens of each document, or of each sequence where `index` tells of documents."""
    index: Path | None
    """Megatron's own, which is linked to."""
    num_documents: int


def adopt(
    train: Sequence[Path],
    validation: Sequence[Path],
    tokenizer: Path,
    out: Path,
    dtype: str | None = None,
    document_end: int | None = None,
) -> Manifest:
    """Put a manifest on top of token files of other programs.

    Args:
        train: Files to train on, in the order of the stream; one that is given several times, or as `.bin` and `.idx`,
            is taken once.
        validation: Files held out; may be none.
        tokenizer: The tokenizer they were made with.
        out: Folder to make.
        dtype: Of flat files, which do not tell: `uint16`, `uint32` or `int32`.
        document_end: Id after which a document of a flat file ends; without it, the tokenizer's.

    Raises:
        ShardError: A file is missing, damaged or of another kind, its ids are not the tokenizer's, it is to be held out
            and trained on, or `out` exists.
    """
    if out.exists():
        raise ShardError("there is something under this name already", str(out), "give another --out")
    handle = load_tokenizer(tokenizer)
    end = handle.info.special.document_end if document_end is None else document_end
    once = [_each_once(paths) for paths in (train, validation)]
    for path in once[0].keys() & once[1].keys():
        fix = "hold out other files, or none"
        raise ShardError("the file is to be trained on and held out", str(once[0][path]), fix)
    files = {
        name: [open_tokens(path, dtype, end) for path in paths.values()]
        for name, paths in zip(SPLITS, once, strict=True)
    }
    kinds = {file.dtype for each in files.values() for file in each}
    if len(kinds) != 1:
        raise ShardError(f"the files hold {', '.join(sorted(k.name for k in kinds))}", str(out), "adopt them apart")
    building = out.resolve().with_name(f".{out.name}.adopting-{os.getpid()}")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        manifest = _write(building, files, handle, end)
        os.replace(building, out)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return manifest


def _each_once(paths: Sequence[Path]) -> dict[Path, Path]:
    """The token files as they were given, by where they lie."""
    tokens = [path.with_suffix(".bin") if path.suffix == ".idx" else path for path in paths]
    return {path.resolve(): path for path in tokens}


def open_tokens(path: Path, dtype: str | None, document_end: int) -> TokenFile:
    """Find out what kind of token file this is, and where its documents end.

    Raises:
        ShardError: It is missing, damaged, or of no kind that is known.
    """
    if not path.is_file():
        raise ShardError("there is no such file", str(path), _FIX)
    if path.suffix == ".bin" and path.with_suffix(".idx").is_file():
        return _megatron(path)
    if path.name.endswith(".ds"):
        return _datatrove(path)
    return _flat(path, dtype, document_end)


def _megatron(path: Path) -> TokenFile:
    index = path.with_suffix(".idx")
    raw = index.read_bytes()
    try:
        header = read_header(raw, index)
    except ShardError as error:
        raise ShardError(error.what, error.where, _OF_MEGATRON) from None
    if header.num_bytes != len(raw):
        what = f"the index has {len(raw)} bytes, its header says {header.num_bytes}"
        raise ShardError(what, str(index), _OF_MEGATRON)
    lengths = np.frombuffer(raw, "<i4", header.num_sequences, HEADER.size)
    pointers = np.frombuffer(raw, "<i8", header.num_sequences, HEADER.size + 4 * header.num_sequences)
    marks = np.frombuffer(raw, "<i8", header.num_documents + 1, HEADER.size + 12 * header.num_sequences)
    _check_index(index, header, lengths, pointers, marks, path.stat().st_size)
    return TokenFile(path, header.dtype, lengths, index, header.num_documents)


def _check_index(
    index: Path,
    header: Header,
    lengths: NDArray[np.int32],
    pointers: NDArray[np.int64],
    marks: NDArray[np.int64],
    bin_bytes: int,
) -> None:
    in_order = marks[0] == 0 and marks[-1] == header.num_sequences and not bool(np.any(np.diff(marks) < 0))
    if not in_order:
        what = f"the document index does not run from 0 to its {header.num_sequences} sequences"
        raise ShardError(what, str(index), _OF_MEGATRON)
    ends = np.cumsum(lengths, dtype=np.int64) * header.dtype.itemsize
    total = int(ends[-1]) if len(ends) else 0
    if len(lengths) and (lengths.min() < 0 or pointers.min() < 0 or total > bin_bytes):
        raise ShardError(f"the index points outside the {bin_bytes} bytes of its .bin", str(index), _OF_MEGATRON)
    if total != bin_bytes or not np.array_equal(pointers[1:], ends[:-1]) or (len(pointers) and pointers[0] != 0):
        raise ShardError("the sequences do not lie one after another in the .bin", str(index), _OF_MEGATRON)


def _datatrove(path: Path) -> TokenFile:
    index, metadata = path.with_name(path.name + ".index"), path.with_name(path.name + ".metadata")
    try:
        ends = np.frombuffer(index.read_bytes(), "<u8").astype(np.int64)  # raises ValueError for half a number
    except (OSError, ValueError) as error:
        raise ShardError(f"datatrove's index cannot be read: {error}", str(index), "restore the files") from None
    try:  # the tokenizer's name, "|", bytes of a token; then counts
        size = int(metadata.read_text(encoding="utf-8").split("\n")[0].rpartition("|")[2]) if metadata.is_file() else 0
    except (OSError, ValueError) as error:
        fix = "restore it, or delete it: the index tells how wide a token is as well"
        raise ShardError(f"datatrove's metadata cannot be read: {error}", str(metadata), fix) from None
    if not size:  # written without metadata: the index tells how many tokens there are
        size = path.stat().st_size // int(ends[-1]) if len(ends) and ends[-1] else 2
    if size not in (2, 4):
        raise ShardError(f"tokens of {size} bytes", str(path), _FIX)
    last = int(ends[-1]) if len(ends) else 0  # a task that was left without documents writes an empty file of each
    if bool(np.any(np.diff(ends, prepend=0) < 0)):
        what = "the index goes back: a document ends before the one in front of it"
        raise ShardError(what, str(index), "restore the files")
    if last * size != path.stat().st_size:
        what = f"the index ends at token {last}, the file has {path.stat().st_size} bytes of {size} each"
        raise ShardError(what, str(path), "restore the files")
    return TokenFile(path, DTYPES[8 if size == 2 else 4], _lengths(ends, path), None, len(ends))


def _flat(path: Path, dtype: str | None, document_end: int) -> TokenFile:
    if dtype is None:
        raise ShardError("a flat file of tokens does not tell its type", str(path), "say --dtype uint16 or uint32")
    with path.open("rb") as file:
        if file.read(6) == b"\x93NUMPY":
            fix = f"numpy.load({str(path)!r}).tofile(…) makes one"
            raise ShardError("this .npy has numpy's header; OLMo's and nanoGPT's are flat", str(path), fix)
    kind = FLAT_DTYPES[dtype]
    num_bytes = path.stat().st_size
    if num_bytes == 0:
        raise ShardError("the file is empty", str(path), "restore it, or leave it out")
    if num_bytes % kind.itemsize:
        raise ShardError(f"{num_bytes} bytes are no number of {dtype} tokens", str(path), "say the right --dtype")
    tokens = np.memmap(path, kind, mode="r").view(np.ndarray)
    if kind.itemsize == 2 and len(tokens) > 1 and not tokens[1:CHUNK_TOKENS:2].any() and tokens[:CHUNK_TOKENS:2].any():
        raise ShardError("every other token is 0, as of a file of uint32", str(path), "say --dtype uint32")
    found = [
        np.flatnonzero(tokens[start : start + CHUNK_TOKENS] == document_end) + start + 1
        for start in range(0, len(tokens), CHUNK_TOKENS)
    ]
    ends = np.concatenate(found)
    if not len(ends):
        raise ShardError(
            f"no document in it ends: token {document_end} does not occur",
            str(path),
            "say which token ends a document (--document-end), and check --dtype",
        )
    if ends[-1] != len(tokens):
        ends = np.append(ends, len(tokens))  # the last document ends with the file
    return TokenFile(path, kind, _lengths(ends, path), None, len(ends))


def _lengths(ends_D: NDArray[np.int64], path: Path) -> NDArray[np.int32]:
    """Tokens of each document.

    Raises:
        ShardError: One has more than Megatron's index can tell.
    """
    lengths = np.diff(ends_D, prepend=0)
    if len(lengths) and lengths.max() >= 2**31:
        what = f"document {lengths.argmax()} has {lengths.max()} tokens: an index tells of {2**31 - 1} at most"
        raise ShardError(what, str(path), "say which token ends a document (--document-end), or cut the document")
    return lengths.astype(np.int32)


def _write(folder: Path, files: dict[str, list[TokenFile]], handle: TokenizerHandle, end: int) -> Manifest:
    splits, sources = {}, []
    parts: list[tuple[SegmentEntry, ...]] = []
    sums: dict[str, NDArray[np.uint64]] = {}
    for name in SPLITS:
        shards = []
        frequencies = np.zeros(handle.info.vocab_size, dtype=np.int64)
        for file in files[name]:
            part = len(parts)
            frequencies += _count(file, handle.info.vocab_size)
            shard = _link(folder, f"{name}-{part:05d}", file, part)
            shards.append(shard)
            sums |= {entry.name: file_sums(folder / entry.name) for entry in shard.files}
            num_bytes = file.path.stat().st_size
            sources.append(Source(path=str(file.path), num_bytes=num_bytes))
            parts.append((SegmentEntry(source=part, start=0, end=num_bytes, num_rows=file.num_documents, xxh3=None),))
        frequencies[end : end + 1] = 0  # what ends a document is no text
        splits[name] = SplitStats(
            num_documents=sum(shard.num_documents for shard in shards),
            num_tokens=sum(shard.num_tokens for shard in shards),
            text_bytes=0,
            unigram_entropy=entropy(frequencies),
            shards=tuple(shards),
        )
    save_tokenizer(handle, folder / "tokenizer")
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        launcher_version=__version__,
        fingerprint=fingerprint({"adopted": {n: each.tolist() for n, each in sums.items()}, "by": handle.info.sha256}),
        dtype=next(file.dtype.name for each in files.values() for file in each),
        tokenizer=handle.info,
        encoder="whoever wrote the files",
        words=False,
        sentences=False,
        splits=splits,
        sources=tuple(sources),
        parts=tuple(parts),
        filters={},
        settings={"adopted": True},
    )
    return complete_folder(folder, manifest, sums)


def _link(folder: Path, stem: str, file: TokenFile, part: int) -> ShardEntry:
    """Links to, and small files beside, one token file."""
    (folder / f"{stem}.bin").symlink_to(file.path.resolve())
    if file.index is not None:
        (folder / f"{stem}.idx").symlink_to(file.index.resolve())
    else:
        (folder / f"{stem}.idx").write_bytes(index_bytes(file.dtype, file.lengths_D))
    origins_D = np.zeros(file.num_documents, dtype=ORIGIN)
    origins_D["number"] = np.arange(1, file.num_documents + 1)
    (folder / f"{stem}.docs").write_bytes(origins_D.tobytes())
    names = [f"{stem}{suffix}" for suffix in (".bin", ".idx", ".docs")]
    entries = tuple(FileEntry(name=name, num_bytes=(folder / name).stat().st_size) for name in names)
    num_tokens = int(file.lengths_D.sum(dtype=np.int64))
    return ShardEntry(part=part, num_documents=file.num_documents, num_tokens=num_tokens, files=entries)


def _count(file: TokenFile, vocab_size: int) -> NDArray[np.int64]:
    """How often each id occurs, int64 [V].

    Raises:
        ShardError: An id is not the tokenizer's.
    """
    counts = np.zeros(vocab_size, dtype=np.int64)
    if not file.path.stat().st_size:
        return counts
    tokens = np.memmap(file.path, file.dtype, mode="r").view(np.ndarray)
    for start in range(0, len(tokens), CHUNK_TOKENS):
        chunk = tokens[start : start + CHUNK_TOKENS]
        lowest, highest = int(chunk.min()), int(chunk.max())
        if lowest < 0 or highest >= vocab_size:
            wrong = lowest if lowest < 0 else highest
            what = f"id {wrong} is not in the tokenizer's vocabulary of {vocab_size}"
            raise ShardError(what, str(file.path), "give the tokenizer they were made with, and the right --dtype")
        counts += np.bincount(chunk, minlength=vocab_size)
    return counts
