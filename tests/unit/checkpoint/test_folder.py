"""What counts as a checkpoint, and whether it is whole."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from checkpoints import flip, make_checkpoint

from launcher.checkpoint import folder as layout
from launcher.errors import CheckpointError, DamagedCheckpointError


def test_only_what_has_a_manifest_is_a_checkpoint(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 10)
    make_checkpoint(tmp_path, 30, complete=False)
    make_checkpoint(tmp_path, 20)
    (tmp_path / ".saving-00000040").mkdir()
    (tmp_path / "step-x").mkdir()
    (tmp_path / "latest").write_text("step-00000030\n")  # a name says nothing
    assert layout.complete_steps(tmp_path) == [10, 20]
    assert [step for step, _ in layout.unfinished(tmp_path)] == [40, 30]
    assert layout.complete_steps(tmp_path / "none") == []


def test_what_was_interrupted_goes_and_the_rest_stays(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 10)
    make_checkpoint(tmp_path, 20, complete=False)  # a deletion
    layout.saving_path(tmp_path, 30).mkdir()
    (layout.saving_path(tmp_path, 30) / "rank-00000.json").write_text("{")
    layout.put_aside(make_checkpoint(tmp_path, 40), 40)
    layout.saving_path(tmp_path, 50).write_text("nobody's")
    layout.delete_unfinished(tmp_path)
    layout.delete_unfinished(tmp_path / "none")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".saving-00000050", "damaged-00000040", "step-00000010"]


def test_a_checkpoint_whose_manifest_is_away_for_a_moment_is_not_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, plain, refused = make_checkpoint(tmp_path, 10), Path.stat, []

    def stat(touched: Path, **how: Any) -> os.stat_result:
        if touched.name == layout.MANIFEST and not refused:
            refused.append(touched)
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return plain(touched, **how)

    monkeypatch.setattr(Path, "stat", stat)
    layout.delete_unfinished(tmp_path)
    assert refused == [path / layout.MANIFEST]
    layout.verify(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "the file cannot be read"),
        ("[]", "the file is not part of a checkpoint"),
        ('{"format_version": 1}', "the file is not part of a checkpoint"),
        ('{"format_version": 1, "files": 3}', "the manifest does not list files"),
        ('{"format_version": 1, "files": [{}]}', "the manifest does not list files"),
    ],
)
def test_a_manifest_that_is_none_is_damage(content: str, message: str, tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, 1)
    (path / layout.MANIFEST).write_text(content)
    with pytest.raises(DamagedCheckpointError, match=message):
        layout.verify(path)


def test_a_later_version_is_no_damage(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, 1)
    (path / layout.MANIFEST).write_text('{"format_version": 9, "files": []}')
    with pytest.raises(CheckpointError, match="the checkpoint has format 9, this program reads 1 and 2") as told:
        layout.verify(path)
    assert not isinstance(told.value, DamagedCheckpointError)


def test_a_whole_checkpoint_verifies(tmp_path: Path) -> None:
    layout.verify(make_checkpoint(tmp_path, 3))


@pytest.mark.parametrize(("name", "found_by"), [("rank-00000.safetensors", 0), ("state.json", 1)])
def test_each_file_is_looked_at_by_one_of_those_who_share_the_work(name: str, found_by: int, tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, 3)
    flip(path / name)
    layout.verify(path, part=1 - found_by, parts=2)
    with pytest.raises(DamagedCheckpointError, match="the file's bytes are not those that were written") as told:
        layout.verify(path, part=found_by, parts=2)
    assert told.value.where == str(path / name)


def test_a_glance_sees_sizes_and_small_files(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, 3)
    flip(path / "rank-00000.safetensors")
    layout.glance(path)
    flip(path / "state.json")
    with pytest.raises(DamagedCheckpointError, match="the file's bytes are not those"):
        layout.glance(path)
    (path / "rank-00000.safetensors").write_bytes(b"x")
    with pytest.raises(DamagedCheckpointError, match="the file has 1 bytes, 4 were written"):
        layout.glance(path)


def test_what_is_put_aside_keeps_its_files_under_a_name_of_its_own(tmp_path: Path) -> None:
    for _ in range(2):
        layout.put_aside(make_checkpoint(tmp_path, 5), 5)
    assert [(step, path.name) for step, path in layout.damaged(tmp_path)] == [
        (5, "damaged-00000005"),
        (5, "damaged-00000005-2"),
    ]
    assert layout.complete_steps(tmp_path) == []
    layout.verify(tmp_path / "damaged-00000005-2")


def test_of_two_that_delete_a_checkpoint_none_fails(tmp_path: Path) -> None:
    for step in range(20):
        path = make_checkpoint(tmp_path, step)
        for number in range(50):
            (path / f"rank-{number:05d}.json").touch()
        with ThreadPoolExecutor(2) as both:
            list(both.map(layout.delete, [path, path]))
        assert not path.exists()


def test_latest_names_the_newest(tmp_path: Path) -> None:
    for step in (5, 10):
        layout.write_latest(tmp_path, step)
        assert (tmp_path / "latest").read_text() == f"step-{step:08d}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["latest"]


def test_a_file_system_that_cannot_say_is_not_taken_for_one_without_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout.checkpoint_path(tmp_path, 3).mkdir()
    assert layout.complete_steps(tmp_path) == []
    (layout.checkpoint_path(tmp_path, 3) / layout.MANIFEST).touch()
    assert layout.complete_steps(tmp_path) == [3]
    stat = Path.stat

    def fail(self: Path, **options: bool) -> os.stat_result:
        if self.name == layout.MANIFEST:
            raise OSError(errno.ESTALE, "Stale file handle", str(self))
        return stat(self, **options)

    monkeypatch.setattr(Path, "stat", fail)
    for ask in (layout.complete_steps, layout.unfinished):
        with pytest.raises(OSError, match="Stale file handle"):
            ask(tmp_path)


def test_a_recipe_that_is_no_text_is_damage(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes(b"name: \xff")
    with pytest.raises(DamagedCheckpointError, match="no text"):
        layout.read_recipe(tmp_path)
