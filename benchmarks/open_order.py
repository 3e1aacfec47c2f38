"""Opening a corpus and its order: ours against megatron-core's index of documents, samples and shuffle.

    python -m benchmarks.open_order [--documents 10000000] [--json]

Four epochs of rows of 2,048 tokens. Each side runs in a process of its own; what counts is cpu time and the growth of
its peak memory over opening and asking for the first 4,096 samples, and the bytes of index it leaves on the disk.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.made_shards import END, VOCAB_SIZE, make_shards
from benchmarks.support import machine, parser

LENGTH, EPOCHS = 2048, 4
BARS = {"cpu_s": 0.020, "memory_mb": 16.0, "ratio": 300.0}


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
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.indexed_dataset import IndexedDataset
    from megatron.core.datasets.utils import Split

    indexed = IndexedDataset(str(folder / "train-00000"), mmap=True)
    tokenizer = type(
        "Tokenizer", (), {"unique_identifiers": {"class": "none"}, "eod": END, "pad": 0, "vocab_size": VOCAB_SIZE}
    )()
    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=LENGTH,
        split="1",
        tokenizer=tokenizer,
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
        path_to_cache=str(folder / "megatron"),
        mid_level_dataset_surplus=0.005,
    )
    num_samples = EPOCHS * ((folder / "train-00000.bin").stat().st_size // 2 // LENGTH) - 8
    documents = np.arange(len(indexed.document_indices) - 1, dtype=np.int32)
    GPTDataset(indexed, str(folder / "train-00000"), documents, num_samples, Split.train, config)


OPENERS = {"ours": open_ours, "megatron-core": open_megatron}


def measure(side: str, folder: Path) -> None:
    """In a process of its own: import everything, then open; prints what it took."""
    if side == "ours":
        import launcher.samples.windows
        import launcher.shards.reader  # noqa: F401
    else:
        import megatron.core.datasets.gpt_dataset  # noqa: F401
    memory, cpu, wall = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time(), time.perf_counter()
    OPENERS[side](folder)
    print(
        json.dumps(
            {
                "cpu_s": time.process_time() - cpu,
                "wall_s": time.perf_counter() - wall,
                "memory_mb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1024,
            }
        )
    )


def run(side: str, folder: Path) -> dict[str, float] | None:
    """What a side took; None where it is not installed."""
    before = {path for path in folder.rglob("*") if path.is_file()}
    command = [sys.executable, "-m", "benchmarks.open_order", "--measure", side, "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(f"{side}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return None
    left = [path for path in folder.rglob("*") if path.is_file() and path not in before]
    told: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    told["index_bytes"] = sum(path.stat().st_size for path in left)
    for path in left:
        path.unlink()
    return told


def main() -> None:
    """Measure and print."""
    made = parser(__doc__, rounds=3)
    made.add_argument("--documents", type=int, nargs="+", default=[10_000_000], metavar="N", help="sizes to open")
    made.add_argument("--measure", choices=OPENERS, help="(what the benchmark calls itself with)")
    made.add_argument("--folder", type=Path)
    options = made.parse_args()
    if options.measure:
        measure(options.measure, options.folder)
        return
    rows = []
    for num_documents in options.documents:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "shards"
            make_shards(folder, num_documents, 20)
            pairs = [(run("ours", folder), run("megatron-core", folder)) for _ in range(options.rounds)]
        row: dict[str, object] = {"documents": num_documents}
        for side, values in zip(OPENERS, zip(*pairs, strict=True), strict=True):
            told = [value for value in values if value is not None]
            row[side] = {key: float(np.median([value[key] for value in told])) for key in told[0]} if told else None
        both = [(a, b) for a, b in pairs if a and b]
        row["ratio_cpu"] = float(np.median([b["cpu_s"] / a["cpu_s"] for a, b in both])) if both else None
        rows.append(row)
    report = {"benchmark": "open_order", "machine": machine(("numpy",)), "bars": BARS, "results": rows}
    print(
        json.dumps(report, indent=2) if options.json else "\n".join(f"{key}: {value}" for key, value in report.items())
    )


if __name__ == "__main__":
    main()
