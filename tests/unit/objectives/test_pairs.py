"""Masked language modelling of two texts."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from raw_rows import RawRows
from token_shards import END, SPECIAL

from launcher.errors import ObjectiveError
from launcher.objectives.base import IGNORE_INDEX
from launcher.objectives.mlm import MaskedLM
from launcher.objectives.pairs import MaskedPairs

CLS, SEP, PAD, MASK = 2, END, 0, 4
SEQ_LEN = 32
Unit = Literal["token", "word", "ngram", "span"]


def objective(unit: Unit = "token", share: float = 0.4) -> MaskedPairs:
    return MaskedPairs(MaskedLM(SEQ_LEN, 9, SPECIAL, 300, mask_share=share, unit=unit, has_words=True))


def rows(count: int = 400, seed: int = 0, hidden: bool = False) -> RawRows:
    rng = np.random.default_rng(seed)
    room = SEQ_LEN - 3
    tokens = rng.integers(25, 300, (count, room)).astype(np.int32)
    lengths = rng.integers(2, room + 1, count)
    lengths[:5] = room
    cuts = (rng.random(count) * (lengths - 1)).astype(np.int64) + 1
    tokens[np.arange(room) >= lengths[:, None]] = PAD
    continues = rng.random(tokens.shape) < 0.4
    continues[:, 0] = False
    continues[np.arange(count), np.minimum(cuts, room - 1)] = False
    gone = np.zeros(tokens.shape, dtype=np.bool_)
    gone[0, cuts[0] : lengths[0]] = hidden
    return RawRows(
        np.where(gone, PAD, tokens),
        lengths,
        np.arange(count),
        hidden_BL=gone if hidden else None,
        continues_BL=continues,
        pair_cuts_B=cuts,
        pair_labels_B=rng.integers(-1, 2, count),
    )


@pytest.mark.parametrize("unit", ["token", "word", "ngram", "span"])
def test_a_row_is_cls_a_sep_b_sep_and_padding(unit: Unit) -> None:
    made = rows()
    batch = objective(unit).batch(made)
    assert made.pair_cuts_B is not None
    assert made.pair_labels_B is not None
    inputs, labels = batch["input_ids"], batch["labels"]
    shown = np.where(labels == IGNORE_INDEX, inputs, labels)  # the text, whatever the masking made of it
    for row, (length, cut) in enumerate(zip(made.num_tokens_B.tolist(), made.pair_cuts_B.tolist(), strict=True)):
        text = made.tokens_BL[row].tolist()
        padding = SEQ_LEN - 3 - length
        expected = [CLS, *text[:cut], SEP, *text[cut:length], SEP]
        assert shown[row].tolist() == [*expected, *[PAD] * padding]
        assert batch["attention_mask"][row].tolist() == [1] * len(expected) + [0] * padding
        types = [0] * (cut + 2) + [1] * (length - cut + 1) + [0] * padding
        assert batch["token_type_ids"][row].tolist() == types
        assert labels[row, [0, cut + 1, length + 2]].tolist() == [IGNORE_INDEX] * 3
    assert (labels[batch["attention_mask"] == 0] == IGNORE_INDEX).all()
    told = np.where(made.pair_labels_B < 0, IGNORE_INDEX, made.pair_labels_B)
    assert batch["pair_labels"].tolist() == told.tolist()


def test_as_many_tokens_are_masked_as_of_single_texts() -> None:
    made = rows(4000)
    batch = objective(share=0.15).batch(made)
    chosen = batch["labels"] != IGNORE_INDEX
    assert chosen.sum() / made.num_tokens_B.sum() == pytest.approx(0.15, abs=0.005)
    assert (batch["input_ids"][chosen] == MASK).mean() == pytest.approx(0.8, abs=0.02)


def test_whole_words_are_masked_in_both_texts_and_none_across_the_cut() -> None:
    made = rows()
    batch = objective("word").batch(made)
    assert made.continues_BL is not None
    assert made.pair_cuts_B is not None
    chosen = batch["labels"] != IGNORE_INDEX
    for row, (length, cut) in enumerate(zip(made.num_tokens_B.tolist(), made.pair_cuts_B.tolist(), strict=True)):
        of_text = np.delete(chosen[row], cut + 1)[1 : length + 1]
        together = made.continues_BL[row, 1:length]
        assert (of_text[1:] == of_text[:-1])[together].all()


def test_hidden_tokens_are_padding_where_they_stand() -> None:
    made = rows(hidden=True)
    batch = objective().batch(made)
    assert made.pair_cuts_B is not None
    second = slice(int(made.pair_cuts_B[0]) + 2, SEQ_LEN - 1)
    assert (batch["input_ids"][0, second] == PAD).all()
    assert (batch["attention_mask"][0, second] == 0).all()
    assert (batch["labels"][0, second] == IGNORE_INDEX).all()


def test_a_row_depends_on_its_position_alone() -> None:
    made = rows(60)
    whole = objective().batch(made)
    chosen = np.array([41, 3, 17])
    part = objective().batch(
        RawRows(
            made.tokens_BL[chosen],
            made.num_tokens_B[chosen],
            made.positions_B[chosen],
            pair_cuts_B=made.pair_cuts_B[chosen],  # type: ignore[index]
            pair_labels_B=made.pair_labels_B[chosen],  # type: ignore[index]
        )
    )
    for name, array in part.items():
        assert np.array_equal(array, whole[name][chosen]), name


def test_what_is_no_pair_or_too_short_is_refused() -> None:
    with pytest.raises(ValueError, match="cut in two"):
        objective().batch(RawRows(np.zeros((1, 29), dtype=np.int32), np.array([29]), np.array([0])))
    with pytest.raises(ObjectiveError, match="mlm with sentence pairs objective needs sequences of at least 5 tokens"):
        MaskedPairs(MaskedLM(4, 9, SPECIAL, 300))
