"""Span corruption as T5 does it: nothing lost, lengths filled, the same on any cluster."""

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
from launcher.objectives.base import IGNORE_INDEX, Batch
from launcher.objectives.span import SpanCorruption, natural_window, sequence_lengths, span_counts
from launcher.shards.manifest import SpecialTokens

Rows = Callable[[int, int], NDArray[np.int32]]


def corrupted(objective: SpanCorruption, tokens: NDArray[np.int32], first_position: int = 0) -> Batch:
    """The batch of full rows at consecutive positions."""
    num_tokens = np.full(len(tokens), tokens.shape[1], dtype=np.int64)
    return objective.batch(
        RawRows(tokens, num_tokens, np.arange(first_position, first_position + len(tokens), dtype=np.int64))
    )


def merged(batch: Batch, row: int, special: SpecialTokens) -> list[int]:
    """The text again: each sentinel of the input replaced by what the labels write after it."""
    inputs = batch["input_ids"][row][batch["attention_mask"][row] == 1].tolist()
    labels = batch["labels"][row][batch["labels"][row] != IGNORE_INDEX].tolist()
    assert inputs.pop() == special.eos
    assert labels.pop() == special.eos
    spans: dict[int, list[int]] = {}
    for token in labels:
        if token in special.sentinels:
            current = spans[token] = []
        else:
            current.append(token)
    assert [token for token in inputs if token in special.sentinels] == list(special.sentinels[: len(spans)])
    assert list(spans) == list(special.sentinels[: len(spans)])
    return [token for place in inputs for token in spans.get(place, [place])]


@given(
    seq_len=st.integers(3, 120),
    short_by=st.integers(0, 200),
    position=st.integers(0, 2**50),
    density=st.sampled_from([0.15, 0.5]),
    mean_span=st.sampled_from([1.0, 3.0, 8.0]),
)
def test_inputs_and_labels_merge_into_the_text(
    special: SpecialTokens,
    text_rows: Rows,
    seq_len: int,
    short_by: int,
    position: int,
    density: float,
    mean_span: float,
) -> None:
    objective = SpanCorruption(seq_len, 1, special, density, mean_span)
    tokens = text_rows(2, objective.window_length)
    num_tokens = np.array([objective.window_length, max(objective.window_length - short_by, 1)])
    batch = objective.batch(RawRows(tokens, num_tokens, np.array([position, position + 1])))
    for row in range(2):
        assert merged(batch, row, special) == tokens[row, : num_tokens[row]].tolist()


@given(seq_len=st.integers(3, 300), mean_span=st.sampled_from([3.0, 8.0]))
def test_full_windows_fill_inputs_and_labels_exactly(
    special: SpecialTokens, text_rows: Rows, seq_len: int, mean_span: float
) -> None:
    objective = SpanCorruption(seq_len, 1, special, mean_span=mean_span)
    batch = corrupted(objective, text_rows(3, objective.window_length))
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (3, seq_len)
    assert batch["labels"].shape == batch["decoder_input_ids"].shape == (3, objective.target_length)
    assert (batch["attention_mask"] == 1).all()
    assert (batch["labels"] != IGNORE_INDEX).all()
    assert sequence_lengths(objective.window_length + 1, 0.15, mean_span)[0] > seq_len


def test_the_lengths_are_those_of_t5(special: SpecialTokens) -> None:
    # transformers' run_t5_mlm_flax.py and T5's own pretraining: 568 raw tokens, 512 in, 114 out, 28 sentinels.
    objective = SpanCorruption(512, 1, special)
    assert (objective.window_length, objective.window_stride, objective.target_length) == (568, 568, 114)
    assert objective.num_sentinels_needed == 28
    assert span_counts(568, 0.15, 3.0) == (85, 28)


