"""Samples as two pieces of text, for a head that tells whether the second belongs behind the first.

Shapes: B samples, L tokens of a row, C chunks, P pieces.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import Literal

import numpy as np
import xxhash
from numpy.typing import NDArray

from launcher import units
from launcher.errors import ShardError
from launcher.samples.chunks import ChunkPlan, SentenceStream, make_plan, plan_fingerprint
from launcher.samples.grouping import grouped
from launcher.samples.order import Order
from launcher.samples.permutation import Permutation
from launcher.samples.pieces import Pieces
from launcher.samples.shapes import Integers, check_documents, check_samples, fill_behind, ranges

NOBODY = -1
PairKind = Literal["nsp", "sop"]

AS_WRITTEN, CHANGED, UNTOLD = 0, 1, -1
"""Labels of a pair: B follows A; it is of another document (nsp) or stands before it (sop); there is no telling."""

_NUM_ESTIMATED = 1024  # the share is right to 1.5 points
_PAIR_LABEL = 0x70616972  # "pair": keeps these keys apart from those of order and noise
_MEET_LABEL = 0x6D656574  # "meet"
_CHANGE, _CUT, _OTHER_CUT = np.uint64(1), np.uint64(2), np.uint64(3)  # the draws of a sample, or of two that meet


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
    is a single one).

    `nsp`: in every epoch the chunks are put together two by two, at random, and with probability 1/2 two chunks of
    different documents exchange their second parts. So a second part looks the same whether it is the next one or not:
    it begins and ends where one of some chunk does, never has to be shortened, and every sentence is read once an
    epoch. The cuts are drawn so that both exchanged rows fit; where no cuts do, there is no telling (UNTOLD).
    Single sentences exchange with single sentences. `sop`: with probability 1/2 the two parts change places.

    All of it follows from seed, epoch and chunk, so from seed and position.

    Raises:
        ValueError: A row holds less than two tokens, or `plan` is of something else.
        ShardError: The stream knows no sentences, or there is no other document to exchange with.

    Args:
        stream: Where tokens and sentences come from.
        length: Tokens of a row: the most that a chunk holds.
        fill: Token id behind the end of a row.
        kind: What a changed pair is.
        seed: Chooses cuts, changes and who exchanges with whom.
        plan: Where the chunks lie, if known; planned otherwise, in one pass over the sentences' lengths.

    Source: Devlin et al. 2018, section 3.1 (arXiv:1810.04805); Lan et al. 2019, section 3.1 (arXiv:1909.11942). That
    one of two is exchanged and not one of all drawn: here, so that nothing is read twice while other text is not read.
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
        self._singles = Class(plan.singles, len(plan.singles), is_listed=True)
        self._others = Class(plan.singles, len(plan.starts_C) - len(plan.singles), is_listed=False)

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
    def untold_share(self) -> float:
        """Share of the pairs that have no label, estimated from some of the first epoch's."""
        if not self.num_samples:
            return 0.0
        some = np.unique(np.linspace(0, self.num_samples - 1, _NUM_ESTIMATED).astype(np.int64))
        return float((self.draw(some, np.zeros(len(some), dtype=np.int64)).labels_B == UNTOLD).mean())

    @property
    def fingerprint(self) -> str:
        """16 hex digits of all but the tokens that decides which of them a row holds."""
        text = f"sentence-pairs/2 length={self.length} kind={self.kind} seed={self.seed}"
        return xxhash.xxh3_64_hexdigest(text.encode())

    def order(self, seed: int) -> Order:
        """All chunks shuffled together; raises ShardError where there is none."""
        return Order(self.num_samples, seed)

    def draw(self, sample_ids_B: NDArray[np.int64], epochs_B: NDArray[np.int64]) -> DrawnPairs:
        """The pairs of these samples in these epochs.

        Args:
            sample_ids_B: int64 [B], each in `range(num_samples)`.
            epochs_B: Epoch of each, int64 [B].

        Raises:
            IndexError: A sample lies outside `range(num_samples)`.
        """
        drawn = self._whole(sample_ids_B)
        (self._draw_order if self.kind == "sop" else self._draw_next)(drawn, sample_ids_B, epochs_B)
        return drawn

    def _draw_order(self, drawn: DrawnPairs, sample_ids_B: NDArray[np.int64], epochs_B: NDArray[np.int64]) -> None:
        """Cut chunks in two, and let the parts of half of them change places."""
        keys_B = self._keys(epochs_B, False, sample_ids_B)
        lengths_B = drawn.lengths_B2[:, 0].copy()
        picks_B = _draws(keys_B, _CUT).tolist()
        cuts = [_pick(self._cuts(sample), pick) for sample, pick in zip(sample_ids_B.tolist(), picks_B, strict=True)]
        cuts_B = np.array(cuts, dtype=np.int64)
        drawn.lengths_B2[:] = np.stack([cuts_B, lengths_B - cuts_B], axis=1)
        drawn.starts_B2[:, 1] += cuts_B
        drawn.labels_B[:] = np.where(lengths_B > 1, _draws(keys_B, _CHANGE) & 1, UNTOLD)
        changed = np.flatnonzero(drawn.labels_B == CHANGED)
        for both in (drawn.starts_B2, drawn.lengths_B2):
            both[changed] = both[changed, ::-1]

    def _draw_next(self, drawn: DrawnPairs, sample_ids_B: NDArray[np.int64], epochs_B: NDArray[np.int64]) -> None:
        """Cut chunks in two, and let half of those that meet one of another document exchange their second parts."""
        lengths_C, documents_C = self.plan.lengths_C, self.plan.documents_C
        ones_B, others_B, keys_B = self._meetings(sample_ids_B, epochs_B)
        coins, picks, other_picks = (_draws(keys_B, use).tolist() for use in (_CHANGE, _CUT, _OTHER_CUT))
        for row, (sample, one, other) in enumerate(
            zip(sample_ids_B.tolist(), ones_B.tolist(), others_B.tolist(), strict=True)
        ):
            cut, other_cut, fit = self._meeting_cuts(one, other, picks[row], other_picks[row])
            mate, mate_cut = other, other_cut
            if sample != one:
                cut, mate, mate_cut = other_cut, one, cut
            label = coins[row] & 1 if fit and documents_C[one] != documents_C[other] else UNTOLD
            second, begin = (mate, mate_cut) if label == CHANGED else (sample, cut)
            drawn.labels_B[row] = label
            drawn.starts_B2[row, 1] = self.plan.starts_C[second] + begin
            drawn.lengths_B2[row] = cut, lengths_C[second] - begin
            drawn.documents_B2[row, 1] = documents_C[second]

    def _meetings(
        self, sample_ids_B: NDArray[np.int64], epochs_B: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint64]]:
        """The two chunks that meet, this one among them (NOBODY for the second where it is left over), and the key of
        what they do: the same for both.
        """
        ones_B, others_B = sample_ids_B.copy(), np.full(len(sample_ids_B), NOBODY)
        keys_B = np.empty(len(sample_ids_B), dtype=np.uint64)
        single_B = self._singles.holds(sample_ids_B)
        for group, rows in grouped(epochs_B * 2 + single_B):
            epoch, single = divmod(group, 2)
            members = self._singles if single else self._others
            meet = Permutation(members.size, units.derive(self.seed, _MEET_LABEL, epoch, single))
            places = meet.inverse(members.rank(sample_ids_B[rows]))
            keys_B[rows] = self._keys(epochs_B[rows], bool(single), places // 2)
            met = np.flatnonzero(places ^ 1 < members.size)
            mates, is_first = members.at(meet(places[met] ^ 1)), places[met] % 2 == 0
            ids = sample_ids_B[rows[met]]
            ones_B[rows[met]], others_B[rows[met]] = np.where(is_first, ids, mates), np.where(is_first, mates, ids)
        return ones_B, others_B, keys_B

    def _meeting_cuts(self, one: int, other: int, pick: int, other_pick: int) -> tuple[int, int, bool]:
        """Where two chunks that meet are cut, and whether they can exchange: both have two parts, and the rows fit."""
        cuts = self._cuts(one)
        if other == NOBODY:
            return _pick(cuts, pick), 0, False
        other_cuts = self._cuts(other)
        # A of one and B of other take cut + length_other - other_cut places; A of other and B of one likewise.
        space, other_space = (self.length - int(self.plan.lengths_C[chunk]) for chunk in (one, other))
        windows = [
            (cut, bisect_left(other_cuts, cut - other_space), bisect_right(other_cuts, cut + space)) for cut in cuts
        ]
        fitting = [window for window in windows if window[1] < window[2]]
        if not fitting or self.length - 1 in (space, other_space):
            return _pick(cuts, pick), _pick(other_cuts, other_pick), False
        cut, first, last = fitting[pick % len(fitting)]
        return cut, other_cuts[first + other_pick % (last - first)], True

    def _keys(self, epochs_N: NDArray[np.int64], single: bool, numbers_N: NDArray[np.int64]) -> NDArray[np.uint64]:
        """A key for each number of an epoch."""
        keys_N = np.empty(len(epochs_N), dtype=np.uint64)
        for epoch, rows in grouped(epochs_N):
            keys_N[rows] = np.uint64(units.derive(self.seed, _PAIR_LABEL, epoch, single))
        return units.mix(keys_N ^ units.mix(numbers_N.astype(np.uint64)))

    def _cuts(self, sample: int) -> list[int]:
        """Where a chunk may be cut: where a sentence begins inside it, or in the middle of its only one."""
        inner: list[int] = self._boundaries(sample).tolist()
        return inner or [max(1, int(self.plan.lengths_C[sample]) // 2)]

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

    def samples_of(self, documents_K: NDArray[np.int64]) -> NDArray[np.int64]:
        """The chunks of these documents, ascending; where parts of one stand in others, `samples_in` tells."""
        check_documents(documents_K, self.stream.num_documents)
        numbers_K = documents_K.astype(np.uint32)  # of another type, searchsorted would copy the whole array
        first_K, last_K = (np.searchsorted(self.plan.documents_C, numbers_K, side=side) for side in ("left", "right"))
        return ranges(first_K, last_K)

    def samples_in(self, document: int, epoch: int) -> NDArray[np.int64]:
        """The samples that hold tokens of a document in an epoch, ascending: its chunks, and who exchanged with one."""
        own = self.samples_of(np.array([document], dtype=np.int64))
        if self.kind == "sop" or not own.size:
            return own
        epochs = np.full(len(own), epoch)
        exchanged = np.flatnonzero(self.draw(own, epochs).labels_B == CHANGED)
        ones, others, _ = self._meetings(own[exchanged], epochs[exchanged])
        return np.unique(np.concatenate([own, ones, others]))

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

    def _boundaries(self, sample: int) -> NDArray[np.int64]:
        """Where the sentences of a chunk begin, but for its first token; counted from it."""
        start, length = int(self.plan.starts_C[sample]), int(self.plan.lengths_C[sample])
        starts_Q = self.stream.sequence_starts(int(self.plan.documents_C[sample]))
        first, last = np.searchsorted(starts_Q, (start + 1, start + length))
        return starts_Q[first:last] - start


class Class:
    """The chunks of one kind: those of a list, or those that are not on it, counted without a list of their own.

    Args:
        listed: int64, ascending.
        size: How many there are of the kind.
        is_listed: Whether the kind is those of the list.
    """

    def __init__(self, listed: NDArray[np.int64], size: int, *, is_listed: bool) -> None:
        self.size = size
        self._listed, self._is_listed = listed, is_listed
        self._others_before = listed - np.arange(len(listed))

    def holds(self, chunks_N: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each chunk is of the kind."""
        if not len(self._listed):
            return np.full(chunks_N.shape, not self._is_listed)
        places_N = np.minimum(np.searchsorted(self._listed, chunks_N), len(self._listed) - 1)
        held_N: NDArray[np.bool_] = (self._listed[places_N] == chunks_N) == self._is_listed
        return held_N

    def rank(self, chunks_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many of the kind stand before each chunk of it."""
        before_N: NDArray[np.int64] = np.searchsorted(self._listed, chunks_N)
        return before_N if self._is_listed else chunks_N - before_N

    def at(self, ranks_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """The chunk of the kind before which so many stand."""
        if self._is_listed:
            return self._listed[ranks_N]
        chunks_N: NDArray[np.int64] = ranks_N + np.searchsorted(self._others_before, ranks_N, side="right")
        return chunks_N


def _draws(keys_N: NDArray[np.uint64], use: np.uint64) -> NDArray[np.int64]:
    """A number from 0 on for each key."""
    return (units.mix(keys_N + use) >> np.uint64(1)).astype(np.int64)


def _pick(choices: list[int], draw: int) -> int:
    return choices[draw % len(choices)]


def refuse_without_sentences(stream: SentenceStream, where: str) -> None:
    """Raises ShardError where a stream does not know its sentences."""
    if not stream.has_sentences:
        raise ShardError(
            "the shards do not say where sentences begin",
            where,
            "prepare them again with --sentences, or use objective.sentence_pairs=none",
        )
