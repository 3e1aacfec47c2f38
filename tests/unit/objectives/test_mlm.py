"""Masked language modelling as Devlin et al. describe it, and the same on any cluster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from raw_rows import RawRows

from launcher.errors import ObjectiveError
from launcher.objectives.base import IGNORE_INDEX, Batch
from launcher.objectives.mlm import MaskedLM
from launcher.shards.manifest import SpecialTokens

Rows = Callable[[int, int], NDArray[np.int32]]


def masked(objective: MaskedLM, tokens: NDArray[np.int32], first_position: int = 0) -> Batch:
    """The batch of full rows at consecutive positions."""
    num_tokens = np.full(len(tokens), tokens.shape[1], dtype=np.int64)
    return objective.batch(
        RawRows(tokens, num_tokens, np.arange(first_position, first_position + len(tokens), dtype=np.int64))
    )


def test_the_shares_are_those_of_devlin_et_al(special: SpecialTokens, text_rows: Rows) -> None:
    tokens = text_rows(1000, 126)
    batch = masked(MaskedLM(128, 7, special, 1000), tokens)
    chosen = batch["labels"] != IGNORE_INDEX
    inputs, true_ids = batch["input_ids"][chosen], batch["labels"][chosen]
    num_chosen = np.count_nonzero(chosen)
    # Five standard deviations of a binomial on each side.
    assert abs(num_chosen / tokens.size - 0.15) < 5 * np.sqrt(0.15 * 0.85 / tokens.size)
    assert abs((inputs == special.mask).mean() - 0.8) < 5 * np.sqrt(0.8 * 0.2 / num_chosen)
    is_random = (inputs != special.mask) & (inputs != true_ids)
    assert abs(is_random.mean() - 0.1) < 5 * np.sqrt(0.1 * 0.9 / num_chosen)
    assert abs((inputs == true_ids).mean() - 0.1) < 5 * np.sqrt(0.1 * 0.9 / num_chosen)


@pytest.mark.parametrize("mask_share", [0.01, 0.3, 0.999], ids=["hardly any", "ModernBERT's", "nearly all"])
def test_another_share_is_kept_too(special: SpecialTokens, text_rows: Rows, mask_share: float) -> None:
    tokens = text_rows(500, 126)
    labels = masked(MaskedLM(128, 7, special, 1000, mask_share), tokens)["labels"]
    bound = 5 * np.sqrt(mask_share * (1 - mask_share) / tokens.size)
    assert abs(np.count_nonzero(labels != IGNORE_INDEX) / tokens.size - mask_share) < bound


def test_whether_a_token_is_chosen_says_nothing_of_its_neighbours(special: SpecialTokens, text_rows: Rows) -> None:
    tokens = text_rows(1000, 126)
    chosen = masked(MaskedLM(128, 7, special, 1000), tokens)["labels"][:, 1:-1] != IGNORE_INDEX
    for one, other in ((chosen[:, :-1], chosen[:, 1:]), (chosen[:-1], chosen[1:])):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 5 / np.sqrt(one.size)


def test_random_tokens_are_ordinary_ones_drawn_uniformly(special: SpecialTokens, text_rows: Rows) -> None:
    tokens = text_rows(1000, 126)
    batch = masked(MaskedLM(128, 7, special, 1000, share_replaced=0.0, share_random=1.0), tokens)
    drawn = batch["input_ids"][batch["labels"] != IGNORE_INDEX]
    assert not np.isin(drawn, special.all_ids).any()
    counts = np.bincount(drawn, minlength=1000)[7:900]
    chi_square = ((counts - counts.mean()) ** 2 / counts.mean()).sum()  # 892 degrees of freedom, sd 42
    assert 892 - 5 * 42 < chi_square < 892 + 5 * 42


@given(num_tokens=st.integers(1, 30), position=st.integers(0, 2**50), data=st.data())
def test_special_tokens_and_padding_are_never_chosen(
    special: SpecialTokens, num_tokens: int, position: int, data: st.DataObject
) -> None:
    text = data.draw(st.lists(st.integers(0, 999), min_size=30, max_size=30))
    tokens = np.array([text], dtype=np.int32)
    objective = MaskedLM(32, 1, special, 1000, mask_share=0.9)
    batch = objective.batch(RawRows(tokens, np.array([num_tokens]), np.array([position])))
    clean = np.array([special.cls, *text[:num_tokens], special.sep] + [special.pad] * (30 - num_tokens))
    chosen = batch["labels"][0] != IGNORE_INDEX
    assert not np.isin(clean[chosen], special.all_ids).any()
    assert np.array_equal(batch["labels"][0][chosen], clean[chosen])
    assert np.array_equal(batch["input_ids"][0][~chosen], clean[~chosen])
    assert batch["attention_mask"][0].tolist() == [1] * (num_tokens + 2) + [0] * (30 - num_tokens)


@given(order=st.permutations(range(12)), cuts=st.sets(st.integers(1, 11)))
def test_a_sample_gets_the_same_noise_in_any_row_of_any_batch(
    special: SpecialTokens, text_rows: Rows, order: list[int], cuts: set[int]
) -> None:
    objective = MaskedLM(32, 3, special, 1000)
    tokens, num_tokens = text_rows(12, 30), np.array([30] * 11 + [9])
    positions = np.arange(500, 512, dtype=np.int64)
    whole = objective.batch(RawRows(tokens, num_tokens, positions))
    for rows in np.split(np.array(order), sorted(cuts)):
        part = objective.batch(RawRows(tokens[rows], num_tokens[rows], positions[rows]))
        for name, array in whole.items():
            assert np.array_equal(part[name], array[rows])


def test_each_epoch_and_each_seed_draws_afresh(special: SpecialTokens, text_rows: Rows) -> None:
    tokens = text_rows(100, 126)
    first = masked(MaskedLM(128, 7, special, 1000), tokens)["labels"] != IGNORE_INDEX
    next_epoch = masked(MaskedLM(128, 7, special, 1000), tokens, first_position=100)["labels"] != IGNORE_INDEX
    other_seed = masked(MaskedLM(128, 8, special, 1000), tokens)["labels"] != IGNORE_INDEX
    for other in (next_epoch, other_seed):
        # Independent draws choose 0.15² of the tokens twice.
        assert abs((first & other).sum() / tokens.size - 0.0225) < 0.007


def test_one_sequence_written_out(special: SpecialTokens) -> None:
    # 12, 14, 15 and 17 are hidden, 18 becomes a random token, 13 stays but must be predicted, the rest are not chosen.
    objective = MaskedLM(12, 26, special, 1000, mask_share=0.5)
    tokens = np.array([[11, 12, 13, 14, 15, 3, 17, 18, 0, 0]], dtype=np.int32)
    batch = objective.batch(RawRows(tokens, np.array([8]), np.array([0])))
    assert {name: array[0].tolist() for name, array in batch.items()} == {
        "input_ids": [2, 11, 4, 13, 4, 4, 3, 4, 741, 3, 0, 0],
        "labels": [-100, -100, 12, 13, 14, 15, -100, 17, 18, -100, -100, -100],
        "attention_mask": [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0],
    }
    assert {array.dtype for array in batch.values()} == {np.dtype(np.int64)}


def test_the_tokens_given_stay_untouched(special: SpecialTokens, text_rows: Rows) -> None:
    tokens = text_rows(4, 30)
    before = tokens.copy()
    masked(MaskedLM(32, 3, special, 1000, mask_share=0.9), tokens)
    assert np.array_equal(tokens, before)


def test_windows_leave_room_for_cls_and_sep(special: SpecialTokens) -> None:
    objective = MaskedLM(128, 1, special, 1000)
    assert (objective.window_length, objective.window_stride, objective.fill_id) == (126, 126, special.pad)


@pytest.mark.parametrize("missing", ["cls", "sep", "mask", "pad"])
def test_a_tokenizer_without_a_token_it_needs_is_refused(special: SpecialTokens, missing: str) -> None:
    expected = (
        rf"mlm objective needs the {missing} token[\s\S]*where: tokenizer.{missing}_token[\s\S]*pretrain tokenizer"
    )
    # The ends of a text stand in for cls and sep, as in RoBERTa.
    without = replace(special, **{missing: None}, bos=None, eos=None)
    with pytest.raises(ObjectiveError, match=expected):
        MaskedLM(128, 1, without, 1000)


def test_the_ends_of_a_text_stand_in_for_cls_and_sep(special: SpecialTokens) -> None:
    roberta = replace(special, cls=None, sep=None, bos=special.cls, eos=special.sep)
    assert (roberta.row_begin, roberta.row_end) == (special.cls, special.sep)
    MaskedLM(128, 1, roberta, 1000)


@pytest.mark.parametrize(
    ("seq_len", "vocab_size", "shares", "message"),
    [
        (2, 1000, (0.15, 0.8, 0.1), "at least 3 tokens, not 2"),
        (128, 7, (0.15, 0.8, 0.1), "all 7 ids of the tokenizer are special"),
        (128, 1000, (0.0, 0.8, 0.1), "0.0 is not a share"),
        (128, 1000, (1.0, 0.8, 0.1), "1.0 is not a share"),
        (128, 1000, (0.15, 0.8, 0.3), "0.8 cannot be hidden and 0.3 random"),
        (128, 1000, (0.15, -0.1, 0.3), "-0.1 cannot be hidden"),
    ],
    ids=["no room", "no ordinary token", "nothing masked", "all masked", "more than all", "less than none"],
)
def test_numbers_that_cannot_work_are_refused(
    special: SpecialTokens, seq_len: int, vocab_size: int, shares: tuple[float, float, float], message: str
) -> None:
    with pytest.raises(ObjectiveError, match=message):
        MaskedLM(seq_len, 1, special, vocab_size, *shares)


def test_hidden_tokens_become_padding_and_nothing_else_changes(special: SpecialTokens, text_rows: Rows) -> None:
    tokens = text_rows(40, 30)
    objective = MaskedLM(32, 7, special, 1000, mask_share=0.4)
    hidden = np.zeros(tokens.shape, dtype=np.bool_)
    hidden[3, 5:12] = hidden[9] = True
    plain = masked(objective, tokens)
    rows = RawRows(tokens, np.full(40, 30), np.arange(40), hidden_BL=hidden)
    batch = objective.batch(rows)
    places = np.zeros((40, 32), dtype=np.bool_)
    places[:, 1:-1] = hidden
    assert (batch["input_ids"][places] == special.pad).all()
    assert (batch["attention_mask"][places] == 0).all()
    assert (batch["labels"][places] == IGNORE_INDEX).all()
    for name, array in batch.items():
        assert (array[~places] == plain[name][~places]).all()


def test_a_row_without_tokens_is_all_padding(special: SpecialTokens) -> None:
    tokens = np.zeros((1, 6), dtype=np.int32)
    batch = MaskedLM(8, 7, special, 1000).batch(RawRows(tokens, np.array([0]), np.array([0])))
    assert batch["input_ids"].tolist() == [[special.cls, special.sep, *[special.pad] * 6]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0, 0, 0, 0, 0]]
    assert (batch["labels"] == IGNORE_INDEX).all()


def test_a_word_is_masked_whole_or_not_at_all_and_the_share_is_kept(special: SpecialTokens, text_rows: Rows) -> None:
    tokens = text_rows(1000, 126)
    continues = np.random.default_rng(0).random(tokens.shape) < 0.4
    continues[:, 0] = False
    objective = MaskedLM(128, 7, special, 1000, unit="word")
    assert objective.needs_words
    rows = RawRows(tokens, np.full(1000, 126), np.arange(1000), continues_BL=continues)
    batch = objective.batch(rows)
    chosen = batch["labels"][:, 1:-1] != IGNORE_INDEX
    assert (chosen[:, 1:] == chosen[:, :-1])[continues[:, 1:]].all()
    num_words = np.count_nonzero(~continues)
    # The share of words is the share of tokens; words of several tokens make its spread wider.
    assert abs(chosen.mean() - 0.15) < 10 * np.sqrt(0.15 * 0.85 / num_words)
    # What stands in the place of a token is drawn by itself.
    inputs = batch["input_ids"][:, 1:-1]
    both = chosen[:, 1:] & continues[:, 1:]
    same = (inputs[:, 1:] == special.mask)[both] == (inputs[:, :-1] == special.mask)[both]
    assert 0.5 < same.mean() < 0.9


def test_words_are_chosen_by_their_first_token_as_single_tokens_are(special: SpecialTokens, text_rows: Rows) -> None:
    tokens = text_rows(200, 30)
    single = masked(MaskedLM(32, 7, special, 1000), tokens)
    alone = RawRows(tokens, np.full(200, 30), np.arange(200), continues_BL=np.zeros(tokens.shape, dtype=np.bool_))
    words = MaskedLM(32, 7, special, 1000, unit="word").batch(alone)
    assert all((single[name] == words[name]).all() for name in single)


def test_whole_words_without_words_are_refused(special: SpecialTokens, text_rows: Rows) -> None:
    rows = RawRows(text_rows(2, 30), np.full(2, 30), np.arange(2))
    with pytest.raises(ValueError, match="nobody told which tokens continue one"):
        MaskedLM(32, 7, special, 1000, unit="word").batch(rows)


def test_words_written_out(special: SpecialTokens) -> None:
    # Words: 11 (the rest of one that the window cut) with 12 · 13 · 14, 15 and 16 · the end of a document · 18, hidden.
    tokens = np.array([[11, 12, 13, 14, 15, 16, 3, 18, 0, 0]], dtype=np.int32)
    continues = np.array([[1, 1, 0, 0, 1, 1, 0, 0, 0, 0]], dtype=np.bool_)
    hidden = np.array([[0, 0, 0, 0, 0, 0, 0, 1, 0, 0]], dtype=np.bool_)
    chosen = set()
    for seed in range(100):
        objective = MaskedLM(12, seed, special, 1000, mask_share=0.5, unit="word")
        rows = RawRows(tokens, np.array([8]), np.array([0]), hidden_BL=hidden, continues_BL=continues)
        labels = objective.batch(rows)["labels"][0]
        chosen.add(tuple(labels[labels != IGNORE_INDEX].tolist()))
    words = [(11, 12), (13,), (14, 15, 16)]
    every_choice = {
        tuple(token for word in some for token in word) for size in range(4) for some in combinations(words, size)
    }
    assert chosen == every_choice


def test_the_tokens_of_a_chosen_word_share_80_10_10_wherever_they_stand_in_it(
    special: SpecialTokens, text_rows: Rows
) -> None:
    tokens = text_rows(1500, 126)
    continues = np.zeros(tokens.shape, dtype=np.bool_)
    continues[:, 1::3] = continues[:, 2::3] = True
    rows = RawRows(tokens, np.full(1500, 126), np.arange(1500), continues_BL=continues)
    batch = MaskedLM(128, 7, special, 1000, unit="word").batch(rows)
    for place in range(3):
        inputs, labels = batch["input_ids"][:, 1 + place : -1 : 3], batch["labels"][:, 1 + place : -1 : 3]
        chosen = labels != IGNORE_INDEX
        bound = 5 * np.sqrt(1 / np.count_nonzero(chosen))
        assert abs((inputs[chosen] == special.mask).mean() - 0.8) < bound * np.sqrt(0.8 * 0.2)
        assert abs((inputs[chosen] == labels[chosen]).mean() - 0.1) < bound * np.sqrt(0.1 * 0.9)


def test_what_is_drawn_for_a_token_does_not_depend_on_what_follows_it(special: SpecialTokens, text_rows: Rows) -> None:
    tokens = text_rows(50, 126)
    objective = MaskedLM(128, 7, special, 1000)
    short = objective.batch(RawRows(tokens, np.full(50, 40), np.arange(50)))
    narrow = MaskedLM(42, 7, special, 1000).batch(RawRows(tokens[:, :40], np.full(50, 40), np.arange(50)))
    for other in (short, narrow):
        for name in ("input_ids", "labels"):
            assert (other[name][:, :41] == masked(objective, tokens)[name][:, :41]).all()
