"""What counts as a checkpoint, and what is left of old ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.checkpoint import folder as layout
from launcher.errors import CheckpointError


def make(folder: Path, step: int, complete: bool = True) -> Path:
    path = layout.checkpoint_path(folder, step)
    path.mkdir(parents=True)
    (path / "a.bin").write_bytes(b"x" * step)
    if complete:
        files = [layout.describe_file(path / "a.bin")]
        (path / layout.MANIFEST).write_text(json.dumps({"format_version": 1, "step": step, "files": files}))
    return path


def test_only_what_has_a_manifest_is_a_checkpoint(tmp_path: Path) -> None:
    make(tmp_path, 10)
    make(tmp_path, 30, complete=False)
    make(tmp_path, 20)
    (tmp_path / ".saving-00000040").mkdir()
    (tmp_path / "step-x").mkdir()
    assert layout.complete_steps(tmp_path) == [10, 20]
    assert layout.complete_steps(tmp_path / "none") == []


def test_the_newest_are_kept_and_interrupted_saves_removed(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        make(tmp_path, step)
    (tmp_path / ".saving-00000005").mkdir()
    assert layout.prune(tmp_path, keep_last=2) == [1, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "the file cannot be read"),
        ("[]", "the file is not part of a checkpoint"),
        ('{"format_version": 1}', "the file is not part of a checkpoint"),
        ('{"format_version": 9, "files": []}', "the checkpoint has format 9, this program reads 1"),
    ],
)
def test_a_manifest_that_is_none_is_told(content: str, message: str, tmp_path: Path) -> None:
    path = make(tmp_path, 1)
    (path / layout.MANIFEST).write_text(content)
    with pytest.raises(CheckpointError, match=message):
        layout.verify(path)


def test_a_whole_checkpoint_verifies(tmp_path: Path) -> None:
    layout.verify(make(tmp_path, 3))
