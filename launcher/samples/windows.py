"""Samples as windows of one long token stream.

Shapes: B samples, L tokens of a window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class TokenStream(Protocol):
    """The tokens of a split, its documents end to end."""

    @property
    def num_tokens(self) -> int:
        """Tokens in the stream."""
        ...

    def read(self, start: int, out: NDArray[np.int32]) -> None:
        """Copy the tokens `[start, start + len(out))` into `out`."""
        ...


@dataclass(frozen=True)
class Windows:
    """Sample `i` is the tokens `[i * stride, i * stride + length)` of the stream.

    Windows may overlap: the first `length - stride` tokens of a window are context that an earlier window, if there is
    one, has predicted already, the others are its targets. A window counts as a sample when it holds at least one
    target, so no token is lost; what lies beyond the end of the stream is `fill`.

    With `length = stride` each token is in one sample (mlm, span); with `length = stride + 1` each token but the
    stream's first is predicted once (clm).

    Raises:
        ValueError: `length` and `stride` do not satisfy 1 <= stride <= length.
    """

    stream: TokenStream
    """Where the tokens come from."""
    length: int
    """Tokens in a window."""
    stride: int
    """Tokens from the start of a window to the start of the next."""
    fill: int
    """Token id behind the end of the stream."""

    def __post_init__(self) -> None:
        if not 1 <= self.stride <= self.length:
            raise ValueError(f"windows of {self.length} tokens cannot start every {self.stride} tokens")

    @property
    def num_samples(self) -> int:
        """Windows with at least one target; 0 where the stream has none."""
        num_targets = self.stream.num_tokens - (self.length - self.stride)
        return max(0, -(-num_targets // self.stride))

    def num_real(self, sample_ids_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens of each window that come from the stream, int64 [B]; the rest of the row is fill."""
        return np.minimum(self.stream.num_tokens - sample_ids_B * self.stride, self.length)

    def read(self, sample_ids_B: NDArray[np.int64]) -> NDArray[np.int32]:
        """The tokens of these samples.

        Args:
            sample_ids_B: int64 [B], each in `range(num_samples)`.

        Returns:
            int32 [B, L].

        Raises:
            IndexError: A sample lies outside `range(num_samples)`.
        """
        if sample_ids_B.size and (sample_ids_B.min() < 0 or sample_ids_B.max() >= self.num_samples):
            raise IndexError(f"a sample lies outside range({self.num_samples})")
        tokens_BL = np.empty((len(sample_ids_B), self.length), dtype=np.int32)
        starts = (sample_ids_B * self.stride).tolist()
        counts = self.num_real(sample_ids_B).tolist()
        for row_L, start, num_real in zip(tokens_BL, starts, counts, strict=True):
            self.stream.read(start, row_L[:num_real])
            row_L[num_real:] = self.fill
        return tokens_BL
