"""A crash at any instant leaves a checkpoint that is whole as the newest one."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from checkpoints import describe_file, make_checkpoint
from savers import saver_of

from launcher.checkpoint import folder as layout
from launcher.checkpoint import retention, save
from launcher.checkpoint.ranks import SpaceError
from launcher.checkpoint.tensor_file import DurableFile, aligned_buffer
from launcher.config.recipe import CheckpointConfig
from launcher.errors import DamagedCheckpointError
from launcher.shards import durable

TOUCHES = ((durable, "write_durably"), (durable, "sync"), (os, "replace"), (shutil, "rmtree"), (Path, "unlink"))
"""Everything that changes a folder between the ranks' files and the end of a save."""


class Crash(BaseException):
    """The process is gone."""


def save_step_3(folder: Path) -> None:
    """What rank 0 does of a save."""
    layout.delete_unfinished(folder)
    saving = layout.saving_path(folder, 3)
    saving.mkdir()
    (saving / "rank-00000.safetensors").write_bytes(b"tensors")
    file = describe_file(saving / "rank-00000.safetensors")
    index = layout.write_file(saving / "rank-00000.json", json.dumps({"format_version": 1, "slices": [], "file": file}))
    state = json.dumps({"format_version": 1, "step": 3, "evaluations": []})
    save._complete(folder, save._Job(step=3, texts={"state.json": state}, started=0.0), [file, index])
    layout.write_latest(folder, 3)
    retention.prune(folder, CheckpointConfig(keep_last=2))


def crash_at(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the `number`th touch be the last, and a half-done one."""
    touches = itertools.count(1)

    def watched(plain: Callable[..., Any]) -> Callable[..., Any]:
        def touch(*arguments: Any, **named: Any) -> Any:
            if next(touches) == number:
                if plain.__name__ == "write_durably":
                    arguments[0].write_text(arguments[1][: len(arguments[1]) // 2])
                if plain.__name__ == "rmtree":
                    next(path for path in arguments[0].iterdir() if path.name != "manifest.json").unlink()
                raise Crash
            return plain(*arguments, **named)

        return touch

    for module, name in TOUCHES:
        monkeypatch.setattr(module, name, watched(getattr(module, name)))


def test_a_crash_at_any_touch_leaves_the_newest_complete_checkpoint_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in itertools.count(1):
        folder = tmp_path / str(number)
        for step in (1, 2):
            make_checkpoint(folder, step)
        layout.write_latest(folder, 2)
        with monkeypatch.context() as patched:
            crash_at(number, patched)
            try:
                save_step_3(folder)
                done = True
            except Crash:
                done = False
        steps = layout.complete_steps(folder)
        assert steps[-2:] in ([1, 2], [2, 3])
        for step in steps:
            layout.verify(layout.checkpoint_path(folder, step))
        latest = int((folder / "latest").read_text().strip().removeprefix("step-"))
        assert latest in steps
        save_step_3(folder)  # the next save comes through, and clears up
        assert layout.complete_steps(folder) == [2, 3]
        assert sorted(path.name for path in folder.iterdir()) == ["latest", "step-00000002", "step-00000003"]
        if done:
            assert number > 8
            return


def test_every_byte_and_name_is_on_the_disk_before_the_checkpoint_has_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saving = layout.saving_path(tmp_path, 3)
    saving.mkdir()
    told: list[tuple[str, str]] = []
    plain_sync, plain_replace = os.fsync, os.replace

    def sync(descriptor: int) -> None:
        told.append(("on the disk", Path(f"/proc/self/fd/{descriptor}").readlink().name))
        plain_sync(descriptor)

    def replace(old: Path, new: Path) -> None:
        told.append(("named", new.name))
        plain_replace(old, new)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    with DurableFile(saving / "rank-00000.safetensors") as file:
        file.append(aligned_buffer(4096), 100)
        files = [file.finish()]
    files.append(layout.write_file(saving / "rank-00000.json", "{}"))
    save._complete(tmp_path, save._Job(step=3, texts={"state.json": "{}"}, started=0.0), files)
    layout.write_latest(tmp_path, 3)
    files = ["rank-00000.safetensors", "rank-00000.json", "state.json", "manifest.json"]
    assert told == [
        *[("on the disk", name) for name in [*files, saving.name]],
        ("named", "step-00000003"),
        *[("on the disk", name) for name in (tmp_path.name, "latest.new")],
        ("named", "latest"),
        ("on the disk", tmp_path.name),
    ]


@pytest.mark.parametrize("name", ["state.json", "rank-00000.json"])
def test_a_small_file_too_is_held_against_what_was_to_be_written_not_against_what_came_to_lie_there(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = saver_of(save.Saver, [torch.zeros(10)], tmp_path / "run" / "checkpoints", monkeypatch)
    plain = durable.write_durably

    def write_another(path: Path, text: str) -> None:
        plain(path, text.replace(":", ";", 1) if path.name == name else text)

    monkeypatch.setattr(durable, "write_durably", write_another)
    saver.save({"step": 1}, {})
    saver.finish()
    with pytest.raises(DamagedCheckpointError, match="the file's bytes are not those that were written") as told:
        layout.verify(layout.checkpoint_path(saver._folder, 1))
    assert Path(told.value.where).name == name


def test_the_names_of_new_folders_are_on_the_disk_before_anything_is_in_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(durable, "sync", synced.append)
    for _ in range(2):
        save._check_space(tmp_path / "run" / "checkpoints", 1)
    assert synced == [tmp_path / "run", tmp_path]


def test_room_is_looked_for_in_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save._check_space(tmp_path / "new", 1)
    free = shutil._ntuple_diskusage(10, 5, 1_500_000)  # type: ignore[attr-defined]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    with pytest.raises(SpaceError, match=r"a checkpoint takes 2\.9 MiB, 1\.4 MiB are free"):
        save._check_space(tmp_path, 3_000_000)


def test_a_moment_without_the_file_system_does_not_end_a_run_whose_save_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [make_checkpoint(tmp_path, step) for step in (1, 2, 3)]
    plain = Path.read_text

    def read_text(path: Path, **how: Any) -> str:
        if path.parent == paths[0]:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return plain(path, **how)

    monkeypatch.setattr(Path, "read_text", read_text)
    saver = Mock(spec=save.Saver, _ranks=Mock(rank=0), _folder=tmp_path, _keep=CheckpointConfig(keep_last=1))
    assert save.Saver._tidy(saver, 3) == []
    assert (tmp_path / "latest").read_text() == "step-00000003\n"
    assert layout.complete_steps(tmp_path) == [1, 2, 3]
