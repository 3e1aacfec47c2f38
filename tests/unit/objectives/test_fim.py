"""Filling in the middle: texts turned around, row by row and document by document."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from raw_rows import RawRows

from launcher.errors import ObjectiveError
from launcher.objectives.base import IGNORE_INDEX
from launcher.objectives.clm import CausalLM
from launcher.objectives.fim import FillInTheMiddle
from launcher.shards.manifest import SpecialTokens

Rows = Callable[[int, int], NDArray[np.int32]]
PRE, MID, SUF = 7, 8, 9


@pytest.fixture(scope="session")
def turning(special: SpecialTokens) -> SpecialTokens:
    return replace(special, fim_prefix=PRE, fim_middle=MID, fim_suffix=SUF, all_ids=(*special.all_ids, PRE, MID, SUF))


def test_one_row_each_way_written_out(turning: SpecialTokens) -> None:
    tokens = np.array([[*range(11, 19), 0, 0, 0, 0]], dtype=np.int32)
    seen = set()
    for seed in range(300):
        made = FillInTheMiddle(seed, turning, 1.0).turn(RawRows(tokens, np.array([8]), np.array([0])))
        assert made.num_tokens_B.tolist() == [11]
        seen.add(tuple(made.tokens_BL[0, :11].tolist()))
    assert (PRE, 11, 12, SUF, 16, 17, 18, MID, 13, 14, 15) in seen  # PSM
    assert (PRE, SUF, 16, 17, 18, MID, 11, 12, 13, 14, 15) in seen  # SPM
    # 45 pairs of cuts; SPM, which puts the prefix before the middle again, shows the second cut only.
    assert 40 < len(seen) <= 45


@given(num_tokens=st.integers(0, 24), position=st.integers(0, 2**50), spm=st.sampled_from([0.0, 1.0]))
def test_nothing_is_lost_but_what_the_sentinels_push_out(
    turning: SpecialTokens, text_rows: Rows, num_tokens: int, position: int, spm: float
) -> None:
    tokens = text_rows(1, 24)
    made = FillInTheMiddle(1, turning, 1.0, spm).turn(RawRows(tokens, np.array([num_tokens]), np.array([position])))
    text = made.tokens_BL[0, : made.num_tokens_B[0]].tolist()
    if num_tokens == 0:
        assert text == []
        return
    assert len(text) == min(num_tokens + 3, 24)
    middle, suffix = text.index(MID), text.index(SUF)
    if spm:
        assert text[:2] == [PRE, SUF]
        again = [*text[middle + 1 :], *text[2:middle]]
    else:
        assert text[0] == PRE
        again = [*text[1:suffix], *text[middle + 1 :], *text[suffix + 1 : middle]]
    assert again == tokens[0, : min(num_tokens, 21)].tolist()


def test_the_shares_are_kept_and_the_cuts_lie_anywhere(turning: SpecialTokens, text_rows: Rows) -> None:
    tokens = text_rows(8000, 24)
    made = FillInTheMiddle(1, turning, 0.6, 0.25).turn(RawRows(tokens, np.full(8000, 24), np.arange(8000)))
    is_turned = made.tokens_BL[:, 0] == PRE
    assert is_turned.mean() == pytest.approx(0.6, abs=5 * np.sqrt(0.24 / 8000))
    assert np.array_equal(made.tokens_BL[~is_turned], tokens[~is_turned])
    turned = made.tokens_BL[is_turned]
    # A PSM text with an empty prefix begins as an SPM text does: both cuts of 22 choices at the start, 2·22-1 in 22².
    empty = (2 * 22 - 1) / 22**2
    assert (turned[:, 1] == SUF).mean() == pytest.approx(0.25 + 0.75 * empty, abs=0.03)
    psm = turned[turned[:, 1] != SUF]
    starts, ends = np.argmax(psm == SUF, axis=1) - 1, 24 - np.argmax(psm == MID, axis=1) - 1
    # The middle is a third on average, as is the prefix; given that the prefix is not empty, a little less.
    assert ends.mean() / 21 == pytest.approx(1 / 3, abs=0.03)
    assert starts.mean() / 21 == pytest.approx(0.36, abs=0.03)


def test_each_document_is_turned_by_itself_and_keeps_its_end(turning: SpecialTokens) -> None:
    end = turning.document_end
    tokens = np.array([[11, 12, 13, end, 21, 22, 23, 24, end, 31, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0]], dtype=np.int32)
    segments = np.full((1, 20), -1, dtype=np.int32)
    segments[0, :11] = np.repeat([0, 1, 2], [4, 5, 2])
    rows = RawRows(tokens, np.array([11]), np.array([0]), segments_BL=segments)
    made = FillInTheMiddle(3, turning, 1.0, 0.0).turn(rows)
    assert made.num_tokens_B.tolist() == [20]
    assert made.segments_BL is not None
    for document, text in enumerate(([11, 12, 13], [21, 22, 23, 24], [31, 32])):
        got = made.tokens_BL[0][made.segments_BL[0] == document].tolist()
        if document < 2:
            assert got.pop() == end
        assert sorted(got) == sorted([*text, PRE, MID, SUF])
        assert got[0] == PRE
    labels = CausalLM(19, turning, seed=3, fim_share=1.0, fim_spm_share=0.0).batch(rows)["labels"]
    assert np.flatnonzero(labels[0] == IGNORE_INDEX).tolist() == [6, 14]  # nothing across the end of a document


def test_joined_documents_are_turned_each_by_itself_too(turning: SpecialTokens) -> None:
    end = turning.document_end
    tokens = np.array([[11, 12, 13, end, 21, 22, 23, 24, end, 31, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0]], dtype=np.int32)
    made = FillInTheMiddle(3, turning, 1.0, 0.0).turn(RawRows(tokens, np.array([11]), np.array([0])))
    texts = " ".join(map(str, made.tokens_BL[0].tolist())).split(f" {end} ")
    for text, tens in zip(texts, (1, 2, 3), strict=True):
        ids = [int(word) for word in text.split()]
        assert {token // 10 for token in ids if token not in (PRE, MID, SUF)} == {tens}
        assert ids[0] == PRE


@given(data=st.data(), position=st.integers(0, 2**40))
def test_rows_of_many_documents_stay_full_and_in_order(
    turning: SpecialTokens, text_rows: Rows, data: st.DataObject, position: int
) -> None:
    places = sorted(data.draw(st.sets(st.integers(1, 29), max_size=12)))
    lengths = np.diff([0, *places, 30])
    segments = np.repeat(np.arange(len(lengths)), lengths).astype(np.int32)[None, :]
    tokens = text_rows(1, 30)
    rows = RawRows(tokens, np.array([30]), np.array([position]), segments_BL=segments)
    made = FillInTheMiddle(1, turning, 0.5).turn(rows)
    assert made.num_tokens_B.tolist() == [30]
    assert made.segments_BL is not None
    documents = made.segments_BL[0]
    assert (np.diff(documents) >= 0).all()
    num_left = 0
    for document in range(int(documents.max()) + 1):
        got = made.tokens_BL[0][documents == document]
        kept = got[~np.isin(got, (PRE, MID, SUF))]
        assert len(got) - len(kept) in (0, 3)
        assert len(kept) or not len(got), "sentinels alone teach nothing"
        original = tokens[0][segments[0] == document]
        assert sorted(kept.tolist()) == sorted(original[: len(kept)].tolist())
        if document < documents.max():
            assert len(kept) == len(original)
        num_left += len(kept)
    assert num_left >= 30 - 3 * len(lengths)


def test_a_text_with_hidden_tokens_stays_as_it_is(turning: SpecialTokens, text_rows: Rows) -> None:
    tokens = text_rows(60, 20)
    hidden = np.zeros(tokens.shape, dtype=np.bool_)
    hidden[:, :8] = True
    plain = FillInTheMiddle(1, turning, 1.0).turn(RawRows(tokens, np.full(60, 20), np.arange(60), hidden))
    assert np.array_equal(plain.tokens_BL, tokens)
    segments = np.zeros(tokens.shape, dtype=np.int32)
    segments[:, 8:] = 1
    rows = RawRows(tokens, np.full(60, 20), np.arange(60), hidden, segments_BL=segments)
    made = FillInTheMiddle(1, turning, 1.0).turn(rows)
    assert made.hidden_BL is not None
    assert np.array_equal(made.hidden_BL, hidden)
    assert np.array_equal(made.tokens_BL[:, :8], tokens[:, :8])
    assert (made.tokens_BL[:, 8] == PRE).all()


@given(order=st.permutations(range(8)), cuts=st.sets(st.integers(1, 7)), apart=st.booleans())
def test_a_sample_is_the_same_in_any_row_of_any_batch(
    turning: SpecialTokens, text_rows: Rows, order: list[int], cuts: set[int], apart: bool
) -> None:
    objective = CausalLM(24, turning, seed=3, fim_share=0.7)
    tokens, num_tokens = text_rows(8, 25), np.array([25] * 5 + [9, 1, 0])
    positions = np.arange(700, 708)
    segments = np.where(np.arange(25) < num_tokens[:, None], np.arange(25) // 7, -1).astype(np.int32)
    whole = objective.batch(RawRows(tokens, num_tokens, positions, segments_BL=segments if apart else None))
    for chosen in np.split(np.array(order), sorted(cuts)):
        of_part = segments[chosen] if apart else None
        part = objective.batch(RawRows(tokens[chosen], num_tokens[chosen], positions[chosen], segments_BL=of_part))
        for name, array in whole.items():
            assert np.array_equal(part[name], array[chosen])


def test_labels_are_the_tokens_that_follow_sentinels_among_them(turning: SpecialTokens, text_rows: Rows) -> None:
    tokens = text_rows(50, 25)
    batch = CausalLM(24, turning, seed=3, fim_share=1.0).batch(RawRows(tokens, np.full(50, 25), np.arange(50)))
    assert np.array_equal(batch["input_ids"][:, 1:], batch["labels"][:, :-1])
    assert (batch["input_ids"][:, 0] == PRE).all()
    for sentinel in (SUF, MID):
        assert (np.count_nonzero(batch["labels"] == sentinel, axis=1) == 1).all()


def test_a_tokenizer_without_the_tokens_is_refused(special: SpecialTokens) -> None:
    with pytest.raises(ObjectiveError, match=r"needs the tokens <fim_prefix>[\s\S]*--kind bpe[\s\S]*fim_share=0"):
        CausalLM(24, special, fim_share=0.5)
    CausalLM(24, special)


@pytest.mark.parametrize(("share", "spm_share"), [(1.5, 0.5), (-0.1, 0.5), (0.5, 2.0)])
def test_what_is_no_share_is_refused(turning: SpecialTokens, share: float, spm_share: float) -> None:
    with pytest.raises(ObjectiveError, match="are not both shares"):
        CausalLM(24, turning, fim_share=share, fim_spm_share=spm_share)
