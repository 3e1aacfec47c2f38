"""Finding documents by where they came from or by their text: for takedowns, and for tracing.

Shapes: D documents.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from launcher.errors import RequeueError, ShardError
from launcher.shards import faults
from launcher.shards.origins import UNTOLD_HASH
from launcher.shards.reader import Split

Key = TypeVar("Key", bound=Hashable)

HASH = re.compile(r"[0-9a-f]{32}")
PLACE = re.compile(r"(.+):(\d+)")
_MAX_DIGITS = 19
"""A line number of more digits is that of no file."""
_NAMES = "write FILE:LINE as `pretrain trace` prints it, or the xxh3-128 of the text in 32 hexadecimal digits"


def read_names(path: Path) -> list[str]:
    """Names of documents, a line each; blank lines and what follows a name and a # are remarks.

    Raises:
        ShardError: The file cannot be read, or a line is no name.
        RequeueError: The place it lies in is gone.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # Windows' editors begin a file with a mark
    except (OSError, UnicodeDecodeError) as error:
        if faults.is_of_place(error):
            what = f"the list of documents cannot be reached: {error}"
            raise RequeueError(what, str(path), "run the same command again when its file system answers") from None
        raise ShardError(f"the list of documents cannot be read: {error}", str(path), "give a text file") from None
    names = []
    for number, line in enumerate(lines, start=1):
        whole = line.strip()
        if whole and not whole.startswith("#"):
            # A file's name may hold a # too.
            name = next((n for n in (line.partition(" #")[0].strip(), whole) if is_name(n)), None)
            if name is None:
                raise ShardError(f"{whole!r} names no document", f"{path}:{number}", _NAMES)
            names.append(name)
    return names


def is_name(word: str) -> bool:
    """Whether a word can name a document: FILE:LINE, or a text's xxh3-128."""
    return bool(HASH.fullmatch(word) or PLACE.fullmatch(word))


def find_documents(split: Split, names: Sequence[str]) -> dict[str, list[int]]:
    """The documents of a split that bear these names; a text that occurs several times has several.

    Args:
        split: Where to look.
        names: FILE:LINE, or a text's xxh3-128.

    Returns:
        Numbers of documents by name; a name that none bears has an empty list.
    """
    found: dict[str, list[int]] = {name: [] for name in names}
    by_hash = {bytes.fromhex(name): name for name in names if HASH.fullmatch(name)}
    by_hash.pop(UNTOLD_HASH, None)  # documents whose text nobody read do not all bear one name
    by_place: dict[str, dict[int, str]] = defaultdict(dict)
    for name in names:
        match = PLACE.fullmatch(name)
        if match and not HASH.fullmatch(name) and len(match[2]) < _MAX_DIGITS:
            by_place[match[1]][int(match[2])] = name
    heads = np.array([int.from_bytes(wanted[:8], "little") for wanted in by_hash], dtype=np.uint64)
    for first, part, origins_D in split.origin_blocks():
        for place in _hash_hits(origins_D, heads) if by_hash else ():
            bearer = by_hash.get(bytes(origins_D[place]["text_hash"]))
            if bearer is not None:
                found[bearer].append(first + place)
        for number, segment in enumerate(split.manifest.parts[part]):
            wanted = by_place.get(split.manifest.sources[segment.source].path)
            if wanted:
                base = split.rows_before(part, number)
                _place_hits(origins_D, number, base, wanted, first, found)
    return found


def excluded_documents(path: Path, splits: Mapping[Key, Split]) -> dict[Key, NDArray[np.int64]]:
    """The documents of each split that a file names.

    Args:
        path: The file.
        splits: Of every corpus that the file is about, by any key.

    Returns:
        Numbers of documents, ascending, int64 [D] by the same key.

    Raises:
        ShardError: A name is borne by no document of any split, or the file cannot be read.
    """
    names = read_names(path)
    found = {key: find_documents(split, names) for key, split in splits.items()}
    lost = [name for name in names if not any(hits[name] for hits in found.values())]
    if lost:
        more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
        raise ShardError(f"no document is called {', '.join(lost[:3])}{more}", str(path), _NAMES)
    return {
        key: np.unique(np.array([d for each in hits.values() for d in each], dtype=np.int64))
        for key, hits in found.items()
    }


def excluded_of_corpora(
    lists: Mapping[str, Path | None], splits: Mapping[tuple[str, str], Split]
) -> dict[tuple[str, str], NDArray[np.int64]]:
    """The documents of several corpora that their files name; those of one file lie in any corpus that has it.

    Args:
        lists: The file of each corpus, by name; None for one that has none.
        splits: By corpus and split.

    Returns:
        Numbers of documents, ascending, int64 [D] by corpus and split; none where the corpus has no file.

    Raises:
        ShardError: A name is borne by no document of any corpus that has the file, or it cannot be read.
    """
    found = {key: np.empty(0, dtype=np.int64) for key in splits}
    for path in dict.fromkeys(path for path in lists.values() if path is not None):
        found |= excluded_documents(path, {key: split for key, split in splits.items() if lists[key[0]] == path})
    return found


def _hash_hits(origins_D: NDArray[np.void], heads: NDArray[np.uint64]) -> list[int]:
    """Documents whose hash may be wanted: its first eight bytes are."""
    heads_D = np.ascontiguousarray(origins_D["text_hash"]).view("<u8").reshape(-1, 2)[:, 0]
    return [int(place) for place in np.flatnonzero(np.isin(heads_D, heads))]


def _place_hits(
    origins_D: NDArray[np.void],
    segment: int,
    base: int,
    wanted: dict[int, str],
    first: int,
    found: dict[str, list[int]],
) -> None:
    numbers = np.array([number - base for number in wanted], dtype=np.int64)
    mask_D = (origins_D["segment"] == segment) & np.isin(origins_D["number"].astype(np.int64), numbers)
    for place in np.flatnonzero(mask_D).tolist():
        found[wanted[int(origins_D[place]["number"]) + base]].append(first + place)
