"""A thousand random damages of a folder of shards: how many are found, and how many wrong tokens are served.

    python -m benchmarks.corruption [--corpus FILE.jsonl] [--damages 1000] [--json]

Truncations, bit flips and swapped files, over every file of the folder. Each is held against `pretrain verify`, and
against training's own reading: every token, document and sample of the folder is asked for until something is refused.
Its peer is np.memmap, which is asked for the tokens of the same damaged folder and serves what it finds.
"""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

from benchmarks.made_shards import make_shards_of_size
from benchmarks.rounds import Value
from benchmarks.support import parser, show
from launcher.errors import LauncherError
from launcher.samples.windows import Windows
from launcher.shards.manifest import read_manifest
from launcher.shards.reader import Split
from launcher.shards.verify import tokenizer_problems, verify

ROW = 512
TOKENS = "train-00000.bin"


def damage(rng: random.Random, path: Path, others: list[Path]) -> str:
    """Damage a file in some way; returns how."""
    raw = path.read_bytes()
    kind = rng.choice(["truncated", "flipped", "swapped"])
    if kind == "truncated":
        path.write_bytes(raw[: rng.randrange(len(raw))])
    elif kind == "flipped":
        changed = bytearray(raw)
        changed[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
    else:
        path.write_bytes(rng.choice([o for o in others if o.read_bytes() != raw]).read_bytes())
    return kind


def found_by_verify(folder: Path) -> bool:
    """Whether `pretrain verify` says that something is wrong."""
    try:
        return bool(verify(folder))
    except LauncherError:
        return True


def served(folder: Path, truth: np.ndarray) -> tuple[bool, int]:
    """Whether reading refuses something, and how many wrong tokens it serves before."""
    wrong = 0
    try:
        manifest = read_manifest(folder)
        if list(tokenizer_problems(folder, manifest)):
            return True, 0
        split = Split(folder, "train", manifest)
        windows = Windows(split, ROW, ROW, fill=0)
        out = np.empty((16, ROW), dtype=np.int64)
        for first in range(0, windows.num_samples, 16):
            ids = np.arange(first, min(first + 16, windows.num_samples))
            rows = out[: len(ids)]
            lengths = windows.read(ids, rows)
            expected = truth[first * ROW : first * ROW + int(lengths.sum())]
            wrong += int(np.count_nonzero(rows.reshape(-1)[: len(expected)] != expected))
        split.document_starts(0, split.num_documents)
        for _ in split.origin_blocks():
            pass
    except LauncherError:
        return True, wrong
    return False, wrong


def served_by_memmap(path: Path, truth: np.ndarray) -> tuple[bool, int]:
    """The same of np.memmap, as everybody opens a file of tokens; what is missing counts as wrong."""
    try:
        tokens = np.memmap(path, dtype=np.uint16, mode="r")
    except (OSError, ValueError):
        return True, 0
    both = min(len(tokens), len(truth))
    return False, int(np.count_nonzero(tokens[:both] != truth[:both])) + abs(len(tokens) - len(truth))


def main() -> None:
    """Damage, ask, restore; a thousand times."""
    made = parser(__doc__)
    made.add_argument("--damages", type=int, default=1000, metavar="N", help="how many (default 1000)")
    options = made.parse_args()
    rng = random.Random(7)
    kinds: Counter[str] = Counter()
    verified = refused = wrong = noticed = wrong_of_memmap = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "shards"
        make_shards_of_size(folder, 400_000, 200, options.corpus)
        truth = np.fromfile(folder / TOKENS, dtype=np.uint16).astype(np.int64)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        for _ in range(options.damages):
            path = rng.choice(files)
            before = path.read_bytes()
            kinds[damage(rng, path, files)] += 1
            verified += found_by_verify(folder)
            told, served_wrong = served(folder, truth)
            told_by_memmap, served_by_it = served_by_memmap(folder / TOKENS, truth)
            refused, wrong = refused + told, wrong + served_wrong
            noticed, wrong_of_memmap = noticed + told_by_memmap, wrong_of_memmap + served_by_it
            path.write_bytes(before)
    every = float(options.damages)
    results = [
        Value("found by pretrain verify", verified, "damages", every, at_most=False),
        Value("found by reading", refused, "damages", every, at_most=False),
        Value("wrong tokens served", wrong, "", 0.0),
        Value("found by np.memmap", noticed, "damages"),
        Value("wrong or missing tokens of np.memmap", wrong_of_memmap, ""),
        Value("damages found, times those that np.memmap finds", refused / max(noticed, 1), ""),
    ]
    settings = {"damages": options.damages, **kinds}
    show("corruption", results, as_json=options.json, packages=("numpy",), settings=settings)


if __name__ == "__main__":
    main()
