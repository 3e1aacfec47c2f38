"""One split of a build: its shards, one after another, and its statistics."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from launcher.shards.manifest import FileEntry, SplitStats, TokenizerInfo, file_entry
from launcher.shards.writer import ShardWriter


class SplitWriter:
    """Appends documents to `NAME-00000`, `NAME-00001`, …; a context manager.

    Args:
        folder: Where the shards go.
        name: `train` or `validation`.
        tokenizer: Gives the token type and the token that ends a document.
        tokens_per_shard: A shard that has reached it is closed.
    """

    def __init__(self, folder: Path, name: str, tokenizer: TokenizerInfo, tokens_per_shard: int) -> None:
        self._folder = folder
        self._name = name
        self._vocab_size = tokenizer.vocab_size
        self._end = np.array([tokenizer.special.document_end], dtype=np.int32)
        self._tokens_per_shard = tokens_per_shard
        self._frequencies = np.zeros(tokenizer.vocab_size, dtype=np.int64)
        self._num_documents = self._num_tokens = self._num_chars = self._num_shards = 0
        self._shard: ShardWriter | None = None

    def __enter__(self) -> SplitWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shard is not None:
            self._shard.__exit__(kind, error, trace)

    def append(self, tokens_N: NDArray[np.int32], num_chars: int) -> None:
        """Add one document, its end not yet appended.

        Args:
            tokens_N: Ids of the text, int32 [N].
            num_chars: Characters of the text.
        """
        if self._shard is None or self._shard.num_tokens >= self._tokens_per_shard:
            if self._shard is not None:
                self._shard.__exit__(None, None, None)
            self._shard = ShardWriter(self._folder / f"{self._name}-{self._num_shards:05d}", self._vocab_size)
            self._num_shards += 1
        self._shard.append(np.concatenate([tokens_N, self._end]))
        self._frequencies += np.bincount(tokens_N, minlength=len(self._frequencies))
        self._num_documents += 1
        self._num_tokens += len(tokens_N) + 1
        self._num_chars += num_chars

    def stats(self) -> SplitStats:
        """What was written; call it when the split is closed."""
        files: list[FileEntry] = []
        for number in range(self._num_shards):
            files += [file_entry(self._folder / f"{self._name}-{number:05d}{suffix}") for suffix in (".bin", ".idx")]
        return SplitStats(
            num_documents=self._num_documents,
            num_tokens=self._num_tokens,
            num_chars=self._num_chars,
            unigram_entropy=entropy(self._frequencies),
            files=tuple(files),
        )


def entropy(frequencies_V: NDArray[np.int64]) -> float:
    """Shannon entropy of a distribution given by counts, in nats; 0 where nothing was counted.

    Args:
        frequencies_V: How often each id occurs, [V].
    """
    counted = frequencies_V[frequencies_V > 0]
    if not counted.size:
        return 0.0
    shares = counted / counted.sum()
    return float(-(shares * np.log(shares)).sum())
