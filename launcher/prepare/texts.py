"""The texts of a corpus, one after another, in one process: for training tokenizers, and for looking at samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

from launcher.prepare.filters import FilterOptions, Filters
from launcher.prepare.readers import ReadOptions, SegmentReader
from launcher.prepare.sources import Segment, SourceFile, cut, find_sources

WHOLE = 1 << 62
"""Bytes of a part that nothing has to be cut for."""
SAMPLE_PLACES = 64
"""Of a corpus, from which a sample of it is read (assumption: a corpus is made of fewer kinds of text)."""


def read_texts(
    corpus: Sequence[str], read: ReadOptions | None = None, filters: FilterOptions | None = None
) -> Iterator[str]:
    """The texts of files, folders, globs and hub names that are kept, in order.

    Raises:
        CorpusError: A file is missing, or a record cannot be read; names file and record.
    """
    sources = find_sources(corpus)
    for segments in cut(sources, WHOLE):
        yield from texts_of(sources, segments, read or ReadOptions(), filters or FilterOptions())


def sample_texts(corpus: Sequence[str], num_bytes: int, read: ReadOptions | None = None) -> Iterator[str]:
    """Some texts of a corpus, the same every time: all of a small one, of a larger one what lies behind many places.

    A compressed file, a JSON array and a hub's data set can only be read from their beginnings.

    Args:
        corpus: Files, folders, globs and hub names.
        num_bytes: About how much text.
        read: How records are read.

    Raises:
        CorpusError: A file is missing, or a record cannot be read; names file and record.
    """
    read = read or ReadOptions()
    sources = find_sources(corpus)
    total = sum(source.num_bytes for source in sources)
    parts = cut(sources, max(total // SAMPLE_PLACES, 1), read.txt)
    is_small = total <= num_bytes and not any(source.compression or source.hub for source in sources)
    share = WHOLE if is_small else max(num_bytes // len(parts), 1)
    for segments in parts:
        left = share
        for text in texts_of(sources, segments, read, FilterOptions()):
            yield text
            left -= len(text.encode())
            if left <= 0:
                break


def texts_of(
    sources: Sequence[SourceFile], segments: Iterable[Segment], read: ReadOptions, filters: FilterOptions
) -> Iterator[str]:
    """The texts of some segments that are kept.

    Raises:
        CorpusError: A record cannot be read; names file and record.
    """
    kept = Filters(filters, read.text_field, Counter())
    for segment in segments:
        with SegmentReader(sources[segment.source], segment, read) as reader:
            for record in reader:
                text = kept.accept(record.fields, partial(reader.where, record))
                if text is not None:
                    yield text
