"""Running a function over the parts of a corpus: one process a core, progress, and errors as they were raised.

Imported by every worker: nothing here may import torch or transformers.
"""

from __future__ import annotations

import errno
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from launcher import units
from launcher.errors import LauncherError
from launcher.prepare.encoders import one_thread
from launcher.prepare.part import Part, PartSettings, Report

Job = Callable[[PartSettings, Part, Report], None]
PRINT_EVERY_S = 30.0
"""Where there is no terminal (assumption: a line a minute is too few to see that it runs, one a second too many)."""
LISTEN_S = 0.1
"""After the last part, until nobody listens for progress any more."""

_settings: PartSettings | None = None  # of this worker process, set once when it starts
_progress: Connection | None = None


def run_parts(
    job: Job,
    settings: PartSettings,
    parts: Sequence[Part],
    workers: int,
    title: str,
    total_bytes: int,
    console: Console,
) -> None:
    """Run a job for every part.

    Args:
        job: A function of this package, called in a worker process.
        settings: Of the build.
        parts: What to do; nothing is promised of the order.
        workers: Processes; 1 runs in this one.
        title: What is being done.
        total_bytes: Of the corpus in these parts.
        console: Where progress is shown.

    Raises:
        LauncherError: A worker was killed; or what the job raised, once the others have stopped.
    """
    with _Meter(title, total_bytes, console) as meter:
        if workers == 1:
            with one_thread():
                for part in parts:
                    job(settings, part, meter.add)
            return
        _run_in_processes(job, settings, parts, workers, meter)


def _run_in_processes(job: Job, settings: PartSettings, parts: Sequence[Part], workers: int, meter: _Meter) -> None:
    # spawn, not fork: the caller may hold threads (torch, rich). An executor, not a Pool: a Pool whose worker is killed
    # (out of memory) waits for ever.
    context = get_context("spawn")
    # A pipe without a lock, which a worker that is killed would hold for ever: so short a message goes through at once.
    reader, writer = context.Pipe(duplex=False)
    is_over = threading.Event()
    listener = threading.Thread(target=_listen, args=(reader, is_over, meter), daemon=True)
    # By a file in memory, which nobody else may write to and which goes with this process: who starts a process waits
    # until it has taken all that it is given, also where it was killed meanwhile.
    with os.fdopen(os.memfd_create("settings"), "wb") as given:
        given.write(pickle.dumps(settings))
        given.flush()
        name = f"/proc/{os.getpid()}/fd/{given.fileno()}"
        try:
            pool = ProcessPoolExecutor(workers, context, _start_worker, (name, writer))
        except BrokenPipeError:  # multiprocessing has a process of its own, which keeps the books
            raise _killed() from None
        listener.start()
        try:
            # The largest first would be faster by a part's length, but who watches wants to see them in order.
            for future in as_completed([_submit(pool, job, part) for part in parts]):
                future.result()
        except (BrokenProcessPool, BrokenPipeError):
            raise _killed() from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            is_over.set()
            listener.join()


def _killed() -> LauncherError:
    return LauncherError(
        "a process was killed",
        "workers",
        "look for an out-of-memory kill (dmesg); use fewer --workers, or shorter documents (--max-chars, --txt blank)",
    )


def _submit(pool: ProcessPoolExecutor, job: Job, part: Part) -> Future[None]:
    try:
        return pool.submit(_run, job, part)
    except OSError as error:
        if error.errno not in (None, errno.EPIPE):
            raise
        raise BrokenProcessPool from None  # a worker was killed that moment: the pool's pipes are closed, or theirs


def _listen(reader: Connection, is_over: threading.Event, meter: _Meter) -> None:
    while reader.poll(LISTEN_S) or not is_over.is_set():
        if reader.poll():
            told = reader.recv()
            # A terminal that was closed (of which rich makes a SystemExit), a full disk under the log: who is not heard
            # any more waits for ever once the pipe is full.
            with suppress(OSError, SystemExit):
                meter.add(*told)


def _start_worker(given: str, progress: Connection) -> None:
    global _settings, _progress
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C is the parent's to handle; here it would print a traceback
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread a process: the processes are the parallelism
    _settings, _progress = pickle.loads(Path(given).read_bytes()), progress
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # The executor's queues are pipes that every worker holds both ends of: when the parent is killed nobody hears it,
    # and the workers would wait for ever.
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run(job: Job, part: Part) -> None:
    if _settings is None or _progress is None:
        raise RuntimeError("the worker was not started")
    writer = _progress
    job(_settings, part, lambda num_bytes, num_documents: writer.send((num_bytes, num_documents)))


class _Meter:
    """Progress on a terminal as a bar, elsewhere as a line now and then."""

    def __init__(self, title: str, total_bytes: int, console: Console) -> None:
        self._console, self._title, self._total = console, title, max(total_bytes, 1)
        self._bytes = self._documents = 0
        self._begun = self._told = time.monotonic()
        self._bar = Progress(
            TextColumn(f"[bold]{title}[/]"),
            BarColumn(bar_width=30),
            DownloadColumn(),
            TextColumn("{task.fields[documents]} documents"),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=total_bytes, documents=0)

    def __enter__(self) -> _Meter:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def add(self, num_bytes: int, num_documents: int) -> None:
        """Count on."""
        self._bytes += num_bytes
        self._documents += num_documents
        self._bar.update(self._task, advance=num_bytes, documents=self._documents)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._told >= PRINT_EVERY_S:
            self._told = now
            speed = self._bytes / (now - self._begun)
            left = units.duration((self._total - self._bytes) / speed) if speed else "?"
            self._console.print(
                f"{self._title}: {self._bytes / self._total:.0%}, {self._documents} documents, "
                f"{units.size(speed)}/s, {left} left",
                highlight=False,
            )
