"""How much memory this machine, or what a scheduler lent of it, has left. Linux only; no torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

ROOT = Path("/")
_UNLIMITED = 1 << 60
"""cgroup v1 writes a number near 2^63 where there is no limit."""


def available_bytes(root: Path = ROOT) -> int:
    """What can be taken before the kernel, or the job's cgroup, ends a process.

    Args:
        root: Where /proc and /sys are found.
    """
    machine = _fields(root / "proc/meminfo")["MemAvailable"] * 1024
    return max(min([machine, *_left_in_cgroups(root)]), 0)


def resident_bytes(root: Path = ROOT) -> int:
    """What this process has in memory now."""
    return _fields(root / "proc/self/status")["VmRSS"] * 1024


def peak_resident_bytes(root: Path = ROOT) -> int:
    """The most this process had in memory since `forget_peak`, or since it started."""
    return _fields(root / "proc/self/status")["VmHWM"] * 1024


def forget_peak(root: Path = ROOT) -> None:
    """Let the peak be what is in memory now; where the kernel does not allow it, it stays what it was."""
    with suppress(OSError):
        (root / "proc/self/clear_refs").write_text("5")  # source: Linux, Documentation/filesystems/proc.rst


def _left_in_cgroups(root: Path) -> Iterator[int]:
    """What each group that this process is in has left: of version 2 every group above it counts, too."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        folder = root / "sys/fs/cgroup"
        names = ("memory.max", "memory.current", "inactive_file")
        if controllers:
            if "memory" not in controllers.split(","):
                continue
            folder /= "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        group = folder / path.lstrip("/")
        for level in (group, *group.parents):
            if not level.is_relative_to(folder):
                break
            yield from _left_in(level, *names)


def _left_in(group: Path, limit_file: str, usage_file: str, reclaimable: str) -> Iterator[int]:
    limit, usage = (" ".join(_lines(group / name)) for name in (limit_file, usage_file))
    if limit.isdigit() and usage.isdigit() and int(limit) < _UNLIMITED:
        # Pages of files that were not touched lately go as soon as somebody needs the room.
        yield int(limit) - int(usage) + _fields(group / "memory.stat").get(reclaimable, 0)


def _fields(file: Path) -> dict[str, int]:
    """Lines of a name and a number, with or without a colon and a unit."""
    words = [line.replace(":", " ").split() for line in _lines(file)]
    return {word[0]: int(word[1]) for word in words if len(word) > 1 and word[1].isdigit()}


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
