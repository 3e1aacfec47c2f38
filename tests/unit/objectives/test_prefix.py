"""Prefix language modelling: the beginning is read, the rest is written, nothing is lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from raw_rows import RawRows

from launcher.errors import ObjectiveError
from launcher.objectives.base import IGNORE_INDEX
from launcher.objectives.prefix import CausalPrefixLM, PrefixLM
from launcher.shards.manifest import SpecialTokens

Rows = Callable[[int, int], NDArray[np.int32]]


@given(num_tokens=st.integers(0, 20), position=st.integers(0, 2**50), mode=st.sampled_from([None, 998]))
def test_what_is_read_and_what_is_written_make_the_text(
    special: SpecialTokens, text_rows: Rows, num_tokens: int, position: int, mode: int | None
) -> None:
    objective = PrefixLM(21, 1, special, mode)
    tokens = text_rows(1, objective.window_length)
    batch = objective.batch(RawRows(tokens, np.array([num_tokens]), np.array([position])))
    read = batch["input_ids"][0][batch["attention_mask"][0] == 1].tolist()
    wrote = batch["labels"][0][batch["labels"][0] != IGNORE_INDEX].tolist()
    assert read.pop() == special.eos
    assert mode is None or read.pop(0) == mode
    if num_tokens:
        assert wrote.pop() == special.eos
    assert read + wrote == tokens[0, :num_tokens].tolist()
    assert (len(read) >= 1 and len(wrote) >= 1) or num_tokens < 2
    assert batch["decoder_input_ids"][0][0] == special.pad
    assert batch["decoder_input_ids"][0][1 : len(wrote) + 1].tolist() == wrote


def test_the_cut_is_uniform(special: SpecialTokens, text_rows: Rows) -> None:
    objective = PrefixLM(21, 1, special)
    tokens = text_rows(8000, 21)
    batch = objective.batch(RawRows(tokens, np.full(8000, 21), np.arange(8000)))
    lengths = batch["attention_mask"].sum(axis=1) - 1
    counts = np.bincount(lengths, minlength=21)
    assert counts[0] == 0
    expected = 8000 / 20
    assert ((counts[1:] - expected) ** 2 / expected).sum() < 19 + 5 * np.sqrt(2 * 19)
    assert len(counts) == 21


@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=12), share=st.sampled_from([0.05, 0.25, 0.5]))
@example(lengths=[1, 1, 1], share=0.5)
def test_what_is_written_of_documents_kept_apart_fits(
    special: SpecialTokens, text_rows: Rows, lengths: list[int], share: float
) -> None:
    length = sum(lengths)
    segments = np.repeat(np.arange(len(lengths)), lengths).astype(np.int32)[None, :]
    tokens = text_rows(1, max(length, 3))[:, :length]
    objective = PrefixLM(max(length, 3), 1, special, window=length, written_share=share)
    batch = objective.batch(RawRows(tokens, np.array([length]), np.array([7]), segments_BL=segments))
    read = batch["input_ids"][0][batch["attention_mask"][0] == 1]
    wrote = batch["labels"][0][batch["labels"][0] != IGNORE_INDEX]
    kept = tokens[0, : length - (lengths == [1] * objective.seq_len)]
    assert sorted([*read.tolist(), *wrote.tolist()]) == sorted([*kept.tolist(), special.eos, special.eos])


@pytest.mark.parametrize("mode", [None, 998])
def test_a_full_row_of_documents_of_one_token_leaves_room_for_its_end(
    special: SpecialTokens, text_rows: Rows, mode: int | None
) -> None:
    """Such documents are read and nothing is written of them: the row's last is left out for the end token."""
    objective = PrefixLM(8, 1, special, mode)
    length = objective.window_length
    tokens = text_rows(2, length)
    segments = np.stack([np.arange(length), np.repeat([0, 1], [length - 1, 1])]).astype(np.int32)
    rows = RawRows(tokens, np.full(2, length), np.arange(2), segments_BL=segments)
    batch = objective.batch(rows)
    begin = [] if mode is None else [mode]
    assert batch["input_ids"][0].tolist() == [*begin, *tokens[0, :-1].tolist(), special.eos]
    assert batch["labels"][0][batch["labels"][0] != IGNORE_INDEX].tolist() == [special.eos]
    assert batch["segment_ids"][0].tolist() == [*[0] * len(begin), *range(length - 1), length - 2]
    assert batch["decoder_segment_ids"][0].tolist() == [length - 2] + [-1] * (objective.target_length - 1)
    alone = objective.batch(RawRows(tokens[1:], np.full(1, length), np.array([1]), segments_BL=segments[1:]))
    for name, array in alone.items():  # the other row is as it is without this one
        assert np.array_equal(batch[name][1:], array)


