"""Shards that the system does not let us open: told as what it is, or put right."""

from __future__ import annotations

import errno
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from token_shards import random_documents, write_shards

from launcher.errors import RequeueError, ShardError
from launcher.shards import blocks
from launcher.shards.manifest import CHECKSUMS, MANIFEST, read_manifest
from launcher.shards.reader import open_split
from launcher.shards.verify import tokenizer_problems, verify

NUM_SHARDS = 150
DOCUMENTS = random_documents(2 * NUM_SHARDS, 20)
READ_ALL = """
import resource, sys
from pathlib import Path
import numpy as np
from launcher.errors import ShardError
from launcher.shards.reader import open_split
limits = int(sys.argv[2]), int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_NOFILE, limits)
split = open_split(Path(sys.argv[1]), "train")
try:
    split.read(0, np.empty(split.num_tokens, dtype=np.int32))
except ShardError as error:
    print(error)
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "many"
    write_shards(folder, DOCUMENTS, documents_per_shard=2)
    return folder


def read_all(folder: Path, soft: int, hard: int) -> list[str]:
    command = [sys.executable, "-c", READ_ALL, str(folder), str(soft), str(hard)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def test_a_rank_raises_its_own_limit_of_open_files_before_it_is_reached(many: Path) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert hard == resource.RLIM_INFINITY or hard > 1024
    (soft,) = read_all(many, 100, hard)
    assert int(soft) > NUM_SHARDS + 256  # with room for others


def test_a_limit_that_cannot_be_raised_is_told_and_no_file_is_blamed(many: Path) -> None:
    what, where, fix, soft = read_all(many, 100, 120)
    assert what == "ShardError: the file cannot be read: Too many open files"
    assert ".bin" in where
    assert "hard limit above 120" in fix
    assert soft == "120"


@pytest.mark.parametrize(("code", "fix"), [(errno.EACCES, "chmod a+r"), (errno.ENOMEM, "vm.max_map_count")])
@pytest.mark.parametrize("file", [MANIFEST, CHECKSUMS, "train-00000.bin"])
def test_a_file_that_may_not_be_read_is_named_with_what_to_do(
    code: int, fix: str, file: str, many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, file, code)
    with pytest.raises(ShardError) as error:
        open_split(many, "train").read(0, np.empty(1, dtype=np.int32))
    assert error.value.where == str(many / file)
    assert fix in error.value.fix


@pytest.mark.parametrize("file", [MANIFEST, CHECKSUMS, "train-00000.bin"])
def test_a_file_system_that_is_gone_is_no_damage(file: str, many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another start may find it: the process ends with "requeue", not with "restore the file"."""
    refuse(monkeypatch, file, errno.ESTALE)
    with pytest.raises(RequeueError, match="the file system failed: refused") as error:
        open_split(many, "train").read(0, np.empty(1, dtype=np.int32))
    assert error.value.where == str(many / file)


def test_a_tokenizer_that_may_not_be_read_is_a_problem_like_any_other(
    many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = read_manifest(many)
    refuse(monkeypatch, "tokenizer.json", errno.EACCES)
    assert list(tokenizer_problems(many, manifest)) == [
        f"{many}/tokenizer/tokenizer.json: a file of the tokenizer cannot be read: refused"
    ]
    refuse(monkeypatch, "tokenizer.json", errno.EIO)
    with pytest.raises(RequeueError, match="refused"):
        list(tokenizer_problems(many, manifest))


def test_a_file_that_verify_cannot_read_to_its_end_is_named(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> int:
        raise OSError(errno.EIO, "refused")  # of a read Python tells no file

    monkeypatch.setattr(blocks, "_next_sum", broken)
    with pytest.raises(RequeueError, match="the file system failed: refused") as error:
        verify(many)
    assert error.value.where == str(many / "train-00000.bin")


def refuse(monkeypatch: pytest.MonkeyPatch, name: str, code: int) -> None:
    """Let the file system refuse to open files of this name."""
    opened = Path.open

    def open_(self: Path, *arguments: object, **named: object) -> object:
        if self.name == name:
            raise OSError(code, "refused", str(self))
        return opened(self, *arguments, **named)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", open_)
