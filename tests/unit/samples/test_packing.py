"""Packing: nothing dropped, nothing cut that fits, hardly any padding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.errors import ShardError
from launcher.samples.bestfit import BestFit
from launcher.samples.packing import (
    MAX_BLOCK_DOCUMENTS,
    PackingPlan,
    best_fit,
    cut,
    documents_of_a_block,
    load_or_make_plan,
    make_plan,
    plan_fingerprint,
)
from launcher.samples.shapes import TokenStream

Streams = Callable[..., TokenStream]


@given(lengths=st.lists(st.integers(1, 30), max_size=120))
def test_every_piece_has_a_row_that_holds_it(lengths: list[int]) -> None:
    rows, num_rows = best_fit(np.array(lengths, dtype=np.int64), 30)
    filled = np.bincount(rows, lengths, minlength=num_rows)
    assert (filled <= 30).all()
    assert (filled > 0).all()
    assert len(filled) == num_rows


@given(lengths=st.lists(st.integers(1, 30), max_size=60))
def test_it_packs_as_best_fit_decreasing_one_by_one_would(lengths: list[int]) -> None:
    spaces: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [space for space in spaces if space >= length]
        if fitting:
            spaces.remove(min(fitting))
            spaces.append(min(fitting) - length)
        else:
            spaces.append(30 - length)
    rows, num_rows = best_fit(np.array(lengths, dtype=np.int64), 30)
    assert sorted((30 - np.bincount(rows, lengths, minlength=num_rows)).tolist()) == sorted(spaces)


@given(lengths=st.lists(st.integers(0, 60), max_size=40), capacity=st.integers(2, 20), context=st.integers(0, 1))
def test_only_documents_longer_than_a_row_are_cut_and_no_token_is_dropped(
    lengths: list[int], capacity: int, context: int
) -> None:
    cuts = cut(np.array(lengths, dtype=np.int64), capacity, capacity - context)
    for document, length in enumerate(lengths):
        mine = cuts.documents_P == document
        offsets, sizes = cuts.offsets_P[mine].tolist(), cuts.lengths_P[mine].tolist()
        if length <= capacity:
            assert (offsets, sizes) == (([0], [length]) if length else ([], []))
            continue
        assert all(size == capacity for size in sizes[:-1])
        assert context < sizes[-1] <= capacity
        new = [token for offset, size in zip(offsets, sizes, strict=True) for token in range(offset, offset + size)]
        assert sorted(set(new)) == list(range(length))
        assert len(new) == length + context * (len(offsets) - 1)


def wiki_lengths(num_documents: int) -> np.ndarray:
    """As long as Chinese wiki articles in WordPiece tokens: log-normal, mean 535, three in ten above 512."""
    lengths = np.random.default_rng(7).lognormal(mean=5.7, sigma=1.08, size=num_documents)
    return np.maximum(2, np.round(lengths * 535 / lengths.mean())).astype(np.int64)


@pytest.mark.parametrize(("length", "stride"), [(512, 512), (2048, 2048), (2049, 2048)])
def test_padding_stays_below_one_percent_where_documents_are_short(
    stream_of: Streams, length: int, stride: int
) -> None:
    stream = stream_of(wiki_lengths(20_000))
    packed = BestFit(stream, length, stride, fill=0)
    assert packed.padding_share < 0.01
    told = 1 - packed.pieces(np.arange(packed.num_samples)).lengths_P.sum() / (packed.num_samples * length)
    assert packed.padding_share == pytest.approx(told)


def test_padding_is_told_where_it_cannot_be_avoided(stream_of: Streams) -> None:
    assert BestFit(stream_of([6] * 1000), 10, 10, fill=0).padding_share == pytest.approx(0.4)


def test_an_empty_split_pads_nothing(stream_of: Streams) -> None:
    packed = BestFit(stream_of([]), 10, 10, fill=0)
    assert (packed.num_samples, packed.padding_share) == (0, 0)


def test_a_block_makes_about_512_rows(stream_of: Streams) -> None:
    assert documents_of_a_block(stream_of([100] * 10), 1000) == 5120
    assert documents_of_a_block(stream_of([100_000]), 1000) == 256
    assert documents_of_a_block(stream_of([1] * 10), 8192) == MAX_BLOCK_DOCUMENTS


def test_a_row_follows_from_its_block_alone(stream_of: Streams) -> None:
    lengths = np.random.default_rng(3).integers(1, 60, 6000)
    packed = BestFit(stream_of(lengths), 64, 64, fill=-1)
    size = packed.packing.block_documents
    assert len(packed.packing.rows_K) > 3
    changed_lengths = lengths.copy()
    changed_lengths[:size] = lengths[:size][::-1]  # other rows in block 0, as many documents and tokens as before
    changed = BestFit(stream_of(changed_lengths), 64, 64, fill=-1)
    assert changed.packing.block_documents == size
    for block in range(1, len(packed.packing.rows_K)):
        first, last = packed.packing.row_starts[block : block + 2]
        moved = changed.packing.row_starts[block] - first
        before, after = packed.pieces(np.arange(first, last)), changed.pieces(np.arange(first, last) + moved)
        assert np.array_equal(before.documents_P, after.documents_P)
        assert np.array_equal(before.columns_P, after.columns_P)


def test_a_row_asks_for_the_documents_of_its_block_only(stream_of: Streams) -> None:
    stream = stream_of([5] * 100_000)
    packed = BestFit(stream, 10, 10, fill=0)
    stream.asked.clear()  # type: ignore[attr-defined]
    packed.pieces(np.array([packed.num_samples // 2], dtype=np.int64))
    (asked,) = stream.asked  # type: ignore[attr-defined]
    assert asked[1] - asked[0] == packed.packing.block_documents


def test_a_kept_plan_saves_planning_again(stream_of: Streams, tmp_path: Path) -> None:
    stream, path = stream_of([3, 4, 5] * 1000), tmp_path / "plans" / "bestfit.npz"
    made = load_or_make_plan(stream, 8, 8, path)
    stream.asked.clear()  # type: ignore[attr-defined]
    kept = load_or_make_plan(stream, 8, 8, path)
    assert not stream.asked  # type: ignore[attr-defined]
    assert np.array_equal(kept.rows_K, made.rows_K)
    assert kept.padding_share == made.padding_share
    assert BestFit(stream, 8, 8, 0, kept).num_samples == BestFit(stream, 8, 8, 0).num_samples
    assert [file.name for file in path.parent.iterdir()] == ["bestfit.npz"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-20]),
        lambda path: path.write_bytes(b"".join([(data := path.read_bytes())[:-400], b"?", data[-399:]])),
        lambda path: path.write_text("not a plan"),
        lambda path: np.savez(path, other=np.zeros(3)),
        lambda path: (path.unlink(), path.mkdir()),
    ],
    ids=["missing", "empty", "cut short", "a byte changed", "text", "another file", "a folder"],
)
def test_a_plan_that_cannot_be_read_is_made_again(
    stream_of: Streams, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    stream, path = stream_of([3, 4, 5] * 1000), tmp_path / "plan.npz"
    made = load_or_make_plan(stream, 8, 8, path)
    damage(path)
    assert PackingPlan.load(path, made.fingerprint) is None
    assert np.array_equal(load_or_make_plan(stream, 8, 8, path).rows_K, made.rows_K)


def test_a_byte_changed_anywhere_in_a_plan_is_found_or_changes_nothing(stream_of: Streams, tmp_path: Path) -> None:
    stream, path = stream_of([3, 4, 5] * 1000), tmp_path / "plan.npz"
    made = load_or_make_plan(stream, 8, 8, path)
    data = path.read_bytes()
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
        read = PackingPlan.load(path, made.fingerprint)
        assert read is None or (np.array_equal(read.rows_K, made.rows_K) and read.num_placed == made.num_placed)


@pytest.mark.parametrize(
    ("lengths", "text", "length", "stride"),
    [([3, 4, 6], "", 8, 8), ([3, 4, 5], "other", 8, 8), ([3, 4, 5], "", 9, 8), ([3, 4, 5], "", 8, 7)],
    ids=["other documents", "other tokens", "other length", "other stride"],
)
def test_a_plan_of_another_packing_is_not_used(
    stream_of: Streams, tmp_path: Path, lengths: list[int], text: str, length: int, stride: int
) -> None:
    path = tmp_path / "plan.npz"
    kept = load_or_make_plan(stream_of([3, 4, 5] * 1000), 8, 8, path)
    foreign = stream_of(lengths * 1000, text)
    assert PackingPlan.load(path, plan_fingerprint(foreign, length, stride)) is None
    with pytest.raises(ValueError, match="another packing"):
        BestFit(foreign, length, stride, 0, kept)


def test_a_plan_that_numbers_rows_wrongly_is_found(stream_of: Streams) -> None:
    stream = stream_of([3, 4, 5] * 1000)
    plan = make_plan(stream, 8, 8)
    wrong = PackingPlan(plan.fingerprint, plan.block_documents, plan.rows_K + np.int32(1), plan.num_placed, 8)
    with pytest.raises(ShardError, match=r"block 0 of the documents makes \d+ rows[\s\S]*remove the kept"):
        BestFit(stream, 8, 8, 0, wrong).pieces(np.zeros(1, dtype=np.int64))


def test_pieces_that_would_skip_tokens_are_refused(stream_of: Streams) -> None:
    with pytest.raises(ValueError, match="cannot start every 9"):
        BestFit(stream_of([3]), 8, 9, fill=0)
