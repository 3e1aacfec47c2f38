"""Every byte of a folder of shards against its manifest."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from launcher.errors import ShardError
from launcher.shards.index import read_index
from launcher.shards.manifest import SPLITS, FileEntry, file_entry, read_manifest
from launcher.shards.reader import check_size

CHUNK = 1 << 22


def verify(folder: Path) -> list[str]:
    """Find what is wrong with a folder of shards.

    Returns:
        One line for each problem, naming the file; empty when all is well.

    Raises:
        ShardError: There is no readable manifest.
    """
    manifest = read_manifest(folder)
    problems = []
    for split in SPLITS:
        for entry in manifest.splits[split].files:
            problem = _problem(folder, entry, manifest.tokenizer.vocab_size)
            if problem:
                problems.append(problem)
    return problems


def _problem(folder: Path, entry: FileEntry, vocab_size: int) -> str:
    path = folder / entry.name
    try:
        check_size(folder, entry)
        if file_entry(path).xxh3 != entry.xxh3:
            return f"{path}: the bytes are not those that were written"
        if entry.name.endswith(".bin") and entry.num_bytes:
            index = read_index(path.with_suffix(".idx"), entry.num_bytes)
            tokens = np.memmap(path, index.dtype, mode="r").view(np.ndarray)
            for start in range(0, len(tokens), CHUNK):
                if int(tokens[start : start + CHUNK].max()) >= vocab_size:
                    return f"{path}: an id is not below the vocabulary's {vocab_size}"
    except ShardError as error:
        return f"{error.where}: {error.what}"
    return ""
