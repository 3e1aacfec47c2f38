"""Reading shards: the stream is what was written, however it is cut into shards, and every way of reading agrees."""

from __future__ import annotations

import errno
import mmap
from pathlib import Path

import numpy as np
import pytest
from token_shards import continues, random_documents, text_hash, write_shards

from launcher.errors import RequeueError, ShardError
from launcher.shards.blocks import BLOCK_BYTES
from launcher.shards.gather import leave_all
from launcher.shards.manifest import read_manifest
from launcher.shards.reader import Split, open_split
from launcher.shards.search import excluded_documents, find_documents, read_names
from launcher.shards.verify import verify

DOCUMENTS = random_documents(90, 12)
HELD_OUT = random_documents(9, 8, seed=1)
STREAM = np.concatenate(DOCUMENTS)
LONGEST = max(range(len(DOCUMENTS)), key=lambda number: len(DOCUMENTS[number]))


@pytest.fixture(scope="module", params=[1 << 30, 20, 1], ids=["one shard", "five shards", "a shard a document"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shards") / "shards"
    write_shards(path, DOCUMENTS, HELD_OUT, documents_per_shard=request.param, words=True, sentence_length=5)
    return path


@pytest.fixture(scope="module")
def split(folder: Path) -> Split:
    return open_split(folder, "train")


def test_a_folder_is_what_its_manifest_says(folder: Path) -> None:
    manifest = read_manifest(folder)
    assert [name for name in verify(folder) if "tokenizer" not in name] == []
    assert (manifest.splits["train"].num_documents, manifest.splits["validation"].num_documents) == (90, 9)


def test_the_stream_is_the_documents_end_to_end(split: Split) -> None:
    assert (split.num_tokens, split.num_documents) == (len(STREAM), len(DOCUMENTS))
    rng = np.random.default_rng(0)
    for _ in range(200):
        start, end = sorted(rng.integers(0, len(STREAM) + 1, 2).tolist())
        out = np.empty(end - start, dtype=np.int32)
        split.read(start, out)
        assert out.tolist() == STREAM[start:end].tolist()


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint16])
def test_rows_are_read_into_any_integer_type_and_leave_the_rest_as_it_is(split: Split, dtype: type) -> None:
    rng = np.random.default_rng(1)
    starts = rng.integers(0, len(STREAM) - 40, 16)
    lengths = rng.integers(0, 41, 16)
    out = np.full((16, 40), 7, dtype=dtype)
    split.read_rows(starts, lengths, out)
    for row, start, length in zip(out, starts, lengths, strict=True):
        assert row[:length].tolist() == STREAM[start : start + length].tolist()
        assert (row[length:] == 7).all()


