"""Causal language modelling: labels stand where their logits stand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from raw_rows import RawRows

from launcher.errors import ObjectiveError
from launcher.objectives.base import IGNORE_INDEX
from launcher.objectives.clm import CausalLM
from launcher.shards.manifest import SpecialTokens


@given(num_tokens=st.integers(2, 300), seq_len=st.integers(1, 20), seed=st.integers(0, 1000))
def test_an_epoch_predicts_every_token_but_the_first_once_from_the_token_before_it(
    special: SpecialTokens, num_tokens: int, seq_len: int, seed: int
) -> None:
    objective = CausalLM(seq_len, special)
    length, stride = objective.window_length, objective.window_stride
    starts = np.random.default_rng(seed).permutation(np.arange(0, num_tokens - 1, stride))
    rows = np.full((len(starts), length), objective.fill_id, dtype=np.int32)
    counts = np.minimum(num_tokens - starts, length)
    for row, start, count in zip(rows, starts, counts, strict=True):
        row[:count] = np.arange(10 + start, 10 + start + count)
    batch = objective.batch(RawRows(rows, counts, np.arange(len(starts))))
    predicted = batch["labels"] != IGNORE_INDEX
    assert sorted(batch["labels"][predicted].tolist()) == list(range(11, 10 + num_tokens))
    assert np.array_equal(batch["input_ids"][predicted] + 1, batch["labels"][predicted])
    assert batch["attention_mask"][predicted].all()


def test_a_full_and_a_short_row_written_out(special: SpecialTokens) -> None:
    tokens = np.array([[11, 12, 13, 14, 15], [21, 22, 23, 0, 0]], dtype=np.int32)
    batch = CausalLM(4, special).batch(RawRows(tokens, np.array([5, 3]), np.array([0, 1])))
    assert {name: array.tolist() for name, array in batch.items()} == {
        "input_ids": [[11, 12, 13, 14], [21, 22, 23, 0]],
        "labels": [[12, 13, 14, 15], [22, 23, -100, -100]],
        "attention_mask": [[1, 1, 1, 1], [1, 1, 1, 0]],
    }
    assert {array.dtype for array in batch.values()} == {np.dtype(np.int64)}


def test_without_a_padding_token_the_end_of_a_document_fills(special: SpecialTokens) -> None:
    objective = CausalLM(4, replace(special, pad=None))
    assert objective.fill_id == special.document_end
    batch = objective.batch(RawRows(np.array([[21, 22, 9, 9, 9]], dtype=np.int32), np.array([2]), np.array([0])))
    assert batch["input_ids"].tolist() == [[21, 22, special.document_end, special.document_end]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0]]


def test_an_empty_sequence_is_refused(special: SpecialTokens) -> None:
    with pytest.raises(ObjectiveError, match=r"clm objective needs sequences of at least 1[\s\S]*where: data.seq_len"):
        CausalLM(0, special)


def test_hidden_tokens_are_neither_read_nor_predicted_and_nothing_else_changes(special: SpecialTokens) -> None:
    tokens = np.arange(20, 32, dtype=np.int32).reshape(2, 6)
    hidden = np.zeros(tokens.shape, dtype=np.bool_)
    hidden[0, 2:4] = True
    rows = RawRows(tokens, np.array([6, 6]), np.array([0, 1]), hidden_BL=hidden)
    batch = CausalLM(5, special).batch(rows)
    assert batch["input_ids"].tolist() == [[20, 21, special.pad, special.pad, 24], [26, 27, 28, 29, 30]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0, 1], [1] * 5]
    ignored = IGNORE_INDEX
    assert batch["labels"].tolist() == [[21, ignored, ignored, ignored, 25], [27, 28, 29, 30, 31]]


def test_a_row_without_tokens_predicts_nothing(special: SpecialTokens) -> None:
    batch = CausalLM(3, special).batch(RawRows(np.zeros((1, 4), dtype=np.int32), np.array([0]), np.array([0])))
    assert (batch["labels"] == IGNORE_INDEX).all()
    assert not batch["attention_mask"].any()
