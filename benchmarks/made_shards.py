"""Folders of shards of random ids, written by the project's own writer: what serving and opening are measured on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from launcher import __version__
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
from launcher.shards.writer import Documents, ShardWriter

VOCAB_SIZE = 50_000
END = 3
BATCH = 100_000


def make_shards(folder: Path, num_documents: int, mean_tokens: int, seed: int = 0) -> Manifest:
    """One shard of random documents.

    Args:
        folder: Folder to make.
        num_documents: How many.
        mean_tokens: Their length is uniform from 1 to twice this, less one.
        seed: Of numpy's generator.
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
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
        for first in range(0, num_documents, BATCH):
            count = min(BATCH, num_documents - first)
            lengths = rng.integers(1, 2 * mean_tokens, count).astype(np.int32)
            tokens = rng.integers(5, VOCAB_SIZE, int(lengths.sum()), dtype=np.int32)
            tokens[np.cumsum(lengths) - 1] = END
            origins = np.zeros(count, dtype=ORIGIN)
            origins["number"] = np.arange(first + 1, first + count + 1)
            writer.append(Documents(tokens_N=tokens, lengths_D=lengths, origins_D=origins))
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
        encoder="random",
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
        sources=(Source(path="random", num_bytes=0),),
        parts=((SegmentEntry(source=0, start=0, end=0, num_rows=num_documents, xxh3=None),),),
        filters={},
        settings={},
    )
    return complete_folder(folder, manifest, writer.sums)
