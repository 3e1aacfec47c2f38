"""Folders of shards made of given ids, without any text."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

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

END = 3
SPECIAL = SpecialTokens(
    pad=0,
    unk=1,
    cls=2,
    sep=END,
    mask=4,
    bos=None,
    eos=None,
    sentinels=tuple(range(5, 25)),
    all_ids=tuple(range(25)),
    document_end=END,
)


def random_documents(num_documents: int, mean: int, vocab_size: int = 300, seed: int = 0) -> list[list[int]]:
    """Documents of ordinary ids, their end tokens included, of lengths from 1 to about twice the mean."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 2 * mean, num_documents).tolist()
    return [[*rng.integers(25, vocab_size, length - 1).tolist(), END] for length in lengths]


def write_shards(
    folder: Path,
    train: Sequence[Sequence[int]],
    validation: Sequence[Sequence[int]] = (),
    *,
    vocab_size: int = 300,
    documents_per_shard: int = 1 << 30,
    words: bool = False,
    sentence_length: int | None = None,
) -> Manifest:
    """Write documents of ids (end tokens included) as `pretrain prepare` would have.

    Args:
        folder: Folder to make.
        train: Documents to train on.
        validation: Documents held out.
        vocab_size: Of the tokenizer there is not.
        documents_per_shard: A part of the corpus, one line a document.
        words: Mark words: a token continues one when its id is odd and it is not the first or last of its document.
        sentence_length: Cut documents into sequences of so many tokens.
    """
    folder.mkdir(parents=True)
    sums: dict[str, NDArray[np.uint64]] = {}
    splits: dict[str, SplitStats] = {}
    parts: list[tuple[SegmentEntry, ...]] = []
    for name, documents in (("train", train), ("validation", validation)):
        shards = []
        for first in range(0, len(documents), documents_per_shard):
            chosen = documents[first : first + documents_per_shard]
            part = len(parts)
            stem = folder / f"{name}-{part:05d}"
            with ShardWriter(stem, vocab_size, words=words) as writer:
                half = len(chosen) // 2  # two batches
                for batch, number in ((chosen[:half], 1), (chosen[half:], half + 1)):
                    if batch:
                        writer.append(_documents(batch, number, words, sentence_length))
            sums |= writer.sums
            shards.append(
                ShardEntry(part=part, num_documents=len(chosen), num_tokens=writer.num_tokens, files=writer.files())
            )
            source = 0 if name == "train" else 1
            parts.append((SegmentEntry(source=source, start=0, end=1, num_rows=len(chosen), xxh3=None),))
        splits[name] = SplitStats(
            num_documents=len(documents),
            num_tokens=sum(map(len, documents)),
            text_bytes=10 * len(documents),
            unigram_entropy=1.0,
            shards=tuple(shards),
        )
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "tokenizer.json").write_text("{}", encoding="utf-8")
    info = TokenizerInfo(sha256="0" * 64, vocab_size=vocab_size, name="none", special=SPECIAL)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        launcher_version=__version__,
        fingerprint=hashlib.sha256(repr((train, validation)).encode()).hexdigest(),
        dtype=token_dtype(vocab_size).name,
        tokenizer=info,
        encoder="a test",
        words=words,
        sentences=sentence_length is not None,
        splits=splits,
        sources=(Source(path="train.jsonl", num_bytes=1), Source(path="validation.jsonl", num_bytes=1)),
        parts=tuple(parts),
        filters={"read": len(train), "kept": len(train)},
        settings={},
    )
    return complete_folder(folder, manifest, sums)


def text_hash(document: Sequence[int]) -> str:
    """The hash a document of ids bears in place of its text's: 32 hexadecimal digits."""
    return hashlib.md5(repr(list(document)).encode()).hexdigest()


def continues(documents: Sequence[Sequence[int]]) -> list[bool]:
    """What `words=True` marks, over the stream of these documents."""
    return [
        bool(token % 2) and 0 < place < len(document) - 1
        for document in documents
        for place, token in enumerate(document)
    ]


def _documents(batch: Sequence[Sequence[int]], number: int, words: bool, sentence_length: int | None) -> Documents:
    origins_D = np.zeros(len(batch), dtype=ORIGIN)
    origins_D["number"] = np.arange(number, number + len(batch))
    origins_D["num_chars"] = 10
    origins_D["text_hash"] = np.array([bytes.fromhex(text_hash(document)) for document in batch], dtype="V16")
    told: dict[str, Any] = {}
    if sentence_length is not None:
        cuts = [[len(d[i : i + sentence_length]) for i in range(0, len(d), sentence_length)] for d in batch]
        told["sequences_D"] = np.array([len(each) for each in cuts], dtype=np.int32)
        told["sequence_lengths_Q"] = np.array([length for each in cuts for length in each], dtype=np.int32)
    if words:
        told["continues_N"] = np.array(continues(batch), dtype=np.bool_)
    return Documents(
        tokens_N=np.array([token for document in batch for token in document], dtype=np.int32),
        lengths_D=np.array([len(document) for document in batch], dtype=np.int32),
        origins_D=origins_D,
        **told,
    )
