"""Pairs of sentences: everything once an epoch, and of it only what seed and position say is changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from launcher.errors import ShardError
from launcher.samples.chunks import cut_chunks, load_or_make_plan, make_plan
from launcher.samples.loader import Corpus, Loader
from launcher.samples.sentence_pairs import AS_WRITTEN, CHANGED, UNTOLD, DrawnPairs, PairKind, SentencePairs

Text = list[list[int]]
TEXTS = st.lists(st.lists(st.integers(1, 14), max_size=12), min_size=2, max_size=25).filter(
    lambda text: sum(map(bool, text)) > 1
)
KINDS: tuple[PairKind, ...] = ("nsp", "sop")


class Sentences:
    """Documents of sentences of these lengths, an end token behind each document; tokens count up from 100."""

    def __init__(self, text: Text) -> None:
        sequences = [[*document[:-1], document[-1] + 1] if document else [1] for document in text]
        self.lengths = [np.array(document, dtype=np.int32) for document in sequences]
        self.starts = np.cumsum([0, *(sum(document) for document in sequences)]).astype(np.int64)
        self.num_tokens, self.num_documents = int(self.starts[-1]), len(text)
        self.has_words, self.has_sentences = True, True
        self.fingerprint = str(text)
        self.ends = {100 + int(start) - 1 for start in self.starts[1:]}

    def read(self, start: int, out: NDArray[np.integer[Any]]) -> None:
        assert 0 <= start <= start + len(out) <= self.num_tokens, "a read outside the stream"
        out[:] = np.arange(100 + start, 100 + start + len(out))

    def read_words(self, start: int, out: NDArray[np.bool_]) -> None:
        out[:] = True

    def document_starts(self, first: int, last: int) -> NDArray[np.int64]:
        return self.starts[first : last + 1].copy()

    def sequence_starts(self, document: int) -> NDArray[np.int64]:
        return np.cumsum([self.starts[document], *self.lengths[document].tolist()]).astype(np.int64)

    def sequence_lengths(self, first: int, last: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        chosen = self.lengths[first:last]
        return np.concatenate(chosen), np.array([len(each) for each in chosen], dtype=np.int64)

    def documents_at(self, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.searchsorted(self.starts, tokens, side="right") - 1

    def advise(self, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> None:
        pass

    def read_rows(self, *arguments: Any) -> None:
        raise NotImplementedError

    def read_windows(self, *arguments: Any) -> bool:
        raise NotImplementedError

    def sentence_starts(self) -> set[int]:
        """The first token of every sentence."""
        return {100 + int(s) for d in range(self.num_documents) for s in self.sequence_starts(d)[:-1]}


def pairs_of(text: Text, kind: PairKind = "nsp", room: int = 12, seed: int = 5) -> tuple[Sentences, SentencePairs]:
    stream = Sentences(text)
    return stream, SentencePairs(stream, room, 0, kind, seed)


def loader_of(samples: SentencePairs, exclude: tuple[int, ...] = (), with_words: bool = False) -> Loader:
    corpus = Corpus("law", samples, samples.order(1), np.array(exclude, dtype=np.int64))
    return Loader((corpus,), with_words=with_words)


def parts(batch: Any, row: int) -> tuple[list[int], list[int]]:
    cut, length = int(batch.pair_cuts_B[row]), int(batch.num_tokens_B[row])
    tokens = batch.tokens_BL[row].tolist()
    return tokens[:cut], tokens[cut:length]


def random_text(num_documents: int, seed: int = 3) -> Text:
    rng = np.random.default_rng(seed)
    return [rng.integers(1, 9, rng.integers(1, 10)).tolist() for _ in range(num_documents)]


@given(text=TEXTS, room=st.integers(2, 30))
def test_every_sentence_is_in_exactly_one_chunk_and_only_one_longer_than_the_room_is_cut(text: Text, room: int) -> None:
    stream, samples = pairs_of(text, room=room)
    rows = np.zeros((samples.num_samples, room), dtype=np.int64)
    lengths = samples.read(np.arange(samples.num_samples), rows)
    chunks = [row[:length].tolist() for row, length in zip(rows, lengths.tolist(), strict=True)]
    seen = [token for chunk in chunks for token in chunk]
    assert seen == [t for t in range(100, 100 + stream.num_tokens) if t not in stream.ends]
    starts = stream.sentence_starts()
    for chunk, following in zip(chunks, [*chunks[1:], [0]], strict=True):
        assert 1 <= len(chunk) <= room
        document = stream.documents_at(np.array(chunk) - 100)
        assert len(set(document.tolist())) == 1
        goes_on = following[0] == chunk[-1] + 1
        if goes_on and following[0] not in starts:  # cut inside a sentence: only where the room is full
            assert len(chunk) == room
            assert not starts & set(chunk[1:])


def test_a_long_sentence_fills_rows_and_its_end_goes_with_those_behind_it() -> None:
    lengths, counts = np.array([3, 11, 4, 2, 6], dtype=np.int32), np.array([4, 1])
    starts, sizes, documents, single = cut_chunks(lengths, counts, 5)
    # 3 | 11 = 5 + 5 + 1, the 1 together with 4 | of 2 and 6 the last token is the document's end
    assert list(zip(starts.tolist(), sizes.tolist(), documents.tolist(), strict=True)) == [
        (0, 3, 0),
        (3, 5, 0),
        (8, 5, 0),
        (13, 5, 0),
        (18, 1, 0),
        (20, 5, 1),
    ]
    assert single.tolist() == [True, True, True, False, True, True]


@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXTS, room=st.integers(2, 30), seed=st.integers(0, 2**32))
def test_a_pair_is_a_chunk_cut_between_sentences_or_changed_as_its_label_says(
    kind: PairKind, text: Text, room: int, seed: int
) -> None:
    stream, samples = pairs_of(text, kind, room, seed)
    batch = loader_of(samples).fetch(np.arange(3 * samples.num_samples))
    starts = stream.sentence_starts()
    assert batch.pair_labels_B is not None
    for row, (label, sample) in enumerate(zip(batch.pair_labels_B.tolist(), batch.sample_ids_B.tolist(), strict=True)):
        a, b = parts(batch, row)
        first, length = int(samples.plan.starts_C[sample]) + 100, int(samples.plan.lengths_C[sample])
        chunk = list(range(first, first + length))
        if kind == "sop" and label == CHANGED:
            a, b = b, a
        assert a == chunk[: len(a)]
        if length == 1:
            assert (label, b) == (UNTOLD, [])
            continue
        assert 1 <= len(a) < length
        inner = starts & set(chunk[1:])
        assert chunk[len(a)] in inner if inner else len(a) == length // 2
        if kind == "nsp" and label == CHANGED:
            documents = stream.documents_at(np.array([a[0], b[0]]) - 100)
            assert documents[0] != documents[1]
            ends = samples.plan.starts_C + samples.plan.lengths_C
            assert b == list(range(b[0], b[0] + len(b)))
            assert b[-1] + 1 - 100 in ends, "the second part of a chunk, never shortened"
        else:
            assert b == chunk[len(a) :]


def drawn_in(samples: SentencePairs, epoch: int) -> DrawnPairs:
    return samples.draw(np.arange(samples.num_samples), np.full(samples.num_samples, epoch))


@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXTS, room=st.integers(2, 30), epoch=st.integers(0, 9))
def test_every_token_of_text_is_read_once_an_epoch(kind: PairKind, text: Text, room: int, epoch: int) -> None:
    stream, samples = pairs_of(text, kind, room)
    rows = np.zeros((samples.num_samples, room), dtype=np.int64)
    lengths = samples.read_pairs(drawn_in(samples, epoch), rows)
    seen = sorted(token for row, length in zip(rows, lengths.tolist(), strict=True) for token in row[:length].tolist())
    assert seen == [t for t in range(100, 100 + stream.num_tokens) if t not in stream.ends]


@pytest.mark.parametrize("kind", KINDS)
def test_half_of_the_pairs_are_changed_within_binomial_bounds(kind: PairKind) -> None:
    _, samples = pairs_of(random_text(400), kind, room=20)
    labels = np.stack([drawn_in(samples, epoch).labels_B for epoch in range(20)])
    told = labels[labels != UNTOLD]
    num_coins = len(told) if kind == "sop" else len(told) / 2  # two that meet have one coin
    assert abs(np.count_nonzero(told == CHANGED) / len(told) - 0.5) < 4 * np.sqrt(0.25 / num_coins)
    assert len(told) > 0.75 * labels.size
    assert all(len(set(epoch.tolist())) > 1 for epoch in labels)
    first, second = labels[:, labels.min(axis=0) != UNTOLD][:2]
    assert 0.35 < (first == second).mean() < 0.65, "every epoch draws afresh"


def test_no_look_at_b_alone_tells_whether_it_is_the_next() -> None:
    stream, samples = pairs_of(random_text(3000), room=20)
    drawn = drawn_in(samples, 0)
    starts_B, ends_B = drawn.starts_B2[:, 1], drawn.starts_B2[:, 1] + drawn.lengths_B2[:, 1]
    sentences = np.array(sorted(stream.sentence_starts())) - 100
    looks = {
        "length of A": drawn.lengths_B2[:, 0],
        "length of B": drawn.lengths_B2[:, 1],
        "begins a document": np.isin(starts_B, stream.starts),
        "begins a sentence": np.isin(starts_B, sentences),
        "ends a sentence": np.isin(ends_B, sentences) | np.isin(ends_B + 1, stream.starts),
        "ends a document": np.isin(ends_B + 1, stream.starts),
    }
    for name, look in looks.items():
        changed, written = (look[drawn.labels_B == label].astype(float) for label in (CHANGED, AS_WRITTEN))
        error = np.sqrt(changed.var() / len(changed) + written.var() / len(written))
        assert abs(changed.mean() - written.mean()) <= 4 * error, name


def test_chunks_meet_any_others_of_their_kind_alike_but_of_other_documents() -> None:
    text: Text = [[5] * 40, *[[6]] * 40, *[[3, 3]] * 40]  # many sentences, one, two
    _, samples = pairs_of(text, room=12)
    met = np.zeros((81, 81), dtype=np.int64)
    for epoch in range(400):
        drawn = drawn_in(samples, epoch)
        changed = drawn.documents_B2[drawn.labels_B == CHANGED]
        np.add.at(met, (changed[:, 0], changed[:, 1]), 1)
    assert np.array_equal(met, met.T), "two exchange"
    assert not met.diagonal().any()
    assert not met[1:41, 41:].any(), "halves of a sentence would tell themselves from whole ones"
    assert not met[0, 1:41].any()
    among_singles = met[1:41, 1:41][~np.eye(40, dtype=np.bool_)]
    expected = 400 / 39 / 2
    assert abs(among_singles.mean() - expected) < 0.5
    assert among_singles.max() < 5 * expected


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_depends_on_its_position_and_on_nothing_it_is_fetched_with(kind: PairKind) -> None:
    _, samples = pairs_of(random_text(60), kind)
    loader, again = loader_of(samples), loader_of(pairs_of(random_text(60), kind)[1])
    positions = np.arange(2 * samples.num_samples)
    whole = loader.fetch(positions)
    shuffled = np.random.default_rng(0).permutation(positions)
    assert whole.pair_cuts_B is not None
    assert whole.pair_labels_B is not None
    for some in np.array_split(shuffled, 7):
        part = again.fetch(some)
        assert np.array_equal(part.tokens_BL, whole.tokens_BL[some])
        assert np.array_equal(part.pair_cuts_B, whole.pair_cuts_B[some])
        assert np.array_equal(part.pair_labels_B, whole.pair_labels_B[some])
    other = loader_of(pairs_of(random_text(60), kind, seed=6)[1]).fetch(positions)
    assert not np.array_equal(other.pair_labels_B, whole.pair_labels_B)
    epochs = whole.pair_cuts_B.reshape(2, -1), whole.pair_labels_B.reshape(2, -1)
    assert all(not np.array_equal(first, second) for first, second in epochs)  # drawn afresh


def test_pieces_tell_where_both_parts_are_from_and_words_stop_between_them() -> None:
    stream, samples = pairs_of(random_text(60))
    batch = loader_of(samples, with_words=True).fetch(np.arange(samples.num_samples))
    pieces = batch.pieces()
    assert batch.continues_BL is not None
    for row in range(samples.num_samples):
        here = pieces.rows_P == row
        tokens = [
            100 + int(stream.starts[document]) + int(offset) + place
            for document, offset, length in zip(
                pieces.documents_P[here], pieces.offsets_P[here], pieces.lengths_P[here], strict=True
            )
            for place in range(length)
        ]
        a, b = parts(batch, row)
        assert tokens == a + b
        breaks = {0, len(a), *range(len(a) + len(b), samples.length)}
        assert {int(place) for place in np.flatnonzero(~batch.continues_BL[row])} == breaks


@pytest.mark.parametrize("kind", KINDS)
def test_an_excluded_document_is_neither_a_nor_b_and_nobody_moves(kind: PairKind) -> None:
    text = random_text(30)
    excluded = (3, 4, 17)
    stream, samples = pairs_of(text, kind)
    positions = np.arange(6 * samples.num_samples)
    before, after = loader_of(samples).fetch(positions), loader_of(samples, excluded).fetch(positions)
    owner = np.where(before.tokens_BL > 0, stream.documents_at(np.maximum(before.tokens_BL - 100, 0)), -1)
    gone = np.isin(owner, excluded)
    assert gone.any()
    assert np.array_equal(after.hidden_BL, gone)
    assert np.array_equal(after.tokens_BL, np.where(gone, 0, before.tokens_BL))
    assert np.array_equal(after.pair_cuts_B, before.pair_cuts_B)
    assert np.array_equal(after.pair_labels_B, np.where(gone.any(axis=1), UNTOLD, before.pair_labels_B))
    if kind == "nsp":
        assert (gone.any(axis=1) & ~np.isin(owner[:, 0], excluded)).any(), "some were drawn as B"


@pytest.mark.parametrize("kind", KINDS)
def test_the_positions_of_a_document_are_those_whose_pieces_name_it(kind: PairKind) -> None:
    _, samples = pairs_of(random_text(30), kind)
    loader = loader_of(samples)
    end = 3 * samples.num_samples - 5
    pieces = loader.fetch(np.arange(end)).pieces()
    for document in range(30):
        told = set(loader.positions_of(0, document, end).tolist())
        assert told == set(pieces.rows_P[pieces.documents_P == document].tolist())


def test_the_plan_is_kept_and_made_again_where_it_is_of_another_room_or_damaged(tmp_path: Path) -> None:
    stream = Sentences(random_text(40))
    path = tmp_path / ".packing" / "train.npz"
    made = load_or_make_plan(stream, 12, path)
    kept = load_or_make_plan(stream, 12, path)
    for name in ("starts_C", "lengths_C", "documents_C", "singles"):
        assert np.array_equal(getattr(made, name), getattr(kept, name))
    other = load_or_make_plan(stream, 9, path)
    assert len(other.starts_C) > len(made.starts_C)
    path.write_bytes(path.read_bytes()[:-40])
    assert np.array_equal(load_or_make_plan(stream, 9, path).starts_C, other.starts_C)
    with pytest.raises(ValueError, match="other chunks"):
        SentencePairs(stream, 10, 0, "nsp", 1, other)


def test_many_documents_are_cut_as_few_are(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Sentences([[], *random_text(50), []])
    whole = make_plan(stream, 7)
    monkeypatch.setattr("launcher.samples.chunks.BLOCK_DOCUMENTS", 3)
    parts = make_plan(stream, 7)
    for name in ("starts_C", "lengths_C", "documents_C", "singles"):
        assert np.array_equal(getattr(whole, name), getattr(parts, name))


def told(action: Callable[[], object]) -> str:
    with pytest.raises(ShardError) as caught:
        action()
    return str(caught.value)


def test_what_cannot_be_paired_is_refused_with_what_to_do() -> None:
    stream = Sentences([[3], [4]])
    stream.has_sentences = False
    assert told(lambda: SentencePairs(stream, 12, 0, "sop", 1)) == (
        "ShardError: the shards do not say where sentences begin\n"
        "  where: objective.sentence_pairs\n"
        "  fix:   prepare them again with --sentences, or use objective.sentence_pairs=none"
    )
    assert told(lambda: pairs_of([[3, 4], []])) == (
        "ShardError: next-sentence prediction draws from other documents, and the split has text in one only\n"
        "  where: objective.sentence_pairs\n"
        "  fix:   prepare more documents (a larger held-out share for the validation split), or use sop"
    )
    _, alone = pairs_of([[3, 4], []], "sop")
    labels = alone.draw(np.zeros(50, dtype=np.int64), np.arange(50)).labels_B
    assert set(labels.tolist()) == {AS_WRITTEN, CHANGED}
    empty = pairs_of([[], []], "sop")[1]
    assert "there is no sample to train on" in told(lambda: empty.order(1))
    with pytest.raises(ValueError, match="hold no pair"):
        pairs_of([[3], [4]], room=1)
    with pytest.raises(IndexError):
        alone.read(np.array([1]), np.zeros((1, 12), dtype=np.int64))