@pytest.mark.parametrize(("share", "last"), [(0.25, 10), (0.1, 4), (0.5, 19)])
def test_a_smaller_share_is_written_by_a_cut_further_behind(
    special: SpecialTokens, text_rows: Rows, share: float, last: int
) -> None:
    tokens = text_rows(4000, 20)
    rows = RawRows(tokens, np.full(4000, 20), np.arange(4000))
    batch = PrefixLM(20, 1, special, written_share=share).batch(rows)
    causal = CausalPrefixLM(19, 1, special, written_share=share).batch(rows)
    written = (batch["labels"] != IGNORE_INDEX).sum(axis=1) - 1
    assert np.array_equal((causal["labels"] != IGNORE_INDEX).sum(axis=1), written)
    counts = np.bincount(written, minlength=last + 1)
    expected = 4000 / last
    assert counts[0] == 0
    assert len(counts) == last + 1
    assert ((counts[1:] - expected) ** 2 / expected).sum() < last - 1 + 5 * np.sqrt(2 * (last - 1))


def test_a_share_that_no_uniform_cut_leaves_is_refused(special: SpecialTokens) -> None:
    for share in (0.0, 0.6):
        for make in (PrefixLM, CausalPrefixLM):
            with pytest.raises(ObjectiveError, match=r"behind a cut[\s\S]*where: objective.written_share"):
                make(32, 1, special, written_share=share)


def test_any_cut_fits(special: SpecialTokens) -> None:
    plain, moded = PrefixLM(512, 1, special), PrefixLM(512, 1, special, 998)
    assert (plain.window_length, plain.window_stride, plain.target_length) == (512, 512, 512)
    assert (moded.window_length, moded.target_length) == (511, 511)
    assert PrefixLM(512, 1, special, window=100).window_length == 100


def test_written_out(special: SpecialTokens) -> None:
    objective = PrefixLM(7, 4, special, mode=998)
    batch = objective.batch(RawRows(np.array([[11, 12, 13, 14, 15, 16]], dtype=np.int32), np.array([6]), np.array([2])))
    assert {name: array[0].tolist() for name, array in batch.items()} == {
        "input_ids": [998, 11, 12, 6, 0, 0, 0],
        "labels": [13, 14, 15, 16, 6, -100],
        "attention_mask": [1, 1, 1, 1, 0, 0, 0],
        "decoder_input_ids": [0, 13, 14, 15, 16, 6],
    }


def test_a_causal_model_learns_only_what_is_behind_the_cut(special: SpecialTokens, text_rows: Rows) -> None:
    objective = CausalPrefixLM(20, 1, special)
    assert (objective.window_length, objective.window_stride) == (21, 20)
    tokens = text_rows(4000, 21)
    batch = objective.batch(RawRows(tokens, np.full(4000, 21), np.arange(4000)))
    predicted = batch["labels"] != IGNORE_INDEX
    assert np.array_equal(batch["input_ids"], tokens[:, :-1])
    assert np.array_equal(batch["labels"][predicted], tokens[:, 1:][predicted])
    assert (predicted[:, 1:] >= predicted[:, :-1]).all()
    counts = np.bincount(predicted.sum(axis=1), minlength=21)
    assert counts[0] == 0
    assert counts[1:].min() > 0.7 * 4000 / 20


def test_hidden_tokens_are_neither_read_nor_written(special: SpecialTokens, text_rows: Rows) -> None:
    tokens = text_rows(2, 16)
    hidden = np.zeros(tokens.shape, dtype=np.bool_)
    hidden[0, 3:9] = hidden[1] = True
    batch = PrefixLM(16, 1, special).batch(RawRows(tokens, np.full(2, 16), np.arange(2), hidden_BL=hidden))
    kept = np.delete(tokens[:1], range(3, 9), axis=1)
    alone = np.zeros((1, 16), dtype=np.int32)
    alone[:, :10] = kept
    expected = PrefixLM(16, 1, special).batch(RawRows(alone, np.array([10]), np.array([0])))
    for name, array in expected.items():
        assert np.array_equal(batch[name][0], array[0])
    assert batch["input_ids"][1].tolist() == [special.eos, *[special.pad] * 15]
    assert (batch["labels"][1] == IGNORE_INDEX).all()
    causal = CausalPrefixLM(15, 1, special).batch(RawRows(tokens, np.full(2, 16), np.arange(2), hidden_BL=hidden))
    assert (causal["labels"][0, 2:9] == IGNORE_INDEX).all()
    assert (causal["labels"][1] == IGNORE_INDEX).all()


@pytest.mark.parametrize(
    ("missing", "message"),
    [({"pad": None}, "prefix objective needs the pad token"), ({"eos": None, "sep": None}, "needs the eos token")],
)
def test_a_tokenizer_without_a_token_it_needs_is_refused(
    special: SpecialTokens, missing: dict[str, None], message: str
) -> None:
    with pytest.raises(ObjectiveError, match=message):
        PrefixLM(32, 1, replace(special, **missing))


def test_no_room_is_refused(special: SpecialTokens) -> None:
    with pytest.raises(ObjectiveError, match="at least 4 tokens, not 3"):
        PrefixLM(3, 1, special, mode=998)
    with pytest.raises(ObjectiveError, match="at least 2 tokens, not 1"):
        CausalPrefixLM(1, 1, special)
