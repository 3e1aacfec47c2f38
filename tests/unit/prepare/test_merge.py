"""Completing a folder: several processes come to the end of a build at once, or are killed there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launcher.errors import RequeueError
from launcher.prepare import build, merge, part
from launcher.prepare.build import build_shards
from launcher.prepare.part import PartRecord
from launcher.prepare.request import BuildRequest, Plan
from launcher.shards.verify import verify


class Killed(BaseException):
    """Nobody catches it; what a process leaves when it is killed is left."""


@pytest.fixture
def request_(corpus: Path, tokenizer_folder: Path, tmp_path: Path) -> BuildRequest:
    return BuildRequest(
        corpus=(str(corpus),),
        tokenizer=tokenizer_folder,
        out=tmp_path / "all" / "shards",
        workers=1,
        validation_share=0.2,
        part_bytes=3000,
        tasks=2,
    )


@pytest.fixture(scope="module")
def alone(corpus: Path, tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("alone") / "shards"
    build_shards(
        BuildRequest(
            corpus=(str(corpus),),
            tokenizer=tokenizer_folder,
            out=out,
            workers=1,
            validation_share=0.2,
            part_bytes=3000,
        )
    )
    return contents(out)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def build_parts(request: BuildRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[Plan, list[PartRecord]]:
    """All parts, and no folder yet: what there is to complete."""
    found: list[tuple[Plan, list[PartRecord]]] = []

    def kill(plan: Plan, records: list[PartRecord]) -> None:
        found.append((plan, records))
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(build, "merge", kill)
        for task in range(request.tasks):
            with suppress(Killed):
                build_shards(replace(request, task=task))
    return found[-1]


TOUCHES = ("rename", "replace", "mkdir", "unlink", "rmdir", "scandir")
"""Calls of the system that a process may be interrupted at."""


def at_touch(number: int, do: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Do something before the touch of this number; the list counts them, and holds -1 once it is done."""
    count = [0]

    def wrapped(real: Callable[..., Any]) -> Callable[..., Any]:
        def touch(*arguments: Any, **options: Any) -> Any:
            if count[0] >= 0:
                count[0] += 1
                if count[0] > number:
                    count[0] = -1
                    do()
            return real(*arguments, **options)

        return touch

    for name in TOUCHES:
        monkeypatch.setattr(os, name, wrapped(getattr(os, name)))
    return count


Begin = Callable[[], tuple[Plan, list[PartRecord]]]
"""All is again as it was when the last part was built."""


