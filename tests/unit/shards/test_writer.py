"""Megatron's files: what is written is what is read."""

from __future__ import annotations

import pickle
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from token_shards import write_shards

from launcher.shards.index import token_dtype
from launcher.shards.origins import ORIGIN
from launcher.shards.reader import open_split
from launcher.shards.writer import Documents, HashedFile, ShardWriter

DOCUMENTS = st.lists(st.lists(st.integers(0, 9_999), min_size=1, max_size=20), max_size=12)


@settings(max_examples=60, deadline=None)
@given(
    documents=DOCUMENTS,
    vocab_size=st.sampled_from([10_000, 100_000]),
    documents_per_shard=st.integers(1, 5),
    data=st.data(),
)
def test_what_was_written_is_read_from_any_place_across_shards(
    documents: list[list[int]], vocab_size: int, documents_per_shard: int, data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "shards"
        write_shards(folder, documents, vocab_size=vocab_size, documents_per_shard=documents_per_shard)
        split = open_split(folder, "train")
        stream = [token for document in documents for token in document]
        assert (split.num_documents, split.num_tokens) == (len(documents), len(stream))
        start = data.draw(st.integers(0, len(stream)))
        out = np.empty(data.draw(st.integers(0, len(stream) - start)), dtype=np.int32)
        split.read(start, out)
        assert out.tolist() == stream[start : start + len(out)]
        assert [split.document(number).tolist() for number in range(len(documents))] == documents


def test_the_index_is_megatrons_byte_for_byte(tmp_path: Path) -> None:
    write_shards(tmp_path / "plain", [[1, 2, 3], [4]])
    expected = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ2i2q3q", 1, 8, 2, 3, 3, 1, 0, 6, 0, 1, 2)
    assert (tmp_path / "plain" / "train-00000.idx").read_bytes() == expected


def test_a_sentence_is_a_sequence_and_a_document_several(tmp_path: Path) -> None:
    write_shards(tmp_path / "sentences", [[1, 2, 3], [4]], sentence_length=2)
    expected = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ3i3q3q", 1, 8, 3, 3, 2, 1, 1, 0, 4, 6, 0, 2, 3)
    assert (tmp_path / "sentences" / "train-00000.idx").read_bytes() == expected


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(10, "uint16"), (65_499, "uint16"), (65_500, "int32"), (250_000, "int32")]
)
def test_ids_take_two_bytes_where_megatron_lets_them(vocab_size: int, dtype: str) -> None:
    assert token_dtype(vocab_size).name == dtype


@pytest.mark.parametrize(
    ("tokens", "lengths", "reason"),
    [
        ([300], [1], "an id of the vocabulary's size"),
        ([-1], [1], "a negative id"),
        ([65_536 + 5], [1], "an id that 16 bits would wrap into another"),
        ([1, 2], [1], "fewer tokens told than given"),
        ([1], [2], "more tokens told than given"),
        ([1, 2], [1, 1], "an origin too few"),
    ],
)
def test_what_does_not_add_up_is_never_written(
    tmp_path: Path, tokens: list[int], lengths: list[int], reason: str
) -> None:
    documents = Documents(
        tokens_N=np.array(tokens, dtype=np.int32),
        lengths_D=np.array(lengths, dtype=np.int32),
        origins_D=np.zeros(1, dtype=ORIGIN),
    )
    with pytest.raises(ValueError, match=r"\d+"), ShardWriter(tmp_path / "train-00000", 300) as writer:
        writer.append(documents)
    assert not (tmp_path / "train-00000.idx").exists(), reason


def test_words_must_be_told_of_every_batch_where_they_are_told(tmp_path: Path) -> None:
    documents = Documents(
        tokens_N=np.array([7], dtype=np.int32), lengths_D=np.array([1], dtype=np.int32), origins_D=np.zeros(1, ORIGIN)
    )
    writer = ShardWriter(tmp_path / "train-00000", 300, words=True)
    with pytest.raises(ValueError, match="continue a word"), writer:
        writer.append(documents)


def test_of_a_full_disk_the_file_is_named_also_to_another_process(tmp_path: Path) -> None:
    path = tmp_path / "train-00000.bin"
    path.symlink_to("/dev/full")
    with pytest.raises(OSError, match=f"No space left on device: '{path}'") as error:
        HashedFile(path).write(bytes(1 << 20))
    assert pickle.loads(pickle.dumps(error.value)).filename == str(path)