@pytest.mark.parametrize(
    ("seq_len", "density", "mean_span", "length", "target_length"),
    [
        (128, 0.15, 3.0, 141, 29),
        (256, 0.15, 3.0, 284, 58),
        (1024, 0.15, 3.0, 1137, 229),
        (512, 0.15, 8.0, 588, 100),
        (512, 0.15, 64.0, 600, 92),
        (512, 0.5, 3.0, 766, 512),
        (512, 0.5, 8.0, 908, 512),
        (512, 0.5, 64.0, 1006, 512),
    ],
)
def test_windows_and_targets_are_those_that_random_spans_helper_works_out(
    seq_len: int, density: float, mean_span: float, length: int, target_length: int
) -> None:
    assert natural_window(seq_len, density, mean_span) == length
    assert sequence_lengths(length, density, mean_span) == (seq_len, target_length)


@pytest.mark.parametrize("seq_len", [64, 128, 256, 512, 1024])
def test_at_a_density_of_half_the_decoder_writes_no_more_than_the_encoder_reads(seq_len: int) -> None:
    length = natural_window(seq_len, 0.5, 3.0)
    assert sequence_lengths(length, 0.5, 3.0)[1] <= seq_len
    assert seq_len != 512 or (length, *sequence_lengths(length, 0.5, 3.0)) == (766, 512, 512)


def test_density_and_mean_span_are_those_of_raffel_et_al(special: SpecialTokens, text_rows: Rows) -> None:
    batch = corrupted(SpanCorruption(512, 1, special), text_rows(200, 568))
    is_sentinel = np.isin(batch["labels"], special.sentinels)
    num_noise = np.count_nonzero(~is_sentinel) - 200  # without the end tokens
    assert abs(num_noise / (200 * 568) - 0.15) < 0.5 / 568
    assert abs(num_noise / np.count_nonzero(is_sentinel) - 3.0) < 0.05


def test_spans_lie_anywhere_and_have_any_length(special: SpecialTokens, text_rows: Rows) -> None:
    batch = corrupted(SpanCorruption(512, 1, special), text_rows(400, 568))
    starts = np.argwhere(np.isin(batch["input_ids"], special.sentinels))[:, 1]
    # By the construction of T5 no span starts a row and one ends it; the middle of the row must be even.
    counts = np.histogram(starts, bins=16, range=(0, 512))[0][1:-1]
    assert counts.min() > 0.85 * counts.mean()
    assert counts.max() < 1.15 * counts.mean()
    row_of_sentinel, places = np.nonzero(np.isin(batch["labels"], special.sentinels))
    lengths = np.diff(places)[np.diff(row_of_sentinel) == 0] - 1
    # Cutting 85 tokens into 28 spans uniformly makes a span a single token with probability 27 / 84.
    assert abs((lengths == 1).mean() - 27 / 84) < 0.03
    assert lengths.max() > 10


@given(order=st.permutations(range(6)), cuts=st.sets(st.integers(1, 5)))
def test_a_sample_gets_the_same_spans_in_any_row_of_any_batch(
    special: SpecialTokens, text_rows: Rows, order: list[int], cuts: set[int]
) -> None:
    objective = SpanCorruption(64, 3, special)
    tokens = text_rows(6, objective.window_length)
    num_tokens = np.array([objective.window_length] * 4 + [9, 1])
    positions = np.arange(500, 506, dtype=np.int64)
    whole = objective.batch(RawRows(tokens, num_tokens, positions))
    for rows in np.split(np.array(order), sorted(cuts)):
        part = objective.batch(RawRows(tokens[rows], num_tokens[rows], positions[rows]))
        for name, array in whole.items():
            assert np.array_equal(part[name], array[rows])


def test_each_epoch_and_each_seed_draws_afresh(special: SpecialTokens, text_rows: Rows) -> None:
    tokens = text_rows(50, 568)
    first = corrupted(SpanCorruption(512, 1, special), tokens)["input_ids"]
    next_epoch = corrupted(SpanCorruption(512, 1, special), tokens, first_position=50)["input_ids"]
    other_seed = corrupted(SpanCorruption(512, 2, special), tokens)["input_ids"]
    for other in (next_epoch, other_seed):
        assert not (first == other).all(axis=1).any()