@pytest.fixture(params=[False, True], ids=["a new folder", "in place of another"])
def begin(
    request_: BuildRequest, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Begin:
    asked = replace(request_, overwrite=request.param)
    if asked.overwrite:
        build_shards(replace(asked, validation_share=0.5, tasks=1))
    plan, records = build_parts(asked, monkeypatch)
    shutil.copytree(asked.out.parent, tmp_path / "as-it-was")

    def again() -> tuple[Plan, list[PartRecord]]:
        shutil.rmtree(asked.out.parent)
        shutil.copytree(tmp_path / "as-it-was", asked.out.parent)
        return plan, records

    return again


def test_two_that_complete_a_folder_at_once_leave_one_whole_folder_wherever_one_overtakes_the_other(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, alone: dict[str, bytes]
) -> None:
    for number in range(10_000):
        plan, records = begin()
        out = plan.request.out

        def other(plan: Plan = plan, records: list[PartRecord] = records) -> None:
            with monkeypatch.context() as patch:
                patch.setattr(merge, "_own_name", lambda: "there-1")
                patch.setattr(merge, "WAIT_S", 0.0)
                with suppress(RequeueError):  # it came when the folder had been taken
                    merge.merge(plan, records)

        with monkeypatch.context() as patch:
            count = at_touch(number, other, patch)
            merge.merge(plan, records)
        assert verify(out) == [], number
        assert contents(out) == alone, number
        assert [path.name for path in out.parent.iterdir()] == ["shards"], number
        if count[0] >= 0:  # it came to its end without being overtaken
            assert number > 10
            return


def test_killed_at_any_touch_it_goes_on_to_the_same_bytes_and_builds_no_part_again(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, alone: dict[str, bytes]
) -> None:

    def kill(*_: object, **__: object) -> None:
        raise Killed

    for number in range(10_000):
        plan, records = begin()
        out = plan.request.out
        with monkeypatch.context() as patch:
            patch.setattr(merge, "_put_back", lambda *_: None)  # who is killed does nothing more
            count = at_touch(number, kill, patch)
            with suppress(Killed):
                merge.merge(plan, records)
        is_complete = out.exists() and contents(out) == alone
        with monkeypatch.context() as patch:
            patch.setattr(part, "ShardWriter", kill)
            build_shards(replace(plan.request, overwrite=plan.request.overwrite and not is_complete))
        assert contents(out) == alone, number
        if count[0] >= 0:
            assert number > 10
            return


def test_a_part_built_from_other_text_in_between_is_built_again_though_the_first_text_is_back(
    request_: BuildRequest, tmp_path: Path, corpus: Path, alone: dict[str, bytes]
) -> None:
    path = tmp_path / "corpus.jsonl"
    first = corpus.read_bytes()
    steps = [(first, 0, 2), (first.replace(b"Law 3 ", b"Law 4 "), 1, 2), (first, 0, 1)]
    for raw, time_ns, tasks in steps:
        path.write_bytes(raw)
        os.utime(path, ns=(time_ns, time_ns))
        build_shards(replace(request_, corpus=(str(path),), tasks=tasks))
    assert verify(request_.out) == []
    assert contents(request_.out)["train-00000.bin"] == alone["train-00000.bin"]


def test_who_finds_the_folder_complete_after_it_has_looked_begins_nothing_anew(
    request_: BuildRequest, monkeypatch: pytest.MonkeyPatch, alone: dict[str, bytes]
) -> None:
    build_parts(request_, monkeypatch)
    real = build._choose

    def slow(*arguments: Any) -> Any:
        monkeypatch.setattr(build, "_choose", real)
        build_shards(replace(request_, task=1))
        return real(*arguments)

    monkeypatch.setattr(build, "_choose", slow)
    assert build_shards(request_) is not None
    assert contents(request_.out) == alone
    assert [path.name for path in request_.out.parent.iterdir()] == ["shards"]


def test_a_folder_that_another_took_and_never_gave_its_name_is_asked_for_again(
    request_: BuildRequest, monkeypatch: pytest.MonkeyPatch, alone: dict[str, bytes]
) -> None:
    build_parts(request_, monkeypatch)
    monkeypatch.setattr(merge, "WAIT_S", 0.0)

    def take(folder: Path, *_: object) -> None:
        os.replace(folder, folder.with_name(folder.name.replace("building", "completing") + "-there-1"))
        raise FileNotFoundError

    with monkeypatch.context() as patch:
        patch.setattr(merge, "_take_name", take)
        with pytest.raises(RequeueError, match="another process took the folder"):
            build_shards(request_)
    build_shards(request_)
    assert contents(request_.out) == alone
    assert [path.name for path in request_.out.parent.iterdir()] == ["shards"]


def test_a_folder_that_is_not_whole_when_it_is_taken_never_gets_its_name(
    request_: BuildRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another took the whole one, and a third began anew under the name it is built by."""
    plan, records = build_parts(request_, monkeypatch)
    monkeypatch.setattr(merge, "WAIT_S", 0.0)
    complete = merge.complete_folder

    def lose(folder: Path, *arguments: Any) -> Any:
        manifest = complete(folder, *arguments)
        next(folder.glob("*.bin")).unlink()
        return manifest

    monkeypatch.setattr(merge, "complete_folder", lose)
    with pytest.raises(RequeueError, match="another process took the folder"):
        merge.merge(plan, records)
    assert not request_.out.exists()


def test_what_a_killed_process_left_is_deleted_whatever_its_host_is_called_and_no_build_of_another_folder(
    request_: BuildRequest,
) -> None:
    beside = request_.out.parent
    left = beside / ".shards.replaced-node1.cluster.local-7"
    others = beside / ".shards.v2.building-0123456789ab", beside / ".shards.v2.completing-0123456789ab-node1-7"
    for folder in (left, *others):
        folder.mkdir(parents=True)
    build_shards(replace(request_, tasks=1))
    assert sorted(beside.iterdir()) == sorted((*others, request_.out))


def test_two_that_go_on_completing_at_once_both_find_the_folder(
    request_: BuildRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, _ = build_parts(request_, monkeypatch)
    folder, out = plan.settings.folder, plan.request.out
    taken = folder.with_name(folder.name.replace("building", "completing") + "-there-1")
    for number in range(10_000):
        os.replace(folder, taken)
        with monkeypatch.context() as patch:
            count = at_touch(number, lambda: merge.go_on_completing(folder, out), patch)
            merge.go_on_completing(folder, out)
        assert folder.is_dir()
        assert not taken.exists()
        if count[0] >= 0:
            assert number > 0
            return


def test_a_part_that_is_kept_is_of_its_file_also_where_files_came_before_it(
    request_: BuildRequest, tmp_path: Path, texts: list[str]
) -> None:
    lines = [f'{{"completion": "{text}"}}\n' for text in texts]
    names = [tmp_path / f"{name}.jsonl" for name in ("a", "b", "c")]
    for path, its in zip(names, (lines[:20], lines[20:40], lines[40:80]), strict=True):
        path.write_text("".join(its), encoding="utf-8")
    part_bytes = names[2].stat().st_size + 500  # holds the first two, and no more than the third
    request = replace(request_, corpus=(str(names[0]), str(names[2])), part_bytes=part_bytes, task=1)
    assert build_shards(request) is None
    request = replace(request, corpus=tuple(map(str, names)), task=0, tasks=1)
    manifest = build_shards(request)
    assert manifest is not None
    assert [[entry.source for entry in part] for part in manifest.parts] == [[0, 1], [2]]
    assert manifest == build_shards(replace(request, out=tmp_path / "whole"))
