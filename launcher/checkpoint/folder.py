"""Checkpoint folders on disk: which are complete, and whether their bytes are what was written.

checkpoints/step-00000100/
    rank-00000.safetensors   this rank's slices: `NAME|master`, `NAME|exp_avg`, `NAME|exp_avg_sq`; its RNG states
    rank-00000.json          the ranges in it, and the file's checksum
    state.json               step, data position, optimizer step, versions
    recipe.yaml config.json  of the run
    manifest.json            every file with size and checksum; written last
checkpoints/latest               name of the newest; for people and tools
checkpoints/.saving-00000100/    a save in progress, or one that was interrupted
checkpoints/damaged-00000100/    one whose bytes are not those that were written, put aside by a run that skipped it

A checkpoint begins to exist with the rename from `.saving-…` to `step-…`: what has the name is whole and on the disk.
So nothing here reads `latest` (a crash between the rename and its writing leaves it one checkpoint behind). It is
written because people and tools look for it, durably, after the rename.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import xxhash

from launcher.config.loading import check_recipe, parse_yaml
from launcher.config.recipe import Recipe
from launcher.errors import CheckpointError, DamagedCheckpointError, LauncherError, RequeueError
from launcher.shards import durable, faults
from launcher.shards.manifest import checksum

FORMAT_VERSION = 1
WITH_COLUMNS = 2
"""Format of a rank's index in which ranges are of some columns only: who reads 1 alone would take them for others."""
MANIFEST = "manifest.json"
LATEST = "latest"
SECOND_LOOK_AFTER_S = 2.0
"""A client that was evicted, or found another path to its server, has its files back by then: assumption."""
_NAME = re.compile(r"^step-(\d{8,})$")
_DAMAGED = re.compile(r"^damaged-(\d{8,})(?:-\d+)?$")
_SAVING = re.compile(r"^\.saving-(\d{8,})$")
_FIX = "the same command goes on from the checkpoint before it, and puts this one aside"
_Content = TypeVar("_Content")


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"step-{step:08d}"