def test_one_full_and_one_short_row_written_out(special: SpecialTokens) -> None:
    objective = SpanCorruption(14, 1, special, density=0.3, mean_span=2.0)
    tokens = np.array([range(11, 11 + objective.window_length), [*range(31, 35), *[0] * 12]], dtype=np.int32)
    batch = objective.batch(RawRows(tokens, np.array([objective.window_length, 4]), np.array([0, 1])))
    assert {name: array.tolist() for name, array in batch.items()} == {
        "input_ids": [
            [11, 12, 13, 14, 15, 16, 17, 18, 999, 21, 22, 23, 998, 6],
            [31, 32, 33, 999, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ],
        "attention_mask": [[1] * 14, [1] * 5 + [0] * 9],
        "labels": [[999, 19, 20, 998, 24, 25, 26, 6], [999, 34, 6, -100, -100, -100, -100, -100]],
        "decoder_input_ids": [[0, 999, 19, 20, 998, 24, 25, 26], [0, 999, 34, 6, 0, 0, 0, 0]],
    }
    assert {array.dtype for array in batch.values()} == {np.dtype(np.int64)}


def test_without_eos_the_separator_ends_inputs_and_labels(special: SpecialTokens, text_rows: Rows) -> None:
    objective = SpanCorruption(64, 1, replace(special, eos=None))
    batch = corrupted(objective, text_rows(1, objective.window_length))
    assert batch["input_ids"][0, -1] == batch["labels"][0, -1] == special.sep


def test_too_few_sentinels_are_refused_with_how_many_are_needed(special: SpecialTokens) -> None:
    few = replace(special, sentinels=special.sentinels[:27])
    with pytest.raises(ObjectiveError, match=r"512 tokens needs 28 sentinel tokens.* has 27[\s\S]*which makes 100"):
        SpanCorruption(512, 1, few)


@pytest.mark.parametrize(
    ("missing", "message"),
    [({"pad": None}, "needs the pad token"), ({"eos": None, "sep": None}, "needs the eos token")],
    ids=["no padding", "no end"],
)
def test_a_tokenizer_without_a_token_it_needs_is_refused(
    special: SpecialTokens, missing: dict[str, None], message: str
) -> None:
    with pytest.raises(ObjectiveError, match=message):
        SpanCorruption(512, 1, replace(special, **missing))


@pytest.mark.parametrize(
    ("seq_len", "density", "mean_span", "message"),
    [
        (2, 0.15, 3.0, "at least 3 tokens, not 2"),
        (512, 0.0, 3.0, "density of 0.0"),
        (512, 1.0, 3.0, "density of 1.0"),
        (512, 0.15, 0.5, "spans of 0.5 tokens"),
    ],
    ids=["no room", "nothing cut", "nothing left", "no span"],
)
def test_numbers_that_cannot_work_are_refused(
    special: SpecialTokens, seq_len: int, density: float, mean_span: float, message: str
) -> None:
    with pytest.raises(ObjectiveError, match=message):
        SpanCorruption(seq_len, 1, special, density, mean_span)


def test_hidden_tokens_are_taken_out_and_the_rest_moves_up(special: SpecialTokens, text_rows: Rows) -> None:
    objective = SpanCorruption(32, 7, special)
    length = objective.window_length
    tokens = text_rows(3, length)
    hidden = np.zeros(tokens.shape, dtype=np.bool_)
    hidden[1, 4:20] = hidden[2] = True
    rows = RawRows(tokens, np.full(3, length), np.arange(3), hidden_BL=hidden)
    batch = objective.batch(rows)
    shorter = np.zeros_like(tokens[1:2])
    shorter[0, : length - 16] = np.delete(tokens[1], range(4, 20))
    alone = objective.batch(RawRows(shorter, np.array([length - 16]), np.array([1])))
    plain = objective.batch(RawRows(tokens[:1], np.array([length]), np.array([0])))
    for name, array in batch.items():
        assert (array[0] == plain[name][0]).all()
        assert (array[1] == alone[name][0]).all()
    assert batch["input_ids"][2].tolist() == [special.eos, *[special.pad] * 31]
    assert batch["attention_mask"][2].tolist() == [1, *[0] * 31]
    assert (batch["labels"][2] == IGNORE_INDEX).all()
