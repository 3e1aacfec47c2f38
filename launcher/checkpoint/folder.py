"""Checkpoint folders on disk: which are complete, which is newest, whether their bytes are what was written.

checkpoints/step-00000100/
    rank-00000.safetensors   this rank's slices: `NAME|master`, `NAME|exp_avg`, `NAME|exp_avg_sq`; its RNG states
    rank-00000.json          the ranges in it, and the file's checksum
    state.json               step, data position, optimizer step, versions
    recipe.yaml config.json  of the run
    manifest.json            every file with size and checksum; written last
checkpoints/.saving-00000100/    a save in progress, or one that was interrupted
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import xxhash

from launcher.errors import CheckpointError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_NAME = re.compile(r"^step-(\d{8,})$")


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"step-{step:08d}"


def saving_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is written before it is complete."""
    return folder / f".saving-{step:08d}"


def complete_steps(folder: Path) -> list[int]:
    """The steps of the complete checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    found = [(_NAME.match(path.name), path) for path in folder.iterdir()]
    return sorted(int(match.group(1)) for match, path in found if match and (path / MANIFEST).is_file())


def prune(folder: Path, keep_last: int) -> list[int]:
    """Delete all but the newest complete checkpoints, and saves that were never finished.

    Returns:
        The steps that were deleted.
    """
    old = complete_steps(folder)[:-keep_last]
    for step in old:
        path = checkpoint_path(folder, step)
        # Without its manifest it is no checkpoint: a crash in the middle leaves nothing that looks complete.
        (path / MANIFEST).unlink()
        shutil.rmtree(path)
    for path in folder.glob(".saving-*"):
        shutil.rmtree(path)
    return old


def write_durably(path: Path, text: str) -> None:
    """Write a small file and wait until it is on the disk."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checksum(path: Path) -> str:
    """xxh3-128 of a file's bytes, hexadecimal."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


def describe_file(path: Path) -> dict[str, Any]:
    """A file's entry in a manifest."""
    return {"name": path.name, "bytes": path.stat().st_size, "xxh3": checksum(path)}


def verify(checkpoint: Path) -> None:
    """Compare every file with the manifest.

    Raises:
        CheckpointError: A file is missing, has another size, or other bytes.
    """
    entries = read_json(checkpoint / MANIFEST, "files")["files"]
    fix = f"delete {checkpoint}: the same command then goes on from the checkpoint before it"
    for entry in entries:
        path = checkpoint / entry["name"]
        if not path.is_file():
            raise CheckpointError("a file of the checkpoint is missing", str(path), fix)
        found = path.stat().st_size
        if found != entry["bytes"]:
            raise CheckpointError(f"the file has {found} bytes, {entry['bytes']} were written", str(path), fix)
        if checksum(path) != entry["xxh3"]:
            raise CheckpointError("the file's bytes are not those that were written", str(path), fix)


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    """Read one of a checkpoint's JSON files and check that it has the keys its reader needs.

    Raises:
        CheckpointError: It cannot be read, lacks a key, or was written by a later version.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"the file cannot be read: {error}", str(path), "delete the checkpoint it belongs to"
        ) from None
    if not isinstance(value, dict) or not all(key in value for key in (*keys, "format_version")):
        raise CheckpointError("the file is not part of a checkpoint", str(path), "delete the checkpoint it belongs to")
    if value["format_version"] != FORMAT_VERSION:
        raise CheckpointError(
            f"the checkpoint has format {value['format_version']}, this program reads {FORMAT_VERSION}",
            str(path),
            "use the version that wrote it (state.json names it)",
        )
    return value
