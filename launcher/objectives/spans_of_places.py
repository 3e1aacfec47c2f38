"""Masking runs of words: n-grams as ALBERT chooses them, and spans as SpanBERT does.

Shapes: B samples, S places of a sequence, W words of the batch one after another, K spans of a sample at most, M slots
of a sample at most, N places of the batch that were chosen.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from launcher.objectives import noise

_LENGTH_LABEL = 0x6D6C6D01  # "mlm", how many words and how long their spans
_SLOT_LABEL = 0x6D6C6D02  # "mlm", where the spans stand
_KIND_LABEL = 0x6D6C6D03  # "mlm", what is shown in their place

GEOMETRIC_SHARE = 0.2
LONGEST_SPAN = 10


def ngram_shares(max_ngram: int) -> NDArray[np.float64]:
    """How often an n-gram has 1, 2, … words: in proportion to 1/n.

    Source: Lan et al. 2019, section 4.1 (arXiv:1909.11942), with n up to 3.
    """
    weights = 1.0 / np.arange(1, max_ngram + 1)
    shares: NDArray[np.float64] = weights / weights.sum()
    return shares


def geometric_shares() -> NDArray[np.float64]:
    """How often a span has 1, 2, … words: geometric with 0.2 up to 10, which makes 3.8 on average.

    Source: Joshi et al. 2020, section 3.1 (arXiv:1907.10529). As in their code, lengths above 10 are not drawn, rather
    than counted as 10, which would make 4.5.
    """
    weights = GEOMETRIC_SHARE * (1.0 - GEOMETRIC_SHARE) ** np.arange(LONGEST_SPAN)
    shares: NDArray[np.float64] = weights / weights.sum()
    return shares


def places_in_spans(
    ordinary_BS: NDArray[np.bool_],
    goes_on_BS: NDArray[np.bool_] | None,
    positions_B: NDArray[np.int64],
    seed: int,
    share: float,
    length_shares: NDArray[np.float64],
    *,
    alike: bool,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Choose spans of words until a share of a sample's words is chosen; the last one is cut to what is left.

    Spans never overlap, and every word is chosen as often as any other. A span that meets a special token goes on
    behind it, one that meets the end of the sample at its beginning. The share of the words is met in each sample to
    less than one word, and on average exactly; on average, so is the share of the tokens.

    Args:
        ordinary_BS: Places that may be chosen, bool [B, S].
        goes_on_BS: Places that continue the word of the place before, bool [B, S]; without it, each place is a word.
        positions_B: Position of each sample in the run, int64 [B].
        seed: Of the run.
        share: Share of the words to choose.
        length_shares: How often a span has 1, 2, … words, float64 [longest].
        alike: Whether one number is drawn for a whole span, or one for each place.

    Returns:
        The chosen places, int64 [N] into the flattened batch, and for each a uniform number in [0, 1), float32 [N].
    """
    starts_BS = ordinary_BS.copy()
    if goes_on_BS is not None:
        starts_BS[:, 1:] &= ~(goes_on_BS[:, 1:] & ordinary_BS[:, :-1])
    num_words_B = starts_BS.sum(axis=1)
    span_W = _spans_of_words(num_words_B, positions_B, seed, share, length_shares)
    word_of_place = np.cumsum(starts_BS.reshape(-1)) - 1
    places = np.flatnonzero(ordinary_BS)
    span_of_place = span_W[word_of_place[places]]
    chosen = span_of_place >= 0
    places_N, spans_N = places[chosen], span_of_place[chosen]
    rows_N, columns_N = np.divmod(places_N, ordinary_BS.shape[1])
    keys_B = noise.sample_keys(seed, _KIND_LABEL, positions_B)
    bits_N = noise.draws_at(keys_B[rows_N], spans_N if alike else columns_N)
    # 24 bits, as many as a float32 holds: of more, the highest would round to 1.
    return places_N, (bits_N >> np.uint64(40)).astype(np.float32) / np.float32(2**24)


def _spans_of_words(
    num_words_B: NDArray[np.int64],
    positions_B: NDArray[np.int64],
    seed: int,
    share: float,
    length_shares: NDArray[np.float64],
) -> NDArray[np.int64]:
    """The number of the span of each word inside its sample, -1 where it is in none: int64 [W].

    The words and spans of a sample fill slots in a ring, one slot for each span and one for each word that stays. Which
    slots are spans is drawn, and where the ring begins: in a line the words near its ends would be chosen less often.
    """
    num_rows = len(num_words_B)
    length_keys_B = noise.sample_keys(seed, _LENGTH_LABEL, positions_B)
    rounding_B, turn_B = (_uniform(noise.draws_at(length_keys_B, np.full(num_rows, draw))) for draw in (0, 1))
    num_chosen_B = np.minimum((num_words_B * share + rounding_B).astype(np.int64), num_words_B)
    most = int(num_chosen_B.max(initial=0))
    if most == 0:
        return np.full(int(num_words_B.sum()), -1, dtype=np.int64)
    # A span has a word at least, so that no sample has more spans than chosen words.
    draws_BK = _uniform(noise.draws(length_keys_B, most + 2)[:, 2:])
    upto = np.cumsum(length_shares)[:-1]
    ends_BK = np.minimum(np.cumsum(np.searchsorted(upto, draws_BK, side="right") + 1, axis=1), num_chosen_B[:, None])
    lengths_BK = np.diff(ends_BK, axis=1, prepend=0)
    num_spans_B = np.count_nonzero(lengths_BK, axis=1)

    num_slots_B = num_words_B - num_chosen_B + num_spans_B
    slot_keys_B = noise.sample_keys(seed, _SLOT_LABEL, positions_B)
    draws_BM = noise.draws(slot_keys_B, int(num_slots_B.max()))
    is_slot_BM = np.arange(draws_BM.shape[1]) < num_slots_B[:, None]
    draws_BM[~is_slot_BM] = np.iinfo(np.uint64).max
    # The slots with the smallest draws are spans.
    last_B1 = np.take_along_axis(np.sort(draws_BM, axis=1), np.maximum(num_spans_B - 1, 0)[:, None], axis=1)
    is_span_BM = (draws_BM <= last_B1) & (num_spans_B > 0)[:, None] & is_slot_BM
    span_BM = np.where(is_span_BM, np.cumsum(is_span_BM, axis=1) - 1, -1)
    lengths_BM = np.where(is_span_BM, np.take_along_axis(lengths_BK, np.maximum(span_BM, 0), axis=1), is_slot_BM)
    span_W = np.repeat(span_BM.reshape(-1), lengths_BM.reshape(-1))
    first_W = np.repeat(np.cumsum(num_words_B) - num_words_B, num_words_B)
    turned_W = np.arange(len(span_W)) - first_W + np.repeat((turn_B * num_words_B).astype(np.int64), num_words_B)
    return span_W[first_W + turned_W % np.repeat(num_words_B, num_words_B)]


def _uniform(bits: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Numbers in [0, 1) of 53 of the bits."""
    return (bits >> np.uint64(11)).astype(np.float64) / 2.0**53
