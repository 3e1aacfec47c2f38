"""A batch is a pure function of its positions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from launcher.errors import RecipeError
from launcher.samples.loader import Corpus, Loader
from launcher.samples.mixture import Mixture, Phase
from launcher.samples.order import Order
from launcher.samples.shapes import TokenStream
from launcher.samples.windows import Windows

Counting = Callable[[int], TokenStream]


def corpus_of(stream: TokenStream, name: str = "law", seed: int = 1, exclude: tuple[int, ...] = ()) -> Corpus:
    windows = Windows(stream, 4, 4, fill=0)
    return Corpus(name, windows, windows.order(seed), exclude=np.array(exclude, dtype=np.int64))


def positions(first: int, last: int) -> np.ndarray:
    return np.arange(first, last, dtype=np.int64)


def mixed(stream_of: Callable[..., TokenStream], phases: tuple[Phase, ...], names: tuple[str, ...]) -> Loader:
    streams = {"law": [10] * 30, "wiki": [7] * 50, "late": [5] * 40}
    corpora = tuple(corpus_of(stream_of(streams[name], name), name) for name in names)
    return Loader(corpora, Mixture(names, phases, seed=3))


def test_two_epochs_serve_every_token_twice(counting_stream: Counting) -> None:
    loader = Loader((corpus_of(counting_stream(50)),))
    batch = loader.fetch(positions(0, 26))
    tokens, counts = np.unique(batch.tokens_BL, return_counts=True)
    assert tokens[1:].tolist() == list(range(100, 150))
    assert (counts[1:] == 2).all()
    assert batch.num_tokens_B.sum() == 100
    assert batch.epochs_B.tolist() == [0] * 13 + [1] * 13
    assert batch.positions_B.tolist() == list(range(26))


def test_a_row_does_not_depend_on_the_rows_beside_it(counting_stream: Counting) -> None:
    loader = Loader((corpus_of(counting_stream(50)),))
    whole = loader.fetch(positions(0, 26))
    alone = loader.fetch(np.array([17], dtype=np.int64))
    assert np.array_equal(alone.tokens_BL[0], whole.tokens_BL[17])
    assert alone.sample_ids_B[0] == whole.sample_ids_B[17]


def test_a_mixture_serves_each_corpus_in_its_own_order_without_gap_or_repeat(
    stream_of: Callable[..., TokenStream],
) -> None:
    phases = (Phase(0, {"law": 0.7, "wiki": 0.3}), Phase(333, {"law": 0.1, "wiki": 0.4, "late": 0.5}))
    loader = mixed(stream_of, phases, ("law", "wiki", "late"))
    batch = loader.fetch(positions(0, 700))
    counts = loader.mixture.cursors(700)
    assert counts.sum() == 700
    for number, corpus in enumerate(loader.corpora):
        mine = batch.corpora_B == number
        assert np.count_nonzero(mine) == counts[number]
        expected = corpus.order.samples_at(positions(0, int(counts[number])))
        assert batch.sample_ids_B[mine].tolist() == expected.tolist()
        tokens = np.empty((len(expected), 4), dtype=np.int32)
        corpus.samples.read(expected, tokens)
        assert np.array_equal(batch.tokens_BL[mine], tokens)
    assert not (batch.corpora_B[:333] == 2).any()


def test_pieces_of_a_mixture_lie_in_their_rows(stream_of: Callable[..., TokenStream]) -> None:
    loader = mixed(stream_of, (Phase(0, {"law": 0.5, "wiki": 0.5}),), ("law", "wiki"))
    batch = loader.fetch(positions(5, 45))
    pieces = batch.pieces()
    assert np.bincount(pieces.rows_P, pieces.lengths_P, minlength=40).tolist() == batch.num_tokens_B.tolist()
    for row, corpus in enumerate(batch.corpora_B.tolist()):
        alone = loader.corpora[corpus].samples.pieces(batch.sample_ids_B[row : row + 1])
        assert pieces.documents_P[pieces.rows_P == row].tolist() == alone.documents_P.tolist()


def test_what_is_excluded_is_hidden_where_it_stood_and_nothing_else_moves(counting_stream: Counting) -> None:
    plain = Loader((corpus_of(counting_stream(50)),))
    loader = Loader((corpus_of(counting_stream(50), exclude=(1, 4)),))
    before, after = plain.fetch(positions(0, 26)), loader.fetch(positions(0, 26))
    gone = ((before.tokens_BL >= 110) & (before.tokens_BL < 120)) | (before.tokens_BL >= 140)
    assert after.hidden_BL is not None
    assert before.hidden_BL is None
    assert np.array_equal(after.hidden_BL, gone)
    assert (after.tokens_BL[gone] == 0).all()
    assert np.array_equal(after.tokens_BL[~gone], before.tokens_BL[~gone])
    assert after.num_tokens_B.tolist() == before.num_tokens_B.tolist()
    assert loader.fingerprint_at(26) == plain.fingerprint_at(26)
    untouched = [row for row in range(26) if not gone[row].any()][:3]
    assert loader.fetch(np.array(untouched)).hidden_BL is None


def test_a_document_that_is_not_there_cannot_be_excluded(counting_stream: Counting) -> None:
    with pytest.raises(RecipeError, match="document 5 of 5"):
        corpus_of(counting_stream(50), exclude=(5,))


def test_the_positions_of_a_document_are_those_whose_rows_hold_it(stream_of: Callable[..., TokenStream]) -> None:
    phases = (Phase(0, {"law": 0.7, "wiki": 0.3}), Phase(100, {"law": 0.2, "wiki": 0.8}))
    loader = mixed(stream_of, phases, ("law", "wiki"))
    batch = loader.fetch(positions(0, 400))
    pieces = batch.pieces()
    for corpus, document in ((0, 0), (0, 17), (1, 49)):
        rows = pieces.rows_P[pieces.documents_P == document]
        expected = sorted({int(row) for row in rows if batch.corpora_B[row] == corpus})
        assert loader.positions_of(corpus, document, 400).tolist() == expected
        assert loader.positions_of(corpus, document, 57).tolist() == [p for p in expected if p < 57]


def test_the_fingerprint_follows_data_shape_and_order(stream_of: Callable[..., TokenStream]) -> None:
    def fingerprint(lengths: list[int], length: int = 4, seed: int = 1, text: str = "") -> str:
        windows = Windows(stream_of(lengths, text), length, 4, fill=0)
        return Loader((Corpus("law", windows, windows.order(seed)),)).fingerprint_at(1)

    prints = [
        fingerprint([10] * 5),
        fingerprint([10] * 5, length=5),
        fingerprint([10] * 5, seed=2),
        fingerprint([10] * 4 + [9]),
        fingerprint([10] * 5, text="other tokens"),
    ]
    assert len(set(prints)) == len(prints)
    assert fingerprint([10] * 5) == prints[0]


def test_only_what_has_been_served_is_in_the_fingerprint(stream_of: Callable[..., TokenStream]) -> None:
    first = Phase(0, {"law": 0.7, "wiki": 0.3})
    plain = mixed(stream_of, (first,), ("law", "wiki"))
    later = mixed(stream_of, (first, Phase(300, {"late": 1.0})), ("law", "wiki", "late"))
    assert plain.fingerprint_at(300) == later.fingerprint_at(300)
    assert plain.fingerprint_at(301) != later.fingerprint_at(301)
    other = mixed(stream_of, (Phase(0, {"law": 0.6, "wiki": 0.4}),), ("law", "wiki"))
    assert plain.fingerprint_at(1) != other.fingerprint_at(1)


def test_a_cursor_tells_what_each_corpus_has_given(stream_of: Callable[..., TokenStream]) -> None:
    loader = mixed(stream_of, (Phase(0, {"law": 0.75, "wiki": 0.25}),), ("law", "wiki"))
    cursor = loader.cursor_at(256)
    assert (cursor.position, cursor.consumed) == (256, {"law": 192, "wiki": 64})
    cursor.check(loader.fingerprint_at(256))


def test_what_does_not_fit_together_is_refused(counting_stream: Counting) -> None:
    with pytest.raises(ValueError, match="an order of 12 for 13 samples"):
        Corpus("law", Windows(counting_stream(50), 4, 4, fill=0), Order(12, 1))
    corpora = (corpus_of(counting_stream(50)), corpus_of(counting_stream(50), "wiki"))
    with pytest.raises(ValueError, match="a mixture of"):
        Loader(corpora, Mixture.alone("law"))


def test_where_a_corpus_tells_no_words_each_token_is_one(stream_of: Callable[..., TokenStream]) -> None:
    told, wordless = stream_of([25, 25]), stream_of([25, 25])
    wordless.has_words = False  # type: ignore[misc]
    mixture = Mixture(("law", "wiki"), (Phase(0, {"law": 0.5, "wiki": 0.5}),), seed=1)
    batch = Loader((corpus_of(told), corpus_of(wordless, "wiki")), mixture, with_words=True).fetch(np.arange(24))
    assert batch.continues_BL is not None
    assert batch.continues_BL[batch.corpora_B == 0].any()
    assert not batch.continues_BL[batch.corpora_B == 1].any()
