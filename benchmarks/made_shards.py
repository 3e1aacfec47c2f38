"""Folders of shards written by the project's own writer, of a corpus or of random ids: what serving and opening are
measured on.

Shapes: N tokens, D documents.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.support import read_texts
from launcher import __version__
from launcher.prepare.tokenizer_training import train_tokenizer
from launcher.shards.index import token_dtype
from launcher.shards.manifest import (
    FORMAT_VERSION,
    Manifest,
    SegmentEntry,
    ShardEntry,
    Source,
    SpecialTokens,
    SplitStats,
    TokenizerInfo,
    complete_folder,
)
from launcher.shards.origins import ORIGIN
from launcher.shards.writer import Documents as Written
from launcher.shards.writer import ShardWriter

VOCAB_SIZE = 50_000
END = 3
BATCH = 100_000
NUM_TEXTS, MAX_CHARS, LEARNT_TEXTS, LEARNT_VOCABULARY = 5_000, 10_000, 1_000, 8_000
"""Of a corpus the first texts and as much of each, so that a few seconds are enough to tokenize them."""
BATCH_TOKENS = 1 << 22


@dataclass(frozen=True, slots=True)
class Documents:
    """The documents of which a folder is made, again and again from the first one."""

    tokens_N: NDArray[np.int32]
    """END behind each."""
    lengths_D: NDArray[np.int32]

    @property
    def mean_tokens(self) -> float:
        """Of a document."""
        return float(self.lengths_D.mean())

    def batches(self, num_documents: int) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32]]]:
        """Tokens and lengths of so many documents, some at a time."""
        times = max(1, BATCH_TOKENS // len(self.tokens_N))
        tokens_N, lengths_D = np.tile(self.tokens_N, times), np.tile(self.lengths_D, times)
        for first in range(0, num_documents, len(lengths_D)):
            lengths = lengths_D[: num_documents - first]
            yield tokens_N[: int(lengths.sum())], lengths


def documents_of(corpus: Path, mean_tokens: int) -> Documents:
    """The documents at a corpus's beginning, tokenized; none longer than a random one of `make_shards` may be."""
    texts = [text[:MAX_CHARS] for text in read_texts(corpus, NUM_TEXTS)]
    with tempfile.TemporaryDirectory() as name:
        handle = train_tokenizer(texts[:LEARNT_TEXTS], "wordpiece", LEARNT_VOCABULARY, Path(name) / "tokenizer")
    encoded = handle.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    documents = [np.array([*encoding.ids[: 2 * mean_tokens - 2], END], dtype=np.int32) for encoding in encoded]
    return Documents(np.concatenate(documents), np.array([len(each) for each in documents], dtype=np.int32))


def make_shards_of_size(folder: Path, num_tokens: int, mean_tokens: int, corpus: Path | None) -> Manifest:
    """About so many tokens, of a corpus where there is one.

    Args:
        folder: Folder to make.
        num_tokens: Of all documents.
        mean_tokens: Of a random document; one of the corpus has less than twice as many.
        corpus: JSONL; None for random ids.
    """
    if corpus is None:
        return make_shards(folder, num_tokens // mean_tokens, mean_tokens)
    documents = documents_of(corpus, mean_tokens)
    return make_shards(folder, max(1, round(num_tokens / documents.mean_tokens)), mean_tokens, documents)


def make_shards(
    folder: Path, num_documents: int, mean_tokens: int, documents: Documents | None = None, seed: int = 0
) -> Manifest:
    """One shard of so many documents.

    Args:
        folder: Folder to make.
        num_documents: How many.
        mean_tokens: Of random ones the length is uniform from 1 to twice this, less one.
        documents: Given ones; random ones without.
        seed: Of numpy's generator.
    """
    folder.mkdir(parents=True)
    special = SpecialTokens(
        pad=0,
        unk=1,
        cls=2,
        sep=END,
        mask=4,
        bos=None,
        eos=None,
        sentinels=(),
        all_ids=(0, 1, 2, 3, 4),
        document_end=END,
    )
    with ShardWriter(folder / "train-00000", VOCAB_SIZE) as writer:
        made = _random(num_documents, mean_tokens, seed) if documents is None else documents.batches(num_documents)
        for tokens, lengths in made:
            origins = np.zeros(len(lengths), dtype=ORIGIN)
            origins["number"] = writer.num_documents + np.arange(1, len(lengths) + 1)
            writer.append(Written(tokens_N=tokens, lengths_D=lengths, origins_D=origins))
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "tokenizer.json").write_text("{}", encoding="utf-8")
    shard = ShardEntry(part=0, num_documents=num_documents, num_tokens=writer.num_tokens, files=writer.files())
    nothing = SplitStats(num_documents=0, num_tokens=0, text_bytes=0, unigram_entropy=0.0, shards=())
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        launcher_version=__version__,
        fingerprint="0" * 64,
        dtype=token_dtype(VOCAB_SIZE).name,
        tokenizer=TokenizerInfo(sha256="0" * 64, vocab_size=VOCAB_SIZE, name="none", special=special),
        encoder="a benchmark",
        words=False,
        sentences=False,
        splits={
            "train": SplitStats(
                num_documents=num_documents,
                num_tokens=writer.num_tokens,
                text_bytes=0,
                unigram_entropy=0.0,
                shards=(shard,),
            ),
            "validation": nothing,
        },
        sources=(Source(path="made up", num_bytes=0),),
        parts=((SegmentEntry(source=0, start=0, end=0, num_rows=num_documents, xxh3=None),),),
        filters={},
        settings={},
    )
    return complete_folder(folder, manifest, writer.sums)


def _random(num_documents: int, mean_tokens: int, seed: int) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32]]]:
    rng = np.random.default_rng(seed)
    for first in range(0, num_documents, BATCH):
        lengths = rng.integers(1, 2 * mean_tokens, min(BATCH, num_documents - first)).astype(np.int32)
        tokens = rng.integers(5, VOCAB_SIZE, int(lengths.sum()), dtype=np.int32)
        tokens[np.cumsum(lengths) - 1] = END
        yield tokens, lengths
