"""Masked language modelling as Devlin et al. describe it, and the same on any cluster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from launcher.errors import ObjectiveError
from launcher.objectives.base import IGNORE_INDEX, Batch
from launcher.objectives.mlm import MaskedLM
from launcher.shards.manifest import SpecialTokens

Rows = Callable[[int, int], NDArray[np.int32]]


def masked(objective: MaskedLM, tokens: NDArray[np.int32], first_position: int = 0) -> Batch:
    """The batch of full rows at consecutive positions."""
    num_tokens = np.full(len(tokens), tokens.shape[1], dtype=np.int64)
    return objective.batch(tokens, num_tokens, np.arange(first_position, first_position + len(tokens), dtype=np.int64))


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
    batch = objective.batch(tokens, np.array([num_tokens]), np.array([position]))
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
    whole = objective.batch(tokens, num_tokens, positions)
    for rows in np.split(np.array(order), sorted(cuts)):
        part = objective.batch(tokens[rows], num_tokens[rows], positions[rows])
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
    # 11, 12 and 13 are hidden, 14 becomes a random token, 18 stays but must be predicted, the rest are not chosen.
    objective = MaskedLM(12, 4, special, 1000, mask_share=0.5)
    tokens = np.array([[11, 12, 13, 14, 15, 3, 17, 18, 0, 0]], dtype=np.int32)
    batch = objective.batch(tokens, np.array([8]), np.array([0]))
    assert {name: array[0].tolist() for name, array in batch.items()} == {
        "input_ids": [2, 4, 4, 4, 431, 15, 3, 17, 18, 3, 0, 0],
        "labels": [-100, 11, 12, 13, 14, -100, -100, -100, 18, -100, -100, -100],
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
    with pytest.raises(ObjectiveError, match=expected):
        MaskedLM(128, 1, replace(special, **{missing: None}), 1000)


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
