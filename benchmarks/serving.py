"""Serving tokens in random order from a warm cache: ours against np.memmap slices and Megatron's GPTDataset.

    python -m benchmarks.serving [--rounds N] [--json]

int64 out on both sides. Ours works out the order (Feistel) on the way and has its blocks checked already; np.memmap is
given its permutation for nothing, as is Megatron's dataset (which needs megatron-core; left out where it is missing).
The last lines are one pass over a split whose blocks are checked when they are first touched, against one unchecked.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.made_shards import END, VOCAB_SIZE, make_shards
from benchmarks.support import Ratio, parser, ratio, show, timed
from launcher.samples.loader import Corpus, Loader
from launcher.samples.windows import Windows
from launcher.shards.reader import open_split

SHAPES = ((512, 32, 4.0), (2048, 8, 4.0), (8192, 4, 3.0))
"""Tokens of a row, rows, and the bar against np.memmap."""
MEGATRON_BAR = 40.0
CALLS = 200


def ours(folder: Path, length: int, num_rows: int, verify: Any = "touch") -> Callable[[], object]:
    """Serves the next batch of an endless run into one array."""
    windows = Windows(open_split(folder, "train", verify), length, length, fill=0)
    loader = Loader((Corpus("random", windows, windows.order(1)),))
    order, out = loader.corpora[0].order, np.empty((num_rows, length), dtype=np.int64)
    steps = itertools.count()

    def serve() -> object:
        first = next(steps) * num_rows
        windows.read(order.samples_at(np.arange(first, first + num_rows)), out)
        return out

    return serve


def memmap(folder: Path, length: int, num_rows: int) -> Callable[[], object]:
    """`np.stack` of slices, as nanoGPT and many others do it."""
    tokens = np.memmap(folder / "train-00000.bin", dtype=np.uint16, mode="r")
    order = np.random.default_rng(1).permutation(len(tokens) // length)
    places = itertools.cycle(range(0, len(order) - num_rows, num_rows))

    def serve() -> object:
        first = next(places)
        starts = order[first : first + num_rows] * length
        return np.stack([tokens[start : start + length].astype(np.int64) for start in starts])

    return serve


def megatron(folder: Path, length: int, num_rows: int) -> Callable[[], object] | None:
    """megatron-core's GPTDataset with torch's default collate; None where megatron-core is not installed."""
    try:
        from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
        from megatron.core.datasets.indexed_dataset import IndexedDataset
        from megatron.core.datasets.utils import Split
        from torch.utils.data import default_collate
    except ImportError:
        return None
    prefix = str(folder / "train-00000")
    tokenizer = type(
        "Tokenizer", (), {"unique_identifiers": {"class": "none"}, "eod": END, "pad": 0, "vocab_size": VOCAB_SIZE}
    )()
    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=length,
        split="1",
        tokenizer=tokenizer,
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
        path_to_cache=str(folder / "megatron"),
        mid_level_dataset_surplus=0.005,
    )
    indexed = IndexedDataset(prefix, mmap=True)
    documents = np.arange(len(indexed.document_indices) - 1, dtype=np.int32)
    dataset = GPTDataset(indexed, prefix, documents, None, Split.train, config)
    places = itertools.cycle(range(0, len(dataset) - num_rows, num_rows))

    def serve() -> object:
        first = next(places)
        return default_collate([dataset[index] for index in range(first, first + num_rows)])

    return serve


def first_touch(folder: Path, rounds: int) -> Ratio:
    """One pass of each kind in turn, every time with files opened anew: what checking blocks costs."""
    length, num_rows = 2048, 8
    num_batches = open_split(folder, "train").num_tokens // length // num_rows

    def one_pass(verify: str) -> tuple[float, float]:
        serve = ours(folder, length, num_rows, verify)
        return timed(lambda: [serve() for _ in range(num_batches)])

    one_pass("off")
    times = [(one_pass("touch"), one_pass("off")) for _ in range(max(3, rounds // 3))]
    ratios = [off[1] / touch[1] for touch, off in times]
    touches, offs = [touch for touch, _ in times], [off for _, off in times]
    return Ratio(
        name="one pass, blocks checked when first touched (bar: at most 15 % slower, in cpu time)",
        peer="the same unchecked",
        rounds=len(times),
        ours_s=statistics.median(wall for wall, _ in touches),
        peer_s=statistics.median(wall for wall, _ in offs),
        ours_cpu_s=statistics.median(cpu for _, cpu in touches),
        peer_cpu_s=statistics.median(cpu for _, cpu in offs),
        ratio=statistics.median(ratios),
        ratio_min=min(ratios),
        ratio_max=max(ratios),
        bar=round(1 / 1.15, 3),
    )


def main() -> None:
    """Measure and print."""
    options = parser(__doc__, rounds=9).parse_args()
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "shards"
        make_shards(folder, 100_000, 500)
        for length, num_rows, bar in SHAPES:
            serve = ours(folder, length, num_rows)
            split_batches = open_split(folder, "train").num_tokens // length // num_rows
            for _ in range(split_batches):  # every block checked, every page in the cache
                serve()
            title = f"{num_rows} rows of {length} tokens"
            peer = memmap(folder, length, num_rows)
            slices = "np.memmap slices, astype, stack"
            results.append(
                ratio(title, serve, slices, peer, options.rounds, ours_calls=CALLS, peer_calls=CALLS, bar=bar)
            )
            dataset = megatron(folder, length, num_rows)
            if dataset is not None:
                told = "megatron-core's GPTDataset and default_collate"
                results.append(
                    ratio(
                        title, serve, told, dataset, options.rounds, ours_calls=CALLS, peer_calls=10, bar=MEGATRON_BAR
                    )
                )
        results.append(first_touch(folder, options.rounds))
    show("serving", results, as_json=options.json, packages=("numpy",))


if __name__ == "__main__":
    main()
