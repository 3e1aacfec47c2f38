"""Causal language modelling: predict each token from those before it.

Shapes: B samples, S tokens of a sequence, L = S + 1 raw tokens of a window.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from launcher.objectives.base import IGNORE_INDEX, Batch, attention_mask, refuse_short
from launcher.shards.manifest import SpecialTokens


@dataclass(frozen=True)
class CausalLM:
    """Next-token prediction over windows that overlap by one token, so that each token is predicted once an epoch.

    Raises:
        ObjectiveError: The sequence is empty.

    Source: Radford et al. 2018, section 3.1, "Improving language understanding by generative pre-training".
    """

    seq_len: int
    """S: tokens the model reads."""
    special: SpecialTokens
    """The tokenizer's special tokens."""

    def __post_init__(self) -> None:
        refuse_short(self.seq_len, 1, "clm")

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

    def batch(
        self, tokens_BL: NDArray[np.int32], num_tokens_B: NDArray[np.int64], positions_B: NDArray[np.int64]
    ) -> Batch:
        """See `Objective.batch`. `labels[:, i]` is the token after `input_ids[:, i]`; the position has no say."""
        del positions_B
        mask_BS = attention_mask(num_tokens_B, self.seq_len)
        inputs_BS = tokens_BL[:, :-1].astype(np.int64)
        inputs_BS[mask_BS == 0] = self.fill_id
        labels_BS = tokens_BL[:, 1:].astype(np.int64)
        labels_BS[attention_mask(num_tokens_B - 1, self.seq_len) == 0] = IGNORE_INDEX
        return {"input_ids": inputs_BS, "labels": labels_BS, "attention_mask": mask_BS}
