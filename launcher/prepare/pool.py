"""Running a function over the parts of a corpus: one process a core, progress, and errors as they were raised."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from types import TracebackType

from rich.console import Console

from launcher.errors import LauncherError
from launcher.prepare import worker
from launcher.prepare.encoders import one_thread
from launcher.prepare.part import Part, PartSettings, Report
from launcher.prepare.progress import shown
from launcher.prepare.worker import Job

LISTEN_S = 0.1
"""After the last part, until nobody listens for progress any more."""


class Workers:
    """Who builds parts: this process, or others, which begin to start when this context is entered.

    Args:
        num: Processes; 1 is this one.
    """

    def __init__(self, num: int) -> None:
        self._num = num
        self._processes: _Processes | None = None

    def __enter__(self) -> Workers:
        if self._num > 1:
            self._processes = _Processes(self._num)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._processes is not None:
            self._processes.end()

    def run(
        self, job: Job, settings: PartSettings, parts: Sequence[Part], title: str, total_bytes: int, console: Console
    ) -> None:
        """Run a job for every part.

        Args:
            job: A function of this package.
            settings: Of the build.
            parts: What to do; nothing is promised of the order.
            title: What is being done.
            total_bytes: Of the corpus in these parts.
            console: Where progress is shown.

        Raises:
            LauncherError: A process was killed; or what the job raised, once the others have stopped.
        """
        with shown(title, total_bytes, console) as report:
            if self._processes is not None:
                self._processes.run(job, settings, parts, report)
                return
            with one_thread():
                for part in parts:
                    job(settings, part, report)


class _Processes:
    """Processes that start at once, before it is known what they are to do: each imports for half a second."""

    def __init__(self, num: int) -> None:
        # spawn, not fork: the caller may hold threads (torch, rich). An executor, not a Pool: a Pool whose worker is
        # killed (out of memory) waits for ever.
        context = get_context("spawn")
        # A pipe without a lock, which a worker that is killed would hold for ever: so short a message goes through at
        # once.
        self._reader, writer = context.Pipe(duplex=False)
        self._given = ExitStack()
        try:
            self._pool = ProcessPoolExecutor(num, context, worker.start, (writer,))
        except BrokenPipeError:  # multiprocessing has a process of its own, which keeps the books
            raise _killed() from None
        with suppress(BrokenProcessPool):  # it is told when there is something to do
            for _ in range(num):
                self._submit(worker.wait)

    def end(self) -> None:
        """Wait until each has done what it is at."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._given.close()

    def run(self, job: Job, settings: PartSettings, parts: Sequence[Part], report: Report) -> None:
        """See `Workers.run`."""
        is_over = threading.Event()
        listener = threading.Thread(target=_listen, args=(self._reader, is_over, report), daemon=True)
        # By a file in memory, which nobody else may write to and which goes with this process: who starts a process
        # waits until it has taken all that it is given, also where it was killed meanwhile. It stays open, so that the
        # next one has another name.
        given = self._given.enter_context(os.fdopen(os.memfd_create("settings"), "wb"))
        given.write(pickle.dumps(settings))
        given.flush()
        name = f"/proc/{os.getpid()}/fd/{given.fileno()}"
        listener.start()
        try:
            # The largest first would be faster by a part's length, but who watches wants to see them in order.
            for future in as_completed([self._submit(worker.work, job, name, part) for part in parts]):
                future.result()
        except (BrokenProcessPool, BrokenPipeError):
            self.end()
            raise _killed() from None
        except BaseException:
            self.end()
            raise
        finally:
            is_over.set()
            listener.join()

    def _submit(self, call: Callable[..., None], *arguments: object) -> Future[None]:
        try:
            with _without_ctrl_c():  # this may start a process
                return self._pool.submit(call, *arguments)
        except OSError as error:
            if error.errno not in (None, errno.EPIPE):
                raise
            # A worker was killed that moment: the pool's pipes are closed, or theirs.
            raise BrokenProcessPool from None


@contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Hear of ctrl-C when this is over. A process that is started meanwhile never does, nor while it imports: it is the
    parent's to handle, and there it would print a traceback.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _killed() -> LauncherError:
    return LauncherError(
        "a process was killed",
        "workers",
        "look for an out-of-memory kill (dmesg); use fewer --workers, or shorter documents (--max-chars, --txt blank)",
    )


def _listen(reader: Connection, is_over: threading.Event, report: Report) -> None:
    while reader.poll(LISTEN_S) or not is_over.is_set():
        if reader.poll():
            told = reader.recv()
            # A terminal that was closed (of which rich makes a SystemExit), a full disk under the log: who is not heard
            # any more waits for ever once the pipe is full.
            with suppress(OSError, SystemExit):
                report(*told)