def saving_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is written before it is complete."""
    return folder / f".saving-{step:08d}"


def complete_steps(folder: Path) -> list[int]:
    """The steps of the complete checkpoints, oldest first."""
    return sorted(step for step, path in _named(folder, _NAME) if _has_manifest(path))


def _has_manifest(checkpoint: Path) -> bool:
    """Whether it is there; OSError where the file system cannot say (Path.is_file of Python 3.14 says no)."""
    try:
        mode = (checkpoint / MANIFEST).stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    return stat.S_ISREG(mode)


def damaged(folder: Path) -> list[tuple[int, Path]]:
    """Step and place of the checkpoints that were put aside, oldest first."""
    return _named(folder, _DAMAGED)


def unfinished(folder: Path) -> list[tuple[int, Path]]:
    """Step and place of the saves in progress or interrupted, and of deletions that were."""
    return _named(folder, _SAVING) + [(step, path) for step, path in _named(folder, _NAME) if not _has_manifest(path)]


def delete(checkpoint: Path) -> None:
    """Delete a checkpoint; a crash in the middle leaves nothing that looks complete.

    Two may do it: a run that keeps fewer, and `pretrain checkpoints prune` beside it.
    """
    (checkpoint / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, onerror=_unless_gone)


def _unless_gone(_function: object, _path: object, info: tuple[Any, BaseException, Any]) -> None:
    if not isinstance(info[1], FileNotFoundError):
        raise info[1]


def publish(folder: Path, step: int, files: list[dict[str, Any]]) -> Path:
    """Make what was saved a checkpoint: list its files, and give it its name.

    Args:
        folder: The run's `checkpoints/`.
        step: Whose `.saving-…` is there, every file in it on the disk.
        files: Their entries in the manifest.

    Returns:
        The checkpoint; one that the step had before is gone.
    """
    saving, final = saving_path(folder, step), checkpoint_path(folder, step)
    manifest = {"format_version": FORMAT_VERSION, "step": step, "files": files}
    durable.write_durably(saving / MANIFEST, json.dumps(manifest, indent=1))
    durable.sync(saving)
    if final.exists():  # of a run that went back behind it, or half deleted
        delete(final)
    os.replace(saving, final)
    durable.sync(folder)
    return final


def delete_unfinished(folder: Path) -> None:
    """Delete saves and deletions that were interrupted, as far as the file system lets; nobody may be saving.

    What has a checkpoint's name is looked at twice: its manifest may be away for a moment only.
    """
    found = unfinished(folder)
    if any(_NAME.match(path.name) for _, path in found):
        time.sleep(SECOND_LOOK_AFTER_S)
        found = [entry for entry in unfinished(folder) if entry in found]
    for _, path in found:
        shutil.rmtree(path, ignore_errors=True)


def put_aside(checkpoint: Path, step: int) -> Path:
    """Give a damaged checkpoint another name, so that it is neither loaded nor lost; returns its place."""
    place, number = checkpoint.with_name(f"damaged-{step:08d}"), 1
    while place.exists():
        number += 1
        place = checkpoint.with_name(f"damaged-{step:08d}-{number}")
    checkpoint.rename(place)
    durable.sync(checkpoint.parent)
    return place


def write_latest(folder: Path, step: int) -> None:
    """Name the newest checkpoint in `latest`; readers see the old or the new name, never half of one."""
    durable.replace_durably(folder / LATEST, checkpoint_path(folder, step).name + "\n")


def write_file(path: Path, text: str) -> dict[str, Any]:
    """Write one of a checkpoint's small files durably; returns its entry in the manifest.

    The checksum is of what was to be written: one of what lies there then would hold for whatever came to lie there.
    """
    durable.write_durably(path, text)
    content = text.encode()
    return {"name": path.name, "bytes": len(content), "xxh3": xxhash.xxh3_128_hexdigest(content)}


def num_bytes(checkpoint: Path) -> int:
    """Bytes of a checkpoint's files, as its manifest tells them."""
    return sum(int(entry["bytes"]) for entry in read_json(checkpoint / MANIFEST, "files")["files"])


def verify(checkpoint: Path, *, part: int = 0, parts: int = 1) -> None:
    """Compare every file with the manifest.

    Args:
        checkpoint: Its folder.
        part: Which of `parts` to look at: ranks share the files.
        parts: How many look.

    Raises:
        DamagedCheckpointError: A file is missing, has another size, or other bytes.
        CheckpointError: It was written by another version, or may not be read.
        RequeueError: The file system is away: nothing is known of the checkpoint.
    """
    for entry in _entries(checkpoint)[part::parts]:
        _check_size(checkpoint, entry)
        _check_bytes(checkpoint / entry["name"], entry)


def glance(checkpoint: Path) -> None:
    """Compare every file's size, and the bytes of the small ones, with the manifest: quick, whatever the size.

    Raises:
        DamagedCheckpointError: A file is missing, has another size, or a small one has other bytes.
        CheckpointError: It was written by another version, or may not be read.
        RequeueError: The file system is away: nothing is known of the checkpoint.
    """
    for entry in _entries(checkpoint):
        _check_size(checkpoint, entry)
        if not entry["name"].endswith(".safetensors"):
            _check_bytes(checkpoint / entry["name"], entry)


def files_of(checkpoint: Path) -> list[str]:
    """Names of a checkpoint's files."""
    return [entry["name"] for entry in _entries(checkpoint)]


def _entries(checkpoint: Path) -> list[dict[str, Any]]:
    entries = read_json(checkpoint / MANIFEST, "files")["files"]
    if not isinstance(entries, list) or not all(
        isinstance(entry, dict) and {"name", "bytes", "xxh3"} <= entry.keys() for entry in entries
    ):
        raise DamagedCheckpointError("the manifest does not list files", str(checkpoint / MANIFEST), _FIX)
    return entries


