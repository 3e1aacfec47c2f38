"""A damaged folder is found out before a token of the damage is served."""

from __future__ import annotations

import random
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from token_shards import random_documents, write_shards

from launcher.errors import ShardError
from launcher.shards import blocks
from launcher.shards.manifest import CHECKSUMS, MANIFEST, SPLITS, read_manifest
from launcher.shards.reader import Split, Verify, open_split
from launcher.shards.verify import verify

# Enough for several blocks a file.
DOCUMENTS = random_documents(9000, 20)
BLOCK = blocks.BLOCK_BYTES


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "sound"
    write_shards(folder, DOCUMENTS, random_documents(200, 20), documents_per_shard=5000, words=True)
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "shards"))


def problems(folder: Path) -> list[str]:
    try:
        return [problem for problem in verify(folder) if "tokenizer" not in problem]
    except ShardError as error:
        return [f"{error.where}: {error.what}"]


def read_everything(folder: Path, how: Verify = "touch") -> None:
    """Every token, document, word and origin, as training and tracing would."""
    for name in SPLITS:
        split = open_split(folder, name, how)
        split.read(0, np.empty(split.num_tokens, dtype=np.int32))
        split.document_starts(0, split.num_documents)
        split.read_words(0, np.empty(split.num_tokens, dtype=np.bool_))
        for _ in split.origin_blocks():
            pass


def flip(path: Path, place: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1 << (place % 8)
    path.write_bytes(raw)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped bit": (
        lambda f: flip(f / "train-00000.bin", BLOCK + 5),
        r"train-00000.bin: .*block 1 \(bytes 65536 on\)",
    ),
    "a flipped bit in the last block": (lambda f: flip(f / "train-00001.bin", -1), "train-00001.bin: .*block"),
    "a truncated file": (
        lambda f: (f / "train-00000.bin").write_bytes((f / "train-00000.bin").read_bytes()[:-2]),
        r"train-00000.bin: the file has \d+ bytes, \d+ were written",
    ),
    "a longer file": (
        lambda f: (f / "train-00000.idx").write_bytes((f / "train-00000.idx").read_bytes() + b"\0"),
        "train-00000.idx: the file has",
    ),
    "a missing file": (lambda f: (f / "train-00001.idx").unlink(), "train-00001.idx: a file of the shards is missing"),
    "a renamed file": (
        lambda f: (f / "train-00001.bin").rename(f / "train-00002.bin"),
        "train-00001.bin: a file of the shards is missing",
    ),
    "a folder in its place": (
        lambda f: ((f / "train-00001.bin").unlink(), (f / "train-00001.bin").mkdir()),
        "train-00001.bin: there is something else",
    ),
    "another file of the same size": (
        lambda f: (f / "train-00000.bin").write_bytes(bytes((f / "train-00000.bin").stat().st_size)),
        "train-00000.bin: the bytes are not those that were written: block 0",
    ),
    "an index of another length": (lambda f: flip(f / "train-00000.idx", 18), "train-00000.idx: .*block 0"),
    "an index that points elsewhere": (lambda f: flip(f / "train-00000.idx", -9), "train-00000.idx: .*block"),
    "a foreign index": (
        lambda f: (f / "train-00000.idx").write_bytes(b"x" * (f / "train-00000.idx").stat().st_size),
        "train-00000.idx: .*block 0",
    ),
    "words of others": (lambda f: flip(f / "train-00000.words", 3), "train-00000.words: .*block 0"),
    "origins of others": (lambda f: flip(f / "train-00001.docs", BLOCK), "train-00001.docs: .*block 1"),
    "held-out text": (lambda f: flip(f / "validation-00002.bin", 9), "validation-00002.bin: .*block 0"),
    "checksums of others": (lambda f: flip(f / CHECKSUMS, 7), f"{CHECKSUMS}: the checksums are not those"),
    "checksums cut off": (lambda f: (f / CHECKSUMS).write_bytes(b""), f"{CHECKSUMS}: the file has 0 bytes"),
    "a manifest of another count": (
        lambda f: (f / MANIFEST).write_text((f / MANIFEST).read_text().replace("9000", "9001", 1)),
        f"{MANIFEST}: the manifest is not what was written",
    ),
    "half a manifest": (
        lambda f: (f / MANIFEST).write_text((f / MANIFEST).read_text()[:300]),
        f"{MANIFEST}: the manifest cannot be read",
    ),
    "a manifest without its last byte": (
        lambda f: (f / MANIFEST).write_text((f / MANIFEST).read_text()[:-1]),
        f"{MANIFEST}: the manifest is not what was written",
    ),
    "no manifest": (lambda f: (f / MANIFEST).unlink(), f"{MANIFEST}: the manifest is missing"),
    "nothing": (lambda f: shutil.rmtree(f), "there are no shards here"),
    "a file where the folder was": (lambda f: (shutil.rmtree(f), f.touch()), "there are no shards here"),
}


