"""Many rows of the stream at once: compiled (`_gather.c`) where a C compiler was at hand when this was installed.

Shapes: B rows, L places of a row, K shards.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

SIGNATURE = "gather(out, windows, stride, row, starts, shards, token_bytes, block_bytes)"
OpenShard = tuple[memoryview, bytearray, Callable[[int, int], None]]
"""The bytes of a shard's tokens; a byte for each block of them, 0 where nobody has checked it; and what checks the
blocks from the first number to the last, where nobody has."""


class Gather(Protocol):
    """Fills rows, and stops at the first that needs more than copying."""

    def __call__(
        self,
        out_BL: NDArray[Any],
        windows_B: NDArray[np.int64],
        stride: int,
        row: int,
        starts: NDArray[np.int64],
        shards: list[OpenShard | None],
        token_bytes: int,
        block_bytes: int,
        /,
    ) -> int:
        """Fill rows of `out_BL` from `row` on: window `w` is the tokens from `w * stride` of the stream on.

        A block that nobody has checked is checked first. A row is left that lies outside the stream, in two shards or
        in one that is not open; every row is where an array is not C-contiguous or `out_BL` neither int32 nor int64.

        Args:
            out_BL: Any integer type, [B, L].
            windows_B: int64 [B].
            stride: Tokens from the start of a window to the start of the next.
            row: The first to fill.
            starts: First token of each shard in the stream, and the number of all, int64 [K + 1].
            shards: None where a shard is not open. K of them.
            token_bytes: Bytes of a token in the files: 2 (unsigned) or 4 (signed).
            block_bytes: Bytes of a block.

        Returns:
            The row that was left, unwritten like those behind it; B where none was.

        Raises:
            ShardError: A block is not what was written: what its check raises. No row is written then.
        """
        ...


def leave_all(out_BL: NDArray[Any], windows_B: NDArray[np.int64], stride: int, row: int, /, *stream: object) -> int:
    """Where nothing is compiled: each row is left to whoever reads row by row."""
    return row


try:
    from launcher.shards import _gather
except ImportError:
    compiled: Gather | None = None
else:  # after an update that nobody has compiled yet, what is there takes other words
    compiled = _gather.gather if _gather.gather.__doc__ == SIGNATURE else None
gather: Gather = leave_all if compiled is None else compiled
