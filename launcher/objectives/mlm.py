"""Masked language modelling: hide some tokens and predict them from both sides.

Shapes: B samples, S tokens of a sequence, L = S - 2 raw tokens of a window, V ids of the vocabulary,
N chosen places of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from launcher import units
from launcher.errors import ObjectiveError
from launcher.objectives import noise
from launcher.objectives.base import IGNORE_INDEX, Batch, attention_mask, refuse_short, required
from launcher.shards.manifest import SpecialTokens

_MLM_LABEL = 0x6D6C6D  # "mlm"
_LOW_32_BITS = np.uint64(0xFFFFFFFF)


@dataclass(frozen=True)
class MaskedLM:
    """Each token is chosen with probability `mask_share`; of the chosen 80 % become the mask token, 10 % a random
    token, 10 % stay. Special tokens and padding are never chosen, and never drawn as the random token.

    A row is `[CLS] window [SEP]`, padding behind.

    Raises:
        ObjectiveError: The tokenizer lacks a cls, sep, mask or pad token or has special tokens only, the sequence is
            shorter than three tokens, or the shares are not shares.

    Source: Devlin et al. 2018, section 3.1 (arXiv:1810.04805).
    """

    seq_len: int
    """S: tokens the model reads, `[CLS]` and `[SEP]` among them."""
    seed: int
    """Chooses the noise of every position."""
    special: SpecialTokens
    """The tokenizer's special tokens."""
    vocab_size: int
    """Ids of the tokenizer: random tokens are drawn from them."""
    mask_share: float = 0.15
    """Share of tokens to predict: 0.15 as BERT, 0.3 as ModernBERT."""
    share_replaced: float = 0.8
    """Share of the chosen that become the mask token."""
    share_random: float = 0.1
    """Share of the chosen that become a random token; the rest stay as they are."""

    def __post_init__(self) -> None:
        for token_id, name in ((self.special.cls, "cls"), (self.special.sep, "sep"), (self.special.mask, "mask")):
            required(token_id, name, "mlm")
        required(self.special.pad, "pad", "mlm")
        refuse_short(self.seq_len, 3, "mlm")
        if not 0.0 < self.mask_share < 1.0:
            raise ObjectiveError(f"{self.mask_share} is not a share of tokens to mask", "mask_share", "use 0.15 or 0.3")
        if min(self.share_replaced, self.share_random) < 0.0 or self.share_replaced + self.share_random > 1.0:
            raise ObjectiveError(
                f"of the chosen tokens {self.share_replaced} cannot be hidden and {self.share_random} random",
                "share_replaced, share_random",
                "use shares whose sum is at most 1; Devlin et al. use 0.8 and 0.1",
            )
        if not self._ordinary_ids.size:
            raise ObjectiveError(
                f"all {self.vocab_size} ids of the tokenizer are special tokens: there is nothing to predict",
                "tokenizer",
                "train a tokenizer on the corpus (`pretrain tokenizer`)",
            )

    @property
    def window_length(self) -> int:
        """All of the sequence but `[CLS]` and `[SEP]`."""
        return self.seq_len - 2

    @property
    def window_stride(self) -> int:
        """The length: each token is in one sample."""
        return self.window_length

    @property
    def fill_id(self) -> int:
        """The padding token."""
        return required(self.special.pad, "pad", "mlm")

    def batch(
        self, tokens_BL: NDArray[np.int32], num_tokens_B: NDArray[np.int64], positions_B: NDArray[np.int64]
    ) -> Batch:
        """See `Objective.batch`. `labels` hold the true id at the chosen places."""
        mask_BS = attention_mask(num_tokens_B + 2, self.seq_len)
        inputs_BS = np.empty((len(tokens_BL), self.seq_len), dtype=np.int64)
        inputs_BS[:, 0] = required(self.special.cls, "cls", "mlm")
        inputs_BS[:, 1:-1] = tokens_BL
        if num_tokens_B.size and num_tokens_B.min() < self.window_length:
            inputs_BS[mask_BS == 0] = self.fill_id
        inputs_BS[np.arange(len(tokens_BL)), num_tokens_B + 1] = required(self.special.sep, "sep", "mlm")

        chosen_N, bits_N = self._choose(inputs_BS, positions_B)
        flat_inputs = inputs_BS.reshape(-1)
        true_ids_N = flat_inputs[chosen_N]
        labels_BS = np.full(inputs_BS.shape, IGNORE_INDEX, dtype=np.int64)
        labels_BS.reshape(-1)[chosen_N] = true_ids_N
        flat_inputs[chosen_N] = self._replacements(true_ids_N, bits_N)
        return {"input_ids": inputs_BS, "labels": labels_BS, "attention_mask": mask_BS}

    @cached_property
    def _is_special_V(self) -> NDArray[np.bool_]:
        known = max(self.vocab_size, *(token_id + 1 for token_id in self.special.all_ids))
        is_special_V = np.zeros(known, dtype=np.bool_)
        is_special_V[list(self.special.all_ids)] = True
        return is_special_V

    @cached_property
    def _ordinary_ids(self) -> NDArray[np.int64]:
        return np.flatnonzero(~self._is_special_V[: self.vocab_size])

    def _choose(
        self, inputs_BS: NDArray[np.int64], positions_B: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        """The places to predict: int64 [N] into the flattened batch, and 64 fresh bits for each, uint64 [N]."""
        draws_BS = noise.draws(noise.sample_keys(self.seed, _MLM_LABEL, positions_B), self.seq_len)
        places = np.flatnonzero(draws_BS < noise.threshold(self.mask_share))
        # Most places are not chosen, so what is left to do is done for the chosen alone.
        chosen_N = places[~self._is_special_V[inputs_BS.reshape(-1)[places]]]
        return chosen_N, units.mix(draws_BS.reshape(-1)[chosen_N])

    def _replacements(self, true_ids_N: NDArray[np.int64], bits_N: NDArray[np.uint64]) -> NDArray[np.int64]:
        """What stands at the chosen places, int64 [N]: high bits choose the kind, low ones the random token."""
        kinds_N = bits_N >> np.uint64(32)
        ordinary_ids = self._ordinary_ids
        # Multiply and shift maps 32 bits onto the ids with a bias below len(ids) / 2**32.
        picks_N = ((bits_N & _LOW_32_BITS) * np.uint64(ordinary_ids.size)) >> np.uint64(32)
        below_replaced = np.uint64(round(self.share_replaced * 2**32))
        below_random = np.uint64(round((self.share_replaced + self.share_random) * 2**32))
        changed_N = np.where(kinds_N < below_random, ordinary_ids[picks_N], true_ids_N)
        return np.where(kinds_N < below_replaced, required(self.special.mask, "mask", "mlm"), changed_N)
