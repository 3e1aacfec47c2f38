"""Serving tokens in random order from a warm cache: ours against np.memmap slices and Megatron's GPTDataset.

    python -m benchmarks.serving [--corpus FILE.jsonl] [--peer-python PATH] [--rounds N] [--json]

int64 out on both sides. Ours works out the order (Feistel) on the way and has its blocks checked already; np.memmap is
given its permutation for nothing. The datasets of megatron-core, litdata, datatrove and mosaicml-streaming serve the
same tokens in a process of their own; one that is not installed there is left out. What counts is cpu time.
The last lines are one pass over a split whose blocks are checked when they are first touched, against one unchecked:
served bare, and made into masked batches with digests, as a run asks for them.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.made_shards import make_shards_of_size
from benchmarks.rounds import Peer, PeerError, Timing, add_peer_python, compared, in_turn, installed
from benchmarks.support import Ratio, parser, show, timed
from launcher.objectives.mlm import MaskedLM
from launcher.samples.digest import digest
from launcher.samples.loader import Corpus, Loader
from launcher.samples.windows import Windows
from launcher.shards.reader import open_split

SHAPES = ((512, 32, 4.0), (2048, 8, 4.0), (8192, 4, 3.0))
"""Tokens of a row, rows, and the bar against np.memmap."""
MEGATRON_BAR = 40.0
CALLS, PEER_CALLS = 1000, 20
PEERS = {
    "megatron": "megatron-core",
    "litdata": "litdata",
    "datatrove": "datatrove",
    "streaming": "mosaicml-streaming",
}
"""Their packages, by name."""


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


def against_peer(
    name: str, python: Path, folder: Path, shape: tuple[int, int], serve: Callable[[], object], rounds: int
) -> Ratio | None:
    """Against a dataset in a process of its own, in cpu time; None where it breaks down."""
    length, num_rows = shape
    try:
        with Peer(python, "benchmarks.peers.datasets", name) as peer:
            peer.ask("open", prefix=str(folder / "train-00000"), length=length, num_rows=num_rows)
            peer.ask("serve", num_batches=PEER_CALLS)  # its files are opened at the first row

            def theirs() -> Timing:
                told = peer.ask("serve", num_batches=PEER_CALLS)
                return told["wall_s"] / PEER_CALLS, told["cpu_s"] / PEER_CALLS

            return in_turn(
                f"{num_rows} rows of {length} tokens",
                partial(timed, serve, CALLS),
                f"{peer.about['name']}'s dataset and torch's default_collate",
                theirs,
                rounds,
                by="cpu",
                bar=MEGATRON_BAR if name == "megatron" else None,
            )
    except PeerError as error:
        print(f"left out: {error}", file=sys.stderr)
        return None


def as_trained_on(folder: Path, length: int, num_rows: int, verify: Any = "touch") -> Callable[[], object]:
    """Makes the next masked batch and its digest, as a run does."""
    split = open_split(folder, "train", verify)
    special = split.manifest.tokenizer.special
    objective = MaskedLM(length + 2, 1, special, split.vocab_size)
    windows = Windows(split, length, length, objective.fill_id)
    loader = Loader((Corpus("random", windows, windows.order(1)),))
    steps = itertools.count()

    def serve() -> object:
        positions = np.arange(num_rows, dtype=np.int64) + next(steps) * num_rows
        return digest(positions, objective.batch(loader.fetch(positions)))

    return serve


def first_touch(name: str, make: Callable[..., Callable[[], object]], folder: Path, rounds: int) -> Ratio:
    """One pass of each kind in turn, every time with files opened anew: what checking blocks costs."""
    length, num_rows = 2048, 8
    num_batches = open_split(folder, "train").num_tokens // length // num_rows

    def one_pass(verify: str) -> tuple[float, float]:
        serve = make(folder, length, num_rows, verify)
        return timed(lambda: [serve() for _ in range(num_batches)])

    one_pass("off")
    times = [(one_pass("touch"), one_pass("off")) for _ in range(rounds)]
    return compared(
        f"one pass{name}, blocks checked when first touched (bar: at most 15 % slower)",
        [touch for touch, _ in times],
        "the same unchecked",
        [off for _, off in times],
        by="cpu",
        bar=round(1 / 1.15, 3),
    )


def main() -> None:
    """Measure and print."""
    made = parser(__doc__, rounds=9)
    add_peer_python(made)
    made.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS), help="datasets to measure against")
    options = made.parse_args()
    peers = [name for name in options.peers if installed(options.peer_python, PEERS[name])]
    results: list[Ratio] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "shards"
        make_shards_of_size(folder, 50_000_000, 500, options.corpus)
        for length, num_rows, bar in SHAPES:
            serve = ours(folder, length, num_rows)
            split_batches = open_split(folder, "train").num_tokens // length // num_rows
            for _ in range(split_batches):  # every block checked, every page in the cache
                serve()
            title = f"{num_rows} rows of {length} tokens"
            peer = memmap(folder, length, num_rows)
            results.append(
                in_turn(
                    title,
                    partial(timed, serve, CALLS),
                    "np.memmap slices, astype, stack",
                    partial(timed, peer, CALLS),
                    options.rounds,
                    by="cpu",
                    bar=bar,
                )
            )
            for name in peers:
                found = against_peer(name, options.peer_python, folder, (length, num_rows), serve, options.rounds)
                results += [] if found is None else [found]
        results.append(first_touch("", ours, folder, options.rounds))
        results.append(first_touch(" of masked batches with their digests", as_trained_on, folder, options.rounds))
    show("serving", results, as_json=options.json, packages=("numpy",))


if __name__ == "__main__":
    main()
