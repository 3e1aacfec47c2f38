"""Megatron's files: what is written is what is read, and nothing damaged is."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.errors import ShardError
from launcher.shards.index import read_index, token_dtype
from launcher.shards.manifest import SplitStats, file_entry
from launcher.shards.reader import Split
from launcher.shards.writer import ShardWriter

DOCUMENTS = st.lists(st.lists(st.integers(0, 9_999), min_size=1, max_size=20), max_size=10)


def write(folder: Path, shards: list[list[list[int]]], vocab_size: int) -> Split:
    for number, documents in enumerate(shards):
        with ShardWriter(folder / f"train-{number:05d}", vocab_size) as writer:
            for document in documents:
                writer.append(np.array(document, dtype=np.int64))
    documents = [document for shard in shards for document in shard]
    stats = SplitStats(
        num_documents=len(documents),
        num_tokens=sum(map(len, documents)),
        num_chars=0,
        unigram_entropy=0.0,
        files=tuple(file_entry(path) for path in sorted(folder.iterdir())),
    )
    return Split(folder, stats, vocab_size)


@settings(max_examples=60, deadline=None)
@given(shards=st.lists(DOCUMENTS, max_size=4), vocab_size=st.sampled_from([10_000, 100_000]), data=st.data())
def test_what_was_written_is_read_from_any_place_across_files(
    shards: list[list[list[int]]], vocab_size: int, data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as name:
        split = write(Path(name), shards, vocab_size)
        documents = [document for shard in shards for document in shard]
        stream = [token for document in documents for token in document]
        assert (split.num_documents, split.num_tokens) == (len(documents), len(stream))
        start = data.draw(st.integers(0, len(stream)))
        out = np.empty(data.draw(st.integers(0, len(stream) - start)), dtype=np.int32)
        split.read(start, out)
        assert out.tolist() == stream[start : start + len(out)]
        assert [split.document(number).tolist() for number in range(len(documents))] == documents


def test_the_index_is_megatrons_byte_for_byte(tmp_path: Path) -> None:
    write(tmp_path, [[[1, 2, 3], [4]]], 100)
    expected = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ2i2q3q", 1, 8, 2, 3, 3, 1, 0, 6, 0, 1, 2)
    assert (tmp_path / "train-00000.idx").read_bytes() == expected
    assert (tmp_path / "train-00000.bin").read_bytes() == struct.pack("<4H", 1, 2, 3, 4)


@pytest.mark.parametrize(("vocab_size", "name"), [(65_499, "uint16"), (65_500, "int32")])
def test_ids_take_16_bits_where_the_vocabulary_allows(vocab_size: int, name: str) -> None:
    assert token_dtype(vocab_size).name == name


@pytest.mark.parametrize("token", [-1, 100, 70_000])
def test_an_id_outside_the_vocabulary_is_refused_not_wrapped(tmp_path: Path, token: int) -> None:
    with pytest.raises(ValueError, match="in a vocabulary of 100"), ShardWriter(tmp_path / "x", 100) as writer:
        writer.append(np.array([1, token]))
    assert not (tmp_path / "x.idx").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(lambda raw: b"X" + raw[1:], "no Megatron index", id="bad magic"),
        pytest.param(lambda raw: raw[:20], "no Megatron index", id="cut off in the header"),
        pytest.param(lambda raw: raw[:9] + b"\x02" + raw[10:], "index version 2", id="another version"),
        pytest.param(lambda raw: raw[:17] + b"\x07" + raw[18:], "dtype code 7", id="a dtype we do not write"),
        pytest.param(lambda raw: raw[:-1], "the index has 81 bytes, its header says 82", id="cut off at the end"),
        pytest.param(lambda raw: raw[:34] + b"\x63" + raw[35:], "points outside the 8 bytes", id="too long a document"),
        pytest.param(lambda raw: raw[:-8] + b"\x09" + raw[-7:], "does not run from 0 to its 2", id="wrong last mark"),
    ],
)
def test_a_damaged_index_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes], message: str) -> None:
    write(tmp_path, [[[1, 2, 3], [4]]], 100)
    path = tmp_path / "train-00000.idx"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ShardError, match=message) as caught:
        read_index(path, bin_bytes=8)
    assert caught.value.where == str(path)
    assert caught.value.fix


@pytest.mark.parametrize(("start", "length"), [(-1, 1), (0, 5), (4, 1)])
def test_reading_past_the_ends_is_refused(tmp_path: Path, start: int, length: int) -> None:
    split = write(tmp_path, [[[1, 2, 3], [4]]], 100)
    with pytest.raises(IndexError, match="of 4"):
        split.read(start, np.empty(length, dtype=np.int32))
    with pytest.raises(IndexError, match="document 2 of 2"):
        split.document(2)