def _check_size(checkpoint: Path, entry: dict[str, Any]) -> None:
    path = checkpoint / entry["name"]
    found = read_file(path, lambda path: path.stat().st_size)
    if found != entry["bytes"]:
        raise DamagedCheckpointError(f"the file has {found} bytes, {entry['bytes']} were written", str(path), _FIX)


def _check_bytes(path: Path, entry: dict[str, Any]) -> None:
    found = read_file(path, checksum)
    if found != entry["xxh3"]:  # no second look: that other bytes come at times is no reason to train on some of them
        raise DamagedCheckpointError("the file's bytes are not those that were written", str(path), _FIX)


def read_file(path: Path, read: Callable[[Path], _Content]) -> _Content:
    """What is read of one of a checkpoint's files; where that fails, a second look after a while decides.

    For a moment without its place a sound checkpoint must not be put aside, nor a run be ended.

    Args:
        path: The file.
        read: Reads it, from its beginning.

    Raises:
        DamagedCheckpointError: It is lost, or spoilt by the word of the file system.
        CheckpointError: It may not be read.
        RequeueError: The file system is away.
    """
    try:
        return read(path)
    except PermissionError as error:
        told = f"the file cannot be read: {error.strerror}"
        raise CheckpointError(told, str(path), "let whoever runs this read it") from None
    except OSError as error:
        first = error
    time.sleep(SECOND_LOOK_AFTER_S)
    try:
        content = read(path)
    except OSError as error:
        raise _unreadable(error, path) from None
    told = "%s could not be read (%s), and can be at a second look"
    logging.getLogger(__name__).warning(told, path, first.strerror or first)
    return content


def _unreadable(error: OSError, path: Path) -> LauncherError:
    """What to raise for a file that could not be read twice."""
    told = f"the file cannot be read: {error.strerror or error} (twice)"
    if isinstance(error, FileNotFoundError):
        return DamagedCheckpointError("a file of the checkpoint is missing", str(path), _FIX)
    if faults.is_damage(error, path.parents[1]):
        return DamagedCheckpointError(told, str(path), _FIX)
    return RequeueError(told, str(path), "mend the file system; the same command goes on from the last checkpoint")


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    """Read one of a checkpoint's JSON files and check that it has the keys its reader needs.

    Raises:
        DamagedCheckpointError: It cannot be read, or lacks a key.
        CheckpointError: It was written by a later version, or may not be read.
        RequeueError: The file system is away.
    """
    try:
        value = json.loads(read_file(path, _text))
    except ValueError as error:
        raise DamagedCheckpointError(f"the file cannot be read: {error}", str(path), _FIX) from None
    if not isinstance(value, dict) or not all(key in value for key in (*keys, "format_version")):
        raise DamagedCheckpointError("the file is not part of a checkpoint", str(path), _FIX)
    version = value["format_version"]
    if version not in (FORMAT_VERSION, WITH_COLUMNS):
        raise CheckpointError(
            f"the checkpoint has format {version}, this program reads {FORMAT_VERSION} and {WITH_COLUMNS}",
            str(path),
            "use the version that wrote it (state.json names it)",
        )
    return value


def read_recipe(checkpoint: Path) -> Recipe:
    """The recipe that a checkpoint was made with.

    Raises:
        CheckpointError: It cannot be read, or is no text.
        RequeueError: The file system is away.
        RecipeError: It is of another version.
    """
    path = checkpoint / "recipe.yaml"
    try:
        text = read_file(path, _text)
    except UnicodeDecodeError as error:
        raise DamagedCheckpointError(f"the file is no text: {error}", str(path), _FIX) from None
    return check_recipe(parse_yaml(text, str(path)), str(path))


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _named(folder: Path, pattern: re.Pattern[str]) -> list[tuple[int, Path]]:
    if not folder.is_dir():
        return []
    found = [(pattern.match(path.name), path) for path in folder.iterdir()]
    return sorted((int(match.group(1)), path) for match, path in found if match)
