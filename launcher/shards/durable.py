"""Small files that a crash leaves whole: as they were before, or as they were to become."""

from __future__ import annotations

import os
from pathlib import Path


def replace_durably(path: Path, text: str) -> None:
    """Give a file another content; readers see the old or the new one, never half of one."""
    writing = path.with_name(f"{path.name}.new")
    write_durably(writing, text)
    os.replace(writing, path)
    sync(path.parent)


def write_durably(path: Path, text: str) -> None:
    """Write a small file and wait until it is on the disk; its name may not be there yet (`sync` its folder)."""
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
