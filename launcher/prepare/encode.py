"""Tokenizing batches of texts in worker processes, in order.

Imported by every worker: nothing here may import torch or transformers (9 s of CPU a process).
"""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from launcher.errors import LauncherError

Encoded = list[NDArray[np.int32]]
_PARALLELISM = "TOKENIZERS_PARALLELISM"
_tokenizer: Tokenizer | None = None  # of this worker process, set once when it starts


def encode_batches(
    batches: Iterable[list[str]], tokenizer_json: str, workers: int
) -> Generator[tuple[list[str], Encoded], None, None]:
    """Encode each batch without adding special tokens; a special token's name in a text is text like any other.

    Args:
        batches: Lists of texts; read only as fast as they are encoded, so memory does not grow with the corpus.
        tokenizer_json: The tokenizer.
        workers: Processes; 1 encodes in this one.

    Yields:
        Each batch and its ids, one int32 [N] a text, in the order of the batches whatever the number of workers.

    Raises:
        LauncherError: A worker was killed.
    """
    if workers == 1:
        tokenizer = _plain_tokenizer(tokenizer_json)
        for batch in batches:
            with one_thread():
                encoded = _encode_with(tokenizer, batch)
            yield batch, encoded
        return
    # spawn, not fork: the caller may hold threads (torch, rich). An executor, not a Pool: a Pool whose worker is killed
    # (out of memory) waits for ever.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (tokenizer_json,))
    waiting: deque[tuple[list[str], Future[Encoded]]] = deque()
    try:
        for batch in batches:
            waiting.append((batch, pool.submit(_encode, batch)))
            if len(waiting) > 2 * workers:
                done, result = waiting.popleft()
                yield done, result.result()
        while waiting:
            done, result = waiting.popleft()
            yield done, result.result()
    except BrokenProcessPool:
        raise LauncherError(
            "a tokenizing process was killed", "workers", "look for an out-of-memory kill (dmesg); use fewer --workers"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep the Rust library's threads from starting: a process that has used them cannot fork without a warning."""
    before = os.environ.get(_PARALLELISM)
    os.environ[_PARALLELISM] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_PARALLELISM]
        else:
            os.environ[_PARALLELISM] = before


def _plain_tokenizer(tokenizer_json: str) -> Tokenizer:
    tokenizer = Tokenizer.from_str(tokenizer_json)
    # Otherwise "</s>" or "[MASK]" written in a web page becomes the token that ends a document or hides a word.
    tokenizer.encode_special_tokens = True
    return tokenizer


def _start_worker(tokenizer_json: str) -> None:
    global _tokenizer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C is the parent's to handle; here it would print a traceback
    os.environ[_PARALLELISM] = "false"  # one thread a process: the processes are the parallelism
    _tokenizer = _plain_tokenizer(tokenizer_json)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # The executor's queues are pipes that every worker holds both ends of: when the parent is killed nobody hears it,
    # and the workers would wait for ever.
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _encode(texts: list[str]) -> Encoded:
    if _tokenizer is None:
        raise RuntimeError("the worker was not started")
    return _encode_with(_tokenizer, texts)


def _encode_with(tokenizer: Tokenizer, texts: list[str]) -> Encoded:
    return [np.array(e.ids, dtype=np.int32) for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
