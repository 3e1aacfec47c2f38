"""Tokenizing batches of texts in worker processes, in order.

Imported by every worker: nothing here may import torch or transformers (9 s of CPU a process).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from multiprocessing import get_context
from multiprocessing.pool import AsyncResult

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

Encoded = list[NDArray[np.int32]]
_tokenizer: Tokenizer | None = None  # of this worker process, set once when it starts


def encode_batches(
    batches: Iterable[list[str]], tokenizer_json: str, workers: int
) -> Iterator[tuple[list[str], Encoded]]:
    """Encode each batch without adding special tokens.

    Args:
        batches: Lists of texts; read only as fast as they are encoded, so memory does not grow with the corpus.
        tokenizer_json: The tokenizer.
        workers: Processes; 1 encodes in this one.

    Yields:
        Each batch and its ids, one int32 [N] a text, in the order of the batches whatever the number of workers.
    """
    if workers == 1:
        _start_worker(tokenizer_json)
        for batch in batches:
            yield batch, _encode(batch)
        return
    # spawn, not fork: the caller may hold threads (torch, rich).
    with get_context("spawn").Pool(workers, _start_worker, (tokenizer_json,)) as pool:
        waiting: deque[tuple[list[str], AsyncResult[Encoded]]] = deque()
        for batch in batches:
            waiting.append((batch, pool.apply_async(_encode, (batch,))))
            if len(waiting) > 2 * workers:
                done, result = waiting.popleft()
                yield done, result.get()
        for done, result in waiting:
            yield done, result.get()


def _start_worker(tokenizer_json: str) -> None:
    global _tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread a process: the processes are the parallelism
    _tokenizer = Tokenizer.from_str(tokenizer_json)


def _encode(texts: list[str]) -> Encoded:
    if _tokenizer is None:
        raise RuntimeError("the worker was not started")
    return [np.array(e.ids, dtype=np.int32) for e in _tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
