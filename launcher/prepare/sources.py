"""The files of a corpus: finding them, telling what each is, and cutting them into parts for one process each."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Literal

from launcher.errors import CorpusError
from launcher.prepare.hub import HUB, JSON_SUFFIXES, HubShard, hub_shards, without_revision
from launcher.prepare.raw_files import COMPRESSIONS, Meter, damaged, mode_of, opened, reading
from launcher.prepare.tables import arrow_files, is_saved_dataset, num_record_batches, num_row_groups, saved_dataset

Kind = Literal["lines", "array", "text", "parquet", "arrow", "hub"]
TABLES: dict[str, Kind] = {".parquet": "parquet", ".arrow": "arrow"}
OTHER_COMPRESSIONS = (".bz2", ".lz4", ".lzma", ".br", ".zip", ".7z")
PACKED = (
    (b"\x1f\x8b", "gzip", "let its name end in .gz"),
    (b"\x28\xb5\x2f\xfd", "zstd", "let its name end in .zst"),
    (b"\xfd7zXZ", "xz", "let its name end in .xz"),
    (b"BZh", "bzip2, which is not read here", "bzcat FILE | zstd > FILE.zst"),
    (b"PK\x03\x04", "zip, which is not read here", "unzip it"),
    (b"PAR1", "parquet", "let its name end in .parquet"),
    (b"ARROW1", "arrow", "let its name end in .arrow"),
)
"""How files begin that are no JSON, what they are, and what to do."""
_FIX = "give JSON, JSONL, text, parquet or arrow files, a folder of them, a glob in quotes, or hub:OWNER/NAME"


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file, saved data set or shard of a hub's."""

    name: str
    """As it was given; of the hub's its file."""
    kind: Kind
    """What is in it."""
    compression: str | None
    """`gzip`, `zstd` or `xz`."""
    num_bytes: int
    """Size; 0 also of a hub's where nobody tells."""
    mtime_ns: int
    """When it was written last; 0 of a hub's."""
    num_units: int | None = None
    """Row groups of a parquet file, record batches of arrow: where it can be cut. None where bytes are counted."""
    hub: HubShard | None = None
    """What it is to `datasets`."""

    @property
    def is_measured(self) -> bool:
        """Whether its size is known."""
        return self.hub is None or self.num_bytes > 0

    @property
    def identity(self) -> list[str | int]:
        """What tells it, as it is now, from any other and from itself after a change."""
        if self.hub is None:
            return [self.name, self.num_bytes, self.mtime_ns]
        return [without_revision(self.name), self.num_bytes, self.hub.content, self.hub.orders]


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a source that is read in one go."""

    source: int
    """Index of the source."""
    start: int
    """First byte, row group or record batch."""
    end: int
    """One past the last."""


def find_sources(corpus: Sequence[str], inside: Path | None = None) -> list[SourceFile]:
    """What paths, folders, globs and hub names mean, each file once, in the order given (folders and globs sorted).

    What a file is, its suffix says (`.parquet`, `.arrow`, `.txt`; then `.gz`, `.zst`, `.xz`); of any other its first
    character, since half of all `*.json` hold lines: `[` begins an array.

    Args:
        corpus: The words of a command line.
        inside: A folder to leave out: shards may be made inside the folder of their corpus.

    Raises:
        CorpusError: A path is not there, holds nothing that is read here, or is damaged.
        RequeueError: A hub has too much to do.
    """
    found: dict[str, SourceFile] = {}
    for word in corpus:
        if word.startswith(HUB):
            for shard in hub_shards(word):
                found[shard.name + shard.orders] = SourceFile(shard.name, "hub", None, shard.num_bytes, 0, hub=shard)
            continue
        path = Path(word)
        paths = [one for one in _paths(path, word) if inside is None or inside not in one.resolve().parents]
        if not paths:
            told = "the folder holds no text" if path.is_dir() else "there is no such file"
            raise CorpusError(told, word, _FIX)
        for one in paths:
            if str(one.resolve()) not in found:
                found[str(one.resolve())] = _describe(one)
    return list(found.values())


def cut(sources: Sequence[SourceFile], part_bytes: int, txt: str = "file") -> list[tuple[Segment, ...]]:
    """Cut a corpus into parts of about `part_bytes`: large files into pieces where they can be, small ones together.

    The order of documents is that of the sources. The cut follows from sizes alone.

    Args:
        sources: The corpus.
        part_bytes: Of the files, as they lie on the disk.
        txt: What is a document of a `.txt`; one of `line`s can be cut.
    """
    parts: list[tuple[Segment, ...]] = []
    open_part: list[Segment] = []
    num_bytes = 0
    for number, source in enumerate(sources):
        for segment, segment_bytes in _pieces(number, source, part_bytes, txt):
            if open_part and num_bytes + segment_bytes > part_bytes:
                parts.append(tuple(open_part))
                open_part, num_bytes = [], 0
            open_part.append(segment)
            num_bytes += segment_bytes
    return [*parts, tuple(open_part)] if open_part else parts


def is_cut_by_lines(source: SourceFile, txt: str) -> bool:
    """Whether a segment of it is a stretch of bytes that holds the lines that begin there."""
    return source.compression is None and (source.kind == "lines" or (source.kind == "text" and txt == "line"))


def _pieces(number: int, source: SourceFile, part_bytes: int, txt: str) -> Iterator[tuple[Segment, int]]:
    """The segments of a source, and the bytes of each."""
    if is_cut_by_lines(source, txt):
        count = max(1, -(-source.num_bytes // part_bytes))
        for i in range(count):
            start, end = source.num_bytes * i // count, source.num_bytes * (i + 1) // count
            yield Segment(number, start, end), end - start
    elif source.num_units is not None:
        per_unit = source.num_bytes / max(source.num_units, 1)
        step = max(1, int(part_bytes // max(per_unit, 1)))
        for start in range(0, source.num_units, step):
            end = min(start + step, source.num_units)
            yield Segment(number, start, end), int((end - start) * per_unit)
    else:
        yield Segment(number, 0, source.num_bytes), source.num_bytes if source.is_measured else part_bytes


def _paths(path: Path, word: str) -> list[Path]:
    """The files and saved data sets that a word means."""
    matched = [path] if mode_of(path) else sorted(Path(name) for name in glob.glob(word, recursive=True))
    found = []
    for one in matched:
        mode = mode_of(one)
        if S_ISDIR(mode) and not is_saved_dataset(one):
            found += sorted(_walk(one))
        elif S_ISDIR(mode) or _is_text(one, mode):
            found.append(one)
    return found


def _walk(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    real = folder.resolve()
    if real in above:  # a link back to where it is found
        return
    # Hidden ones are somebody's unfinished or own business: .building-…, .ipynb_checkpoints, .cache
    with reading(str(folder)):
        entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    for entry in entries:
        path = folder / entry.name
        if entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and S_ISDIR(mode_of(path))):
            if is_saved_dataset(path):
                yield path
            else:
                yield from _walk(path, (*above, real))
        elif (_kind_by_name(path) is not None or _is_packed_text(path)) and _is_text(path, mode_of(path)):
            yield path


def _is_text(path: Path, mode: int) -> bool:
    """Whether what has the name of a corpus's file is one, and no pipe or device; what is lost is told."""
    if not mode:
        told = "nothing stands behind this name: it is a link that leads nowhere, or was deleted a moment ago"
        raise CorpusError(told, str(path), "restore the file, or delete the link")
    return S_ISREG(mode)


