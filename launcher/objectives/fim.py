"""Fill in the middle: turn some texts around so that a causal model learns to write what is missing between two ends.

Shapes: B samples, L raw tokens of a window, P pieces of the batch (whole rows, or the documents' parts in them).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from launcher.errors import ObjectiveError
from launcher.objectives import noise
from launcher.objectives.base import Rows, all_rows
from launcher.shards.manifest import SpecialTokens

_FIM_LABEL = 0x66696D  # "fim"
_DRAWS = 4  # of a piece: whether, how, and two cuts
_NUM_SENTINELS = 3


@dataclass(frozen=True)
class FillInTheMiddle:
    """A share of the pieces are cut into prefix, middle and suffix at two places drawn uniformly, and put as

        PSM: <prefix> prefix <suffix> suffix <middle> middle
        SPM: <prefix> <suffix> suffix <middle> prefix middle

    A piece is the part of a document that stands in a row; the token that ends its document stays at its end. Rows
    keep their length: as many tokens as sentinels come in are dropped at the end of
    the row's text before it is cut, as bigcode's Megatron-LM drops them from the suffix. So a row that is full loses
    three tokens for each of its pieces that is turned around; one with room behind its text loses none. Pieces with
    hidden tokens stay as they are.

    Raises:
        ObjectiveError: The tokenizer lacks one of the three sentinels, or the shares are not shares.

    Source: Bavarian et al. 2022, section 3 (arXiv:2207.14255), with cuts between tokens and their second form of SPM.
    """

    seed: int
    """Chooses pieces and cuts of every position."""
    special: SpecialTokens
    """The tokenizer's special tokens."""
    share: float
    """Share of the pieces that are turned around."""
    spm_share: float = 0.5
    """Share of those that are put as SPM."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.share <= 1.0 or not 0.0 <= self.spm_share <= 1.0:
            raise ObjectiveError(
                f"{self.share} and {self.spm_share} are not both shares",
                "objective.fim_share, objective.fim_spm_share",
                "use numbers from 0 to 1; Bavarian et al. use 0.5 to 0.9, half of them SPM",
            )
        _ = self._sentinels

    def turn(self, rows: Rows) -> Rows:
        """The rows with some of their pieces turned around."""
        num_rows, length = rows.tokens_BL.shape
        pieces = _pieces(rows, self.special.document_end)
        turned_P, is_spm_P, bits_P2 = self._draw(rows, pieces)
        kept_P, turned_P = _kept(pieces, turned_P & ~pieces.hidden_P, length)
        runs_P7, lengths_P7 = self._runs(rows, pieces, kept_P, turned_P, is_spm_P, bits_P2)
        # Source of every token of the new rows: a place of the old ones, or a sentinel behind the last of them.
        run_lengths = lengths_P7.reshape(-1)
        total = int(run_lengths.sum())
        begins = np.cumsum(run_lengths) - run_lengths
        source_N = np.repeat(runs_P7.reshape(-1) - begins, run_lengths) + np.arange(total)
        piece_lengths_P = lengths_P7.sum(axis=1)
        num_tokens_B = np.bincount(pieces.rows_P, weights=piece_lengths_P, minlength=num_rows).astype(np.int64)
        is_real_BL = np.arange(length) < num_tokens_B[:, None]
        tokens_BL = rows.tokens_BL.copy()
        tokens_BL[is_real_BL] = np.concatenate(
            [rows.tokens_BL.reshape(-1), np.array(self._sentinels, dtype=rows.tokens_BL.dtype)]
        )[source_N]
        hidden_BL, segments_BL = rows.hidden_BL, rows.segments_BL
        if hidden_BL is not None:
            shown = np.zeros(_NUM_SENTINELS, dtype=np.bool_)
            moved_BL = np.zeros_like(hidden_BL)
            moved_BL[is_real_BL] = np.concatenate([hidden_BL.reshape(-1), shown])[source_N]
            hidden_BL = moved_BL
        if segments_BL is not None:
            moved = np.full_like(segments_BL, -1)
            moved[is_real_BL] = np.repeat(segments_BL[pieces.rows_P, pieces.columns_P], piece_lengths_P)
            segments_BL = moved
        return replace(
            all_rows(rows),
            tokens_BL=tokens_BL,
            num_tokens_B=num_tokens_B,
            hidden_BL=hidden_BL,
            continues_BL=None,
            segments_BL=segments_BL,
        )

    @property
    def _sentinels(self) -> tuple[int, int, int]:
        special = self.special
        if special.fim_prefix is None or special.fim_middle is None or special.fim_suffix is None:
            raise ObjectiveError(
                "filling in the middle needs the tokens <fim_prefix>, <fim_middle> and <fim_suffix>, and the tokenizer "
                "has not all of them",
                "tokenizer",
                "train one that has them (`pretrain tokenizer --kind bpe`), or use objective.fim_share=0",
            )
        return special.fim_prefix, special.fim_middle, special.fim_suffix

    def _draw(
        self, rows: Rows, pieces: _PiecesOfRows
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.uint64]]:
        """Of each piece: whether it is turned, whether as SPM, bool [P]; and bits for two cuts, uint64 [P, 2]."""
        keys_P = noise.sample_keys(self.seed, _FIM_LABEL, rows.positions_B)[pieces.rows_P]
        bits_P4 = np.stack([noise.draws_at(keys_P, _DRAWS * pieces.numbers_P + draw) for draw in range(_DRAWS)], axis=1)
        uniform_P2 = (bits_P4[:, :2] >> np.uint64(11)).astype(np.float64) / 2.0**53
        return uniform_P2[:, 0] < self.share, uniform_P2[:, 1] < self.spm_share, bits_P4[:, 2:]

    def _runs(
        self,
        rows: Rows,
        pieces: _PiecesOfRows,
        kept_P: NDArray[np.int64],
        turned_P: NDArray[np.bool_],
        is_spm_P: NDArray[np.bool_],
        bits_P2: NDArray[np.uint64],
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Each piece as seven runs of the old rows' places, one after another: their starts and lengths, int64 [P, 7].

        A sentinel is a run of one place behind the old rows.
        """
        size = rows.tokens_BL.size
        first_P = pieces.rows_P * rows.tokens_BL.shape[1] + pieces.columns_P
        last = rows.tokens_BL.reshape(-1)[first_P + np.maximum(kept_P - 1, 0)]
        tail_P = ((last == self.special.document_end) & (kept_P > 0)).astype(np.int64)
        body_P = kept_P - tail_P
        # Multiply and shift maps 32 bits onto 0 to body: a part may be empty.
        cuts_P2 = (((bits_P2 >> np.uint64(32)) * (body_P + 1).astype(np.uint64)[:, None]) >> np.uint64(32)).astype(
            np.int64
        )
        low_P, high_P = cuts_P2.min(axis=1), cuts_P2.max(axis=1)
        one_P = np.ones_like(kept_P)
        prefix, middle, suffix = (
            (first_P, low_P),
            (first_P + low_P, high_P - low_P),
            (first_P + high_P, body_P - high_P),
        )
        to_prefix, to_middle, to_suffix = ((one_P * (size + number), one_P) for number in range(_NUM_SENTINELS))
        tail, nothing = (first_P + body_P, tail_P), (first_P, 0 * one_P)
        as_psm = (to_prefix, prefix, to_suffix, suffix, to_middle, middle, tail)
        as_spm = (to_prefix, to_suffix, suffix, to_middle, prefix, middle, tail)
        as_it_is = ((first_P, kept_P), *[nothing] * 6)
        starts, lengths = (
            np.where(
                turned_P[:, None],
                np.where(is_spm_P[:, None], _columns(as_spm, which), _columns(as_psm, which)),
                _columns(as_it_is, which),
            )
            for which in (0, 1)
        )
        return starts, lengths


