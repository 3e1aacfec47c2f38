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