@pytest.mark.parametrize(("damage", "says"), list(DAMAGE.values()), ids=list(DAMAGE))
def test_damage_is_named_by_file_and_block_and_never_served(
    folder: Path, damage: Callable[[Path], object], says: str
) -> None:
    damage(folder)
    with pytest.raises(ShardError) as error:
        read_everything(folder)
    assert error.value.fix
    with pytest.raises(ShardError):
        read_everything(folder, "open")
    assert len(problems(folder)) >= 1
    assert re.search(says, problems(folder)[0])
    assert re.search(says, f"{error.value.where}: {error.value.what}")


def test_what_lies_in_sound_blocks_is_served_until_the_damaged_one_is_touched(folder: Path) -> None:
    flip(folder / "train-00000.bin", 2 * BLOCK)
    split = open_split(folder, "train")
    stream = np.concatenate(DOCUMENTS[:5000])
    out = np.empty(BLOCK, dtype=np.int32)  # two bytes a token: the first two blocks
    split.read(0, out)
    assert out.tolist() == stream[: len(out)].tolist()
    with pytest.raises(ShardError, match="block 2"):
        split.read(len(out), out[:1])


@pytest.mark.parametrize("damaged", [0, BLOCK - 2, BLOCK, 2 * BLOCK - 1])
def test_windows_that_touch_the_damaged_block_are_not_served_and_all_others_are(folder: Path, damaged: int) -> None:
    flip(folder / "train-00000.bin", damaged)
    split, stride, width = open_split(folder, "train"), 300, 301
    stream, out = np.concatenate(DOCUMENTS[:5000]), np.empty((1, 301), dtype=np.int32)
    bad = damaged // BLOCK
    for window in range((len(stream) - width) // stride):
        start = window * stride
        if start * 2 // BLOCK <= bad <= (2 * (start + width) - 1) // BLOCK:
            with pytest.raises(ShardError, match=f"block {bad} "):
                split.read_windows(np.array([window]), stride, out)
        else:
            assert split.read_windows(np.array([window]), stride, out)
            assert out[0].tolist() == stream[start : start + width].tolist()


def test_who_turns_checking_off_is_served_what_is_there(folder: Path) -> None:
    flip(folder / "train-00000.bin", 2 * BLOCK)
    read_everything(folder, "off")


def test_a_block_that_two_threads_check_at_once_counts_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the count would be 0 before the last block is checked, and its damage served."""
    path = folder / "train-00000.bin"
    last = (path.stat().st_size - 1) // BLOCK
    flip(path, last * BLOCK)
    split = open_split(folder, "train")
    split.read(0, np.empty(0, dtype=np.int32))  # opens the file, and checks nothing of it
    both, hash_block = threading.Barrier(2), blocks.xxh3_64_intdigest

    def hash_with_the_other(block: memoryview) -> int:
        both.wait(10)
        return hash_block(block)

    def read() -> None:
        split.read(0, np.empty(10, dtype=np.int32))

    with monkeypatch.context() as patched:
        patched.setattr(blocks, "xxh3_64_intdigest", hash_with_the_other)
        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for block in range(1, last):
        split.read(block * BLOCK // 2, np.empty(1, dtype=np.int32))
    with pytest.raises(ShardError, match="the bytes are not those that were written"):
        split.read(last * BLOCK // 2, np.empty(1, dtype=np.int32))


def test_what_points_outside_is_refused_with_its_file_also_where_checking_is_off(sound: Path, folder: Path) -> None:
    """Flipped bits of the index's lengths, pointers and documents, and of origins: a ShardError, or places in range."""
    rng, errors = random.Random(3), []
    for name in ("train-00000.idx", "train-00000.docs"):
        before = (sound / name).read_bytes()
        for _ in range(60):
            flip(folder / name, rng.randrange(34, len(before)))
            split = open_split(folder, "train", "off")
            try:
                starts = split.document_starts(0, 5000)
                assert (np.diff([0, *starts, split.num_tokens]) >= 0).all()
                for document in range(0, 5000, 7):
                    split.document(document)
                    split.sequence_starts(document)
                    assert split.origin(document).source
                for _ in split.origin_blocks():
                    pass
            except ShardError as error:
                errors.append((name, error))
            (folder / name).write_bytes(before)
    assert len(errors) > 30
    for name, error in errors:
        assert name in error.where
        assert error.fix


def test_a_document_found_by_a_damaged_index_is_not_believed(folder: Path) -> None:
    """A search probes blocks that nobody has checked; where it ends is held against one that is."""
    split = open_split(folder, "train")
    tokens = np.arange(0, 60000, 97)
    truth = split.documents_at(tokens)
    raw = bytearray((folder / "train-00000.idx").read_bytes())
    rng = random.Random(0)
    for _ in range(60):
        raw[rng.randrange(34 + 4 * 5000, len(raw))] ^= 0x55
    (folder / "train-00000.idx").write_bytes(raw)
    damaged = open_split(folder, "train")
    for token, document in zip(tokens, truth, strict=True):
        try:
            found = damaged.documents_at(np.array([token])).tolist()
        except ShardError:
            continue
        assert found == [document]


def test_random_damage_of_any_file_is_always_found(sound: Path, tmp_path: Path) -> None:
    """Truncations, bit flips and swapped files; `benchmarks/corruption.py` does a thousand."""
    rng = random.Random(7)
    folder = Path(shutil.copytree(sound, tmp_path / "shards"))
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.parent == folder)
    served = 0
    for _ in range(100):
        path = rng.choice(files)
        before = path.read_bytes()
        kind = rng.choice(("truncate", "flip", "swap"))
        other = rng.choice([file for file in files if file.read_bytes() != before])
        if kind == "truncate":
            path.write_bytes(before[: rng.randrange(len(before))])
        elif kind == "flip":
            flip(path, rng.randrange(len(before)))
        else:
            path.write_bytes(other.read_bytes())
        assert problems(folder), f"{kind} of {path.name} was not found"
        try:
            read_everything(folder)
            served += 1
        except ShardError:
            pass
        path.write_bytes(before)
    assert served == 0
    assert problems(folder) == []


def test_a_split_that_is_not_there_is_told_with_the_nearest(folder: Path) -> None:
    with pytest.raises(ShardError, match="did you mean 'validation'"):
        Split(folder, "validatoin", read_manifest(folder))


def test_shards_without_words_say_how_to_get_them(tmp_path: Path) -> None:
    write_shards(tmp_path / "plain", DOCUMENTS[:5])
    split = open_split(tmp_path / "plain", "train")
    assert not split.has_words
    with pytest.raises(ShardError, match="--words"):
        split.read_words(0, np.empty(1, dtype=np.bool_))
