"""Causal language modelling: labels stand where their logits stand."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from launcher.errors import ObjectiveError
from launcher.objectives.base import IGNORE_INDEX
from launcher.objectives.clm import CausalLM
from launcher.samples.loader import Loader
from launcher.samples.order import Order
from launcher.samples.windows import Windows
from launcher.shards.manifest import SpecialTokens


@dataclass
class DistinctTokens:
    """A stream whose token at place i is 10 + i."""

    num_tokens: int

    def read(self, start: int, out: NDArray[np.int32]) -> None:
        out[:] = np.arange(10 + start, 10 + start + len(out))


@given(num_tokens=st.integers(2, 300), seq_len=st.integers(1, 20), seed=st.integers(0, 1000))
def test_an_epoch_predicts_every_token_but_the_first_once_from_the_token_before_it(
    special: SpecialTokens, num_tokens: int, seq_len: int, seed: int
) -> None:
    objective = CausalLM(seq_len, special)
    stream = DistinctTokens(num_tokens)
    windows = Windows(stream, objective.window_length, objective.window_stride, objective.fill_id)
    samples = Loader(windows, Order(windows.num_samples, seed)).fetch(np.arange(windows.num_samples))
    batch = objective.batch(samples.tokens_BL, samples.num_tokens_B, samples.positions_B)
    predicted = batch["labels"] != IGNORE_INDEX
    assert sorted(batch["labels"][predicted].tolist()) == list(range(11, 10 + num_tokens))
    assert np.array_equal(batch["input_ids"][predicted] + 1, batch["labels"][predicted])
    assert batch["attention_mask"][predicted].all()


def test_a_full_and_a_short_row_written_out(special: SpecialTokens) -> None:
    tokens = np.array([[11, 12, 13, 14, 15], [21, 22, 23, 0, 0]], dtype=np.int32)
    batch = CausalLM(4, special).batch(tokens, np.array([5, 3]), np.array([0, 1]))
    assert {name: array.tolist() for name, array in batch.items()} == {
        "input_ids": [[11, 12, 13, 14], [21, 22, 23, 0]],
        "labels": [[12, 13, 14, 15], [22, 23, -100, -100]],
        "attention_mask": [[1, 1, 1, 1], [1, 1, 1, 0]],
    }
    assert {array.dtype for array in batch.values()} == {np.dtype(np.int64)}


def test_without_a_padding_token_the_end_of_a_document_fills(special: SpecialTokens) -> None:
    objective = CausalLM(4, replace(special, pad=None))
    assert objective.fill_id == special.document_end
    batch = objective.batch(np.array([[21, 22, 9, 9, 9]], dtype=np.int32), np.array([2]), np.array([0]))
    assert batch["input_ids"].tolist() == [[21, 22, special.document_end, special.document_end]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0]]


def test_an_empty_sequence_is_refused(special: SpecialTokens) -> None:
    with pytest.raises(ObjectiveError, match=r"clm objective needs sequences of at least 1[\s\S]*where: data.seq_len"):
        CausalLM(0, special)
