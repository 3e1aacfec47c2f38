"""What a process that builds parts does, from its start on.

Imported by every worker: nothing here may import torch or transformers, nor rich (0.1 s).
"""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Callable
from functools import lru_cache
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from pathlib import Path

from launcher.prepare.part import Part, PartSettings, Report

Job = Callable[[PartSettings, Part, Report], None]

_progress: Connection | None = None  # of this process, set once when it starts


def start(progress: Connection) -> None:
    """Begin: from here on parts may come.

    Args:
        progress: Takes (bytes, documents) of what is done.
    """
    global _progress
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread a process: the processes are the parallelism
    _progress = progress
    threading.Thread(target=_end_with_parent, daemon=True).start()


def wait() -> None:
    """Do nothing yet: an executor starts a process when there is something to do."""


def work(job: Job, given: str, part: Part) -> None:
    """Do a job for a part.

    Args:
        job: A function of this package.
        given: File of the pickled settings.
        part: What to do.
    """
    if _progress is None:
        raise RuntimeError("the worker was not started")
    writer = _progress
    job(_settings(given), part, lambda num_bytes, num_documents: writer.send((num_bytes, num_documents)))


@lru_cache(maxsize=1)
def _settings(given: str) -> PartSettings:
    settings: PartSettings = pickle.loads(Path(given).read_bytes())
    return settings


def _end_with_parent() -> None:
    # The executor's queues are pipes that every worker holds both ends of: when the parent is killed nobody hears it,
    # and the workers would wait for ever.
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
