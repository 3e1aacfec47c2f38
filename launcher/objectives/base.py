"""What every objective offers, and the words they share.

Shapes: B samples, L raw tokens of a window, S tokens of a sequence, T tokens of a decoder's sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from launcher.errors import ObjectiveError

IGNORE_INDEX = -100
"""Label of a place that is not predicted: the default of torch's cross-entropy."""

Batch = dict[str, NDArray[np.int64]]
"""Arrays by the name of the model's argument; `labels` stand where their logits stand."""


class Rows(Protocol):
    """Raw samples, as the data plane hands them over."""

    @property
    def tokens_BL(self) -> NDArray[np.int32]:
        """Token ids, int32 [B, L]."""
        ...

    @property
    def num_tokens_B(self) -> NDArray[np.int64]:
        """Tokens at the start of each row that come from documents, hidden ones among them; int64 [B], 0 to L."""
        ...

    @property
    def positions_B(self) -> NDArray[np.int64]:
        """Position of each sample in the run, counted on through the epochs, int64 [B]."""
        ...

    @property
    def hidden_BL(self) -> NDArray[np.bool_] | None:
        """Tokens of excluded documents, bool [B, L]: padding, without loss or attention. None where there are none."""
        ...

    @property
    def continues_BL(self) -> NDArray[np.bool_] | None:
        """Tokens that continue the word of the token before, bool [B, L]; there for an objective that needs words."""
        ...

    @property
    def segments_BL(self) -> NDArray[np.int32] | None:
        """Number of the document's piece inside its row, from 0; -1 on padding; int32 [B, L].

        None where the documents of a row may see each other.
        """
        ...

    @property
    def pair_cuts_B(self) -> NDArray[np.int64] | None:
        """Tokens of the first of a row's two parts, int64 [B]; there for an objective that pairs them."""
        ...

    @property
    def pair_labels_B(self) -> NDArray[np.int64] | None:
        """Whether the second part was changed: 0 no, 1 yes, -1 where there is no telling; int64 [B]."""
        ...


@dataclass(frozen=True, slots=True)
class PlainRows:
    """Rows that an objective made of others."""

    tokens_BL: NDArray[np.int32]
    num_tokens_B: NDArray[np.int64]
    positions_B: NDArray[np.int64]
    hidden_BL: NDArray[np.bool_] | None
    continues_BL: NDArray[np.bool_] | None
    segments_BL: NDArray[np.int32] | None
    pair_cuts_B: NDArray[np.int64] | None = None
    pair_labels_B: NDArray[np.int64] | None = None


def all_rows(rows: Rows) -> PlainRows:
    """The rows as a record of their own, from which `dataclasses.replace` makes others."""
    return PlainRows(
        tokens_BL=rows.tokens_BL,
        num_tokens_B=rows.num_tokens_B,
        positions_B=rows.positions_B,
        hidden_BL=rows.hidden_BL,
        continues_BL=rows.continues_BL,
        segments_BL=rows.segments_BL,
        pair_cuts_B=rows.pair_cuts_B,
        pair_labels_B=rows.pair_labels_B,
    )


def some_rows(rows: Rows, chosen_G: NDArray[np.int64]) -> PlainRows:
    """Some of the rows, in the order given.

    Args:
        rows: B samples.
        chosen_G: Which of them, int64 [G].
    """
    return PlainRows(
        tokens_BL=rows.tokens_BL[chosen_G],
        num_tokens_B=rows.num_tokens_B[chosen_G],
        positions_B=rows.positions_B[chosen_G],
        hidden_BL=None if rows.hidden_BL is None else rows.hidden_BL[chosen_G],
        continues_BL=None if rows.continues_BL is None else rows.continues_BL[chosen_G],
        segments_BL=None if rows.segments_BL is None else rows.segments_BL[chosen_G],
        pair_cuts_B=None if rows.pair_cuts_B is None else rows.pair_cuts_B[chosen_G],
        pair_labels_B=None if rows.pair_labels_B is None else rows.pair_labels_B[chosen_G],
    )


class Objective(Protocol):
    """Turns windows of raw tokens into inputs and labels.

    The same tokens at the same position give the same batch, on any rank, in any grouping, and in any row.
    """

    @property
    def window_length(self) -> int:
        """L: raw tokens of a sample."""
        ...

    @property
    def window_stride(self) -> int:
        """Raw tokens from the start of a sample to the start of the next one."""
        ...

    @property
    def fill_id(self) -> int:
        """Token id for places behind the last real token."""
        ...

    @property
    def needs_words(self) -> bool:
        """Whether rows must tell which tokens continue a word."""
        ...

    def batch(self, rows: Rows) -> Batch:
        """What the model is given and must predict.

        Args:
            rows: B samples of L raw tokens.

        Returns:
            int64 arrays: `input_ids` [B, S]; `attention_mask` [B, S], 0 on padding; `labels`, aligned with the logits
            (already shifted where a model predicts the next token), IGNORE_INDEX where nothing is predicted: [B, S],
            or [B, T] with `decoder_input_ids` [B, T] for an encoder-decoder. Where the rows tell their documents apart,
            `segment_ids` [B, S], and `decoder_segment_ids` [B, T] for an encoder-decoder: the number of the document's
            piece inside its row, -1 on padding and hidden tokens; a token may attend to those of its own number only.
            Of pairs, `token_type_ids` [B, S], and `pair_labels` [B], which are for the loss and not for the model.
        """
        ...


def no_rows(length: int) -> PlainRows:
    """A batch without samples: what an objective makes of it tells the widths of its arrays."""
    nothing = np.zeros((0, length), dtype=np.int32)
    counts = np.zeros(0, dtype=np.int64)
    words = np.zeros((0, length), dtype=np.bool_)
    return PlainRows(nothing, counts, counts, None, words, nothing, counts, counts)


def longest_sequence(objective: Objective) -> int:
    """Tokens of the longest sequence that a model reads or writes for an objective."""
    batch = objective.batch(no_rows(objective.window_length))
    return max(int(array.shape[1]) for array in batch.values() if array.ndim == 2)


def required(token_id: int | None, name: str, objective: str) -> int:
    """The id of a special token that an objective cannot do without.

    Raises:
        ObjectiveError: The tokenizer has none.
    """
    if token_id is None:
        raise ObjectiveError(
            f"the {objective} objective needs the {name} token, and the tokenizer has none",
            f"tokenizer.{name}_token",
            "train one that has it (`pretrain tokenizer`), add it to this one, or take another objective",
        )
    return token_id


def refuse_short(seq_len: int, least: int, objective: str) -> None:
    """Refuse sequences in which an objective has nothing left to predict.

    Raises:
        ObjectiveError: `seq_len` is below `least`.
    """
    if seq_len < least:
        raise ObjectiveError(
            f"the {objective} objective needs sequences of at least {least} tokens, not {seq_len}",
            "data.seq_len",
            f"use {least} or more",
        )


def attention_mask(lengths_B: NDArray[np.int64], seq_len: int) -> NDArray[np.int64]:
    """1 on the first `lengths_B` places of each row and 0 behind them, int64 [B, S]."""
    return (np.arange(seq_len) < lengths_B[:, None]).astype(np.int64)
