"""One part of a corpus, from text to finished shards: what a worker process does, from beginning to end.

A part is read, filtered, tokenized and written by one process, so nothing but its number goes in and nothing but its
record comes out; the shards of a part are the shards of the result. Nothing here may import torch or transformers
(9 s of CPU a process).

Shapes: N tokens, D documents, Q sequences of a batch, V ids of the vocabulary.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from launcher.prepare.dedupe import text_digest
from launcher.prepare.encoders import Encoded, EncodeOptions, Encoder, batch_bytes, build_encoder
from launcher.prepare.filters import FilterOptions, Filters
from launcher.prepare.readers import ReadOptions, SegmentReader
from launcher.prepare.sources import Segment, SourceFile
from launcher.prepare.split import is_held_out
from launcher.shards.faults import naming
from launcher.shards.manifest import SPLITS, SegmentEntry, ShardEntry, TokenizerInfo, fingerprint, shard_from_json
from launcher.shards.origins import ORIGIN
from launcher.shards.writer import Documents, ShardWriter

MAX_BATCH = 4096
"""Documents tokenized at once, where they are short (assumption)."""

Report = Callable[[int, int], None]
"""Told of progress: bytes of the corpus read, documents kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartSettings:
    """What all parts of a build have in common."""

    sources: tuple[SourceFile, ...]
    """The corpus."""
    read: ReadOptions
    """How records are read."""
    filters: FilterOptions
    """Which are kept."""
    dedupe: bool
    """Whether exact duplicates are dropped: `PartFiles.duplicates` tells which."""
    encode: EncodeOptions
    """Who tokenizes, and what is told beside ids."""
    tokenizer_json: str
    """The tokenizer."""
    tokenizer: TokenizerInfo
    """What there is to know of it."""
    validation_share: float
    """Expected share of documents held out."""
    folder: Path
    """Where shards are built."""
    records: Path
    """Where the records of finished parts lie."""


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of the corpus for one process."""

    number: int
    """Names its shards."""
    segments: tuple[Segment, ...]
    """What it reads."""
    key: str
    """Of everything that decides its shards; a record with another is of another build."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartRecord:
    """What a finished part leaves behind."""

    key: str
    segments: tuple[SegmentEntry, ...]
    counts: dict[str, int]
    shards: dict[str, ShardEntry]
    text_bytes: dict[str, int]


class PartFiles:
    """Names of what a part leaves in the folder of records."""

    def __init__(self, records: Path, part: Part) -> None:
        stem = f"part-{part.number:05d}-{part.key[:12]}"
        self.record = records / f"{stem}.json"
        """Written last: the part is finished."""
        self.arrays = records / f"{stem}.npz"
        """Frequencies of ids by split, and checksums of blocks by file."""
        self.hashes = records / f"{stem}.hashes"
        """xxh3-128 of every text that is kept, 16 bytes each."""
        self.duplicates = records / f"{stem}.duplicates.npy"
        """Which of them an earlier document has."""


def part_key(settings: PartSettings, decides: dict[str, Any], segments: tuple[Segment, ...]) -> str:
    """Fingerprint of everything that decides the shards of a part.

    Args:
        settings: Of the build.
        decides: What the user chose.
        segments: What the part reads.
    """
    reads = [
        [*source.identity, segment.start, segment.end]
        for segment in segments
        for source in (settings.sources[segment.source],)
    ]
    return fingerprint({"decides": decides, "encoder": settings.encode.encoder, "reads": reads})


def read_record(settings: PartSettings, part: Part) -> PartRecord | None:
    """The record of a part that is finished, with all its files there; None where it is not."""
    files = PartFiles(settings.records, part)
    try:
        fields = json.loads(files.record.read_text(encoding="utf-8"))
        record = PartRecord(
            key=fields["key"],
            # Its file may be another one in order by now: some came before it, or went.
            segments=tuple(
                SegmentEntry(**{**entry, "source": segment.source})
                for entry, segment in zip(fields["segments"], part.segments, strict=True)
            ),
            counts=fields["counts"],
            shards={name: shard_from_json(entry) for name, entry in fields["shards"].items()},
            text_bytes=fields["text_bytes"],
        )
        complete = files.arrays.is_file() and all(
            (settings.folder / entry.name).stat().st_size == entry.num_bytes
            for shard in record.shards.values()
            for entry in shard.files
        )
    except (OSError, ValueError, KeyError, TypeError):  # not there, or half of it
        return None
    return record if complete and record.key == part.key else None


