"""Causal language modelling: predict each token from those before it.

Shapes: B samples, S tokens of a sequence, L = S + 1 raw tokens of a window.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from launcher.objectives.base import IGNORE_INDEX, Batch, Rows, attention_mask, refuse_short
from launcher.objectives.fim import FillInTheMiddle
from launcher.shards.manifest import SpecialTokens


@dataclass(frozen=True)
class CausalLM:
    """Next-token prediction over windows that overlap by one token, so that each token is predicted once an epoch.

    With `fim_share` above 0 some texts are turned around so that the model learns to fill in their middle; those of
    full windows lose three tokens (see `FillInTheMiddle`).

    Raises:
        ObjectiveError: The sequence is empty, or the tokenizer lacks the tokens to fill in the middle with.

    Source: Radford et al. 2018, section 3.1, "Improving language understanding by generative pre-training".
    """

    seq_len: int
    """S: tokens the model reads."""
    special: SpecialTokens
    """The tokenizer's special tokens."""
    seed: int = 0
    """Chooses which texts of every position are turned around, and where they are cut."""
    fim_share: float = 0.0
    """Share of the texts that are turned around."""
    fim_spm_share: float = 0.5
    """Share of those that begin with their end."""

    def __post_init__(self) -> None:
        refuse_short(self.seq_len, 1, "clm")
        if self.fim_share:
            _ = self._fim

    @property
    def window_length(self) -> int:
        """The inputs and the token that follows the last of them."""
        return self.seq_len + 1

    @property
    def window_stride(self) -> int:
        """One less than the length: the last token of a window is the first input of the next."""
        return self.seq_len

    @property
    def fill_id(self) -> int:
        """The padding token, or the end of a document where the tokenizer has none: nothing ever attends to it."""
        return self.special.document_end if self.special.pad is None else self.special.pad

    @property
    def needs_words(self) -> bool:
        """No."""
        return False

    def batch(self, rows: Rows) -> Batch:
        """See `Objective.batch`. `labels[:, i]` is the token after `input_ids[:, i]`.

        Where documents are kept apart, nothing is predicted across the end of one.
        """
        if self.fim_share:
            rows = self._fim.turn(rows)
        mask_BS = attention_mask(rows.num_tokens_B, self.seq_len)
        known_BS = attention_mask(rows.num_tokens_B - 1, self.seq_len)
        if rows.hidden_BL is not None:
            mask_BS[rows.hidden_BL[:, :-1]] = 0
            known_BS[rows.hidden_BL[:, :-1] | rows.hidden_BL[:, 1:]] = 0
        inputs_BS = rows.tokens_BL[:, :-1].astype(np.int64)
        inputs_BS[mask_BS == 0] = self.fill_id
        labels_BS = rows.tokens_BL[:, 1:].astype(np.int64)
        labels_BS[known_BS == 0] = IGNORE_INDEX
        batch = {"input_ids": inputs_BS, "labels": labels_BS, "attention_mask": mask_BS}
        if rows.segments_BL is not None:
            # The first token of a document does not follow from the document before it.
            labels_BS[rows.segments_BL[:, 1:] != rows.segments_BL[:, :-1]] = IGNORE_INDEX
            batch["segment_ids"] = np.where(mask_BS == 0, -1, rows.segments_BL[:, :-1].astype(np.int64))
        return batch

    @cached_property
    def _fim(self) -> FillInTheMiddle:
        return FillInTheMiddle(self.seed, self.special, self.fim_share, self.fim_spm_share)
