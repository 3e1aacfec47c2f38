"""N-grams and spans as ALBERT and SpanBERT choose them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from raw_rows import RawRows

from launcher.errors import ObjectiveError
from launcher.objectives.base import IGNORE_INDEX
from launcher.objectives.mlm import MaskedLM
from launcher.objectives.spans_of_places import geometric_shares, ngram_shares, places_in_spans
from launcher.shards.manifest import SpecialTokens

Rows = Callable[[int, int], NDArray[np.int32]]
Unit = Literal["ngram", "span"]
UNITS = pytest.mark.parametrize("unit", ["ngram", "span"])


def worded(tokens: NDArray[np.int32], share: float = 0.4) -> RawRows:
    """Full rows in which a share of the tokens continue a word."""
    continues = np.random.default_rng(3).random(tokens.shape) < share
    continues[:, 0] = False
    num_rows, length = tokens.shape
    return RawRows(tokens, np.full(num_rows, length), np.arange(num_rows), continues_BL=continues)


def chosen_lengths(length_shares: NDArray[np.float64], share: float) -> NDArray[np.int64]:
    """Lengths of the spans of 2,000 samples of 1,000 words that are hidden alike, but for the last drawn of each."""
    ordinary = np.ones((2000, 1000), dtype=np.bool_)
    positions = np.arange(2000)
    places, kinds = places_in_spans(ordinary, None, positions, 7, share, length_shares, alike=True)
    # The number drawn for a span tells it from the one beside it.
    new = np.append(True, (np.diff(places) != 1) | (kinds[1:] != kinds[:-1]) | (places[1:] % 1000 == 0))
    return np.diff(np.append(np.flatnonzero(new), len(places)))


def test_ngrams_have_alberts_lengths() -> None:
    assert ngram_shares(3).tolist() == pytest.approx([6 / 11, 3 / 11, 2 / 11])
    lengths = chosen_lengths(ngram_shares(3), 0.15)
    counts = np.bincount(lengths, minlength=4)[1:] / len(lengths)
    # One span in eighty is cut to what is left of the budget.
    assert counts.tolist() == pytest.approx([6 / 11, 3 / 11, 2 / 11], abs=0.01)


def test_spans_have_spanberts_lengths() -> None:
    shares = geometric_shares()
    assert len(shares) == 10
    assert (shares[1:] / shares[:-1]).tolist() == pytest.approx([0.8] * 9)
    assert (shares * np.arange(1, 11)).sum() == pytest.approx(3.8, abs=0.01)  # Joshi et al. 2020, section 3.1
    lengths = chosen_lengths(shares, 0.15)
    assert lengths.max() == 10
    assert lengths.mean() == pytest.approx(3.8, abs=0.1)
    counts = np.bincount(lengths, minlength=11)[1:] / len(lengths)
    assert counts.tolist() == pytest.approx(shares.tolist(), abs=0.01)


@UNITS
@pytest.mark.parametrize("share", [0.15, 0.3])
def test_the_shares_are_those_of_devlin_et_al(
    special: SpecialTokens, text_rows: Rows, unit: Unit, share: float
) -> None:
    rows = worded(text_rows(1500, 126))
    batch = MaskedLM(128, 7, special, 1000, share, unit=unit, has_words=True).batch(rows)
    chosen = batch["labels"] != IGNORE_INDEX
    inputs, true_ids = batch["input_ids"][chosen], batch["labels"][chosen]
    # Words of a span are decided together: three standard deviations of as many independent spans.
    num_spans = np.count_nonzero(chosen) / 6
    assert chosen[:, 1:-1].mean() == pytest.approx(share, abs=0.003)
    assert (inputs == special.mask).mean() == pytest.approx(0.8, abs=3 * np.sqrt(0.16 / num_spans))
    assert (inputs == true_ids).mean() == pytest.approx(0.1, abs=3 * np.sqrt(0.09 / num_spans))


@UNITS
def test_the_share_of_each_sample_is_met_to_a_word(special: SpecialTokens, text_rows: Rows, unit: Unit) -> None:
    tokens = text_rows(300, 126)
    alone = RawRows(tokens, np.full(300, 126), np.arange(300), continues_BL=np.zeros(tokens.shape, dtype=np.bool_))
    labels = MaskedLM(128, 7, special, 1000, unit=unit).batch(alone)["labels"]
    counts = np.count_nonzero(labels != IGNORE_INDEX, axis=1)
    assert set(counts.tolist()) == {18, 19}  # 18.9
    assert counts.mean() == pytest.approx(18.9, abs=0.1)


@UNITS
def test_every_place_is_as_likely_as_another(special: SpecialTokens, text_rows: Rows, unit: Unit) -> None:
    tokens = text_rows(6000, 30)
    rows = RawRows(tokens, np.full(6000, 30), np.arange(6000), continues_BL=np.zeros(tokens.shape, dtype=np.bool_))
    chosen = MaskedLM(32, 7, special, 1000, unit=unit).batch(rows)["labels"][:, 1:-1] != IGNORE_INDEX
    assert chosen.mean(axis=0) == pytest.approx(0.15, abs=5 * np.sqrt(0.15 * 0.85 / 6000))  # the ends too


@UNITS
def test_words_are_masked_whole(special: SpecialTokens, text_rows: Rows, unit: Unit) -> None:
    rows = worded(text_rows(200, 126))
    objective = MaskedLM(128, 7, special, 1000, unit=unit, has_words=True)
    assert objective.needs_words
    batch = objective.batch(rows)
    chosen = batch["labels"][:, 1:-1] != IGNORE_INDEX
    assert rows.continues_BL is not None
    assert (chosen[:, 1:] == chosen[:, :-1])[rows.continues_BL[:, 1:]].all()


def test_a_span_is_shown_one_way(special: SpecialTokens, text_rows: Rows) -> None:
    tokens = text_rows(400, 126)
    rows = RawRows(tokens, np.full(400, 126), np.arange(400))
    objective = MaskedLM(128, 7, special, 1000, unit="span")
    assert not objective.needs_words
    batch = objective.batch(rows)
    chosen = batch["labels"] != IGNORE_INDEX
    hidden = chosen & (batch["input_ids"] == special.mask)
    inside = chosen[:, 1:] & chosen[:, :-1]
    together = (hidden[:, 1:] == hidden[:, :-1])[inside].mean()
    assert together > 0.93  # all but where one span touches another
    of_ngrams = MaskedLM(128, 7, special, 1000, unit="ngram").batch(worded(tokens, 0.0))
    chosen = of_ngrams["labels"] != IGNORE_INDEX
    hidden = chosen & (of_ngrams["input_ids"] == special.mask)
    apart = (hidden[:, 1:] == hidden[:, :-1])[chosen[:, 1:] & chosen[:, :-1]].mean()
    assert apart == pytest.approx(0.68, abs=0.04)  # 0.8² + 0.2²: each token by itself


@UNITS
@given(num_tokens=st.integers(0, 30), position=st.integers(0, 2**50), data=st.data())
def test_special_tokens_and_padding_are_never_chosen_and_nothing_is_lost(
    special: SpecialTokens, unit: Unit, num_tokens: int, position: int, data: st.DataObject
) -> None:
    text = data.draw(st.lists(st.integers(0, 999), min_size=30, max_size=30))
    continues = np.array([data.draw(st.lists(st.booleans(), min_size=30, max_size=30))])
    objective = MaskedLM(32, 1, special, 1000, mask_share=0.9, unit=unit, has_words=True)
    rows = RawRows(np.array([text], dtype=np.int32), np.array([num_tokens]), np.array([position]), None, continues)
    batch = objective.batch(rows)
    clean = np.array([special.cls, *text[:num_tokens], special.sep] + [special.pad] * (30 - num_tokens))
    chosen = batch["labels"][0] != IGNORE_INDEX
    assert not np.isin(clean[chosen], special.all_ids).any()
    assert np.where(chosen, batch["labels"][0], batch["input_ids"][0]).tolist() == clean.tolist()


@UNITS
@given(order=st.permutations(range(12)), cuts=st.sets(st.integers(1, 11)))
def test_a_sample_gets_the_same_noise_in_any_row_of_any_batch(
    special: SpecialTokens, text_rows: Rows, unit: Unit, order: list[int], cuts: set[int]
) -> None:
    objective = MaskedLM(32, 3, special, 1000, unit=unit, has_words=True)
    whole = worded(text_rows(12, 30))
    num_tokens, positions = np.array([30] * 10 + [9, 0]), np.arange(500, 512, dtype=np.int64)
    assert whole.continues_BL is not None
    batch = objective.batch(RawRows(whole.tokens_BL, num_tokens, positions, None, whole.continues_BL))
    for rows in np.split(np.array(order), sorted(cuts)):
        part = objective.batch(
            RawRows(whole.tokens_BL[rows], num_tokens[rows], positions[rows], None, whole.continues_BL[rows])
        )
        for name, array in batch.items():
            assert np.array_equal(part[name], array[rows])


def test_ngrams_without_words_and_without_length_are_refused(special: SpecialTokens, text_rows: Rows) -> None:
    rows = RawRows(text_rows(2, 30), np.full(2, 30), np.arange(2))
    with pytest.raises(ValueError, match="nobody told which tokens continue one"):
        MaskedLM(32, 7, special, 1000, unit="ngram").batch(rows)
    with pytest.raises(ObjectiveError, match=r"n-grams of up to 0 words[\s\S]*where: objective.max_ngram"):
        MaskedLM(32, 7, special, 1000, unit="ngram", max_ngram=0)