def build_part(settings: PartSettings, part: Part, report: Report) -> None:
    """Write the shards of a part, then its record.

    Raises:
        CorpusError: A record cannot be read; the message names file and record.
    """
    if read_record(settings, part) is not None:
        return
    files = PartFiles(settings.records, part)
    encoder = _encoder(settings)
    end = settings.tokenizer.special.document_end
    frequencies = {name: np.zeros(settings.tokenizer.vocab_size, dtype=np.int64) for name in SPLITS}
    text_bytes = dict.fromkeys(SPLITS, 0)
    counts: Counter[str] = Counter()
    segments: list[SegmentEntry] = []
    writers: dict[str, ShardWriter] = {}
    # Another process may be at the same part (an array task started twice): each writes under a name of its own.
    own = f".{os.uname().nodename}-{os.getpid()}"
    with ExitStack() as stack:
        for batch in _batches(settings, part, counts, segments, report):
            encoded = encoder.encode(batch.texts)
            held_out_D = np.array(batch.held_out, dtype=np.bool_)
            documents = with_ends(encoded, batch.origins(), end)
            for name, wanted_D in zip(SPLITS, (~held_out_D, held_out_D), strict=True):
                if not wanted_D.any():
                    continue
                if name not in writers:
                    stem = settings.folder / f"{name}-{part.number:05d}{own}"
                    writer = ShardWriter(stem, settings.tokenizer.vocab_size, words=bool(settings.encode.segmenter))
                    writers[name] = stack.enter_context(writer)
                chosen = documents if wanted_D.all() else select(documents, wanted_D)
                writers[name].append(chosen)
                frequencies[name] += np.bincount(chosen.tokens_N, minlength=len(frequencies[name]))
                text_bytes[name] += int(np.array(batch.text_bytes)[wanted_D].sum())
    for other in settings.records.glob(f"part-{part.number:05d}-*.json"):
        other.unlink(missing_ok=True)  # of another text, whose files lose their names now
    arrays: dict[str, NDArray[Any]] = {}
    shards: dict[str, ShardEntry] = {}
    for name, writer in writers.items():
        frequencies[name][end] -= writer.num_documents  # what ends a document is no text
        arrays[f"frequencies/{name}"] = frequencies[name]
        shards[name] = _take_names(settings.folder, part.number, writer, own, arrays)
    with replacing(files.arrays) as path, path.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    record = PartRecord(
        key=part.key, segments=tuple(segments), counts=dict(counts), shards=shards, text_bytes=text_bytes
    )
    with replacing(files.record) as path:
        path.write_text(json.dumps(asdict(record)), encoding="utf-8")


def hash_part(settings: PartSettings, part: Part, report: Report) -> None:
    """Write the hash of every text of a part that is kept, for the search for duplicates."""
    files = PartFiles(settings.records, part)
    if files.hashes.is_file():
        return
    with replacing(files.hashes) as path, path.open("wb") as file:
        for batch in _batches(settings, part, Counter(), [], report, drop_duplicates=False):
            file.write(b"".join(batch.hashes))


@dataclass(slots=True)
class _Batch:
    """Documents on their way to the tokenizer."""

    texts: list[str]
    hashes: list[bytes]
    held_out: list[bool]
    numbers: list[int]
    segments: list[int]
    text_bytes: list[int]

    def origins(self) -> NDArray[np.void]:
        origins_D = np.empty(len(self.texts), dtype=ORIGIN)
        origins_D["number"] = self.numbers
        origins_D["segment"] = self.segments
        origins_D["num_chars"] = [len(text) for text in self.texts]
        origins_D["text_hash"] = np.frombuffer(b"".join(self.hashes), dtype="V16")
        return origins_D


def _batches(
    settings: PartSettings,
    part: Part,
    counts: Counter[str],
    segments: list[SegmentEntry],
    report: Report,
    drop_duplicates: bool = True,
) -> Iterator[_Batch]:
    """The documents of a part that are kept, a batch at a time; `counts` and `segments` are filled on the way."""
    filters = Filters(settings.filters, settings.read.text_field, counts)
    duplicates = None
    if settings.dedupe and drop_duplicates:
        duplicates = iter(np.load(PartFiles(settings.records, part).duplicates).tolist())
    batch, num_bytes, enough_bytes = _Batch([], [], [], [], [], []), 0, batch_bytes(settings.encode)
    for place, segment in enumerate(part.segments):
        source = settings.sources[segment.source]
        done = 0
        with SegmentReader(source, segment, settings.read) as reader:
            for record in reader:
                text = filters.accept(record.fields, partial(reader.where, record))
                if text is None:
                    continue
                if duplicates is not None and next(duplicates):
                    counts["kept"] -= 1
                    counts["duplicate"] += 1
                    continue
                utf8 = text.encode()
                batch.texts.append(text)
                batch.hashes.append(text_digest(utf8))
                batch.held_out.append(is_held_out(utf8, settings.validation_share))
                batch.numbers.append(record.number)
                batch.segments.append(place)
                batch.text_bytes.append(len(utf8))
                num_bytes += len(utf8)
                if num_bytes >= enough_bytes or len(batch.texts) >= MAX_BATCH:
                    yield batch
                    report(reader.bytes_done - done, len(batch.texts))
                    batch, num_bytes, done = _Batch([], [], [], [], [], []), 0, reader.bytes_done
            report(reader.bytes_done - done, 0)
            segments.append(
                SegmentEntry(
                    source=segment.source,
                    start=segment.start,
                    end=segment.end,
                    num_rows=reader.num_rows,
                    xxh3=reader.xxh3,
                )
            )
    if batch.texts:
        yield batch
        report(0, len(batch.texts))


