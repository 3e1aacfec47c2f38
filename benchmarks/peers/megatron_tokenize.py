"""Megatron-LM's way from JSONL to `.bin`/`.idx`, as its tools/preprocess_data.py goes it (core 0.16).

That script is no part of the megatron-core package, so its loop is written here anew, step for step: lines go through
`Pool(workers).imap(…, 32)`, a worker parses with `json`, tokenizes document by document with a `transformers`
tokenizer and appends the end of the document, and the parent adds each document to an IndexedDatasetBuilder. The
tokenizer is called as Megatron's older HuggingFaceTokenizer does (`tokenizer(text).input_ids`); today's goes by way of
token strings, which is slower.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from typing import Any

from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder
from transformers import AutoTokenizer

CHUNK = 32
_WORKER: dict[str, Any] = {}


def main() -> None:
    """Tokenize a file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--input", required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--field", required=True)
    parser.add_argument("--output-prefix", required=True)
    parser.add_argument("--workers", type=int, required=True)
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    arguments = (options.tokenizer, options.field)
    with open(options.input, encoding="utf-8") as lines:  # noqa: PTH123  as the script does
        pool = multiprocessing.Pool(options.workers, initializer=_start, initargs=arguments)
        encoded = pool.imap(_encode, lines, CHUNK)
        dtype = DType.optimal_dtype(len(tokenizer))
        builder = IndexedDatasetBuilder(f"{options.output_prefix}.bin", dtype=dtype)
        for ids, sentence_lengths in encoded:
            builder.add_document(ids, sentence_lengths)
        builder.finalize(f"{options.output_prefix}.idx")
        pool.close()
        pool.join()


def _start(tokenizer: str, field: str) -> None:
    _WORKER["tokenizer"], _WORKER["field"] = AutoTokenizer.from_pretrained(tokenizer), field
    _WORKER["end"] = _end(_WORKER["tokenizer"])


def _encode(line: str) -> tuple[list[int], list[int]]:
    record = json.loads(line)
    ids: list[int] = _WORKER["tokenizer"](record[_WORKER["field"]], add_special_tokens=False).input_ids
    lengths = [len(ids)]
    if ids:
        ids.append(_WORKER["end"])
        lengths[-1] += 1
    return ids, lengths


def _end(tokenizer: Any) -> int:
    ends = (tokenizer.eos_token_id, tokenizer.sep_token_id)
    return next(int(end) for end in ends if end is not None)


if __name__ == "__main__":
    main()