@pytest.mark.parametrize("is_compiled", [True, False], ids=["compiled", "not compiled"])
@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint16])
@pytest.mark.parametrize(("width", "stride"), [(8, 8), (9, 8), (3, 1), (40, 17)])
def test_windows_are_stretches_of_the_stream_in_any_order(
    folder: Path, dtype: type, width: int, stride: int, is_compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_compiled:
        monkeypatch.setattr("launcher.shards.reader.gather", leave_all)
    split = open_split(folder, "train")  # its blocks are checked on the way
    last = (len(STREAM) - width) // stride
    rng = np.random.default_rng(2)
    for windows in (np.arange(last + 1), rng.integers(0, last + 1, 16), np.array([last])):
        out = np.empty((len(windows), width), dtype=dtype)
        assert split.read_windows(windows, stride, out)
        assert out.tolist() == [STREAM[w * stride : w * stride + width].tolist() for w in windows.tolist()]
    for outside in (-1, last + 1):
        assert not split.read_windows(np.array([0, outside]), stride, out)


def test_documents_know_where_they_lie(split: Split) -> None:
    starts = np.cumsum([0, *map(len, DOCUMENTS)])
    assert split.document_starts(0, len(DOCUMENTS)).tolist() == starts.tolist()
    assert split.document_starts(17, 43).tolist() == starts[17:44].tolist()
    assert [split.document_starts(n, n).tolist() for n in (0, 20, 90)] == [[0], [starts[20]], [starts[90]]]
    assert (
        split.documents_at(np.arange(len(STREAM))).tolist()
        == np.repeat(np.arange(90), list(map(len, DOCUMENTS))).tolist()
    )
    assert [split.document(number).tolist() for number in range(90)] == DOCUMENTS


def test_sentences_are_sequences_of_their_document(split: Split) -> None:
    for number, document in enumerate(DOCUMENTS):
        lengths = np.diff(split.sequence_starts(number)).tolist()
        assert lengths == [len(document[i : i + 5]) for i in range(0, len(document), 5)]


def test_sentences_of_many_documents_are_those_of_each(split: Split) -> None:
    for first, last in ((0, 90), (17, 43), (20, 20), (39, 41)):
        lengths, counts = split.sequence_lengths(first, last)
        alone = [np.diff(split.sequence_starts(number)).tolist() for number in range(first, last)]
        assert lengths.tolist() == [length for each in alone for length in each]
        assert counts.tolist() == [len(each) for each in alone]
    with pytest.raises(IndexError, match="documents 3 to 91 of 90"):
        split.sequence_lengths(3, 91)


def test_words_are_told_token_by_token(split: Split) -> None:
    expected = continues(DOCUMENTS)
    for start, end in ((0, len(STREAM)), (3, 5), (7, 8), (9, 131), (64, 64)):
        out = np.empty(end - start, dtype=np.bool_)
        split.read_words(start, out)
        assert out.tolist() == expected[start:end]


def test_every_document_knows_its_file_line_and_text(split: Split) -> None:
    for number in (0, 1, 19, 20, 89):
        origin = split.origin(number)
        assert (origin.source, origin.number, origin.num_chars) == ("train.jsonl", number + 1, 10)
        assert origin.text_hash == text_hash(DOCUMENTS[number])


def test_documents_are_found_by_line_and_by_text(split: Split) -> None:
    names = [
        "train.jsonl:1",
        "train.jsonl:90",
        text_hash(DOCUMENTS[LONGEST]),
        "train.jsonl:91",
        "validation.jsonl:1",
        "0" * 32,
    ]
    assert list(find_documents(split, names).values()) == [[0], [89], [LONGEST], [], [], []]


def test_a_remark_stands_behind_a_name_and_the_name_of_a_file_may_hold_its_sign(tmp_path: Path) -> None:
    file = tmp_path / "takedown.txt"
    file.write_text("# all of them\nx.jsonl:3 # at 12:30\n  a #1.jsonl:5\n")
    assert read_names(file) == ["x.jsonl:3", "a #1.jsonl:5"]


def test_the_mark_that_editors_of_windows_put_first_is_no_part_of_a_name(tmp_path: Path) -> None:
    (tmp_path / "takedown.txt").write_bytes("\ufeffx.jsonl:3\r\nx.jsonl:4\r\n".encode())
    assert read_names(tmp_path / "takedown.txt") == ["x.jsonl:3", "x.jsonl:4"]


@pytest.mark.parametrize("digits", [18, 19, 20, 30])
def test_no_line_has_a_number_that_is_too_large_for_any_file(split: Split, digits: int) -> None:
    name = f"train.jsonl:{'9' * digits}"
    assert find_documents(split, [name, "train.jsonl:1"]) == {name: [], "train.jsonl:1": [0]}


def test_an_exclude_list_names_documents_of_any_split(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "takedown.txt"
    file.write_text(f"# complaint 7\ntrain.jsonl:3\n\n{text_hash(DOCUMENTS[LONGEST])}  # a poem\nvalidation.jsonl:2\n")
    splits = {name: open_split(folder, name) for name in ("train", "validation")}
    found = excluded_documents(file, splits)
    assert {name: documents.tolist() for name, documents in found.items()} == {
        "train": sorted([2, LONGEST]),
        "validation": [1],
    }


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("train.jsonl:3\ntrain.jsonl:91\n", "no document is called train.jsonl:91"),
        ("the third one\n", "'the third one' names no document"),
    ],
)
def test_a_name_that_nobody_bears_is_no_silent_exclusion(folder: Path, tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "takedown.txt"
    file.write_text(text)
    with pytest.raises(ShardError, match=says):
        excluded_documents(file, {"train": open_split(folder, "train")})
    with pytest.raises(ShardError, match="cannot be read"):
        read_names(tmp_path / "nothing.txt")


@pytest.mark.parametrize("tokens", [[-1], [len(STREAM)], [0, len(STREAM)]])
def test_what_lies_outside_is_refused(split: Split, tokens: list[int]) -> None:
    with pytest.raises(IndexError):
        split.documents_at(np.array(tokens))
    with pytest.raises(IndexError):
        split.read_rows(np.array(tokens), np.full(len(tokens), 2), np.empty((len(tokens), 2), np.int32))
    with pytest.raises(IndexError):
        split.document(90)
    with pytest.raises(IndexError):
        split.origin(90)


def test_the_same_documents_have_the_same_fingerprint_and_others_another(folder: Path, tmp_path: Path) -> None:
    write_shards(tmp_path / "again", DOCUMENTS)
    write_shards(tmp_path / "other", [*DOCUMENTS[:-1], [25, *DOCUMENTS[-1][1:]]])
    write_shards(tmp_path / "cut", [DOCUMENTS[0][:1], [*DOCUMENTS[0][1:], *DOCUMENTS[1]], *DOCUMENTS[2:]])
    prints = [open_split(tmp_path / name, "train").fingerprint for name in ("again", "other", "cut")]
    assert len(set(prints)) == 3
    assert open_split(tmp_path / "again", "train").fingerprint == prints[0]


def test_reading_ahead_changes_nothing(split: Split) -> None:
    split.advise(np.array([0, 5, len(STREAM) - 1, len(STREAM)]), np.array([10, 5000, 100, 1]))
    out = np.empty(len(STREAM), dtype=np.int32)
    split.read(0, out)
    assert out.tolist() == STREAM.tolist()


def test_the_kernel_is_told_that_order_is_random_and_which_blocks_come_next(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, ...]] = []

    class Told(mmap.mmap):
        def madvise(self, *advice: int) -> None:
            told.append(advice)

    monkeypatch.setattr(mmap, "mmap", Told)
    split = open_split(folder, "train")
    split.advise(np.array([3]), np.array([5]))
    size = (folder / "train-00000.bin").stat().st_size
    assert told == [(mmap.MADV_RANDOM,), (mmap.MADV_WILLNEED, 0, min(size, BLOCK_BYTES))]


def test_a_list_whose_place_is_gone_is_nobodys_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path, **options: str) -> str:
        raise OSError(errno.ESTALE, "Stale file handle", str(self))

    monkeypatch.setattr(Path, "read_text", fail)
    with pytest.raises(RequeueError, match=r"cannot be reached: .*Stale file handle"):
        read_names(tmp_path / "takedown.txt")