def with_ends(encoded: Encoded, origins_D: NDArray[np.void], end: int) -> Documents:
    """Put the token that ends a document behind each.

    Args:
        encoded: Ids of D texts end to end.
        origins_D: Where each came from, ORIGIN.
        end: The token; it belongs to the last sentence and to no word.
    """
    lengths_D = encoded.lengths_D + np.int32(1)
    ends_D = np.cumsum(lengths_D, dtype=np.int64) - 1
    is_text_N = np.ones(len(encoded.ids_N) + len(lengths_D), dtype=np.bool_)
    is_text_N[ends_D] = False
    tokens_N = np.full(len(is_text_N), end, dtype=np.int32)
    tokens_N[is_text_N] = encoded.ids_N
    continues_N = sequence_lengths_Q = None
    if encoded.continues_N is not None:
        continues_N = np.zeros(len(is_text_N), dtype=np.bool_)
        continues_N[is_text_N] = encoded.continues_N
    sequences_D = encoded.sentences_D
    if encoded.sentence_lengths_Q is not None and sequences_D is not None:
        # A text without tokens has no sentence: its end token makes one.
        sequences_D = np.maximum(sequences_D, 1)
        lasts_D = np.cumsum(sequences_D) - 1
        sequence_lengths_Q = np.zeros(int(sequences_D.sum()), dtype=np.int32)
        is_told_Q = np.ones(len(sequence_lengths_Q), dtype=np.bool_)
        is_told_Q[lasts_D[encoded.sentences_D == 0]] = False
        sequence_lengths_Q[is_told_Q] = encoded.sentence_lengths_Q
        sequence_lengths_Q[lasts_D] += 1
    return Documents(
        tokens_N=tokens_N,
        lengths_D=lengths_D,
        origins_D=origins_D,
        continues_N=continues_N,
        sequence_lengths_Q=sequence_lengths_Q,
        sequences_D=sequences_D,
    )


def select(documents: Documents, wanted_D: NDArray[np.bool_]) -> Documents:
    """Some of the documents."""
    wanted_N = np.repeat(wanted_D, documents.lengths_D)
    wanted_Q = None if documents.sequences_D is None else np.repeat(wanted_D, documents.sequences_D)
    lengths_Q = documents.sequence_lengths_Q
    return Documents(
        tokens_N=documents.tokens_N[wanted_N],
        lengths_D=documents.lengths_D[wanted_D],
        origins_D=documents.origins_D[wanted_D],
        continues_N=None if documents.continues_N is None else documents.continues_N[wanted_N],
        sequence_lengths_Q=None if lengths_Q is None or wanted_Q is None else lengths_Q[wanted_Q],
        sequences_D=None if documents.sequences_D is None else documents.sequences_D[wanted_D],
    )


def _take_names(
    folder: Path, number: int, writer: ShardWriter, own: str, arrays: dict[str, NDArray[Any]]
) -> ShardEntry:
    """Give the finished files of a shard their names; their checksums go to `arrays`."""
    entries = []
    for entry in writer.files():
        name = entry.name.replace(own, "", 1)
        os.replace(folder / entry.name, folder / name)
        arrays[f"sums/{name}"] = writer.sums[entry.name]
        entries.append(replace(entry, name=name))
    return ShardEntry(
        part=number, num_documents=writer.num_documents, num_tokens=writer.num_tokens, files=tuple(entries)
    )


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to that takes the name `path` when the block ends well."""
    writing = path.with_name(f"{path.name}.{os.uname().nodename}-{os.getpid()}")
    try:
        with naming(writing):
            yield writing
        os.replace(writing, path)
    finally:
        writing.unlink(missing_ok=True)


@lru_cache(maxsize=1)
def _build_encoder(options: EncodeOptions, tokenizer_json: str) -> Encoder:
    return build_encoder(options, tokenizer_json)


def _encoder(settings: PartSettings) -> Encoder:
    """The encoder of this process: building one takes up to a second, and a process has many parts."""
    return _build_encoder(settings.encode, settings.tokenizer_json)
