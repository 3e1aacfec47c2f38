"""What cuts Chinese into words: one program a build, and told with the shards."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from launcher.errors import MissingDependencyError
from launcher.prepare import segmenters
from launcher.prepare.build import build_shards
from launcher.prepare.request import BuildRequest
from launcher.shards.manifest import read_manifest
from launcher.shards.reader import open_split

ONE, OTHER = "rjieba 1.0", "jieba 2.0"
Host = Callable[..., None]


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    """Makes this a machine on which these are installed: one takes two characters for a word, the other three."""

    def cut(size: int) -> Callable[[str], Iterable[str]]:
        return lambda text: [text[start : start + size] for start in range(0, len(text), size)]

    monkeypatch.setattr(segmenters, "_CUTTERS", {"rjieba": lambda: cut(2), "jieba": lambda: cut(3)})

    def install(*names: str) -> None:
        monkeypatch.setattr(segmenters, "installed_segmenters", lambda: list(names))

    return install


@pytest.fixture
def request_(request_: BuildRequest) -> BuildRequest:
    return replace(request_, words=True)


def marks(folder: Path) -> list[bool]:
    split = open_split(folder, "train")
    out = np.empty(split.num_tokens, dtype=np.bool_)
    split.read_words(0, out)
    return out.tolist()


def test_the_manifest_tells_what_marked_and_the_fingerprint_knows(
    request_: BuildRequest, host: Host, tmp_path: Path
) -> None:
    host(ONE, OTHER)
    build_shards(request_)
    host(OTHER)
    other = replace(request_, out=tmp_path / "other")
    build_shards(other)
    plain = replace(request_, out=tmp_path / "plain", words=False)
    build_shards(plain)
    told = [read_manifest(each.out) for each in (request_, other, plain)]
    assert [manifest.segmenter for manifest in told] == [ONE, OTHER, ""]
    assert len({manifest.fingerprint for manifest in told}) == 3
    assert marks(request_.out) != marks(other.out)


@pytest.mark.parametrize("here", [(), (OTHER,)], ids=["without a segmenter", "with the other one"])
def test_finished_shards_are_used_again_on_any_machine(
    request_: BuildRequest, host: Host, here: tuple[str, ...]
) -> None:
    host(ONE)
    build_shards(request_)
    host(*here)
    said = io.StringIO()
    build_shards(request_, Console(file=said))
    assert "re-used" in said.getvalue()


@pytest.mark.parametrize(
    ("here", "says"),
    [
        ((), "and here is none: they may differ"),
        ((OTHER,), f"marked by {ONE} in this build, and here is {OTHER}"),
        (("rjieba 1.1",), f"marked by {ONE} in this build, and here is rjieba 1.1"),
    ],
    ids=["none", "the other one", "another version"],
)
def test_a_build_begun_with_one_does_not_go_on_with_another(
    request_: BuildRequest, host: Host, here: tuple[str, ...], says: str
) -> None:
    tasks = [replace(request_, task=number, tasks=2) for number in range(2)]
    host(ONE)
    assert build_shards(tasks[0]) is None
    host(*here)
    with pytest.raises(MissingDependencyError, match=says) as told:
        build_shards(tasks[1])
    assert "fix:   pip install rjieba==1.0, or delete the folder" in str(told.value)
    host(ONE)
    manifest = build_shards(tasks[1])
    assert manifest is not None
    assert manifest.segmenter == ONE


def test_a_build_goes_on_with_what_it_was_begun_with(request_: BuildRequest, host: Host, tmp_path: Path) -> None:
    tasks = [replace(request_, task=number, tasks=2) for number in range(2)]
    host(OTHER)
    assert build_shards(tasks[0]) is None
    host(ONE, OTHER)  # the one would be taken where nothing is there yet
    build_shards(tasks[1])
    host(OTHER)
    alone = replace(request_, out=tmp_path / "alone")
    build_shards(alone)
    assert read_manifest(request_.out) == read_manifest(alone.out)
    assert marks(request_.out) == marks(alone.out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "shards"]


def test_of_tasks_that_begin_at_once_the_second_is_refused(
    request_: BuildRequest, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host(ONE)
    assert build_shards(replace(request_, task=0, tasks=2)) is None
    host(OTHER)
    monkeypatch.setattr("launcher.prepare.build.segmenter_of", lambda _: "")  # it had looked before
    with pytest.raises(MissingDependencyError, match=f"marked by {ONE} in this build"):
        build_shards(replace(request_, task=1, tasks=2))


def test_a_file_system_without_hard_links_will_do(
    request_: BuildRequest, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    host(ONE)
    assert build_shards(replace(request_, task=0, tasks=2)) is None
    host(OTHER)
    with pytest.raises(MissingDependencyError, match=f"marked by {ONE} in this build"):
        build_shards(replace(request_, task=1, tasks=2))


def test_a_build_that_cannot_mark_words_leaves_nothing_behind(
    request_: BuildRequest, host: Host, tmp_path: Path
) -> None:
    host()
    with pytest.raises(MissingDependencyError, match="needs a segmenter"):
        build_shards(request_)
    assert list(tmp_path.iterdir()) == []
