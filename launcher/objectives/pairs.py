"""Masked language modelling of two texts, with a label that says whether they belong together.

Shapes: B samples, S tokens of a sequence, L = S - 3 raw tokens of a row: those of A, and those of B behind them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from launcher.objectives.base import IGNORE_INDEX, Batch, PlainRows, Rows, refuse_short, required
from launcher.objectives.mlm import MaskedLM


@dataclass(frozen=True)
class MaskedPairs:
    """A row is `[CLS] A [SEP] B [SEP]`, padding behind; `token_type_ids` are 1 on B and its `[SEP]`, 0 elsewhere.

    The tokens of both are masked as those of one text are. `pair_labels` are 1 where the pair was changed (B is of
    another document, or the two have changed places), 0 where it was not, and IGNORE_INDEX where there is no telling.

    Raises:
        ObjectiveError: The sequence is shorter than five tokens.

    Source: Devlin et al. 2018, figure 2 (arXiv:1810.04805).
    """

    masked: MaskedLM
    """What masks both texts."""

    def __post_init__(self) -> None:
        refuse_short(self.masked.seq_len, 5, "mlm with sentence pairs")

    @property
    def window_length(self) -> int:
        """All of the sequence but `[CLS]` and two `[SEP]`."""
        return self.masked.seq_len - 3

    @property
    def window_stride(self) -> int:
        """The length: each token is in one sample."""
        return self.window_length

    @property
    def fill_id(self) -> int:
        """The padding token."""
        return self.masked.fill_id

    @property
    def needs_words(self) -> bool:
        """Where words are masked whole."""
        return self.masked.needs_words

    def batch(self, rows: Rows) -> Batch:
        """See `Objective.batch`."""
        cuts_B, changes_B = rows.pair_cuts_B, rows.pair_labels_B
        if cuts_B is None or changes_B is None:
            raise ValueError("pairs are wanted, and nobody told where rows are cut in two")
        sep = required(self.masked.special.row_end, "sep", "mlm")
        # To the masking A [SEP] B is one text, in which it touches no special token.
        joined = PlainRows(
            tokens_BL=_parted(rows.tokens_BL, cuts_B, sep),
            num_tokens_B=rows.num_tokens_B + 1,
            positions_B=rows.positions_B,
            hidden_BL=None if rows.hidden_BL is None else _parted(rows.hidden_BL, cuts_B, False),
            continues_BL=None if rows.continues_BL is None else _parted(rows.continues_BL, cuts_B, False),
            segments_BL=None,
        )
        batch = self.masked.batch(joined)
        places_S = np.arange(self.masked.seq_len)
        # [CLS], A and its [SEP] take cut + 2 places, B and its [SEP] the rest of num_tokens + 3.
        second_BS = (places_S >= cuts_B[:, None] + 2) & (places_S < rows.num_tokens_B[:, None] + 3)
        batch["token_type_ids"] = second_BS.astype(np.int64)
        batch["pair_labels"] = np.where(changes_B < 0, IGNORE_INDEX, changes_B)
        return batch


def _parted(rows_BL: NDArray[Any], cuts_B: NDArray[np.int64], between: int) -> NDArray[Any]:
    """Each row with one more item behind its first `cuts_B[i]`, [B, L + 1]."""
    places_L = np.arange(rows_BL.shape[1])
    parted = np.full((rows_BL.shape[0], rows_BL.shape[1] + 1), between, dtype=rows_BL.dtype)
    rows, columns = np.indices(rows_BL.shape)
    parted[rows, columns + (places_L >= cuts_B[:, None])] = rows_BL
    return parted
