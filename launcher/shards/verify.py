"""Every byte of a folder of shards against its manifest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from launcher.errors import ShardError
from launcher.shards.identity import tokenizer_sha256
from launcher.shards.index import read_index
from launcher.shards.manifest import SPLITS, FileEntry, Manifest, SplitStats, checksum, read_manifest
from launcher.shards.reader import check_size

CHUNK_TOKENS = 1 << 22
"""Tokens looked at in one go: 16 MiB of memory at most (assumption)."""


def verify(folder: Path) -> list[str]:
    """Find what is wrong with a folder of shards.

    Args:
        folder: What `pretrain prepare` made.

    Returns:
        One line for each problem, naming the file; empty when all is well.

    Raises:
        ShardError: There is no readable manifest.
    """
    manifest = read_manifest(folder)
    problems = []
    for name in SPLITS:
        split = manifest.splits[name]
        found = [problem for entry in split.files for problem in _file_problems(folder, entry)]
        # The contents of a file that is not the one written say nothing new.
        problems += found or list(_content_problems(folder, name, split, manifest))
    return [*problems, *_tokenizer_problems(folder / "tokenizer" / "tokenizer.json", manifest)]


def _file_problems(folder: Path, entry: FileEntry) -> Iterator[str]:
    try:
        check_size(folder, entry)
    except ShardError as error:
        yield f"{error.where}: {error.what}"
        return
    found = checksum(folder / entry.name)
    if found != entry.xxh3:
        yield f"{folder / entry.name}: the bytes are not those that were written (xxh3 {found}, expected {entry.xxh3})"


def _content_problems(folder: Path, name: str, split: SplitStats, manifest: Manifest) -> Iterator[str]:
    num_documents = num_tokens = 0
    for entry in split.files:
        if not entry.name.endswith(".bin"):
            continue
        path = folder / entry.name
        try:
            index = read_index(path.with_suffix(".idx"), entry.num_bytes)
        except ShardError as error:
            yield f"{error.where}: {error.what}"
            return
        if index.dtype.name != manifest.dtype:
            yield f"{path}: holds {index.dtype.name}, the manifest says {manifest.dtype}"
        num_documents += index.num_documents
        num_tokens += index.num_tokens
        yield from _id_problems(path, index.dtype, manifest.tokenizer.vocab_size)
    if (num_documents, num_tokens) != (split.num_documents, split.num_tokens):
        yield (
            f"{folder}: {name} has {num_documents} documents with {num_tokens} tokens, "
            f"the manifest says {split.num_documents} with {split.num_tokens}"
        )


def _id_problems(path: Path, dtype: np.dtype[np.generic], vocab_size: int) -> Iterator[str]:
    if not path.stat().st_size:
        return
    tokens = np.memmap(path, dtype, mode="r").view(np.ndarray)
    for start in range(0, len(tokens), CHUNK_TOKENS):
        chunk = tokens[start : start + CHUNK_TOKENS]
        lowest, highest = int(chunk.min()), int(chunk.max())
        if lowest < 0 or highest >= vocab_size:
            wrong = lowest if lowest < 0 else highest
            yield f"{path}: id {wrong} is not in the vocabulary of {vocab_size}"
            return


def _tokenizer_problems(path: Path, manifest: Manifest) -> Iterator[str]:
    if not path.is_file():
        yield f"{path}: the tokenizer the shards were made with is missing"
        return
    try:
        found = tokenizer_sha256(Tokenizer.from_file(str(path)))
    except Exception as error:  # the Rust library raises bare Exceptions
        yield f"{path}: the tokenizer cannot be read: {error}"
        return
    if found != manifest.tokenizer.sha256:
        yield f"{path}: not the tokenizer the shards were made with (sha256 {found})"
