"""Samples as whole documents packed into rows (`bestfit`).

Shapes: B samples, L tokens of a row, P pieces, K blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from launcher.errors import ShardError
from launcher.samples.block_order import GROUP_BLOCKS, BlockOrder
from launcher.samples.packing import (
    ALGORITHM,
    PackingPlan,
    best_fit,
    cut,
    documents_of_a_block,
    make_plan,
    plan_fingerprint,
)
from launcher.samples.pieces import Pieces
from launcher.samples.recent import Recent
from launcher.samples.shapes import Integers, TokenStream, check_documents, check_samples, fill_behind

NUM_KEPT_BLOCKS = GROUP_BLOCKS + GROUP_BLOCKS // 4
"""The blocks of one group of the order, and room for the first of the next."""


@dataclass(frozen=True, slots=True)
class _Block:
    """The rows of one block: its pieces, ordered by row, and in a row as in the stream."""

    first_pieces_R: NDArray[np.int64]
    """First piece of each row, and the number of pieces at the end."""
    starts_P: NDArray[np.int64]
    """First token of the piece in the stream."""
    columns_P: NDArray[np.int32]
    lengths_P: NDArray[np.int32]
    documents_P: NDArray[np.int32]
    """Number of the document in the block."""
    offsets_P: NDArray[np.int64]


class BestFit:
    """Whole documents packed into rows of `length` tokens, inside blocks of consecutive documents.

    A row follows from the lengths of the documents of its block alone. Only a document longer than a row is cut: its
    pieces start every `stride` tokens (the `length - stride` tokens that two pieces share are context that the first
    has predicted already), and its last piece is packed like a short document. No token is dropped.

    Args:
        stream: Where the tokens come from.
        length: Tokens of a row.
        stride: Tokens from the start of one piece of a document to the start of its next.
        fill: Token id behind the last piece of a row.
        packing: Rows of each block, if known; planned otherwise, in one pass over the documents' lengths.

    Raises:
        ValueError: `length` and `stride` do not satisfy 1 <= stride <= length, or `packing` is of something else.
    """

    def __init__(
        self, stream: TokenStream, length: int, stride: int, fill: int, packing: PackingPlan | None = None
    ) -> None:
        if not 1 <= stride <= length:
            raise ValueError(f"pieces of {length} tokens cannot start every {stride} tokens")
        if packing is None:
            packing = make_plan(stream, length, stride)
        elif packing.fingerprint != plan_fingerprint(stream, length, stride):
            raise ValueError("the plan was made for another packing")
        self.stream, self.length, self.stride, self.fill = stream, length, stride, fill
        self.packing = packing
        self._blocks: Recent[int, _Block] = Recent(NUM_KEPT_BLOCKS)

    @staticmethod
    def plan(stream: TokenStream, length: int, stride: int) -> PackingPlan:
        """Count the rows of every block; see `packing.load_or_make_plan` to keep the result."""
        return make_plan(stream, length, stride)

    @property
    def num_samples(self) -> int:
        """Rows of all blocks."""
        return int(self.packing.row_starts[-1])

    @property
    def padding_share(self) -> float:
        """Share of the places of all rows that hold no token."""
        return self.packing.padding_share

    @property
    def fingerprint(self) -> str:
        """16 hex digits of all but the tokens that decides which of them a row holds."""
        shape = f"length={self.length} stride={self.stride} documents={documents_of_a_block(self.stream, self.length)}"
        return xxhash.xxh3_64_hexdigest(f"bestfit/{ALGORITHM} {shape}".encode())

    def order(self, seed: int) -> BlockOrder:
        """Rows shuffled inside groups of shuffled blocks; raises ShardError where there is none."""
        return BlockOrder(self.packing.row_starts, seed)

    def read(self, sample_ids_B: NDArray[np.int64], out_BL: Integers) -> NDArray[np.int64]:
        """Fill a row with each of these samples; see `Samples.read`."""
        lengths_B = np.empty(len(sample_ids_B), dtype=np.int64)
        read = self.stream.read
        for row, (block, pieces) in enumerate(self._rows(sample_ids_B)):
            row_L, end = out_BL[row], 0
            for start, length in zip(block.starts_P[pieces].tolist(), block.lengths_P[pieces].tolist(), strict=True):
                read(start, row_L[end : end + length])
                end += length
            lengths_B[row] = end
        fill_behind(out_BL, lengths_B, self.fill)
        return lengths_B

    def read_words(self, sample_ids_B: NDArray[np.int64], out_BL: NDArray[np.bool_]) -> None:
        """Mark the tokens that continue a word; see `Samples.read_words`."""
        out_BL[:] = False
        for row, (block, pieces) in enumerate(self._rows(sample_ids_B)):
            row_L, end = out_BL[row], 0
            for start, length in zip(block.starts_P[pieces].tolist(), block.lengths_P[pieces].tolist(), strict=True):
                self.stream.read_words(start, row_L[end : end + length])
                row_L[end] = False
                end += length

    def pieces(self, sample_ids_B: NDArray[np.int64]) -> Pieces:
        """Which documents stand where in these rows."""
        rows = self._rows(sample_ids_B)
        rows_P = np.repeat(np.arange(len(rows)), [pieces.stop - pieces.start for _, pieces in rows])
        first_documents_B = self._blocks_of(sample_ids_B) * self.packing.block_documents
        documents_P = _joined([block.documents_P[pieces] for block, pieces in rows])
        return Pieces(
            rows_P=rows_P,
            columns_P=_joined([block.columns_P[pieces] for block, pieces in rows]),
            lengths_P=_joined([block.lengths_P[pieces] for block, pieces in rows]),
            documents_P=documents_P + first_documents_B[rows_P],
            offsets_P=_joined([block.offsets_P[pieces] for block, pieces in rows]),
        )

    def samples_of(self, documents_K: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows that hold tokens of any of these documents; see `Samples.samples_of`."""
        check_documents(documents_K, self.stream.num_documents)
        numbers_K, in_block_K = np.divmod(documents_K, self.packing.block_documents)
        groups = np.split(in_block_K, np.flatnonzero(np.diff(numbers_K)) + 1)
        found = []
        for number, in_block in zip(np.unique(numbers_K).tolist(), groups, strict=False):  # a group, of none
            block = self._blocks.get(number, self._packed)
            pieces = np.flatnonzero(np.isin(block.documents_P, in_block))
            rows = np.unique(np.searchsorted(block.first_pieces_R, pieces, side="right") - 1)
            found.append(rows + int(self.packing.row_starts[number]))
        return _joined(found)

    def advise(self, sample_ids_B: NDArray[np.int64]) -> None:
        """Say which rows are read next; never waits for the disk, but plans the blocks of these rows."""
        rows = self._rows(sample_ids_B)
        self.stream.advise(
            _joined([block.starts_P[pieces] for block, pieces in rows]),
            _joined([block.lengths_P[pieces] for block, pieces in rows]),
        )

    def _blocks_of(self, sample_ids_B: NDArray[np.int64]) -> NDArray[np.int64]:
        blocks_B: NDArray[np.int64] = np.searchsorted(self.packing.row_starts, sample_ids_B, side="right") - 1
        return blocks_B

    def _rows(self, sample_ids_B: NDArray[np.int64]) -> list[tuple[_Block, slice]]:
        """The block of each row, and which of its pieces the row holds."""
        check_samples(sample_ids_B, self.num_samples)
        blocks_B = self._blocks_of(sample_ids_B)
        rows_B = sample_ids_B - self.packing.row_starts[blocks_B]
        found = []
        for number, row in zip(blocks_B.tolist(), rows_B.tolist(), strict=True):
            block = self._blocks.get(number, self._packed)
            first, last = block.first_pieces_R[row : row + 2].tolist()
            found.append((block, slice(first, last)))
        return found

    def _packed(self, number: int) -> _Block:
        """Pack a block: the same rows whenever and wherever it is done."""
        first = number * self.packing.block_documents
        last = min(first + self.packing.block_documents, self.stream.num_documents)
        starts_D = self.stream.document_starts(first, last)
        cuts = cut(np.diff(starts_D), self.length, self.stride)
        rows_P, num_rows = best_fit(cuts.lengths_P, self.length)
        if num_rows != self.packing.rows_K[number]:
            raise ShardError(
                f"block {number} of the documents makes {num_rows} rows, its plan says {self.packing.rows_K[number]}",
                "data",
                "remove the kept packing plan: it is made again",
            )
        order_P = np.argsort(rows_P, kind="stable")
        first_pieces_R = np.searchsorted(rows_P[order_P], np.arange(num_rows + 1))
        lengths_P, documents_P = cuts.lengths_P[order_P], cuts.documents_P[order_P]
        before_P = np.cumsum(lengths_P) - lengths_P
        return _Block(
            first_pieces_R=first_pieces_R,
            starts_P=starts_D[documents_P] + cuts.offsets_P[order_P],
            columns_P=(before_P - before_P[first_pieces_R[rows_P[order_P]]]).astype(np.int32),
            lengths_P=lengths_P.astype(np.int32),
            documents_P=documents_P.astype(np.int32),
            offsets_P=cuts.offsets_P[order_P],
        )


def _joined(parts: Sequence[NDArray[np.integer[Any]]]) -> NDArray[np.int64]:
    return np.concatenate([np.empty(0, dtype=np.int64), *parts])
