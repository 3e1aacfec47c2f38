"""What every shape of samples promises: concat, bestfit and pad."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.samples import shapes
from launcher.samples.bestfit import BestFit
from launcher.samples.padded import Padded
from launcher.samples.shapes import Samples, TokenStream
from launcher.samples.windows import Windows

Streams = Callable[[list[int]], TokenStream]
Shape = Callable[[TokenStream, int], Samples]

SHAPES: dict[str, Shape] = {
    "concat": lambda stream, length: Windows(stream, length, length, fill=-1),
    "concat with context": lambda stream, length: Windows(stream, length, max(1, length - 1), fill=-1),
    "bestfit": lambda stream, length: BestFit(stream, length, length, fill=-1),
    "bestfit with context": lambda stream, length: BestFit(stream, length, max(1, length - 1), fill=-1),
    "pad": lambda stream, length: Padded(stream, length, fill=-1),
}
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
LENGTHS = st.lists(st.integers(0, 25), min_size=1, max_size=40)
ROW = st.integers(1, 12)


def all_ids(samples: Samples) -> np.ndarray:
    return np.arange(samples.num_samples, dtype=np.int64)


def rows_of(samples: Samples, sample_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.full((len(sample_ids), samples.length), -7, dtype=np.int64)
    return tokens, samples.read(sample_ids, tokens)


@every_shape
@given(lengths=LENGTHS, length=ROW)
def test_real_tokens_come_first_and_fill_follows(
    stream_of: Streams, shape: Shape, lengths: list[int], length: int
) -> None:
    samples = shape(stream_of(lengths), length)
    tokens, num_real = rows_of(samples, all_ids(samples))
    assert np.array_equal(tokens == -1, np.arange(length) >= num_real[:, None])
    assert (tokens[tokens != -1] >= 100).all()


@every_shape
@given(lengths=LENGTHS, length=ROW, seed=st.integers(0, 99))
def test_pieces_tell_the_document_and_place_of_every_token(
    stream_of: Streams, shape: Shape, lengths: list[int], length: int, seed: int
) -> None:
    stream = stream_of(lengths)
    samples = shape(stream, length)
    ids = np.random.default_rng(seed).permutation(all_ids(samples))
    tokens, num_real = rows_of(samples, ids)
    pieces = samples.pieces(ids)
    told = np.full_like(tokens, -1)
    starts = stream.document_starts(0, len(lengths))
    for row, column, num, document, offset in zip(
        pieces.rows_P, pieces.columns_P, pieces.lengths_P, pieces.documents_P, pieces.offsets_P, strict=True
    ):
        assert (told[row, column : column + num] == -1).all()
        told[row, column : column + num] = 100 + starts[document] + offset + np.arange(num)
        assert offset + num <= lengths[document]
    assert np.array_equal(told, tokens)
    assert (pieces.lengths_P > 0).all()
    assert np.array_equal(np.lexsort((pieces.columns_P, pieces.rows_P)), np.arange(len(pieces.rows_P)))
    assert np.array_equal(np.bincount(pieces.rows_P, pieces.lengths_P, minlength=len(ids)), num_real)


@every_shape
@given(lengths=LENGTHS, length=ROW)
def test_the_samples_of_documents_are_those_with_a_piece_of_one(
    stream_of: Streams, shape: Shape, lengths: list[int], length: int
) -> None:
    samples = shape(stream_of(lengths), length)
    pieces = samples.pieces(all_ids(samples))
    alone = [[document] for document in range(len(lengths))]
    for documents in (*alone, [], list(range(0, len(lengths), 3)), list(range(len(lengths)))):
        expected = sorted(set(pieces.rows_P[np.isin(pieces.documents_P, documents)]))
        assert samples.samples_of(np.array(documents, dtype=np.int64)).tolist() == expected


def test_the_edges_of_documents_far_apart_are_found_like_those_of_near_ones(
    stream_of: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shapes, "NEAR_DOCUMENTS", 4)
    lengths = np.arange(1, 40)
    ends = np.cumsum(lengths)
    chosen = np.array([0, 1, 3, 4, 11, 12, 13, 38])
    starts_K, ends_K = shapes.document_edges(stream_of(lengths.tolist()), chosen)
    assert ends_K.tolist() == ends[chosen].tolist()
    assert (ends_K - starts_K).tolist() == lengths[chosen].tolist()


@every_shape
@given(lengths=LENGTHS, length=ROW)
def test_words_go_on_inside_a_piece_and_never_into_the_next(
    stream_of: Streams, shape: Shape, lengths: list[int], length: int
) -> None:
    samples = shape(stream_of(lengths), length)
    tokens, _ = rows_of(samples, all_ids(samples))
    continues = np.ones(tokens.shape, dtype=np.bool_)
    samples.read_words(all_ids(samples), continues)
    pieces = samples.pieces(all_ids(samples))
    expected = tokens % 3 == 0
    expected[tokens == -1] = False
    expected[pieces.rows_P, pieces.columns_P] = False
    assert np.array_equal(continues, expected)


@every_shape
def test_a_row_is_the_same_in_every_integer_type_and_company(stream_of: Streams, shape: Shape) -> None:
    samples = shape(stream_of([3, 9, 1, 4, 30, 2]), 8)
    whole, _ = rows_of(samples, all_ids(samples))
    for dtype in (np.int16, np.int32, np.int64):
        for sample_id in all_ids(samples).tolist():
            alone = np.empty((1, 8), dtype=dtype)
            samples.read(np.array([sample_id]), alone)
            assert np.array_equal(alone[0], whole[sample_id].astype(dtype))


@every_shape
def test_what_is_advised_is_what_is_read(stream_of: Streams, shape: Shape) -> None:
    stream = stream_of([3, 9, 1, 4, 30, 2])
    samples = shape(stream, 8)
    ids = all_ids(samples)[::2]
    samples.advise(ids)
    tokens, _ = rows_of(samples, ids)
    advised = [100 + start + place for start, num in stream.advised for place in range(num)]  # type: ignore[attr-defined]
    assert sorted(advised) == sorted(tokens[tokens != -1].tolist())


@every_shape
def test_its_order_has_every_sample(stream_of: Streams, shape: Shape) -> None:
    samples = shape(stream_of([3, 9, 1, 4, 30, 2]), 8)
    assert sorted(samples.order(5).samples_at(all_ids(samples)).tolist()) == all_ids(samples).tolist()


@every_shape
def test_no_row_at_all_is_no_work(stream_of: Streams, shape: Shape) -> None:
    samples = shape(stream_of([3, 9]), 8)
    nothing = np.empty(0, dtype=np.int64)
    assert samples.read(nothing, np.empty((0, 8), dtype=np.int64)).shape == (0,)
    assert samples.pieces(nothing).rows_P.shape == (0,)
    samples.advise(nothing)


@every_shape
@pytest.mark.parametrize("where", [-1, 0], ids=["before the first", "behind the last"])
def test_a_sample_outside_is_refused(stream_of: Streams, shape: Shape, where: int) -> None:
    samples = shape(stream_of([3, 9, 20]), 8)
    sample_id = np.array([where or samples.num_samples], dtype=np.int64)
    for ask in (samples.pieces, samples.advise, lambda ids: rows_of(samples, ids)):
        with pytest.raises(IndexError, match=rf"outside range\({samples.num_samples}\)"):
            ask(sample_id)


@every_shape
def test_a_document_outside_is_refused(stream_of: Streams, shape: Shape) -> None:
    samples = shape(stream_of([3, 9, 20]), 8)
    for document in (-1, 3):
        with pytest.raises(IndexError, match=f"document {document} of 3"):
            samples.samples_of(np.array([document]))


def test_each_shape_and_size_has_a_fingerprint_of_its_own_and_other_tokens_do_not_change_it(
    stream_of: Streams,
) -> None:
    lengths = [3, 9, 1, 4, 30, 2]
    fingerprints = [shape(stream_of(lengths), length).fingerprint for shape in SHAPES.values() for length in (8, 9)]
    assert len(set(fingerprints)) == len(fingerprints)
    for name in ("concat", "concat with context", "pad"):  # blocks of bestfit follow from the mean length
        assert SHAPES[name](stream_of([*lengths, 5]), 8).fingerprint == SHAPES[name](stream_of(lengths), 8).fingerprint
