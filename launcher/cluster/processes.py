"""What the kernel tells of a process; everything is empty or 0 where it does not."""

from __future__ import annotations

import os
import time
from pathlib import Path


def words_of(pid: int) -> list[str]:
    """Its command line."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def name_of(pid: int) -> str:
    """The name of its program."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return ""


def parent_of(pid: int) -> int:
    """Its parent."""
    fields = _stat(pid)
    return int(fields[1]) if fields else 0


def started_at(pid: int) -> str:
    """When it began, in the kernel's ticks: with the pid, it names a process for good. Empty if it has ended."""
    fields = _stat(pid)
    return fields[19] if fields and fields[0] not in ("Z", "X") else ""


def state_of(pid: int) -> str:
    """What it does, as the kernel sees it: `T (stopped)`, and the kernel function it waits in."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(errors="replace")
        waits_in = Path(f"/proc/{pid}/wchan").read_text(errors="replace").strip()
    except OSError:
        return ""
    state = next((line.partition(":")[2].strip() for line in status.splitlines() if line.startswith("State:")), "")
    return f"{state}, in {waits_in}" if waits_in not in ("", "0") else state


def pid_space() -> str:
    """Names the pid namespace of this process: in another one, on the same host, its pids mean nothing."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name, which may hold spaces and brackets."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def age_s(pid: int) -> float:
    """Seconds since it began; 0 where the kernel does not tell."""
    fields = _stat(pid)
    if not fields:
        return 0.0
    return max(time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK"), 0.0)
