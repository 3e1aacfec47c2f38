"""Samples as two pieces of text, for a head that tells whether the second belongs behind the first.

Shapes: B samples, L tokens of a row, C chunks, P pieces.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import xxhash
from numpy.typing import NDArray

from launcher import units
from launcher.errors import ShardError
from launcher.samples.chunks import ChunkPlan, SentenceStream, make_plan, plan_fingerprint
from launcher.samples.order import Order
from launcher.samples.pieces import Pieces
from launcher.samples.shapes import Integers, check_document, check_samples, fill_behind

PairKind = Literal["nsp", "sop"]

AS_WRITTEN, CHANGED, UNTOLD = 0, 1, -1
"""Labels of a pair: B follows A; it is of another document (nsp) or stands before it (sop); there is no telling."""

_PAIR_LABEL = 0x70616972  # "pair": keeps these keys apart from those of order and noise
_CHANGE, _CUT, _PARTNER = np.uint64(1), np.uint64(2), np.uint64(3)  # the draws of a sample


@dataclass(frozen=True, slots=True)
class DrawnPairs:
    """What stands in the rows of a batch: A, and B behind it."""

    starts_B2: NDArray[np.int64]
    """First token of A and of B in the stream."""
    lengths_B2: NDArray[np.int64]
    """Tokens of each; B has none where a chunk has one token only."""
    documents_B2: NDArray[np.int64]
    """The document of each."""
    labels_B: NDArray[np.int64]
    """AS_WRITTEN, CHANGED or UNTOLD."""


class SentencePairs:
    """Sample `i` is a chunk of whole sentences of one document, cut in two between sentences (in its middle where it
    is a single one); which of its boundaries is drawn from seed and position.

    `nsp`: with probability 1/2 the second part is replaced by the beginning of a chunk of another document, drawn from
    all of them alike: as many of its whole sentences as the part has room for, or so many tokens of its first one.
    What was replaced is not read at this position; the next epoch draws afresh. `sop`: with probability 1/2 the parts
    change places. Every sentence is in exactly one chunk.

    Args:
        stream: Where tokens and sentences come from.
        length: Tokens of a row: the most that a chunk holds.
        fill: Token id behind the end of a row.
        kind: What a changed pair is.
        seed: Chooses cuts, changes and other documents.
        plan: Where the chunks lie, if known; planned otherwise, in one pass over the sentences' lengths.

    Raises:
        ValueError: A row holds less than two tokens, or `plan` is of something else.
        ShardError: The stream knows no sentences, or there is no other document to draw from.

    Source: Devlin et al. 2018, section 3.1 (arXiv:1810.04805); Lan et al. 2019, section 3.1 (arXiv:1909.11942).
    """

    def __init__(
        self,
        stream: SentenceStream,
        length: int,
        fill: int,
        kind: PairKind,
        seed: int,
        plan: ChunkPlan | None = None,
    ) -> None:
        if length < 2:
            raise ValueError(f"rows of {length} tokens hold no pair")
        refuse_without_sentences(stream, "objective.sentence_pairs")
        if plan is None:
            plan = make_plan(stream, length)
        elif plan.fingerprint != plan_fingerprint(stream, length):
            raise ValueError("the plan was made for other chunks")
        documents_C = plan.documents_C
        if kind == "nsp" and len(documents_C) and documents_C[0] == documents_C[-1]:
            raise ShardError(
                "next-sentence prediction draws from other documents, and the split has text in one only",
                "objective.sentence_pairs",
                "prepare more documents (a larger held-out share for the validation split), or use sop",
            )
        self.stream, self.length, self.fill, self.kind, self.seed = stream, length, fill, kind, seed
        self.plan = plan
        self._key = np.uint64(units.derive(seed, _PAIR_LABEL))

    @property
    def num_samples(self) -> int:
        """One a chunk."""
        return len(self.plan.starts_C)

    @property
    def padding_share(self) -> float:
        """Share of the places of all rows that no token of their chunk takes."""
        num_places = self.num_samples * self.length
        return 1 - int(self.plan.lengths_C.sum()) / num_places if num_places else 0.0

    @property
    def fingerprint(self) -> str:
        """16 hex digits of all but the tokens that decides which of them a row holds."""
        text = f"sentence-pairs/1 length={self.length} kind={self.kind} seed={self.seed}"
        return xxhash.xxh3_64_hexdigest(text.encode())

    def order(self, seed: int) -> Order:
        """All chunks shuffled together; raises ShardError where there is none."""
        return Order(self.num_samples, seed)

    def draw(self, sample_ids_B: NDArray[np.int64], positions_B: NDArray[np.int64]) -> DrawnPairs:
        """The pairs of these samples at these positions of the run.

        Args:
            sample_ids_B: int64 [B], each in `range(num_samples)`.
            positions_B: int64 [B].

        Raises:
            IndexError: A sample lies outside `range(num_samples)`.
        """
        drawn = self._whole(sample_ids_B)
        cuts_B2 = drawn.lengths_B2
        picks_B = self._draws(positions_B, _CUT)
        for row, (sample, pick) in enumerate(zip(sample_ids_B.tolist(), picks_B.tolist(), strict=True)):
            length = int(cuts_B2[row, 0])
            inner = self._boundaries(sample)
            cut = int(inner[pick % len(inner)]) if len(inner) else max(1, length // 2)
            cuts_B2[row] = cut, length - cut
        drawn.starts_B2[:, 1] = drawn.starts_B2[:, 0] + cuts_B2[:, 0]
        drawn.labels_B[:], partners_B = self._changes(sample_ids_B, positions_B)
        changed = np.flatnonzero(drawn.labels_B == CHANGED)
        if self.kind == "sop":
            for both in (drawn.starts_B2, drawn.lengths_B2):
                both[changed] = both[changed, ::-1]
            return drawn
        for row, partner in zip(changed.tolist(), partners_B[changed].tolist(), strict=True):
            drawn.starts_B2[row, 1] = self.plan.starts_C[partner]
            drawn.documents_B2[row, 1] = self.plan.documents_C[partner]
            drawn.lengths_B2[row, 1] = self._beginning(partner, int(drawn.lengths_B2[row, 1]))
        return drawn

    def read_pairs(self, drawn: DrawnPairs, out_BL: Integers) -> NDArray[np.int64]:
        """Fill each row with A, B behind it, and `fill` behind both.

        Returns:
            Real tokens of each row, int64 [B].
        """
        lengths_B: NDArray[np.int64] = drawn.lengths_B2.sum(axis=1)
        for row_L, starts, lengths in zip(out_BL, drawn.starts_B2.tolist(), drawn.lengths_B2.tolist(), strict=True):
            self.stream.read(starts[0], row_L[: lengths[0]])
            self.stream.read(starts[1], row_L[lengths[0] : lengths[0] + lengths[1]])
        fill_behind(out_BL, lengths_B, self.fill)
        return lengths_B

    def read_pair_words(self, drawn: DrawnPairs, out_BL: NDArray[np.bool_]) -> None:
        """Mark the tokens that continue the word of the token before them; never the first of A or B."""
        out_BL[:] = False
        for row_L, starts, lengths in zip(out_BL, drawn.starts_B2.tolist(), drawn.lengths_B2.tolist(), strict=True):
            end = 0
            for start, length in zip(starts, lengths, strict=True):
                if length:
                    self.stream.read_words(start, row_L[end : end + length])
                    row_L[end] = False
                    end += length

    def pieces_of_pairs(self, drawn: DrawnPairs) -> Pieces:
        """Where A and B stand, and what they are of."""
        lengths_P = drawn.lengths_B2.reshape(-1)
        columns_B2 = np.zeros_like(drawn.lengths_B2)
        columns_B2[:, 1] = drawn.lengths_B2[:, 0]
        documents_P = drawn.documents_B2.reshape(-1)
        real_P = np.flatnonzero(lengths_P)
        begins = [int(self.stream.document_starts(d, d + 1)[0]) for d in documents_P[real_P].tolist()]
        return Pieces(
            rows_P=real_P // 2,
            columns_P=columns_B2.reshape(-1)[real_P],
            lengths_P=lengths_P[real_P],
            documents_P=documents_P[real_P],
            offsets_P=drawn.starts_B2.reshape(-1)[real_P] - np.array(begins, dtype=np.int64),
        )

    def read(self, sample_ids_B: NDArray[np.int64], out_BL: Integers) -> NDArray[np.int64]:
        """Fill a row with each of these chunks as it was written; see `Samples.read`."""
        return self.read_pairs(self._whole(sample_ids_B), out_BL)

    def read_words(self, sample_ids_B: NDArray[np.int64], out_BL: NDArray[np.bool_]) -> None:
        """Mark the tokens that continue a word; see `Samples.read_words`."""
        self.read_pair_words(self._whole(sample_ids_B), out_BL)

    def pieces(self, sample_ids_B: NDArray[np.int64]) -> Pieces:
        """One piece a chunk."""
        return self.pieces_of_pairs(self._whole(sample_ids_B))

    def samples_of(self, document: int) -> NDArray[np.int64]:
        """The chunks of a document, ascending; where another one's B is drawn from it, `drawn_from` tells."""
        check_document(document, self.stream.num_documents)
        first, last = (np.searchsorted(self.plan.documents_C, document, side=side) for side in ("left", "right"))
        return np.arange(first, last, dtype=np.int64)

    def drawn_from(
        self, document: int, sample_ids_B: NDArray[np.int64], positions_B: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Whether B of each of these samples is drawn from another document, and from this one; bool [B]."""
        if self.kind == "sop":
            return np.zeros(len(sample_ids_B), dtype=np.bool_)
        labels_B, partners_B = self._changes(sample_ids_B, positions_B)
        from_it_B: NDArray[np.bool_] = (labels_B == CHANGED) & (self.plan.documents_C[partners_B] == document)
        return from_it_B

    def advise(self, sample_ids_B: NDArray[np.int64]) -> None:
        """Say which chunks are read next; never waits."""
        check_samples(sample_ids_B, self.num_samples)
        self.stream.advise(self.plan.starts_C[sample_ids_B], self.plan.lengths_C[sample_ids_B].astype(np.int64))

    def _whole(self, sample_ids_B: NDArray[np.int64]) -> DrawnPairs:
        """Each chunk as A, and no B."""
        check_samples(sample_ids_B, self.num_samples)
        starts_B2, lengths_B2 = np.zeros((2, len(sample_ids_B), 2), dtype=np.int64)
        starts_B2[:] = self.plan.starts_C[sample_ids_B][:, None]
        lengths_B2[:, 0] = self.plan.lengths_C[sample_ids_B]
        documents_B2 = np.repeat(self.plan.documents_C[sample_ids_B].astype(np.int64)[:, None], 2, axis=1)
        return DrawnPairs(starts_B2, lengths_B2, documents_B2, np.full(len(sample_ids_B), UNTOLD, dtype=np.int64))

    def _changes(
        self, sample_ids_B: NDArray[np.int64], positions_B: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The label of each pair, and the chunk of another document that is drawn for it (nsp), int64 [B] each."""
        bits_B = (self._draws(positions_B, _CHANGE) >> np.uint64(63)).astype(np.int64)
        labels_B = np.where(self.plan.lengths_C[sample_ids_B] > 1, bits_B, UNTOLD)
        if self.kind == "sop":
            return labels_B, sample_ids_B
        documents_C = self.plan.documents_C
        own_B = documents_C[sample_ids_B]
        firsts_B = np.searchsorted(documents_C, own_B, side="left")
        lasts_B = np.searchsorted(documents_C, own_B, side="right")
        # A number among the chunks of the other documents: those of its own are stepped over.
        num_others_B = (len(documents_C) - (lasts_B - firsts_B)).astype(np.uint64)
        partners_B = (self._draws(positions_B, _PARTNER) % num_others_B).astype(np.int64)
        return labels_B, np.where(partners_B < firsts_B, partners_B, partners_B + lasts_B - firsts_B)

    def _draws(self, positions_B: NDArray[np.int64], use: np.uint64) -> NDArray[np.uint64]:
        return units.mix(units.mix(positions_B.astype(np.uint64) ^ self._key) + use)

    def _boundaries(self, sample: int) -> NDArray[np.int64]:
        """Where the sentences of a chunk begin, but for its first token; counted from it."""
        start, length = int(self.plan.starts_C[sample]), int(self.plan.lengths_C[sample])
        starts_Q = self.stream.sequence_starts(int(self.plan.documents_C[sample]))
        first, last = np.searchsorted(starts_Q, (start + 1, start + length))
        return starts_Q[first:last] - start

    def _beginning(self, sample: int, room: int) -> int:
        """Tokens of a chunk's first sentences that fit; of its very first one, where it does not."""
        length = int(self.plan.lengths_C[sample])
        ends = np.append(self._boundaries(sample), length)
        fitting = int(np.searchsorted(ends, room, side="right"))
        return int(ends[fitting - 1]) if fitting else min(room, length)


def refuse_without_sentences(stream: SentenceStream, where: str) -> None:
    """Raises ShardError where a stream does not know its sentences."""
    if not stream.has_sentences:
        raise ShardError(
            "the shards do not say where sentences begin",
            where,
            "prepare them again with --sentences, or use objective.sentence_pairs=none",
        )
