"""Token files of other programs, taken as they are: the same tokens and documents, nothing copied, damage found."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from token_shards import END, random_documents

from launcher.errors import ShardError
from launcher.prepare.adopt import adopt
from launcher.prepare.tokenizer import load_tokenizer
from launcher.shards.index import index_bytes
from launcher.shards.reader import open_split
from launcher.shards.search import find_documents
from launcher.shards.verify import verify

DOCUMENTS = random_documents(40, 12, vocab_size=250)
LENGTHS = np.array([len(document) for document in DOCUMENTS], dtype=np.int32)
STREAM = np.concatenate(DOCUMENTS)


def megatron(folder: Path, dtype: str = "<u2") -> Path:
    path = folder / "corpus_text_document.bin"
    STREAM.astype(dtype).tofile(path)
    path.with_suffix(".idx").write_bytes(index_bytes(np.dtype(dtype), LENGTHS))
    return path


def datatrove(folder: Path, dtype: str = "<u2", metadata: bool = True) -> Path:
    path = folder / "00000_unshuffled.ds"
    STREAM.astype(dtype).tofile(path)
    np.cumsum(LENGTHS, dtype=np.uint64).astype("<u8").tofile(folder / f"{path.name}.index")
    if metadata:
        text = f"tokenizer.json|{np.dtype(dtype).itemsize}\n{len(STREAM)}\n0.0 BT"
        (folder / f"{path.name}.metadata").write_text(text, encoding="utf-8")
    return path


def flat(folder: Path, dtype: str, name: str = "train.bin") -> Path:
    path = folder / name
    STREAM.astype(dtype).tofile(path)
    return path


@pytest.mark.parametrize(
    ("make", "dtype"),
    [
        (lambda f: megatron(f), None),
        (lambda f: megatron(f, "<i4"), None),
        (lambda f: megatron(f).with_suffix(".idx"), None),
        (lambda f: datatrove(f), None),
        (lambda f: datatrove(f, "<u4"), None),
        (lambda f: datatrove(f, "<u4", metadata=False), None),
        (lambda f: flat(f, "<u2"), "uint16"),
        (lambda f: flat(f, "<u4", "part-0-00000.npy"), "uint32"),
    ],
    ids=["Megatron", "Megatron int32", "by its index", "datatrove", "datatrove u32", "no metadata", "nanoGPT", "OLMo"],
)
def test_tokens_and_documents_are_those_of_the_file_and_nothing_is_copied(
    tmp_path: Path, tokenizer_folder: Path, make: object, dtype: str | None
) -> None:
    path = make(tmp_path)  # type: ignore[operator]
    end = END if dtype else None
    manifest = adopt([path], [], tokenizer_folder, tmp_path / "out", dtype=dtype, document_end=end)
    assert verify(tmp_path / "out") == []
    split = open_split(tmp_path / "out", "train")
    assert [split.document(number).tolist() for number in range(split.num_documents)] == DOCUMENTS
    assert split.origin(7).number == 8
    assert split.origin(7).source.endswith(path.with_suffix(".bin").name if path.suffix == ".idx" else path.name)
    assert (tmp_path / "out" / "train-00000.bin").is_symlink()
    assert manifest.splits["validation"].num_documents == 0
    assert manifest.splits["train"].unigram_entropy > 3


def test_several_files_make_one_stream_and_others_are_held_out(tmp_path: Path, tokenizer_folder: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    paths = [megatron(tmp_path / "a"), datatrove(tmp_path / "b")]
    adopt(paths, [megatron(tmp_path / "c")], tokenizer_folder, tmp_path / "out")
    train, validation = (open_split(tmp_path / "out", name) for name in ("train", "validation"))
    assert (train.num_documents, validation.num_documents) == (80, 40)
    assert train.document(40).tolist() == DOCUMENTS[0]
    assert train.origin(40).number == 1


def test_datatroves_file_of_a_task_that_was_left_without_documents_is_taken(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    """As datatrove 0.10.1 writes it where a filter leaves nothing to a task: tokens and index of no bytes."""
    full, empty = datatrove(tmp_path), tmp_path / "00001_unshuffled.ds"
    for suffix in ("", ".index"):
        empty.with_name(empty.name + suffix).touch()
    empty.with_name(empty.name + ".metadata").write_text("tokenizer.json|2\n0\n0.00 T", encoding="utf-8")
    adopt([full, empty], [], tokenizer_folder, tmp_path / "out")
    assert verify(tmp_path / "out") == []
    split = open_split(tmp_path / "out", "train")
    assert [split.document(number).tolist() for number in range(split.num_documents)] == DOCUMENTS


def test_documents_without_a_text_have_no_hash_that_an_exclude_list_could_name_them_all_by(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    adopt([megatron(tmp_path)], [], tokenizer_folder, tmp_path / "out")
    split = open_split(tmp_path / "out", "train")
    assert split.origin(3).text_hash == ""
    assert find_documents(split, ["0" * 32, f"{tmp_path / 'corpus_text_document.bin'}:4"]) == {
        "0" * 32: [],
        f"{tmp_path / 'corpus_text_document.bin'}:4": [3],
    }


def test_a_file_is_taken_once_under_whatever_names_and_never_both_trained_on_and_held_out(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    path = megatron(tmp_path)
    again = [path, path.with_suffix(".idx"), tmp_path / "." / path.name]
    adopt(again, [], tokenizer_folder, tmp_path / "out")
    assert open_split(tmp_path / "out", "train").num_tokens == len(STREAM)
    with pytest.raises(ShardError, match=r"trained on and held out[\s\S]*fix:"):
        adopt([path], [path.with_suffix(".idx")], tokenizer_folder, tmp_path / "other")


def test_a_byte_that_flips_after_adoption_is_found(tmp_path: Path, tokenizer_folder: Path) -> None:
    path = megatron(tmp_path)
    adopt([path], [], tokenizer_folder, tmp_path / "out")
    raw = bytearray(path.read_bytes())
    raw[100] ^= 1
    path.write_bytes(raw)
    assert "train-00000.bin: the bytes are not those that were written: block 0" in verify(tmp_path / "out")[0]


def _cut(path: Path, drop: int) -> Path:
    path.write_bytes(path.read_bytes()[:-drop])
    return path


def _broken_index(folder: Path, offset: int, value: bytes) -> Path:
    path = megatron(folder)
    index = path.with_suffix(".idx")
    raw = bytearray(index.read_bytes())
    raw[offset : offset + len(value)] = value
    index.write_bytes(raw)
    return path


BAD = {
    "no such file": (lambda f: f / "nothing.bin", {}, "there is no such file"),
    "truncated tokens": (lambda f: _cut(megatron(f), 2), {}, "points outside"),
    "truncated index": (lambda f: _cut(megatron(f).with_suffix(".idx"), 8), {}, "its header says"),
    "no index of Megatron's": (lambda f: _broken_index(f, 0, b"X"), {}, "no Megatron index"),
    "another version": (lambda f: _broken_index(f, 9, struct.pack("<Q", 2)), {}, "index version 2"),
    "8-byte tokens": (lambda f: _broken_index(f, 17, b"\x05"), {}, "dtype code 5"),
    "a hole": (lambda f: _broken_index(f, 34 + 4 * 40 + 8, struct.pack("<q", 4)), {}, "one after another"),
    "documents that go back": (lambda f: _broken_index(f, 34 + 12 * 40 + 8, struct.pack("<q", 39)), {}, "does not run"),
    "datatrove without index": (lambda f: _without(datatrove(f)), {}, "datatrove's index cannot be read"),
    "datatrove's index and a byte more": (lambda f: _and_a_byte(datatrove(f)), {}, "datatrove's index cannot be read"),
    "datatrove's metadata": (
        lambda f: _nonsense(datatrove(f)),
        {},
        r"metadata cannot be read[\s\S]*where: .*\.metadata",
    ),
    "datatrove's index goes back": (lambda f: _with_end(datatrove(f), 7, 1), {}, r"goes back[\s\S]*where: .*\.index"),
    "datatrove's first end is a huge one": (lambda f: _with_end(datatrove(f), 0, -5), {}, "the index goes back"),
    "datatrove cut": (lambda f: _cut(datatrove(f), 1), {}, "the index ends at token"),
    "flat without a type": (lambda f: flat(f, "<u2"), {}, "does not tell its type"),
    "datatrove with a document too long": (lambda f: _endless(f), {}, "document 0 has 2147483648 tokens"),
    "flat and empty": (lambda f: _cut(flat(f, "<u2"), 2 * len(STREAM)), {"dtype": "uint16"}, "the file is empty"),
    "flat with half a token": (lambda f: _cut(flat(f, "<u2"), 1), {"dtype": "uint16"}, "no number of uint16"),
    "flat with the wrong type": (lambda f: flat(f, "<u4"), {"dtype": "uint16"}, "say --dtype uint32"),
    "flat without ends": (lambda f: flat(f, "<u2"), {"dtype": "uint16", "document_end": 99999}, "does not occur"),
    "numpy's header": (lambda f: _numpy(f), {"dtype": "uint16"}, "numpy's header"),
    "another tokenizer": (lambda f: _foreign(f), {}, "not in the tokenizer's vocabulary of"),
    "a name that is taken": (lambda f: _taken(f), {}, "something under this name already"),
}


def _with_end(path: Path, document: int, end: int) -> Path:
    index = path.with_name(path.name + ".index")
    ends = np.fromfile(index, dtype="<i8")
    ends[document] = end
    ends.tofile(index)
    return path


def _without(path: Path) -> Path:
    path.with_name(path.name + ".index").unlink()
    return path


def _and_a_byte(path: Path) -> Path:
    with path.with_name(path.name + ".index").open("ab") as file:
        file.write(b"\0")
    return path


def _endless(folder: Path) -> Path:
    path = datatrove(folder)
    os.truncate(path, 2 << 31)  # a hole: takes no room
    np.array([1 << 31], dtype="<u8").tofile(path.with_name(path.name + ".index"))
    return path


def _nonsense(path: Path) -> Path:
    path.with_name(path.name + ".metadata").write_text("nonsense")
    return path


def _numpy(folder: Path) -> Path:
    np.save(folder / "tokens.npy", STREAM.astype("<u2"))
    return folder / "tokens.npy"


def _foreign(folder: Path) -> Path:
    path = megatron(folder)
    np.where(STREAM[7] == STREAM, 60_000, STREAM).astype("<u2").tofile(path)
    return path


def _taken(folder: Path) -> Path:
    (folder / "out").mkdir()
    return megatron(folder)


@pytest.mark.parametrize(("make", "options", "says"), list(BAD.values()), ids=list(BAD))
def test_a_file_that_is_not_what_it_seems_is_refused_and_leaves_nothing(
    tmp_path: Path, tokenizer_folder: Path, make: object, options: dict[str, object], says: str
) -> None:
    path = make(tmp_path)  # type: ignore[operator]
    with pytest.raises(ShardError, match=says) as error:
        adopt([path], [], tokenizer_folder, tmp_path / "out", **options)  # type: ignore[arg-type]
    assert error.value.fix
    assert "--overwrite" not in error.value.fix, "nothing here was prepared"
    assert not any(entry.name.startswith(".out") for entry in tmp_path.iterdir())


def test_the_vocabulary_is_that_of_the_tokenizer(tmp_path: Path, tokenizer_folder: Path) -> None:
    manifest = adopt([megatron(tmp_path)], [], tokenizer_folder, tmp_path / "out")
    assert manifest.tokenizer == load_tokenizer(tokenizer_folder).info