@dataclass(frozen=True, slots=True)
class _PiecesOfRows:
    """Where the pieces of a batch lie, in the order of rows and columns."""

    rows_P: NDArray[np.int64]
    columns_P: NDArray[np.int64]
    lengths_P: NDArray[np.int64]
    numbers_P: NDArray[np.int64]
    """Of the piece inside its row, from 0."""
    hidden_P: NDArray[np.bool_]
    """Whether any of its tokens is hidden."""


def _columns(runs: tuple[tuple[NDArray[np.int64], NDArray[np.int64]], ...], which: int) -> NDArray[np.int64]:
    return np.stack([run[which] for run in runs], axis=1)


def _pieces(rows: Rows, document_end: int) -> _PiecesOfRows:
    length = rows.tokens_BL.shape[1]
    starts_BL = np.zeros(rows.tokens_BL.shape, dtype=np.bool_)
    starts_BL[:, 0] = True
    if rows.segments_BL is not None:
        starts_BL[:, 1:] = rows.segments_BL[:, 1:] != rows.segments_BL[:, :-1]
    else:
        starts_BL[:, 1:] = rows.tokens_BL[:, :-1] == document_end
    starts_BL &= np.arange(length) < rows.num_tokens_B[:, None]
    rows_P, columns_P = np.nonzero(starts_BL)
    is_last_P = np.append(rows_P[1:] != rows_P[:-1], True)[: len(rows_P)]
    ends_P = np.where(is_last_P, rows.num_tokens_B[rows_P], np.append(columns_P[1:], 0)[: len(rows_P)])
    counts_B = np.bincount(rows_P, minlength=len(rows.tokens_BL))
    numbers_P = np.arange(len(rows_P)) - (np.cumsum(counts_B) - counts_B)[rows_P]
    hidden_P = np.zeros(len(rows_P), dtype=np.bool_)
    if rows.hidden_BL is not None:
        so_far = np.append(0, np.cumsum(rows.hidden_BL.reshape(-1)))
        hidden_P = so_far[rows_P * length + ends_P] > so_far[rows_P * length + columns_P]
    return _PiecesOfRows(rows_P, columns_P, ends_P - columns_P, numbers_P, hidden_P)


def _kept(
    pieces: _PiecesOfRows, turned_P: NDArray[np.bool_], length: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """How many tokens of each piece fit into its row, int64 [P], and whether it is turned, bool [P].

    A piece that would keep no token behind its sentinels stays as it is.
    """
    # Behind a piece that cannot be turned none is: what they leave each other is settled at the second look.
    turned_P = turned_P & (_room(pieces, turned_P, length) > _NUM_SENTINELS)
    return np.clip(_room(pieces, turned_P, length) - _NUM_SENTINELS * turned_P, 0, pieces.lengths_P), turned_P


def _room(pieces: _PiecesOfRows, turned_P: NDArray[np.bool_], length: int) -> NDArray[np.int64]:
    """Places of the row from the beginning of each piece on, once those before it have what they want; int64 [P]."""
    wanted_P = pieces.lengths_P + _NUM_SENTINELS * turned_P
    before_P = np.cumsum(wanted_P) - wanted_P
    before_row_P = np.maximum.accumulate(np.where(pieces.numbers_P == 0, before_P, 0))
    room_P: NDArray[np.int64] = length - (before_P - before_row_P)
    return room_P
