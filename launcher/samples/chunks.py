"""Documents cut into chunks of whole sentences, and the plan that says where each chunk lies.

Shapes: Q sentences, D documents, P pieces of sentences, C chunks.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

from launcher.samples.kept import find_kept, keep
from launcher.samples.shapes import TokenStream

ALGORITHM = "sentence-chunks/2"
"""Part of the fingerprint: change it whenever the same documents would be cut into other chunks."""

BLOCK_DOCUMENTS = 1 << 16
"""Documents whose sentences are looked at together."""


class SentenceStream(TokenStream, Protocol):
    """A stream that may know the sentences of its documents; a document's last token ends it and is no text."""

    @property
    def has_sentences(self) -> bool:
        """Whether it knows them."""
        ...

    def sequence_starts(self, document: int) -> NDArray[np.int64]:
        """First token of each sentence of a document and the token behind the last, int64 [Q + 1]."""
        ...

    def sequence_lengths(self, first: int, last: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Of the documents `[first, last)`: tokens of each sentence, int32 [Q]; sentences of each, int64 [D]."""
        ...


@dataclass(frozen=True)
class ChunkPlan:
    """Where the chunks of a split lie in its stream, 16 bytes a chunk, ascending."""

    fingerprint: str
    """`plan_fingerprint` of what was cut."""
    starts_C: NDArray[np.int64]
    """First token."""
    lengths_C: NDArray[np.int32]
    """Tokens."""
    documents_C: NDArray[np.uint32]
    """Number of the document."""
    singles: NDArray[np.int64]
    """The chunks inside which no sentence begins, ascending."""


def cut_chunks(
    lengths_Q: NDArray[np.int32], counts_D: NDArray[np.int64], room: int
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int64], NDArray[np.bool_]]:
    """Fill each chunk with as many whole sentences of a document, one after another, as there is room for.

    A sentence longer than the room is cut every `room` tokens; what is left of it at its end goes together with the
    sentences behind it. The last token of a document, which ends it, is in no chunk: it would tell a model which of two
    pieces comes last.

    Args:
        lengths_Q: Tokens of each sentence.
        counts_D: Sentences of each document.
        room: Tokens a chunk holds.

    Returns:
        Of each chunk its first token, counted from the first document's, its tokens, its document, and whether it is
        of a single sentence, each [C].
    """
    ends_Q = np.cumsum(lengths_Q, dtype=np.int64)
    starts_Q = ends_Q - lengths_Q
    lasts_D = np.cumsum(counts_D) - 1
    ends_Q[lasts_D[counts_D > 0]] -= 1
    documents_Q = np.repeat(np.arange(len(counts_D)), counts_D)
    num_pieces_Q = -(-np.maximum(ends_Q - starts_Q, 0) // room)
    sentences_P = np.repeat(np.arange(len(lengths_Q)), num_pieces_Q)
    nth_P = np.arange(len(sentences_P)) - (np.cumsum(num_pieces_Q) - num_pieces_Q)[sentences_P]
    starts_P = starts_Q[sentences_P] + nth_P * room
    ends_P = np.minimum(starts_P + room, ends_Q[sentences_P])
    documents_P = documents_Q[sentences_P]
    # A chunk that begins with a piece ends before the first piece that reaches beyond its room, or is another
    # document's.
    next_P = np.minimum(
        np.searchsorted(ends_P, starts_P + room, side="right"), np.searchsorted(documents_P, documents_P, side="right")
    )
    following, firsts, piece = next_P.tolist(), [], 0
    while piece < len(following):
        firsts.append(piece)
        piece = following[piece]
    firsts_C = np.array(firsts, dtype=np.int64)
    starts_C = starts_P[firsts_C]
    lengths_C = (ends_P[next_P[firsts_C] - 1] - starts_C).astype(np.int32)
    return starts_C, lengths_C, documents_P[firsts_C], next_P[firsts_C] - firsts_C == 1


def plan_fingerprint(stream: TokenStream, room: int) -> str:
    """16 hex digits of all that decides the chunks."""
    return xxhash.xxh3_64_hexdigest(f"{ALGORITHM} {stream.fingerprint} room={room}".encode())


def make_plan(stream: SentenceStream, room: int) -> ChunkPlan:
    """Cut every document: one pass over the lengths of all sentences."""
    starts, lengths = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int32)]
    documents, single = [np.empty(0, dtype=np.uint32)], [np.empty(0, dtype=np.bool_)]
    for first in range(0, stream.num_documents, BLOCK_DOCUMENTS):
        last = min(first + BLOCK_DOCUMENTS, stream.num_documents)
        base = int(stream.document_starts(first, first + 1)[0])
        starts_C, lengths_C, documents_C, single_C = cut_chunks(*stream.sequence_lengths(first, last), room)
        starts.append(starts_C + base)
        lengths.append(lengths_C)
        documents.append((documents_C + first).astype(np.uint32))
        single.append(single_C)
    return ChunkPlan(
        plan_fingerprint(stream, room),
        np.concatenate(starts),
        np.concatenate(lengths),
        np.concatenate(documents),
        np.flatnonzero(np.concatenate(single)),
    )


def load_or_make_plan(stream: SentenceStream, room: int, path: Path) -> ChunkPlan:
    """The plan kept at `path`; where there is none of these chunks, it is made and put there if the folder allows."""
    fingerprint = plan_fingerprint(stream, room)
    kept = find_kept(path, fingerprint, ("starts", "lengths", "documents", "singles"))
    if kept is not None:
        return ChunkPlan(fingerprint, *kept)
    plan = make_plan(stream, room)
    with suppress(OSError):  # a folder that cannot be written to: planned again at the next start
        keep(
            path,
            fingerprint,
            {
                "starts": plan.starts_C,
                "lengths": plan.lengths_C,
                "documents": plan.documents_C,
                "singles": plan.singles,
            },
        )
    return plan
