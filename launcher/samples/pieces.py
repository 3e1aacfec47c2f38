"""Where documents begin and end inside the rows of a batch.

Shapes: B samples, L tokens of a row, P pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Pieces:
    """The pieces of a batch, ordered by row and column. A piece is the part of one document that stands in one row.

    The pieces of a row lie side by side from its first column on; what follows the last one is padding.
    """

    rows_P: NDArray[np.int64]
    """Row of the batch."""
    columns_P: NDArray[np.int64]
    """First place in the row."""
    lengths_P: NDArray[np.int64]
    """Tokens, at least one."""
    documents_P: NDArray[np.int64]
    """Number of the document in its split."""
    offsets_P: NDArray[np.int64]
    """First token of the piece inside its document."""

    def position_ids(self, shape: tuple[int, int]) -> NDArray[np.int64]:
        """Places counted from 0 in every piece, and counted on behind the last one.

        Args:
            shape: (B, L).

        Returns:
            int64 [B, L].
        """
        starts_BL = np.zeros(shape, dtype=np.int64)
        starts_BL[self.rows_P, self.columns_P] = self.columns_P
        np.maximum.accumulate(starts_BL, axis=1, out=starts_BL)
        return np.subtract(np.arange(shape[1], dtype=np.int64), starts_BL, out=starts_BL)

    def cumulative_lengths(self) -> NDArray[np.int32]:
        """Where each piece begins among the real tokens of the batch, row after row, and their end.

        Returns:
            int32 [P + 1], as attention kernels for sequences of unequal length take it.
        """
        cumulative = np.zeros(len(self.lengths_P) + 1, dtype=np.int32)
        np.cumsum(self.lengths_P, out=cumulative[1:])
        return cumulative

    def segments(self, shape: tuple[int, int]) -> NDArray[np.int32]:
        """The number of the piece inside its row, from 0; -1 on padding.

        Args:
            shape: (B, L).

        Returns:
            int32 [B, L].
        """
        begins_BL = np.zeros(shape, dtype=np.int32)
        begins_BL[self.rows_P, self.columns_P] = 1
        segments_BL = np.cumsum(begins_BL, axis=1, dtype=np.int32)
        segments_BL -= 1
        ends_B = np.zeros(shape[0], dtype=np.int64)
        ends_B[self.rows_P] = self.columns_P + self.lengths_P  # of a row's pieces the last one stays
        segments_BL[np.arange(shape[1]) >= ends_B[:, None]] = -1
        return segments_BL

    def mark(self, chosen_P: NDArray[np.bool_], shape: tuple[int, int]) -> NDArray[np.bool_]:
        """The places of some of the pieces.

        Args:
            chosen_P: Which pieces, bool [P].
            shape: (B, L).

        Returns:
            bool [B, L].
        """
        # +1 where a chosen piece begins, -1 where it ends; one column more, for those that fill the row.
        edges = np.zeros((shape[0], shape[1] + 1), dtype=np.int8)
        rows, columns = self.rows_P[chosen_P], self.columns_P[chosen_P]
        edges[rows, columns] += 1
        edges[rows, columns + self.lengths_P[chosen_P]] -= 1
        return np.cumsum(edges, axis=1, dtype=np.int8)[:, :-1].astype(np.bool_)


def join(parts: Sequence[Pieces], rows: Sequence[NDArray[np.int64]]) -> Pieces:
    """The pieces of a batch whose rows were read in several parts.

    Args:
        parts: Pieces of each part, counting its rows from 0.
        rows: The rows of the batch each part fills, int64 [rows of the part].
    """
    rows_P = np.concatenate([part_rows[part.rows_P] for part, part_rows in zip(parts, rows, strict=True)])
    order_P = np.argsort(rows_P, kind="stable")  # inside a row the columns are in order already
    return Pieces(
        rows_P=rows_P[order_P],
        columns_P=np.concatenate([part.columns_P for part in parts])[order_P],
        lengths_P=np.concatenate([part.lengths_P for part in parts])[order_P],
        documents_P=np.concatenate([part.documents_P for part in parts])[order_P],
        offsets_P=np.concatenate([part.offsets_P for part in parts])[order_P],
    )
