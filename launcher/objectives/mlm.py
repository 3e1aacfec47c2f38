"""Masked language modelling: hide some tokens and predict them from both sides.

Shapes: B samples, S tokens of a sequence, L = S - 2 raw tokens of a window, V ids of the vocabulary,
N places of the batch that were drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from launcher.errors import ObjectiveError
from launcher.objectives import noise
from launcher.objectives.base import IGNORE_INDEX, Batch, Rows, refuse_short, required
from launcher.objectives.spans_of_places import geometric_shares, ngram_shares, places_in_spans
from launcher.shards.manifest import SpecialTokens

_MLM_LABEL = 0x6D6C6D00  # "mlm"
_FIRST_TOKEN_DRAW = 2**32
"""Draws of a sample from here on choose random tokens, those before it places."""
_HALF = np.uint64(32)
"""Of the bits of a draw."""


@dataclass(frozen=True)
class MaskedLM:
    """Each token, or each word, is chosen with probability `mask_share`, or n-grams and spans are until so many are; of
    the chosen tokens 80 % become the mask token, 10 % a random token, 10 % stay. Special tokens, padding and hidden
    tokens are never chosen, and never drawn as the random token.

    A row is `[CLS] window [SEP]`, padding behind. One draw of 16 bits decides a token, which rounds `mask_share` to a
    65,536th and the other two shares to that over `mask_share`: 80.00 % is met to 0.01 % at 0.15.

    Raises:
        ObjectiveError: The tokenizer lacks a cls, sep, mask or pad token or has special tokens only, the sequence is
            shorter than three tokens, the shares are not shares, or n-grams have no length.

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
    unit: Literal["token", "word", "ngram", "span"] = "token"
    """What is chosen at once. `word`: all tokens of a word; what stands in its place is drawn token by token, as BERT's
    own whole-word masking does (google-research/bert, create_pretraining_data.py). `ngram`: up to `max_ngram` words,
    drawn token by token too (Lan et al. 2019). `span`: up to ten words, all of them hidden, random or left alone
    together (Joshi et al. 2020)."""
    max_ngram: int = 3
    """Longest n-gram, in words."""
    has_words: bool = False
    """Whether any rows tell words to `span`; in those that do not, each token is a word of its own."""

    def __post_init__(self) -> None:
        special = self.special
        for token_id, name in ((special.row_begin, "cls"), (special.row_end, "sep"), (special.mask, "mask")):
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
        if self.max_ngram < 1:
            raise ObjectiveError(
                f"n-grams of up to {self.max_ngram} words cannot be masked", "objective.max_ngram", "use 3, as ALBERT"
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

    @property
    def needs_words(self) -> bool:
        """Where words are masked whole."""
        return self.unit in ("word", "ngram") or (self.unit == "span" and self.has_words)

    def batch(self, rows: Rows) -> Batch:
        """See `Objective.batch`. `labels` hold the true id at the chosen places."""
        # One block: three arrays of this size each go back to the system when they are freed, and come with new pages.
        inputs_BS, labels_BS, mask_BS = np.empty((3, len(rows.tokens_BL), self.seq_len), dtype=np.int64)
        inputs_BS[:, 0] = required(self.special.row_begin, "cls", "mlm")
        inputs_BS[:, 1:-1] = rows.tokens_BL
        inputs_BS[:, -1] = sep = required(self.special.row_end, "sep", "mlm")
        mask_BS.fill(1)
        for row in np.flatnonzero(rows.num_tokens_B < self.window_length).tolist():
            end = int(rows.num_tokens_B[row]) + 1
            inputs_BS[row, end], inputs_BS[row, end + 1 :], mask_BS[row, end + 1 :] = sep, self.fill_id, 0
        if rows.hidden_BL is not None:
            inputs_BS[:, 1:-1][rows.hidden_BL] = self.fill_id
            mask_BS[:, 1:-1][rows.hidden_BL] = 0

        keys_B = noise.sample_keys(self.seed, _MLM_LABEL, rows.positions_B)
        in_runs = self.unit in ("ngram", "span")
        places_N, draws_N = self._draw_spans(inputs_BS, rows) if in_runs else self._draw(keys_B, rows)
        # Most places are not drawn, so what is left to do is done for the drawn alone.
        flat_inputs = inputs_BS.reshape(-1)
        shown_N = flat_inputs[places_N]
        targets_N = self._targets_V[shown_N]
        draws_N[targets_N == IGNORE_INDEX] = self._threshold  # special tokens stay
        share = int(self._threshold)
        mask_below = round(share * (self.share_random + self.share_replaced))
        shown_N[draws_N < mask_below] = required(self.special.mask, "mask", "mlm")
        random = np.flatnonzero(draws_N < round(share * self.share_random))
        shown_N[random] = self._random_tokens(keys_B, places_N[random])
        flat_inputs[places_N] = shown_N
        labels_BS.fill(IGNORE_INDEX)
        labels_BS.reshape(-1)[places_N] = targets_N
        batch = {"input_ids": inputs_BS, "labels": labels_BS, "attention_mask": mask_BS}
        if rows.segments_BL is not None:
            batch["segment_ids"] = _segment_ids(rows.segments_BL, rows.num_tokens_B, mask_BS)
        return batch

    @cached_property
    def _threshold(self) -> np.uint16:
        """The draw below which a place is chosen."""
        return noise.short_threshold(self.mask_share)

    @cached_property
    def _targets_V(self) -> NDArray[np.int64]:
        """What to predict where an id is drawn: itself, and nothing in place of a special token."""
        known = max(self.vocab_size, *(token_id + 1 for token_id in self.special.all_ids))
        targets_V = np.arange(known, dtype=np.int64)
        targets_V[list(self.special.all_ids)] = IGNORE_INDEX
        return targets_V

    @cached_property
    def _ordinary_ids(self) -> NDArray[np.int64]:
        return np.flatnonzero(self._targets_V[: self.vocab_size] != IGNORE_INDEX)

    @cached_property
    def _num_ordinary(self) -> np.uint64:
        return np.uint64(self._ordinary_ids.size)

    def _draw(self, keys_B: NDArray[np.uint64], rows: Rows) -> tuple[NDArray[np.int64], NDArray[np.uint16]]:
        """The places drawn, special tokens among them, int64 [N] into the flattened batch, and for each a number below
        the threshold, uniform, that says what is shown there, uint16 [N].

        A draw that fell below the threshold is uniform below it, which serves for the second number.
        """
        draws_BS = noise.short_draws(keys_B, self.seq_len)
        below_BS = draws_BS < self._threshold
        if self.unit == "token":
            places_N = np.flatnonzero(below_BS)
            return places_N, draws_BS.reshape(-1)[places_N]
        first_N, behind_N = _places_of_words(below_BS, rows.continues_BL)
        places_N = np.concatenate([first_N, behind_N])
        draws_N = draws_BS.reshape(-1)[places_N]
        # Behind the first place of a word any draw may stand: it is brought below the threshold.
        any_draw = draws_N[len(first_N) :]
        any_draw[:] = any_draw.astype(np.uint32) * self._threshold >> np.uint32(16)
        return places_N, draws_N

    def _draw_spans(self, inputs_BS: NDArray[np.int64], rows: Rows) -> tuple[NDArray[np.int64], NDArray[np.uint16]]:
        """What `_draw` gives, for runs of words."""
        goes_on_BS = None
        if self.needs_words:
            goes_on_BS = np.zeros(inputs_BS.shape, dtype=np.bool_)
            goes_on_BS[:, 2:-1] = _told(rows.continues_BL)[:, 1:]
        alike = self.unit == "span"
        lengths = geometric_shares() if alike else ngram_shares(self.max_ngram)
        ordinary_BS = self._targets_V[inputs_BS] != IGNORE_INDEX
        places_N, kinds_N = places_in_spans(
            ordinary_BS, goes_on_BS, rows.positions_B, self.seed, self.mask_share, lengths, alike=alike
        )
        return places_N, (kinds_N * np.float32(self._threshold)).astype(np.uint16)

    def _random_tokens(self, keys_B: NDArray[np.uint64], places_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """An ordinary token for each of these places, int64 [N]."""
        rows_N, columns_N = np.divmod(places_N, self.seq_len)
        bits_N = noise.draws_at(keys_B[rows_N], columns_N + _FIRST_TOKEN_DRAW)
        # Multiply and shift maps 32 bits onto the ids with a bias below len(ids) / 2**32.
        picks_N = ((bits_N >> _HALF) * self._num_ordinary) >> _HALF
        ids_N: NDArray[np.int64] = self._ordinary_ids[picks_N]
        return ids_N


def _places_of_words(
    below_BS: NDArray[np.bool_], continues_BL: NDArray[np.bool_] | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The places of the words whose first place is below, into the flattened batch: the first of each, all others.

    A word that the window cuts begins where the window does.
    """
    goes_on_BS = np.zeros(below_BS.shape, dtype=np.bool_)  # behind a place; never around [CLS] and [SEP]
    goes_on_BS[:, 1:-2] = _told(continues_BL)[:, 1:]
    goes_on = goes_on_BS.reshape(-1)
    below = np.flatnonzero(below_BS)
    first = last = below[~goes_on[below - 1]]
    behind = []
    while last.size:  # as often as the longest word has tokens
        last = last[goes_on[last]] + 1
        behind.append(last)
    return first, np.concatenate([*behind, np.empty(0, dtype=np.int64)])


def _told(continues_BL: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    if continues_BL is None:
        raise ValueError("whole words are masked, and nobody told which tokens continue one")
    return continues_BL


def _segment_ids(
    segments_BL: NDArray[np.int32], num_tokens_B: NDArray[np.int64], mask_BS: NDArray[np.int64]
) -> NDArray[np.int64]:
    """`segment_ids`: `[CLS]` goes with the first document that is not hidden, `[SEP]` with the last; int64 [B, S]."""
    ids_BS = np.full(mask_BS.shape, -1, dtype=np.int64)
    ids_BS[:, 1:-1] = segments_BL
    # Behind a short row [SEP] stands among the window's places.
    ids_BS[:, 1:-1][(mask_BS[:, 1:-1] == 0) | (np.arange(segments_BL.shape[1]) >= num_tokens_B[:, None])] = -1
    rows_B = np.arange(len(ids_BS))
    first_B = ids_BS[rows_B, np.argmax(ids_BS >= 0, axis=1)]
    last_B = ids_BS.max(axis=1)
    ids_BS[:, 0] = np.maximum(first_B, 0)
    ids_BS[rows_B, num_tokens_B + 1] = np.maximum(last_B, 0)
    return ids_BS
