"""Putting pieces of documents into rows, and the plan that says how many rows each block of documents makes.

Shapes: P pieces, D documents of a block, K blocks.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from launcher.samples.kept import find_kept, keep
from launcher.samples.shapes import TokenStream

ALGORITHM = "best-fit-decreasing/1"
"""Part of the fingerprint: change it whenever the same documents would be packed into other rows."""

ROWS_A_BLOCK = 512
"""Rows a block should have: the last, half-filled row of a block then costs 0.1 % (assumption)."""
MIN_BLOCK_DOCUMENTS = 256
MAX_BLOCK_DOCUMENTS = 1 << 17
"""So that the plans of the blocks in use stay below some hundred MiB even where a document is a line."""


def best_fit(lengths_P: NDArray[np.int64], capacity: int) -> tuple[NDArray[np.int64], int]:
    """Best fit, longest first: each piece goes to the row with the least space that still holds it.

    Args:
        lengths_P: Tokens of each piece, int64 [P], each in `1 … capacity`.
        capacity: Tokens a row holds.

    Returns:
        The row of each piece, int64 [P], and the number of rows.

    Source: Ding et al. 2024, "Fewer truncations improve language modeling" (arXiv:2404.10830). The rows with space
    left are found by one bit per amount of space, in an integer of `capacity` bits, and pieces of one length are
    placed together: a row that holds one more of them is again the best for the next.
    """
    order_P = np.argsort(-lengths_P, kind="stable")
    lengths, first = np.unique(-lengths_P[order_P], return_index=True)
    counts = np.diff(np.append(first, len(lengths_P)))
    rows_with: defaultdict[int, list[int]] = defaultdict(list)
    spaces = 0  # bit s: there is a row with s places left
    num_rows = 0
    rows: list[int] = []
    repeats: list[int] = []
    for length, num_left in zip((-lengths).tolist(), counts.tolist(), strict=True):
        while num_left:
            fitting = spaces >> length
            if fitting:
                space = length + (fitting & -fitting).bit_length() - 1
                row = rows_with[space].pop()
                if not rows_with[space]:
                    spaces ^= 1 << space
            else:
                row, space = num_rows, capacity
                num_rows += 1
            taken = min(num_left, space // length)
            num_left -= taken
            rows.append(row)
            repeats.append(taken)
            space -= taken * length
            if space:
                rows_with[space].append(row)
                spaces |= 1 << space
    rows_P = np.empty(len(lengths_P), dtype=np.int64)
    rows_P[order_P] = np.repeat(np.array(rows, dtype=np.int64), repeats)
    return rows_P, num_rows


@dataclass(frozen=True, slots=True)
class Cuts:
    """The documents of a block as pieces that fit into a row, in the order of the stream."""

    documents_P: NDArray[np.int64]
    """Number of the document in the block."""
    offsets_P: NDArray[np.int64]
    """First token of the piece inside its document."""
    lengths_P: NDArray[np.int64]
    """Tokens of the piece, at least one."""


def cut(lengths_D: NDArray[np.int64], capacity: int, stride: int) -> Cuts:
    """Cut the documents that do not fit into a row; no others, and no token is dropped.

    Args:
        lengths_D: Tokens of each document, int64 [D].
        capacity: Tokens a row holds.
        stride: Tokens from the start of one piece of a document to the start of its next; what two pieces share is
            context that the first has predicted already.
    """
    num_pieces_D = np.where(lengths_D > capacity, -((capacity - stride - lengths_D) // stride), lengths_D > 0)
    documents_P = np.repeat(np.arange(len(lengths_D)), num_pieces_D)
    first_piece_D = np.cumsum(num_pieces_D) - num_pieces_D
    offsets_P = (np.arange(len(documents_P)) - first_piece_D[documents_P]) * stride
    return Cuts(documents_P, offsets_P, np.minimum(lengths_D[documents_P] - offsets_P, capacity))


@dataclass(frozen=True)
class PackingPlan:
    """How many rows each block of consecutive documents makes: what numbers the rows of a split."""

    fingerprint: str
    """`plan_fingerprint` of what was packed."""
    block_documents: int
    """Documents of a block; the last one may have fewer."""
    rows_K: NDArray[np.int32]
    """Rows of each block, int32 [K]."""
    num_placed: int
    """Tokens in all rows, those that two pieces share counted twice."""
    length: int
    """Tokens a row holds."""

    @cached_property
    def row_starts(self) -> NDArray[np.int64]:
        """First row of each block, and the number of rows at the end, int64 [K + 1]."""
        return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(self.rows_K, dtype=np.int64)])

    @property
    def padding_share(self) -> float:
        """Share of the places of all rows that hold no token."""
        num_places = int(self.row_starts[-1]) * self.length
        return 1 - self.num_placed / num_places if num_places else 0.0

    def save(self, path: Path) -> None:
        """Write it beside others of its kind; a reader finds the old file or the new one, never half of one."""
        numbers = np.array([self.block_documents, self.num_placed, self.length], dtype=np.int64)
        keep(path, self.fingerprint, {"numbers": numbers, "rows": self.rows_K})

    @classmethod
    def load(cls, path: Path, fingerprint: str) -> PackingPlan | None:
        """Read back what `save` wrote; None where it is missing, damaged or of another packing: plan again."""
        kept = find_kept(path, fingerprint, ("numbers", "rows"))
        if kept is None:
            return None
        numbers, rows_K = kept
        if numbers.shape != (3,) or rows_K.dtype != np.int32 or rows_K.ndim != 1:
            return None
        block_documents, num_placed, length = numbers.tolist()
        return cls(fingerprint, block_documents, rows_K, num_placed, length)


def plan_fingerprint(stream: TokenStream, length: int, stride: int) -> str:
    """16 hex digits of all that decides a packing."""
    return xxhash.xxh3_64_hexdigest(f"{ALGORITHM} {stream.fingerprint} length={length} stride={stride}".encode())


def documents_of_a_block(stream: TokenStream, length: int) -> int:
    """Consecutive documents that make about `ROWS_A_BLOCK` rows."""
    wanted = -(-ROWS_A_BLOCK * length * stream.num_documents // max(1, stream.num_tokens))
    return min(max(MIN_BLOCK_DOCUMENTS, wanted), MAX_BLOCK_DOCUMENTS)


def make_plan(stream: TokenStream, length: int, stride: int) -> PackingPlan:
    """Pack every block once and keep the number of its rows: one pass over the documents' lengths, 1 µs a document."""
    block_documents = documents_of_a_block(stream, length)
    rows, num_placed = [], 0
    for first in range(0, stream.num_documents, block_documents):
        starts = stream.document_starts(first, min(first + block_documents, stream.num_documents))
        lengths_P = cut(np.diff(starts), length, stride).lengths_P
        rows.append(best_fit(lengths_P, length)[1])
        num_placed += int(lengths_P.sum())
    fingerprint = plan_fingerprint(stream, length, stride)
    return PackingPlan(fingerprint, block_documents, np.array(rows, dtype=np.int32), num_placed, length)


def load_or_make_plan(stream: TokenStream, length: int, stride: int, path: Path) -> PackingPlan:
    """The plan kept at `path`; where there is none of this packing, it is made and put there if the folder allows."""
    plan = PackingPlan.load(path, plan_fingerprint(stream, length, stride))
    if plan is None:
        plan = make_plan(stream, length, stride)
        with suppress(OSError):  # a folder that cannot be written to: planned again at the next start
            plan.save(path)
    return plan