def _is_packed_text(path: Path) -> bool:
    """Whether it is text under a compression that is not read here: to be told, not passed over."""
    return path.suffix.lower() in OTHER_COMPRESSIONS and _kind_by_name(path.with_suffix("")) is not None


def _kind_by_name(path: Path) -> Kind | None:
    suffix = path.suffix.lower()
    if suffix in TABLES:
        return TABLES[suffix]
    if suffix in COMPRESSIONS:
        suffix = Path(path.stem).suffix.lower()
    return "text" if suffix == ".txt" else "lines" if suffix in JSON_SUFFIXES else None


def _describe(path: Path) -> SourceFile:
    if path.is_dir():
        path = saved_dataset(path)
        files = arrow_files(str(path))
        with reading(str(path)):
            states = [file.stat() for file in files]
        num_bytes, newest = sum(state.st_size for state in states), max(state.st_mtime_ns for state in states)
        return SourceFile(str(path), "arrow", None, num_bytes, newest, num_record_batches(str(path)))
    compression = COMPRESSIONS.get(path.suffix.lower())
    # A name that says nothing is JSON; which, its first character says.
    kind = _kind_by_name(path) or "lines"
    with reading(str(path)):
        state = path.stat()
    if compression is not None and not state.st_size:
        raise damaged(str(path), EOFError("it is empty"))
    units = None
    if kind == "lines":
        start = _first_bytes(path, compression)
        _refuse_packed(path, start)
        if start[:1] == b"[":
            kind = "array"
    elif kind == "parquet":
        units = num_row_groups(str(path))
    elif kind == "arrow":
        units = num_record_batches(str(path))
    return SourceFile(str(path), kind, compression, state.st_size, state.st_mtime_ns, units)


def _first_bytes(path: Path, compression: str | None) -> bytes:
    """The first few that are no white space."""
    with opened(str(path), compression, Meter()) as file:
        while block := file.read(4096):
            start = block.lstrip()
            if start:
                return start[:8]
    return b""


def _refuse_packed(path: Path, start: bytes) -> None:
    for magic, what, fix in PACKED:
        if start.startswith(magic):
            raise CorpusError(f"this is no text, but {what}, and its name does not say so", str(path), fix)
    if path.suffix.lower() in OTHER_COMPRESSIONS:
        fix = "unpack it, or pack it with gzip, zstd or xz"
        raise CorpusError(f"files packed as {path.suffix} are not read here", str(path), fix)
