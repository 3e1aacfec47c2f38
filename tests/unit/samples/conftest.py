"""A token stream held in memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray


class MemoryStream:
    """Counts up from 100, so that a token tells its place."""

    def __init__(self, num_tokens: int) -> None:
        self.tokens = np.arange(100, 100 + num_tokens, dtype=np.int32)

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    def read(self, start: int, out: NDArray[np.int32]) -> None:
        if start < 0 or start + len(out) > len(self.tokens):
            raise AssertionError(f"read outside the stream: {start} + {len(out)}")
        out[:] = self.tokens[start : start + len(out)]


@pytest.fixture(scope="session")
def counting_stream() -> Callable[[int], MemoryStream]:
    """Makes a stream of so many tokens."""
    return MemoryStream
