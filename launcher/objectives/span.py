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
from launcher.objectives.two_sides import decoder_inputs, end_token, keep_apart, without_hidden
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


def natural_window(seq_len: int, density: float, mean_span: float) -> int:
    """The most raw tokens of which `seq_len` places are enough for the encoder: 568 for 512.

    At a density of 0.5 one less where the decoder would write one token more than the encoder reads, as
    `random_spans_helper` has it.
    """
    length = 1
    while sequence_lengths(length + 1, density, mean_span)[0] <= seq_len:
        length += 1
    num_read, num_written = sequence_lengths(length, density, mean_span)
    return length - 1 if density == 0.5 and num_written > num_read else length


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
    decoder. The window is as long as fits `seq_len`, which full windows fill, but for one place at some
    densities. Where documents meet in a window
    the token between them is text like any other; where they are kept apart, a span that lies in two belongs to the
    first.

    Raises:
        ObjectiveError: The tokenizer has too few sentinels, no padding or no end token, the sequence is shorter than
            three tokens, density and mean span are out of range, or the mode token is one of the sentinels in use.

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
    mode: int | None = None
    """Token that begins every encoder's sequence, as UL2's denoisers have it (Tay et al. 2022, section 3.1.3)."""
    window: int | None = None
    """L, where it must be less than fits `seq_len`."""

    def __post_init__(self) -> None:
        refuse_short(self.seq_len, 3 + (self.mode is not None), "span")
        if not 0.0 < self.density <= _MAX_DENSITY or self.mean_span < 1.0:
            raise ObjectiveError(
                f"spans of {self.mean_span} tokens with a density of {self.density} cannot be cut out",
                "objective.density, objective.mean_span",
                f"use a density up to {_MAX_DENSITY} and spans of 1 token or more; Raffel et al. use 0.15 and 3",
            )
        required(self.special.pad, "pad", "span")
        end_token(self.special, "span")
        if len(self.special.sentinels) < self.num_sentinels_needed:
            raise ObjectiveError(
                f"span corruption of {self.seq_len} tokens needs {self.num_sentinels_needed} sentinel tokens, "
                f"and the tokenizer has {len(self.special.sentinels)}",
                "tokenizer",
                "train one with `pretrain tokenizer`, which makes 100, or use longer spans or a shorter sequence",
            )
        if self.mode in self.special.sentinels[: self.num_sentinels_needed]:
            raise ObjectiveError(
                f"the token {self.mode} cannot name a denoiser: it is one of the {self.num_sentinels_needed} sentinels "
                "that stand for spans",
                "objective.mode_tokens",
                "use tokens of their own, or the last sentinels",
            )

    @cached_property
    def window_length(self) -> int:
        """The most raw tokens whose encoder sequence fits `seq_len`: 568 for 512; or `window`, if that is less."""
        natural = natural_window(self.seq_len - (self.mode is not None), self.density, self.mean_span)
        return natural if self.window is None else min(self.window, natural)

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
        rows = without_hidden(rows)
        num_rows = len(rows.tokens_BL)
        inputs_BS = np.full((num_rows, self.seq_len), self.fill_id, dtype=np.int64)
        labels_BT = np.full((num_rows, self.target_length), IGNORE_INDEX, dtype=np.int64)
        segments_BS, segments_BT = np.full_like(inputs_BS, -1), np.full_like(labels_BT, -1)
        input_lengths_B = np.zeros(num_rows, dtype=np.int64)
        first = int(self.mode is not None)
        if self.mode is not None:
            inputs_BS[:, 0] = self.mode
        # Rows of one length have the same number of spans and so the same shape; all but the stream's last are full.
        for num_tokens in np.unique(rows.num_tokens_B).tolist():
            rows_G = np.flatnonzero(rows.num_tokens_B == num_tokens)
            if num_tokens == 0:  # attention over nothing would be no number
                inputs_BS[rows_G, first], input_lengths_B[rows_G] = end_token(self.special, "span"), first + 1
                segments_BS[rows_G, : first + 1] = 0
                continue
            cut = self._cut(num_tokens, rows.positions_B[rows_G])
            inputs, labels = self._corrupt(rows.tokens_BL[rows_G, :num_tokens].astype(np.int64), cut)
            inputs_BS[rows_G, first : first + inputs.shape[1]] = inputs
            labels_BT[rows_G, : labels.shape[1]] = labels
            input_lengths_B[rows_G] = first + inputs.shape[1]
            if rows.segments_BL is not None:
                of_inputs, of_labels = _segments_of(rows.segments_BL[rows_G, :num_tokens].astype(np.int64), cut)
                segments_BS[rows_G, :first] = of_inputs[:, :first]
                segments_BS[rows_G, first : first + inputs.shape[1]] = of_inputs
                segments_BT[rows_G, : labels.shape[1]] = of_labels
        batch = {
            "input_ids": inputs_BS,
            "labels": labels_BT,
            "attention_mask": attention_mask(input_lengths_B, self.seq_len),
            "decoder_input_ids": decoder_inputs(labels_BT, self.fill_id),
        }
        return batch if rows.segments_BL is None else keep_apart(batch, segments_BS, segments_BT, self.fill_id)

    def _cut(self, num_tokens: int, positions_G: NDArray[np.int64]) -> Cut:
        """Where the spans of rows of this many tokens lie."""
        num_noise, num_spans = span_counts(num_tokens, self.density, self.mean_span)
        noise_lengths_GK = _segments(noise.sample_keys(self.seed, _NOISE_LABEL, positions_G), num_noise, num_spans)
        kept_keys_G = noise.sample_keys(self.seed, _KEPT_LABEL, positions_G)
        return _spans(_segments(kept_keys_G, num_tokens - num_noise, num_spans), noise_lengths_GK)

    def _corrupt(self, tokens_GW: NDArray[np.int64], cut: Cut) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Encoder and decoder sequences of rows without padding, end token included: int64 [G, …] each."""
        end_G1 = np.full((len(tokens_GW), 1), end_token(self.special, "span"), dtype=np.int64)
        sentinel_GW = np.array(self.special.sentinels, dtype=np.int64)[cut.span_GW]
        inputs, labels = _laid_out(sentinel_GW, tokens_GW, cut)
        return np.hstack([inputs, end_G1]), np.hstack([labels, end_G1])


@dataclass(frozen=True, slots=True)
class Cut:
    """Which tokens of rows of one length are cut out; the same number in each row."""

    is_noise_GW: NDArray[np.bool_]
    """Whether a token is cut out."""
    is_first_GW: NDArray[np.bool_]
    """Whether it is the first of its span."""
    span_GW: NDArray[np.int64]
    """Number of the span it belongs to; of a kept token, that of the span behind it."""


def _laid_out(
    of_sentinels_GW: NDArray[np.int64], of_tokens_GW: NDArray[np.int64], cut: Cut
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Encoder and decoder sequences without their ends, of the values that sentinels and tokens have."""
    num_rows = len(of_tokens_GW)
    # Every row keeps the same number of places, so a masked copy of the batch is a rectangle again.
    kept = np.where(cut.is_first_GW, of_sentinels_GW, of_tokens_GW)[cut.is_first_GW | ~cut.is_noise_GW]
    pairs_GW2 = np.stack([of_sentinels_GW, of_tokens_GW], axis=-1)
    written = pairs_GW2[np.stack([cut.is_first_GW, cut.is_noise_GW], axis=-1)]
    return kept.reshape(num_rows, -1), written.reshape(num_rows, -1)


