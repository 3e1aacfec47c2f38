"""The newest sound checkpoint is found, whatever happened to those after it."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from checkpoints import flip, make_checkpoint

from launcher.checkpoint import find
from launcher.checkpoint import folder as layout
from launcher.errors import CheckpointError, DamagedCheckpointError, LauncherError, RequeueError


def newest(folder: Path) -> find.Found:
    return find.newest_sound(folder, layout.complete_steps(folder))


def test_the_newest_is_taken_where_it_is_sound(tmp_path: Path) -> None:
    assert newest(tmp_path) == find.Found(path=None)
    for step in (1, 2):
        make_checkpoint(tmp_path, step)
    assert newest(tmp_path) == find.Found(path=layout.checkpoint_path(tmp_path, 2))


def test_damaged_ones_are_skipped_told_and_kept(tmp_path: Path) -> None:
    paths = [make_checkpoint(tmp_path, step) for step in (1, 2, 3)]
    flip(paths[1] / "rank-00000.safetensors")
    (paths[2] / "state.json").unlink()
    found = newest(tmp_path)
    assert found.path == paths[0]
    assert [(entry.step, entry.why) for entry in found.skipped] == [
        (3, "state.json: a file of the checkpoint is missing"),
        (2, "rank-00000.safetensors: the file's bytes are not those that were written"),
    ]
    assert find.put_aside(found) == [
        "the checkpoint of step 3 is damaged and was skipped: state.json: a file of the checkpoint is missing; "
        f"kept as {tmp_path / 'damaged-00000003'}",
        "the checkpoint of step 2 is damaged and was skipped: rank-00000.safetensors: the file's bytes are not those "
        f"that were written; kept as {tmp_path / 'damaged-00000002'}",
    ]
    assert layout.complete_steps(tmp_path) == [1]
    assert (tmp_path / "damaged-00000002" / "rank-00000.safetensors").exists()


def test_where_every_one_is_damaged_nothing_begins_anew(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, 4)
    layout.put_aside(make_checkpoint(tmp_path, 8), 8)
    flip(path / "state.json")
    with pytest.raises(CheckpointError, match="no checkpoint is left that is not damaged") as told:
        newest(tmp_path)
    assert "(step 4: state.json: the file's bytes are not those that were written; step 8: put aside as" in str(
        told.value
    )
    assert path.exists()


@pytest.mark.parametrize(
    ("number", "is_away", "kind", "reason"),
    [
        (errno.ESTALE, False, RequeueError, "a node that lost its file system for a moment"),
        (errno.ETIMEDOUT, False, RequeueError, "an NFS server that does not answer"),
        (errno.ENOTCONN, True, RequeueError, "a mount in user space whose process ended"),
        (errno.EIO, True, RequeueError, "a soft NFS mount, or a Lustre client that was evicted"),
        (errno.EIO, False, DamagedCheckpointError, "a bad place of a drive that else does what it should"),
        (errno.EBADMSG, False, DamagedCheckpointError, "a checksum of the file system's own"),
        (errno.EUCLEAN, False, DamagedCheckpointError, "spoilt metadata"),
        (errno.ENODATA, False, DamagedCheckpointError, "a bad place, as some drives tell it"),
        (errno.EACCES, False, CheckpointError, "started by somebody else"),
    ],
)
def test_one_that_cannot_be_reached_is_not_taken_for_damaged(
    number: int, is_away: bool, kind: type[Exception], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_checkpoint(tmp_path, 1)

    def refuse(*_: object) -> str:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(layout, "checksum", refuse)
    if is_away:
        monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(LauncherError, match="the file cannot be read: ") as told:
        layout.verify(path)
    assert type(told.value) is kind, reason
    assert ("(twice)" in str(told.value)) == (number != errno.EACCES)  # who may not read it now may not in a moment
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    with pytest.raises(CheckpointError if kind is DamagedCheckpointError else kind) as found:
        newest(tmp_path)
    assert ("no checkpoint is left that is not damaged" in str(found.value)) == (kind is DamagedCheckpointError)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EBADMSG, errno.ENOENT])
@pytest.mark.parametrize("touch", ["open", "read_text", "stat"])
def test_one_that_could_not_be_read_for_a_moment_is_sound_and_told_in_one_line(
    touch: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = make_checkpoint(tmp_path, 1)
    file = path / ("manifest.json" if touch == "read_text" else "rank-00000.safetensors")
    plain, refused = getattr(Path, touch), []

    def refuse_once(touched: Path, *how: Any, **named: Any) -> Any:
        if touched == file and not refused:
            refused.append(number)
            raise OSError(number, os.strerror(number))
        return plain(touched, *how, **named)

    monkeypatch.setattr(Path, touch, refuse_once)
    assert newest(tmp_path) == find.Found(path=path)
    assert refused == [number]
    told = f"{file} could not be read ({os.strerror(number)}), and can be at a second look"
    assert [record.getMessage() for record in caplog.records] == [told]


def test_bytes_that_are_others_are_not_looked_at_until_they_please(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, looks = make_checkpoint(tmp_path, 1), []
    flip(path / "rank-00000.safetensors")
    plain = layout.checksum

    def checksum(file: Path) -> str:
        looks.append(file.name)
        return plain(file)

    monkeypatch.setattr(layout, "checksum", checksum)
    with pytest.raises(DamagedCheckpointError, match="the file's bytes are not those that were written"):
        layout.verify(path)
    assert looks == ["rank-00000.safetensors"]


def test_one_of_a_later_version_is_not_skipped(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 4)
    path = make_checkpoint(tmp_path, 8)
    (path / layout.MANIFEST).write_text('{"format_version": 9, "files": []}')
    with pytest.raises(CheckpointError, match="has format 9"):
        newest(tmp_path)
