"""Random reads from a cold cache: ours, told ahead what comes, against np.memmap as everybody opens it.

    python -m benchmarks.cold [--corpus FILE.jsonl] [--folder DIR] [--gigabytes 3] [--json]

Each side reads the same windows from the same file of tokens (the corpus's, again and
again, or random ones), which is thrown out of the page cache before every
turn (posix_fadvise; `mincore` says how much of it is still there). Ours goes through the samples as training does: the
next 32 rows are announced (`advise`) before the last 32 are read. With `verify: touch`, the default, the whole 64 KiB
block around a window is read and held against its checksum; `verify: off` reads the window alone. The bar follows from
how far the device reads ahead, which np.memmap pays for at every window.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.made_shards import make_shards_of_size
from benchmarks.rounds import Timing, Value, compared
from benchmarks.support import Ratio, parser, show
from launcher.samples.windows import Windows
from launcher.shards.reader import Verify, open_split

WINDOWS_KIB = (4, 16)
AHEAD = 32
NUM_MEMMAP = 128
"""Windows a turn of the slow side reads: a gigabyte where 8 MiB are read ahead, so that the file must be larger."""
NUM_OURS = 8192
MEAN_TOKENS = 1000
LARGE_READ_AHEAD_KB = 4096
BAR_LARGE, BAR_SMALL = 20.0, 2.0
WARM_SHARE = 0.02
"""More of the file in the cache than this, and it was not thrown out."""


def main() -> None:
    """Measure and print."""
    made = parser(__doc__, rounds=5)
    made.add_argument("--folder", type=Path, metavar="DIR", help="on the disk to measure (default: the temporary one)")
    made.add_argument("--gigabytes", type=float, default=3, metavar="N", help="size of the file (default 3)")
    options = made.parse_args()
    results: list[Ratio | Value] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name) / "shards"
        make_shards_of_size(folder, int(options.gigabytes * 1e9 / 2), MEAN_TOKENS, options.corpus)
        path = folder / "train-00000.bin"
        read_ahead = read_ahead_kb(path)
        bar = BAR_LARGE if (read_ahead or 0) >= LARGE_READ_AHEAD_KB else BAR_SMALL
        evict(path)
        results.append(Value("in the cache after it was thrown out", resident_share(path), "", WARM_SHARE))
        for window_kib in WINDOWS_KIB:
            results += windows_of(folder, path, window_kib, options.rounds, bar)
        settings = {"file_gb": path.stat().st_size / 1e9, "read_ahead_kb": read_ahead, "rows_ahead": AHEAD}
    show("cold", results, as_json=options.json, packages=("numpy",), settings=settings)


def windows_of(folder: Path, path: Path, window_kib: int, rounds: int, bar: float) -> list[Ratio | Value]:
    """Windows of one size: the checked side, the unchecked side, and the peer, in turn."""
    length = window_kib * 1024 // 2
    timings: dict[str, list[Timing]] = {"touch": [], "off": [], "memmap": []}
    for number in range(rounds):
        starts = np.random.default_rng(number).permutation(path.stat().st_size // 2 // length)
        sides: dict[str, Callable[[], Timing]] = {
            "touch": lambda starts=starts: ours(folder, length, starts[:NUM_OURS], "touch"),  # type: ignore[misc]
            "off": lambda starts=starts: ours(folder, length, starts[:NUM_OURS], "off"),  # type: ignore[misc]
            "memmap": lambda starts=starts: memmap(path, length, starts[:NUM_MEMMAP]),  # type: ignore[misc]
        }
        for name in sides if number % 2 == 0 else reversed(sides):
            evict(path)
            timings[name].append(sides[name]())
    title = f"windows of {window_kib} KiB, cold"
    told = "np.memmap, opened as usual"
    rates = [
        Value(f"{title}: {name}", 1 / statistics.median(wall_s for wall_s, _ in taken), "windows a second")
        for name, taken in timings.items()
    ]
    return [
        compared(f"{title}, checked", timings["touch"], told, timings["memmap"], bar=bar),
        compared(f"{title}, unchecked", timings["off"], told, timings["memmap"], bar=bar),
        *rates,
    ]


def ours(folder: Path, length: int, samples_N: NDArray[np.int64], verify: Verify) -> Timing:
    """Seconds a window, opening included."""
    out_BL = np.empty((AHEAD, length), dtype=np.int64)
    cpu, start = time.process_time(), time.perf_counter()
    windows = Windows(open_split(folder, "train", verify), length, length, fill=0)
    windows.advise(samples_N[:AHEAD])
    for first in range(0, len(samples_N), AHEAD):
        windows.advise(samples_N[first + AHEAD : first + 2 * AHEAD])
        wanted = samples_N[first : first + AHEAD]
        windows.read(wanted, out_BL[: len(wanted)])
    count = len(samples_N)
    return (time.perf_counter() - start) / count, (time.process_time() - cpu) / count


def memmap(path: Path, length: int, samples_N: NDArray[np.int64]) -> Timing:
    """The same, a slice at a time."""
    cpu, start = time.process_time(), time.perf_counter()
    tokens = np.memmap(path, dtype=np.uint16, mode="r")
    for first in range(0, len(samples_N), AHEAD):
        wanted = samples_N[first : first + AHEAD].tolist()
        np.stack([tokens[sample * length : (sample + 1) * length].astype(np.int64) for sample in wanted])
    count = len(samples_N)
    return (time.perf_counter() - start) / count, (time.process_time() - cpu) / count


def evict(path: Path) -> None:
    """Write the file back and throw it out of the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def resident_share(path: Path) -> float:
    """Share of the file's pages that are in memory."""
    size = path.stat().st_size
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY) as mapped:
        view = (ctypes.c_char * size).from_buffer(mapped)  # a private mapping, for its address alone
        pages = (ctypes.c_ubyte * (-(-size // mmap.PAGESIZE)))()
        library = ctypes.CDLL(None, use_errno=True)
        failed = library.mincore(ctypes.c_void_p(ctypes.addressof(view)), ctypes.c_size_t(size), pages)
        del view
    if failed:
        raise OSError(ctypes.get_errno(), "mincore", str(path))
    return float(np.mean(np.frombuffer(bytes(pages), dtype=np.uint8) & 1))


def read_ahead_kb(path: Path) -> int | None:
    """How far the device under a file reads ahead; None where it does not tell."""
    device = path.stat().st_dev
    block = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()
    for folder in (block, block.parent):  # of a partition, the disk tells
        told = folder / "queue" / "read_ahead_kb"
        if told.is_file():
            return int(told.read_text())
    return None


if __name__ == "__main__":
    main()
