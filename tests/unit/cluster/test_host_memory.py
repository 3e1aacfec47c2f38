"""What is left of a machine's memory, or of a job's part of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.cluster import host_memory

GIB = 1 << 30


def machine(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    """A machine with 8 GiB to spare."""
    texts = {"proc/meminfo": f"MemTotal: 99 kB\nMemAvailable:  {8 * GIB // 1024} kB\n", "proc/self/cgroup": cgroup}
    for name, text in {**texts, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


V2, V1 = "sys/fs/cgroup", "sys/fs/cgroup/memory"


@pytest.mark.parametrize(
    ("cgroup", "files", "gib"),
    [
        ("0::/\n", {}, 8),
        ("", {}, 8),
        ("0::/job\n", {f"{V2}/job/memory.max": "max\n", f"{V2}/job/memory.current": "5\n"}, 8),
        ("0::/job\n", {f"{V2}/job/memory.max": f"{4 * GIB}", f"{V2}/job/memory.current": f"{GIB}"}, 3),
        (  # the group above is smaller than the job's own
            "0::/job/step\n",
            {
                f"{V2}/job/memory.max": f"{2 * GIB}",
                f"{V2}/job/memory.current": f"{GIB}",
                f"{V2}/job/step/memory.max": f"{6 * GIB}",
                f"{V2}/job/step/memory.current": "0",
            },
            1,
        ),
        (  # pages of files count as used, and go when they are needed
            "0::/job\n",
            {
                f"{V2}/job/memory.max": f"{4 * GIB}",
                f"{V2}/job/memory.current": f"{4 * GIB}",
                f"{V2}/job/memory.stat": f"anon 5\ninactive_file {2 * GIB}\n",
            },
            2,
        ),
        (
            "4:memory:/job\n1:cpu:/job\n",
            {f"{V1}/job/memory.limit_in_bytes": f"{4 * GIB}", f"{V1}/job/memory.usage_in_bytes": f"{GIB}"},
            3,
        ),
        ("4:memory:/\n", {f"{V1}/memory.limit_in_bytes": f"{(1 << 63) - 4096}", f"{V1}/memory.usage_in_bytes": "1"}, 8),
        ("0::/job\n", {f"{V2}/job/memory.max": "5", f"{V2}/job/memory.current": "9"}, 0),
    ],
    ids=["no limit", "no cgroups", "max", "a limit", "nested", "file pages", "version 1", "v1 unlimited", "used up"],
)
def test_the_tightest_limit_counts(cgroup: str, files: dict[str, str], gib: int, tmp_path: Path) -> None:
    assert host_memory.available_bytes(machine(tmp_path, cgroup, files)) == gib * GIB


def test_this_process_tells_what_it_holds() -> None:
    held = bytearray(64 << 20)
    before = host_memory.resident_bytes()
    assert host_memory.peak_resident_bytes() >= before > len(held)
    assert host_memory.available_bytes() > 0
