"""Every byte of a folder of shards against its manifest."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from launcher.errors import ShardError
from launcher.shards import faults
from launcher.shards.blocks import GuardedFile, check_size, damage, refuse_unreadable
from launcher.shards.index import Index
from launcher.shards.manifest import SPLITS, Manifest, ShardEntry, checksum, read_checksums, read_manifest

CHUNK_TOKENS = 1 << 22
"""Tokens looked at in one go: 16 MiB of memory at most (assumption)."""


def verify(folder: Path) -> list[str]:
    """Find what is wrong with a folder of shards.

    Args:
        folder: What `pretrain prepare` made.

    Returns:
        One line for each problem, naming file and block; empty when all is well.

    Raises:
        ShardError: The manifest or the checksums are damaged, so that nothing can be told of the rest.
        RequeueError: The file system failed: another start may find a file as it should be.
    """
    manifest = read_manifest(folder)
    sums = read_checksums(folder, manifest)
    problems: list[str] = []
    for name in SPLITS:
        for shard in manifest.splits[name].shards:
            found = [
                problem
                for entry in shard.files
                for problem in _file_problems(folder / entry.name, entry.num_bytes, sums)
            ]
            # The contents of a file that is not the one written say nothing new.
            problems += found or list(_content_problems(folder, shard, manifest, sums))
    return [*problems, *tokenizer_problems(folder, manifest)]


def problems_json(folder: Path, problems: Sequence[str]) -> str:
    """What is wrong with a folder, for scripts."""
    return json.dumps({"folder": str(folder), "problems": list(problems)}, ensure_ascii=False)


def check_sizes(folder: Path, manifest: Manifest) -> None:
    """Hold the size of every file against the manifest: what can be told without reading them.

    Raises:
        ShardError: A file is missing, or has another size.
    """
    for entry in manifest.files():
        check_size(folder / entry.name, entry.num_bytes)


def tokenizer_problems(folder: Path, manifest: Manifest) -> Iterator[str]:
    """What is wrong with the copy of the tokenizer that lies beside the shards."""
    for name, expected in manifest.tokenizer_files.items():
        path = folder / "tokenizer" / name
        try:
            found = checksum(path) if path.is_file() else None
        except OSError as error:
            if error.errno in faults.OF_PLACE:
                refuse_unreadable(error, path)
            yield f"{path}: a file of the tokenizer cannot be read: {error.strerror}"
            continue
        if found is None:
            yield f"{path}: a file of the tokenizer the shards were made with is missing"
        elif found != expected:
            yield f"{path}: not the tokenizer the shards were made with: its bytes are not those that were written"


def _file_problems(path: Path, num_bytes: int, sums: dict[str, NDArray[np.uint64]]) -> Iterator[str]:
    try:
        damaged = GuardedFile(path, num_bytes, sums[path.name], guard=True).damaged_blocks()
    except ShardError as error:
        yield error.on_one_line()
        return
    except OSError as error:  # of reading, which names no file
        refuse_unreadable(error, path)
    if damaged:
        yield f"{path}: {damage(damaged)}"


def _content_problems(
    folder: Path, shard: ShardEntry, manifest: Manifest, sums: dict[str, NDArray[np.uint64]]
) -> Iterator[str]:
    """What the files say of each other; only a fault of the program that wrote them, or of adopted ones, shows here."""
    tokens, index = (shard.file(suffix) for suffix in (".bin", ".idx"))
    if tokens is None or index is None:
        yield f"{folder}: the manifest knows a shard without tokens or index"
        return
    path = folder / tokens.name
    try:
        file = GuardedFile(folder / index.name, index.num_bytes, sums[index.name], guard=False)
        read = Index(file, tokens.num_bytes // np.dtype(manifest.dtype).itemsize)
        starts = read.starts(0, read.header.num_documents)
    except ShardError as error:
        yield error.on_one_line()
        return
    if read.header.dtype.name != manifest.dtype:
        yield f"{path}: holds {read.header.dtype.name}, the manifest says {manifest.dtype}"
        return
    num_tokens = tokens.num_bytes // read.header.dtype.itemsize
    if len(starts) - 1 != shard.num_documents or int(starts[-1]) != shard.num_tokens or num_tokens != shard.num_tokens:
        yield (
            f"{path}: {len(starts) - 1} documents with {starts[-1]} tokens in the index, {num_tokens} in the file, "
            f"{shard.num_documents} with {shard.num_tokens} in the manifest"
        )
    yield from _id_problems(path, read.header.dtype, manifest.tokenizer.vocab_size)


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
