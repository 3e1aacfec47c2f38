"""Span corruption: cut spans out of the text, leave a sentinel for each, and write the spans.

Shapes: B samples, S tokens of the encoder's sequence, T of the decoder's, L raw tokens of a window; G rows with the
same number of tokens, W tokens of such a row, K spans of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from launcher.errors import ObjectiveError
from launcher.objectives import noise
from launcher.objectives.base import IGNORE_INDEX, Batch, Rows, attention_mask, refuse_short, required
from launcher.shards.manifest import SpecialTokens

_NOISE_LABEL = 0x7370616E00  # "span", cuts among the tokens that go
_KEPT_LABEL = 0x7370616E01  # "span", cuts among the tokens that stay

_MAX_DENSITY = 0.9
"""Assumption: above it windows grow without bound for a sequence of given length. Raffel et al. tried 0.10 to 0.50."""


def span_counts(num_tokens: int, density: float, mean_span: float) -> tuple[int, int]:
    """How many tokens of a row are cut out, and in how many spans.

    At least one token is cut out and, of two or more, at least one stays.

    Source: Raffel et al. 2020 (arXiv:1910.10683), `random_spans_noise_mask` of google-research/text-to-text-transfer-
    transformer. A row of a single token, which that code leaves without noise, is cut out whole here, so that every
    row has something to predict.
    """
    num_noise = min(max(round(num_tokens * density), 1), max(num_tokens - 1, 1))
    num_spans = min(max(round(num_noise / mean_span), 1), num_noise, max(num_tokens - num_noise, 1))
    return num_noise, num_spans


def sequence_lengths(num_tokens: int, density: float, mean_span: float) -> tuple[int, int]:
    """Lengths of the encoder's and the decoder's sequence of a row: a sentinel per span and an end token in each.

    Source: `random_spans_helper` of the same code: 568 tokens give 512 and 114.
    """
    num_noise, num_spans = span_counts(num_tokens, density, mean_span)
    return num_tokens - num_noise + num_spans + 1, num_noise + num_spans + 1


@dataclass(frozen=True)
class SpanCorruption:
    """T5's denoising: spans of mean length `mean_span`, together `density` of the tokens, are replaced by sentinels.

    `input_ids` are the text with a sentinel for each span, `labels` each sentinel followed by its span; both end with
    the end token. `decoder_input_ids` are the labels one place later, behind the padding token, as T5 starts its
    decoder. The window is as long as fits `seq_len`, which full windows fill exactly. Where documents meet in a window
    the token between them is text like any other.

    Raises:
        ObjectiveError: The tokenizer has too few sentinels, no padding or no end token, the sequence is shorter than
            three tokens, or density and mean span are out of range.

    Source: Raffel et al. 2020, section 3.1.4 and 3.3.4 (arXiv:1910.10683).
    """

    seq_len: int
    """S: tokens the encoder reads."""
    seed: int
    """Chooses the spans of every position."""
    special: SpecialTokens
    """The tokenizer's special tokens."""
    density: float = 0.15
    """Share of tokens that are cut out."""
    mean_span: float = 3.0
    """Mean length of a span, in tokens."""

    def __post_init__(self) -> None:
        refuse_short(self.seq_len, 3, "span")
        if not 0.0 < self.density <= _MAX_DENSITY or self.mean_span < 1.0:
            raise ObjectiveError(
                f"spans of {self.mean_span} tokens with a density of {self.density} cannot be cut out",
                "objective.density, objective.mean_span",
                f"use a density up to {_MAX_DENSITY} and spans of 1 token or more; Raffel et al. use 0.15 and 3",
            )
        required(self.special.pad, "pad", "span")
        required(self._end, "eos", "span")
        if len(self.special.sentinels) < self.num_sentinels_needed:
            raise ObjectiveError(
                f"span corruption of {self.seq_len} tokens needs {self.num_sentinels_needed} sentinel tokens, "
                f"and the tokenizer has {len(self.special.sentinels)}",
                "tokenizer",
                "train one with `pretrain tokenizer`, which makes 100, or use longer spans or a shorter sequence",
            )

    @cached_property
    def window_length(self) -> int:
        """The most raw tokens whose encoder sequence fits `seq_len`: 568 for 512."""
        length = 1
        while sequence_lengths(length + 1, self.density, self.mean_span)[0] <= self.seq_len:
            length += 1
        return length

    @property
    def window_stride(self) -> int:
        """The length: each token is in one sample."""
        return self.window_length

    @property
    def fill_id(self) -> int:
        """The padding token."""
        return required(self.special.pad, "pad", "span")

    @property
    def target_length(self) -> int:
        """T: tokens the decoder writes for a full window, 114 for 512."""
        return sequence_lengths(self.window_length, self.density, self.mean_span)[1]

    @property
    def num_sentinels_needed(self) -> int:
        """Spans of a full window."""
        return span_counts(self.window_length, self.density, self.mean_span)[1]

    @property
    def needs_words(self) -> bool:
        """No."""
        return False

    def batch(self, rows: Rows) -> Batch:
        """See `Objective.batch`, with `labels` and `decoder_input_ids` [B, T].

        Hidden tokens are taken out and the rest of the row moves up: a hole has no place in a sequence whose length
        is what the spans leave of it. A row without tokens is the end token alone, with nothing to predict.
        """
        tokens_BL, num_tokens_B, positions_B = rows.tokens_BL, rows.num_tokens_B, rows.positions_B
        if rows.hidden_BL is not None:
            tokens_BL, num_tokens_B = _without(tokens_BL, num_tokens_B, rows.hidden_BL)
        inputs_BS = np.full((len(tokens_BL), self.seq_len), self.fill_id, dtype=np.int64)
        labels_BT = np.full((len(tokens_BL), self.target_length), IGNORE_INDEX, dtype=np.int64)
        input_lengths_B = np.zeros(len(tokens_BL), dtype=np.int64)
        # Rows of one length have the same number of spans and so the same shape; all but the stream's last are full.
        for num_tokens in np.unique(num_tokens_B).tolist():
            rows_G = np.flatnonzero(num_tokens_B == num_tokens)
            if num_tokens == 0:  # attention over nothing would be no number
                inputs_BS[rows_G, 0], input_lengths_B[rows_G] = required(self._end, "eos", "span"), 1
                continue
            inputs, labels = self._corrupt(tokens_BL[rows_G, :num_tokens].astype(np.int64), positions_B[rows_G])
            inputs_BS[rows_G, : inputs.shape[1]] = inputs
            labels_BT[rows_G, : labels.shape[1]] = labels
            input_lengths_B[rows_G] = inputs.shape[1]
        decoder_inputs_BT = np.full_like(labels_BT, self.fill_id)
        decoder_inputs_BT[:, 1:] = np.where(labels_BT[:, :-1] == IGNORE_INDEX, self.fill_id, labels_BT[:, :-1])
        return {
            "input_ids": inputs_BS,
            "labels": labels_BT,
            "attention_mask": attention_mask(input_lengths_B, self.seq_len),
            "decoder_input_ids": decoder_inputs_BT,
        }

    @property
    def _end(self) -> int | None:
        return self.special.sep if self.special.eos is None else self.special.eos

    def _corrupt(
        self, tokens_GW: NDArray[np.int64], positions_G: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Encoder and decoder sequences of rows without padding, end token included: int64 [G, …] each."""
        num_rows, num_tokens = tokens_GW.shape
        num_noise, num_spans = span_counts(num_tokens, self.density, self.mean_span)
        noise_lengths_GK = _segments(noise.sample_keys(self.seed, _NOISE_LABEL, positions_G), num_noise, num_spans)
        kept_keys_G = noise.sample_keys(self.seed, _KEPT_LABEL, positions_G)
        kept_lengths_GK = _segments(kept_keys_G, num_tokens - num_noise, num_spans)
        is_noise_GW, is_first_GW, span_GW = _spans(kept_lengths_GK, noise_lengths_GK)

        sentinels = np.array(self.special.sentinels[:num_spans], dtype=np.int64)
        sentinel_GW = sentinels[span_GW]
        end_G1 = np.full((num_rows, 1), self._end, dtype=np.int64)
        # Every row keeps the same number of places, so a masked copy of the batch is a rectangle again.
        kept = np.where(is_first_GW, sentinel_GW, tokens_GW)[is_first_GW | ~is_noise_GW]
        pairs_GW2 = np.stack([sentinel_GW, tokens_GW], axis=-1)
        written = pairs_GW2[np.stack([is_first_GW, is_noise_GW], axis=-1)]
        inputs = np.hstack([kept.reshape(num_rows, num_tokens - num_noise + num_spans), end_G1])
        labels = np.hstack([written.reshape(num_rows, num_noise + num_spans), end_G1])
        return inputs, labels


def _without(
    tokens_BL: NDArray[np.int32], num_tokens_B: NDArray[np.int64], hidden_BL: NDArray[np.bool_]
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The rows without their hidden tokens, moved up, and how many are left: int32 [B, L] and int64 [B]."""
    gone_BL = hidden_BL | (np.arange(tokens_BL.shape[1]) >= num_tokens_B[:, None])
    kept_first_BL = np.argsort(gone_BL, axis=1, kind="stable")
    return np.take_along_axis(tokens_BL, kept_first_BL, axis=1), (~gone_BL).sum(axis=1)


def _segments(keys_G: NDArray[np.uint64], num_items: int, num_segments: int) -> NDArray[np.int64]:
    """Cut `num_items` into segments at places drawn uniformly: lengths of at least 1, int64 [G, K].

    No items make one segment of length 0.
    """
    num_rows, num_cuts = len(keys_G), num_segments - 1
    bounds = np.zeros((num_rows, num_segments + 1), dtype=np.int64)
    bounds[:, -1] = num_items
    if num_cuts:
        draws = noise.draws(keys_G, num_items - 1)
        bounds[:, 1:-1] = np.sort(np.argpartition(draws, num_cuts - 1, axis=1)[:, :num_cuts], axis=1) + 1
    return np.diff(bounds, axis=1)


def _spans(
    kept_lengths_GK: NDArray[np.int64], noise_lengths_GK: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.int64]]:
    """Lay the segments out in turn, kept text first.

    Returns:
        [G, W] each: whether a token is cut out, whether it is the first of its span, and the number of the span it
        belongs to (of a kept token: that of the span behind it).
    """
    num_rows, num_spans = kept_lengths_GK.shape
    lengths = np.stack([kept_lengths_GK, noise_lengths_GK], axis=-1).reshape(num_rows, 2 * num_spans)
    num_tokens = int(lengths[0].sum())
    # All rows are equally long, so one flat repeat gives the segment of every token.
    segments = np.repeat(np.tile(np.arange(2 * num_spans), num_rows), lengths.reshape(-1))
    segments_GW = segments.reshape(num_rows, num_tokens)
    is_noise_GW = segments_GW % 2 == 1
    is_first_GW = is_noise_GW.copy()
    is_first_GW[:, 1:] &= ~is_noise_GW[:, :-1]
    return is_noise_GW, is_first_GW, segments_GW // 2
