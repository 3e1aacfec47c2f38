"""Opening a corpus and its order: ours against megatron-core's index of documents, samples and shuffle.

    python -m benchmarks.open_order [--corpus FILE.jsonl] [--documents 10000000] [--peer-python PATH] [--json]

Four epochs of rows of 2,048 tokens. Each side runs in a process of its own; what counts is cpu time and the growth of
its peak memory over opening and asking for the first 4,096 samples, and the bytes of index it leaves on the disk.
10^8 documents (`--documents 100000000`) need 6 GB in the temporary folder.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.made_shards import documents_of, make_shards
from benchmarks.rounds import PeerError, Value, add_peer_python, compared, installed
from benchmarks.support import Ratio, parser, show

LENGTH, EPOCHS = 2048, 4
TOKENS = 200_000_000
"""Of a corpus of any size: documents of a large one are short, so that it fits on a small disk."""
FIELDS: dict[str, tuple[str, float]] = {"cpu_s": ("s", 0.020), "memory_mb": ("MB", 16.0), "index_bytes": ("bytes", 0.0)}
RATIO_BAR, BAR_DOCUMENTS = 300.0, 10_000_000


def open_ours(folder: Path) -> None:
    """Open the split, and say which samples the first and the last positions of four epochs hold."""
    from launcher.samples.windows import Windows
    from launcher.shards.reader import open_split

    windows = Windows(open_split(folder, "train"), LENGTH, LENGTH, fill=0)
    order = windows.order(1)
    order.samples_at(np.arange(4096, dtype=np.int64))
    order.samples_at(np.arange(EPOCHS * windows.num_samples - 64, EPOCHS * windows.num_samples, dtype=np.int64))


def open_megatron(folder: Path) -> None:
    """Build what GPTDataset builds when it is opened."""
    from benchmarks.peers.datasets import megatron

    num_samples = EPOCHS * ((folder / "train-00000.bin").stat().st_size // 2 // LENGTH) - 8
    megatron(folder / "train-00000", LENGTH, 1, num_samples)


OPENERS = {"ours": open_ours, "megatron-core": open_megatron}


def measure(side: str, folder: Path) -> None:
    """In a process of its own: import everything, then open; prints what it took."""
    if side == "ours":
        import launcher.samples.windows
        import launcher.shards.reader  # noqa: F401
    else:
        import megatron.core.datasets.gpt_dataset  # noqa: F401

        import benchmarks.peers.datasets  # noqa: F401
    memory = forget_peak_mb()
    cpu, wall = time.process_time(), time.perf_counter()
    OPENERS[side](folder)
    print(
        json.dumps(
            {
                "cpu_s": time.process_time() - cpu,
                "wall_s": time.perf_counter() - wall,
                "memory_mb": memory_mb("VmHWM") - memory,
            }
        )
    )


def forget_peak_mb() -> float:
    """What is in memory now, from where on the peak counts: importing went higher."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return memory_mb("VmRSS")


def memory_mb(field: str) -> float:
    """A field of this process's status, in MB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def run(side: str, folder: Path, python: Path) -> dict[str, float]:
    """What a side took.

    Raises:
        PeerError: It failed.
    """
    before = {path for path in folder.rglob("*") if path.is_file()}
    command = [str(python), "-m", "benchmarks.open_order", "--measure", side, "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise PeerError(f"{side}: {done.stderr.strip()[-2000:]}")
    left = [path for path in folder.rglob("*") if path.is_file() and path not in before]
    told: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    told["index_bytes"] = sum(path.stat().st_size for path in left)
    for path in left:
        path.unlink()
    return told


def main() -> None:
    """Measure and print."""
    made = parser(__doc__, rounds=3)
    add_peer_python(made)
    made.add_argument(
        "--documents", type=int, nargs="+", default=[100_000, 10_000_000], metavar="N", help="sizes to open"
    )
    made.add_argument("--peer-documents", type=int, default=BAR_DOCUMENTS, metavar="N", help="the peer's largest size")
    made.add_argument("--measure", choices=OPENERS, help="(what the benchmark calls itself with)")
    made.add_argument("--folder", type=Path)
    options = made.parse_args()
    if options.measure:
        measure(options.measure, options.folder)
        return
    results: list[Ratio | Value] = []
    has_peer = installed(options.peer_python, "megatron-core")
    for num_documents in options.documents:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "shards"
            mean = max(2, min(500, TOKENS // num_documents))
            make_shards(folder, num_documents, mean, documents_of(options.corpus, mean) if options.corpus else None)
            with_peer = has_peer and num_documents <= options.peer_documents
            ours, theirs = [], []
            for _ in range(options.rounds):
                ours.append(run("ours", folder, Path(sys.executable)))
                theirs += [run("megatron-core", folder, options.peer_python)] if with_peer else []
        results += told(num_documents, ours, theirs)
    show("open_order", results, as_json=options.json, packages=("numpy",), settings={"epochs": EPOCHS, "row": LENGTH})


def told(num_documents: int, ours: list[dict[str, float]], peer: list[dict[str, float]]) -> list[Ratio | Value]:
    """The medians of a size, with its bars."""
    title = f"{num_documents:,} documents"
    results: list[Ratio | Value] = []
    for side, runs in (("ours", ours), ("megatron-core", peer)):
        for key, (unit, bar) in FIELDS.items():
            if runs:
                median = float(np.median([run[key] for run in runs]))
                limit = bar if side == "ours" else None
                results.append(Value(f"{title}, {side}: {key}", median, unit, limit))
    if ours and len(ours) == len(peer):
        one, two = ([(run["wall_s"], run["cpu_s"]) for run in runs] for runs in (ours, peer))
        wanted = RATIO_BAR if num_documents == BAR_DOCUMENTS else None
        results.append(compared(title, one, "megatron-core's GPTDataset, built", two, by="cpu", bar=wanted))
    return results


if __name__ == "__main__":
    main()
