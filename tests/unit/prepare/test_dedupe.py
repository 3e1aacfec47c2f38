"""Exact duplicates: as a set would find them, in whatever memory there is."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from launcher.prepare.dedupe import find_duplicates, text_digest


def write(folder: Path, files: list[list[bytes]]) -> list[Path]:
    paths = [folder / f"{number}.hashes" for number in range(len(files))]
    for path, digests in zip(paths, files, strict=True):
        path.write_bytes(b"".join(digests))
    return paths


def by_a_set(files: list[list[bytes]]) -> list[list[bool]]:
    seen: set[bytes] = set()
    masks: list[list[bool]] = []
    for digests in files:
        masks.append([])
        for digest in digests:
            masks[-1].append(digest in seen)
            seen.add(digest)
    return masks


def drawn(seed: int, num_texts: int) -> list[list[bytes]]:
    rng = np.random.default_rng(seed)
    return [[text_digest(str(text)) for text in rng.integers(0, num_texts, size)] for size in (700, 0, 1, 1500, 300)]


@pytest.mark.parametrize("max_bytes", [1 << 30, 1 << 16, 1 << 13], ids=["one pass", "a few passes", "many passes"])
@pytest.mark.parametrize(
    "num_texts", [1, 50, 2000, 10**9], ids=["all the same", "mostly the same", "half the same", "none the same"]
)
def test_it_finds_what_a_set_finds(tmp_path: Path, num_texts: int, max_bytes: int) -> None:
    for seed in range(3):
        files = drawn(seed, num_texts)
        masks = find_duplicates(write(tmp_path, files), max_bytes)
        assert [mask.tolist() for mask in masks] == by_a_set(files)


@pytest.mark.parametrize(
    "digests",
    [
        pytest.param([b"\0" * 15 + bytes([i % 7]) for i in range(50)], id="first halves alike, second halves differ"),
        pytest.param([b"\0" * 6 + (i % 900).to_bytes(10, "little") for i in range(2000)], id="leading bits all zero"),
        pytest.param([b"\xff" * 16, b"\0" * 16, b"\xff" * 16, b"\0" * 16], id="the ends of the range"),
    ],
)
def test_digests_that_are_not_spread_evenly_are_told_apart(tmp_path: Path, digests: list[bytes]) -> None:
    masks = list(find_duplicates(write(tmp_path, [digests]), max_bytes=1 << 13))
    assert [mask.tolist() for mask in masks] == by_a_set([digests])


def test_no_files_and_empty_files_have_no_duplicates(tmp_path: Path) -> None:
    assert list(find_duplicates([])) == []
    assert [len(mask) for mask in find_duplicates(write(tmp_path, [[], []]))] == [0, 0]


def test_memory_stays_below_the_bound(tmp_path: Path) -> None:
    digests: NDArray[np.uint64] = np.random.default_rng(0).integers(0, 2**63, (100_000, 2), dtype=np.uint64)
    paths = [tmp_path / name for name in "ab"]
    for path in paths:  # every document twice: 3.2 MB of digests
        digests.tofile(path)
    tracemalloc.start()
    found = [int(mask.sum()) for mask in find_duplicates(paths, max_bytes=1 << 20)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == [0, 100_000]
    assert peak < 1 << 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]  # nothing is left behind


def test_a_text_and_its_utf8_have_the_same_digest_of_16_bytes() -> None:
    assert text_digest("第一条") == text_digest("第一条".encode())
    assert len(text_digest("")) == 16
    assert text_digest("a").hex() == "a96faf705af16834e6c632b61e964e1f"


FULL_DISK = """
import sys, tempfile
from pathlib import Path
import numpy as np
from launcher.prepare.dedupe import find_duplicates
path = Path(sys.argv[1])
np.random.default_rng(0).integers(0, 256, 16 * 200_000, dtype=np.uint8).tofile(path)
with open(path.with_name("fill"), "wb", buffering=0) as fill:
    try:
        while fill.write(b"x" * 4096):
            pass
    except OSError:
        pass
list(find_duplicates([path]))
"""


def test_a_full_disk_is_an_error_and_no_bus_error(tmp_path: Path) -> None:
    """On a disk of its own, in a namespace of its own; some systems let nobody but root have one."""
    if shutil.which("unshare") is None:
        pytest.skip("no namespaces here")
    script = 'mount -t tmpfs -o size=4M tmpfs "$1" && shift && exec "$@"'
    words = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", str(tmp_path)]
    done = subprocess.run(
        [*words, sys.executable, "-c", FULL_DISK, str(tmp_path / "h")], capture_output=True, text=True, timeout=60
    )
    if "Operation not permitted" in done.stderr or "denied" in done.stderr:
        pytest.skip("no namespaces here")
    assert f"No space left on device: '{tmp_path}'" in done.stderr
    assert done.returncode == 1
