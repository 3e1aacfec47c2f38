"""Writing one shard: `NAME.bin` as documents come, `NAME.idx` when the last one is in."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from launcher.shards.index import token_dtype, write_index


class ShardWriter:
    """Appends documents to a shard; a context manager that writes the index when it is left without an error.

    Args:
        stem: Path without suffix.
        vocab_size: Decides the token type: uint16 where it suffices.
    """

    def __init__(self, stem: Path, vocab_size: int) -> None:
        self.num_tokens = 0
        self._vocab_size = vocab_size
        self._dtype = token_dtype(vocab_size)
        self._lengths: list[int] = []
        self._index = stem.with_name(stem.name + ".idx")
        self._file = stem.with_name(stem.name + ".bin").open("wb")

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if error is None:
            write_index(self._index, self._dtype, np.array(self._lengths, dtype=np.int32))

    def append(self, tokens_N: NDArray[np.integer]) -> None:
        """Add one document.

        Args:
            tokens_N: Token ids, any integer type, [N].

        Raises:
            ValueError: An id is not in the vocabulary; 16 bits would wrap it into another token unseen.
        """
        if len(tokens_N) and not 0 <= int(tokens_N.min()) <= int(tokens_N.max()) < self._vocab_size:
            raise ValueError(f"ids {tokens_N.min()} to {tokens_N.max()} in a vocabulary of {self._vocab_size}")
        self._file.write(tokens_N.astype(self._dtype).tobytes())
        self._lengths.append(len(tokens_N))
        self.num_tokens += len(tokens_N)