def _segments_of(segments_GW: NDArray[np.int64], cut: Cut) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The documents of what `_corrupt` gives: a span goes with its first token, and the end with what it ends."""
    first_GW = np.where(cut.is_first_GW, np.arange(segments_GW.shape[1]), 0)
    np.maximum.accumulate(first_GW, axis=1, out=first_GW)
    of_spans_GW = np.where(cut.is_noise_GW, np.take_along_axis(segments_GW, first_GW, axis=1), segments_GW)
    inputs, labels = _laid_out(of_spans_GW, of_spans_GW, cut)
    return np.hstack([inputs, inputs[:, -1:]]), np.hstack([labels, labels[:, -1:]])


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


def _spans(kept_lengths_GK: NDArray[np.int64], noise_lengths_GK: NDArray[np.int64]) -> Cut:
    """Lay the segments out in turn, kept text first."""
    num_rows, num_spans = kept_lengths_GK.shape
    lengths = np.stack([kept_lengths_GK, noise_lengths_GK], axis=-1).reshape(num_rows, 2 * num_spans)
    num_tokens = int(lengths[0].sum())
    # All rows are equally long, so one flat repeat gives the segment of every token.
    segments = np.repeat(np.tile(np.arange(2 * num_spans), num_rows), lengths.reshape(-1))
    segments_GW = segments.reshape(num_rows, num_tokens)
    is_noise_GW = segments_GW % 2 == 1
    is_first_GW = is_noise_GW.copy()
    is_first_GW[:, 1:] &= ~is_noise_GW[:, :-1]
    return Cut(is_noise_GW, is_first_GW, segments_GW // 2)
