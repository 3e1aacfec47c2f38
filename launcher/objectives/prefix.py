"""Prefix language modelling: read the beginning of a text, and write the rest.

Shapes: B samples, S tokens of a sequence, T of a decoder's sequence, L raw tokens of a window.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from launcher.errors import ObjectiveError
from launcher.objectives import noise
from launcher.objectives.base import IGNORE_INDEX, Batch, Rows, attention_mask, refuse_short, required
from launcher.objectives.clm import CausalLM
from launcher.objectives.two_sides import decoder_inputs, end_token, keep_apart, without_hidden
from launcher.shards.manifest import SpecialTokens

_PREFIX_LABEL = 0x707265666978  # "prefix"


def is_prefix(seed: int, rows: Rows, written_share: float) -> NDArray[np.bool_]:
    """Cut each row in two, or each document of it where documents are kept apart, at a place drawn uniformly.

    Args:
        seed: Of the run.
        rows: B samples.
        written_share: Mean share behind the cut: it lies in the last part of twice this share.

    Returns:
        Tokens before the cut, bool [B, L]; at least one stays on either side, and a single token is before it.

    Source: with 0.5 the uniform split of T5's prefix language modelling, Raffel et al. 2020, section 3.3.1
    (arXiv:1910.10683); with 0.25 UL2's, Tay et al. 2022, table 1 and section 3.1.2 (arXiv:2205.05131).
    """
    num_rows, length = rows.tokens_BL.shape
    if length == 0 or num_rows == 0:
        return np.zeros((num_rows, length), dtype=np.bool_)
    places_L = np.arange(length)
    starts_BL = np.zeros((num_rows, length), dtype=np.bool_)
    starts_BL[:, 0] = True
    ends_B = rows.num_tokens_B
    if rows.segments_BL is not None:
        starts_BL[:, 1:] = rows.segments_BL[:, 1:] != rows.segments_BL[:, :-1]
    first_BL = np.maximum.accumulate(np.where(starts_BL, places_L, 0), axis=1)
    # The next start behind each place, found from the right; the last piece ends with the row's tokens.
    next_BL = np.full((num_rows, length + 1), length, dtype=np.int64)
    next_BL[:, :-1] = np.where(starts_BL, places_L, length)
    behind_BL = np.minimum.accumulate(next_BL[:, ::-1], axis=1)[:, ::-1][:, 1:]
    lengths_BL = np.minimum(behind_BL, ends_B[:, None]) - first_BL
    keys_B = noise.sample_keys(seed, _PREFIX_LABEL, rows.positions_B)
    draws_BL = np.take_along_axis(noise.draws(keys_B, length), first_BL, axis=1)
    choices_BL = np.clip((2 * written_share * lengths_BL).astype(np.int64), 1, np.maximum(lengths_BL - 1, 1))
    # Multiply and shift maps 32 bits onto the choices; the last cut leaves one token behind it.
    drawn_BL = (((draws_BL >> np.uint64(32)) * choices_BL.astype(np.uint64)) >> np.uint64(32)).astype(np.int64)
    cuts_BL = np.maximum(lengths_BL - choices_BL, 1) + drawn_BL
    cut: NDArray[np.bool_] = (places_L - first_BL < cuts_BL) & (places_L < ends_B[:, None])
    return cut


@dataclass(frozen=True)
class PrefixLM:
    """For an encoder-decoder: the encoder reads the beginning of the window, the decoder writes the rest.

    Both end with the end token. A window has as many tokens as the encoder may read, so that of the two sequences
    together about a third to a half is padding: any cut must fit. Of documents that are kept apart, each is cut by
    itself.

    Raises:
        ObjectiveError: The tokenizer has no padding or no end token, the sequence is shorter than three tokens, or
            `written_share` is not above 0 and at most 0.5.

    Source: Raffel et al. 2020, section 3.3.1 (arXiv:1910.10683); with a mode token the S-denoiser of Tay et al. 2022
    (arXiv:2205.05131), without their sentinel between the two.
    """

    seq_len: int
    """S: tokens the encoder reads."""
    seed: int
    """Chooses the cut of every position."""
    special: SpecialTokens
    """The tokenizer's special tokens."""
    mode: int | None = None
    """Token that begins every encoder's sequence."""
    window: int | None = None
    """L, where it must be less than fits `seq_len`."""
    written_share: float = 0.5
    """Mean share of a text that the decoder writes, up to 0.5."""

    def __post_init__(self) -> None:
        refuse_short(self.seq_len, 3 + (self.mode is not None), "prefix")
        _refuse_share(self.written_share)
        required(self.special.pad, "pad", "prefix")
        end_token(self.special, "prefix")

    @property
    def window_length(self) -> int:
        """The longest prefix, the token behind it, and no more: S, or one less behind a mode token; or `window`."""
        natural = self.seq_len - (self.mode is not None)
        return natural if self.window is None else min(self.window, natural)

    @property
    def window_stride(self) -> int:
        """The length: each token is in one sample."""
        return self.window_length

    @property
    def fill_id(self) -> int:
        """The padding token."""
        return required(self.special.pad, "pad", "prefix")

    @property
    def target_length(self) -> int:
        """T: the most that is written of a window, and the end."""
        # Of the shortest documents that are cut at all, half is written.
        most = max(int(2 * self.written_share * self.window_length), self.window_length // 2)
        return min(most, self.window_length - 1) + 1

    @property
    def needs_words(self) -> bool:
        """No."""
        return False

    def batch(self, rows: Rows) -> Batch:
        """See `Objective.batch`, with `labels` and `decoder_input_ids` [B, T]. Hidden tokens are taken out."""
        rows = without_hidden(rows)
        end = end_token(self.special, "prefix")
        real_BL = np.arange(rows.tokens_BL.shape[1]) < rows.num_tokens_B[:, None]
        prefix_BL = is_prefix(self.seed, rows, self.written_share)
        # Documents of one token are not cut: of a row full of them, the end takes the place of the last.
        whole_B = np.count_nonzero(prefix_BL, axis=1) + (self.mode is not None) == self.seq_len
        real_BL[whole_B, -1] = prefix_BL[whole_B, -1] = False
        inputs_BS, input_lengths_B = _moved_up(
            rows.tokens_BL, prefix_BL, self.seq_len, self.fill_id, first=self.mode, last=end
        )
        labels_BT, label_lengths_B = _moved_up(
            rows.tokens_BL, real_BL & ~prefix_BL, self.target_length, IGNORE_INDEX, last=end
        )
        labels_BT[rows.num_tokens_B == 0] = IGNORE_INDEX  # nothing is predicted of nothing
        batch = {
            "input_ids": inputs_BS,
            "labels": labels_BT,
            "attention_mask": attention_mask(input_lengths_B, self.seq_len),
            "decoder_input_ids": decoder_inputs(labels_BT, self.fill_id),
        }
        if rows.segments_BL is None:
            return batch
        segments_BS, _ = _moved_up(rows.segments_BL, prefix_BL, self.seq_len, -1, first=self.mode, last=0)
        segments_BT, _ = _moved_up(rows.segments_BL, real_BL & ~prefix_BL, self.target_length, -1, last=0)
        # The ends belong to the last document, the mode token to the first.
        every_B = np.arange(len(inputs_BS))
        last_B = np.max(rows.segments_BL, axis=1, initial=0, where=real_BL)
        segments_BS[every_B, input_lengths_B - 1] = last_B
        segments_BT[every_B, label_lengths_B - 1] = last_B
        segments_BT[labels_BT == IGNORE_INDEX] = -1
        if self.mode is not None:
            segments_BS[:, 0] = np.where(rows.num_tokens_B > 0, segments_BS[:, 1], 0)
        return keep_apart(batch, segments_BS, segments_BT, self.fill_id)


@dataclass(frozen=True)
class CausalPrefixLM:
    """For a decoder: next-token prediction, with loss only behind a prefix whose end is drawn.

    The model reads the prefix from left to right, as it reads it when it is asked: a bidirectional prefix would need an
    attention mask that most families of decoders do not take. Windows and overlap are those of `CausalLM`; of documents
    that are kept apart, each is cut by itself.

    Raises:
        ObjectiveError: The sequence is shorter than two tokens, or `written_share` is not above 0 and at most 0.5.

    Source: the prefix language modelling of Wang et al. 2022, section 2.2 (arXiv:2204.05832), without attention to the
    right.
    """

    seq_len: int
    """S: tokens the model reads."""
    seed: int
    """Chooses the cut of every position."""
    special: SpecialTokens
    """The tokenizer's special tokens."""
    written_share: float = 0.5
    """Mean share of a text that is behind the cut, up to 0.5."""

    def __post_init__(self) -> None:
        refuse_short(self.seq_len, 2, "prefix")
        _refuse_share(self.written_share)

    @property
    def window_length(self) -> int:
        """The inputs and the token that follows the last of them."""
        return self._causal.window_length

    @property
    def window_stride(self) -> int:
        """One less than the length."""
        return self._causal.window_stride

    @property
    def fill_id(self) -> int:
        """The padding token, or the end of a document."""
        return self._causal.fill_id

    @property
    def needs_words(self) -> bool:
        """No."""
        return False

    def batch(self, rows: Rows) -> Batch:
        """See `Objective.batch`."""
        batch = self._causal.batch(rows)
        batch["labels"][is_prefix(self.seed, rows, self.written_share)[:, 1:]] = IGNORE_INDEX
        return batch

    @property
    def _causal(self) -> CausalLM:
        return CausalLM(self.seq_len, self.special)


def _refuse_share(written_share: float) -> None:
    if not 0.0 < written_share <= 0.5:
        raise ObjectiveError(
            f"{written_share} of a text on average cannot be behind a cut drawn uniformly",
            "objective.written_share",
            "use a share up to 0.5: 0.5 as T5, 0.25 as UL2",
        )


def _moved_up(
    values_BL: NDArray[np.int32],
    chosen_BL: NDArray[np.bool_],
    width: int,
    fill: int,
    *,
    first: int | None = None,
    last: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The chosen values of each row side by side, between `first`, if there is one, and `last`.

    Returns:
        int64 [B, width], and the lengths, int64 [B].
    """
    begin = int(first is not None)
    made = np.full((len(values_BL), width), fill, dtype=np.int64)
    rows_N, columns_N = np.nonzero(chosen_BL)
    counts_B = chosen_BL.sum(axis=1)
    before_B = np.cumsum(counts_B) - counts_B
    made[rows_N, np.arange(len(rows_N)) - before_B[rows_N] + begin] = values_BL[rows_N, columns_N]
    if first is not None:
        made[:, 0] = first
    made[np.arange(len(made)), counts_B + begin] = last
    return made, counts_B + begin + 1
