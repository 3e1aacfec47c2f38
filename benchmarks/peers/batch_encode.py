"""A bare loop around `tokenizers`: orjson, `encode_batch_fast` on 1,000 texts at a time, ids to a flat uint16 file.

What one would write for oneself. Each process takes a byte range of the file and writes a file of its own, and one of
lengths; with `--discard` nothing is written: the least that tokenizing can cost.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import orjson
from tokenizers import Tokenizer

BATCH = 1000


def main() -> None:
    """Tokenize a file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--tokenizer", required=True, help="tokenizer.json")
    parser.add_argument("--field", required=True)
    parser.add_argument("--end", required=True, help="token behind each document")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--discard", action="store_true")
    options = parser.parse_args()
    size = options.input.stat().st_size
    edges = [size * number // options.workers for number in range(options.workers + 1)]
    processes = [
        multiprocessing.Process(target=_encode, args=(options, number, start, stop))
        for number, (start, stop) in enumerate(itertools.pairwise(edges))
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        if process.exitcode:
            raise SystemExit(process.exitcode)


def _encode(options: argparse.Namespace, number: int, start: int, stop: int) -> None:
    tokenizer = Tokenizer.from_file(options.tokenizer)
    end = [tokenizer.token_to_id(options.end)]
    if options.discard:
        for texts in _batches(options.input, options.field, start, stop):
            for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False):
                _ = encoding.ids
        return
    lengths: list[int] = []
    options.output.mkdir(parents=True, exist_ok=True)
    with (options.output / f"{number}.bin").open("wb") as file:
        for texts in _batches(options.input, options.field, start, stop):
            for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False):
                ids = encoding.ids + end
                lengths.append(len(ids))
                file.write(np.array(ids, dtype=np.uint16).tobytes())
    np.save(options.output / f"{number}.lengths.npy", np.array(lengths, dtype=np.int32))


def _batches(path: Path, field: str, start: int, stop: int) -> Iterator[list[str]]:
    texts: list[str] = []
    with path.open("rb") as file:
        if start:
            file.seek(start - 1)
            file.readline()  # the line that begins before is another's
        while file.tell() < stop and (line := file.readline()):
            texts.append(orjson.loads(line)[field])
            if len(texts) == BATCH:
                yield texts
                texts = []
    if texts:
        yield texts


if __name__ == "__main__":
    main()
