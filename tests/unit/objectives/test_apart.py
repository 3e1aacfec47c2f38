"""Documents of a row that are kept apart: nothing is read or predicted across the end of one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from raw_rows import RawRows

from launcher.objectives.base import IGNORE_INDEX, Objective
from launcher.objectives.clm import CausalLM
from launcher.objectives.mlm import MaskedLM
from launcher.objectives.prefix import CausalPrefixLM, PrefixLM
from launcher.objectives.span import SpanCorruption
from launcher.shards.manifest import SpecialTokens

Rows = Callable[[int, int], NDArray[np.int32]]
IGNORED = IGNORE_INDEX


def segments_of(lengths: list[list[int]], width: int) -> NDArray[np.int32]:
    """Rows of documents' pieces of these lengths, padding behind."""
    made = np.full((len(lengths), width), -1, dtype=np.int32)
    for row, of_row in enumerate(lengths):
        made[row, : sum(of_row)] = np.repeat(np.arange(len(of_row)), of_row)
    return made


def cut_rows(data: st.DataObject, width: int) -> list[list[int]]:
    """Pieces of three rows; the last row is short."""
    rows = []
    for longest in (width, width, width // 2):
        places = data.draw(st.sets(st.integers(1, longest - 1), max_size=6))
        rows.append(np.diff([0, *sorted(places), longest]).tolist())
    return rows


def test_clm_predicts_no_document_from_the_one_before_it(special: SpecialTokens) -> None:
    tokens = np.array([[11, 12, 3, 21, 22, 3, 31], [41, 3, 51, 52, 0, 0, 0]], dtype=np.int32)
    rows = RawRows(tokens, np.array([7, 4]), np.arange(2), segments_BL=segments_of([[3, 3, 1], [2, 2]], 7))
    batch = CausalLM(6, special).batch(rows)
    assert batch["labels"].tolist() == [[12, 3, IGNORED, 22, 3, IGNORED], [3, IGNORED, 52, IGNORED, IGNORED, IGNORED]]
    assert batch["segment_ids"].tolist() == [[0, 0, 0, 1, 1, 1], [0, 0, 1, 1, -1, -1]]


def test_mlm_puts_cls_with_the_first_document_and_sep_with_the_last(special: SpecialTokens) -> None:
    tokens = np.full((4, 6), 11, dtype=np.int32)
    hidden = np.zeros((4, 6), dtype=np.bool_)
    hidden[2, :2] = hidden[3] = True
    segments = segments_of([[2, 4], [1, 2], [2, 1, 3], [6]], 6)
    rows = RawRows(tokens, np.array([6, 3, 6, 6]), np.arange(4), hidden_BL=hidden, segments_BL=segments)
    batch = MaskedLM(8, 7, special, 1000).batch(rows)
    assert batch["segment_ids"].tolist() == [
        [0, 0, 0, 1, 1, 1, 1, 1],
        [0, 0, 1, 1, 1, -1, -1, -1],
        [1, -1, -1, 1, 2, 2, 2, 2],
        [0, -1, -1, -1, -1, -1, -1, 0],
    ]
    assert ((batch["segment_ids"] >= 0) == (batch["attention_mask"] == 1)).all()


@given(data=st.data(), position=st.integers(0, 2**40))
def test_a_span_belongs_to_the_document_it_begins_in(
    special: SpecialTokens, text_rows: Rows, data: st.DataObject, position: int
) -> None:
    objective = SpanCorruption(40, 1, special, 0.3, 3.0)
    length = objective.window_length
    pieces = cut_rows(data, length)
    tokens, segments = text_rows(3, length), segments_of(pieces, length)
    num_tokens = np.array([sum(each) for each in pieces])
    batch = objective.batch(RawRows(tokens, num_tokens, position + np.arange(3), segments_BL=segments))
    plain = objective.batch(RawRows(tokens, num_tokens, position + np.arange(3)))
    for name in ("input_ids", "labels", "attention_mask"):
        assert np.array_equal(batch[name], plain[name])
    assert ((batch["segment_ids"] >= 0) == (batch["attention_mask"] == 1)).all()
    assert ((batch["decoder_segment_ids"] >= 0) == (batch["labels"] != IGNORED)).all()
    for row in range(3):
        document_of = dict(zip(tokens[row].tolist(), segments[row].tolist(), strict=True))
        if len(document_of) < length:
            continue  # a token that stands twice names no document
        inputs = batch["input_ids"][row].tolist()
        for token, document in zip(inputs, batch["segment_ids"][row].tolist(), strict=True):
            assert token in special.all_ids or document == document_of[token]
        labels, documents = batch["labels"][row].tolist(), batch["decoder_segment_ids"][row].tolist()
        for place, token in enumerate(labels):
            if token in special.sentinels:
                first = document_of[labels[place + 1]]
                assert batch["segment_ids"][row][inputs.index(token)] == first
            if token != IGNORED and token != special.eos:
                assert documents[place] == first
    assert_decoder_begins_each_document(batch, special)


def assert_decoder_begins_each_document(batch: dict[str, NDArray[np.int64]], special: SpecialTokens) -> None:
    documents, labels = batch["decoder_segment_ids"], batch["labels"]
    assert (batch["decoder_input_ids"][:, 0] == special.pad).all()
    begins = (documents[:, 1:] != documents[:, :-1]) & (documents[:, 1:] >= 0)
    assert (batch["decoder_input_ids"][:, 1:][begins] == special.pad).all()
    goes_on = (documents[:, 1:] == documents[:, :-1]) & (documents[:, 1:] >= 0)
    assert np.array_equal(batch["decoder_input_ids"][:, 1:][goes_on], labels[:, :-1][goes_on])
    for row in range(len(documents)):  # a decoder's document without anything to read would attend to nothing
        assert set(documents[row].tolist()) - {-1} <= set(batch["segment_ids"][row].tolist())
        assert np.array_equal(documents[row][documents[row] >= 0], np.sort(documents[row][documents[row] >= 0]))


@given(data=st.data(), position=st.integers(0, 2**40))
def test_a_prefix_is_cut_in_every_document_and_the_documents_are_all_there(
    special: SpecialTokens, text_rows: Rows, data: st.DataObject, position: int
) -> None:
    objective = PrefixLM(30, 1, special, mode=998)
    length = objective.window_length
    pieces = cut_rows(data, length)
    tokens, num_tokens = text_rows(3, length), np.array([sum(each) for each in pieces])
    segments = segments_of(pieces, length)
    batch = objective.batch(RawRows(tokens, num_tokens, position + np.arange(3), segments_BL=segments))
    assert_decoder_begins_each_document(batch, special)
    assert ((batch["segment_ids"] >= 0) == (batch["attention_mask"] == 1)).all()
    assert ((batch["decoder_segment_ids"] >= 0) == (batch["labels"] != IGNORED)).all()
    for row, of_row in enumerate(pieces):
        read = batch["input_ids"][row][batch["segment_ids"][row] >= 0][1:-1]
        wrote = batch["labels"][row][batch["labels"][row] != IGNORED][:-1]
        read_of = batch["segment_ids"][row][: len(read) + 1][1:]
        wrote_of = batch["decoder_segment_ids"][row][: len(wrote)]
        for document, size in enumerate(of_row):
            prefix, rest = read[read_of == document], wrote[wrote_of == document]
            assert [*prefix, *rest] == tokens[row][segments[row] == document].tolist()
            assert len(prefix) >= 1
            assert len(rest) >= (size > 1)


def test_a_causal_prefix_is_cut_in_every_document(special: SpecialTokens, text_rows: Rows) -> None:
    tokens, segments = text_rows(200, 21), segments_of([[8, 1, 12]] * 200, 21)
    rows = RawRows(tokens, np.full(200, 21), np.arange(200), segments_BL=segments)
    batch = CausalPrefixLM(20, 1, special).batch(rows)
    predicted = batch["labels"] != IGNORED
    assert not predicted[:, [7, 8]].any()  # the first tokens of the second and the third document
    for first, last in ((0, 6), (9, 19)):
        inside = predicted[:, first : last + 1]
        assert inside[:, -1].all()
        assert (inside[:, 1:] >= inside[:, :-1]).all()
        firsts = np.bincount(np.argmax(inside, axis=1), minlength=inside.shape[1])
        assert firsts.min() > 0.5 * firsts.mean()


@pytest.mark.parametrize("kind", ["mlm", "clm", "span", "prefix", "causal prefix"])
@given(order=st.permutations(range(8)), cuts=st.sets(st.integers(1, 7)))
def test_a_sample_is_the_same_in_any_row_of_any_batch(
    special: SpecialTokens, text_rows: Rows, kind: str, order: list[int], cuts: set[int]
) -> None:
    objectives: dict[str, Objective] = {
        "mlm": MaskedLM(32, 3, special, 1000),
        "clm": CausalLM(32, special),
        "span": SpanCorruption(32, 3, special),
        "prefix": PrefixLM(32, 3, special),
        "causal prefix": CausalPrefixLM(32, 3, special),
    }
    objective = objectives[kind]
    length = objective.window_length
    tokens = text_rows(8, length)
    segments = segments_of([[length], [5, length - 5], [1] * length, [3, 4], [9], [1], [], [7, 1, 2]], length)
    num_tokens = np.count_nonzero(segments >= 0, axis=1)
    hidden = segments == 1
    positions = np.arange(900, 908)
    whole = objective.batch(RawRows(tokens, num_tokens, positions, hidden, None, segments))
    for chosen in np.split(np.array(order), sorted(cuts)):
        part = objective.batch(
            RawRows(tokens[chosen], num_tokens[chosen], positions[chosen], hidden[chosen], None, segments[chosen])
        )
        for name, array in whole.items():
            assert np.array_equal(part[name], array[chosen])
