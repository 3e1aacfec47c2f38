"""What this process is asked to do from outside: signals, and launchers that are gone.

A rank that waits in a collective runs no Python: a handler of Python's would wait with it, for ever if another rank is
dead. So handlers do nothing here; the signal's number goes through `signal.set_wakeup_fd` to a socket, and a thread of
the rank (`launcher.engine.watch`) reads it there. DeepSpeed's launchers do not pass signals on and leave their ranks
behind when they are killed: so a rank looks after its parents itself.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType

from launcher.cluster.processes import name_of, parent_of, started_at, words_of
from launcher.errors import EXIT_INTERRUPTED, EXIT_REQUEUE

HANDLED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGINT)

_Handler = Callable[[int, FrameType | None], object] | int | None


class StopSignals:
    """The signals that ask for an end, from the moment it is entered; a context manager for the main thread.

    What was asked is known to whoever calls `read`; nothing happens by itself.
    """

    def __init__(self) -> None:
        self.reader, self._writer = socket.socketpair()
        self.reader.setblocking(False)
        self._writer.setblocking(False)
        self._before: dict[signal.Signals, _Handler] = {}
        self._wakeup = -1

    def __enter__(self) -> StopSignals:
        # The socket first: a signal that came between would be lost.
        self._wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in HANDLED:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup's
                self._before[number] = signal.signal(number, _nothing)
        # A forked worker would otherwise write its own signals into this process's socket; one that came between the
        # fork and the change would be lost, so it has to wait.
        os.register_at_fork(
            before=self._hold_back, after_in_parent=self._let_through, after_in_child=self._forget_in_child
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._put_back()
        self.reader.close()
        self._writer.close()
        self._before.clear()

    def read(self) -> list[signal.Signals]:
        """The signals that came since the last call, in order."""
        try:
            return [signal.Signals(number) for number in self.reader.recv(64) if number in HANDLED]
        except OSError:  # nothing came, or closed
            return []

    def _put_back(self) -> None:
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _hold_back(self) -> None:
        if self._before:
            signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)

    def _let_through(self) -> None:
        if self._before:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)

    def _forget_in_child(self) -> None:
        if self._before:
            self._put_back()
            self._before.clear()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)


class StopRequest:
    """Whether this process was asked to end, and how: what the steps ask before they go on.

    Args:
        clock: Seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.code = 0
        """Exit code to end with; 0 while nobody asked."""
        self.why = ""
        """Who asked."""
        self.asked_at = 0.0

    def ask(self, code: int, why: str) -> None:
        """Note the first request."""
        if not self.code:
            self.why, self.asked_at = why, self._clock()
            self.code = code

    def signal(self, number: signal.Signals) -> None:
        """Note a signal: Ctrl-C ends with 130, everything else asks to be started again."""
        self.ask(EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_REQUEUE, number.name)

    @property
    def waited_s(self) -> float:
        """Seconds since the request; 0 while there is none."""
        return self._clock() - self.asked_at if self.code else 0.0


class Launchers:
    """The processes above this one without which it has no business to run.

    The parent always: mpirun's daemon, torchrun's agent, Slurm's shell. Under DeepSpeed's node launcher also the runner
    above it, which on one node passes nothing on when it is killed; and above that shell and sshd of a session that was
    opened for the launcher alone. Who started the runner (a shell that was logged out of) does not count.
    """

    def __init__(self) -> None:
        self._watched = [(pid, started_at(pid)) for pid in _chain(os.getppid())]
        self._parent = os.getppid()

    def gone(self) -> str:
        """What is gone, in words; empty while all are there."""
        if os.getppid() != self._parent:
            return "the launcher of this rank is gone"
        for pid, started in self._watched:
            if started and started_at(pid) != started:
                return "the launcher above this rank's is gone"
        return ""


def _nothing(_number: int, _frame: FrameType | None) -> None:
    """A handler, so that the number is written to the socket and nothing else happens."""


def _chain(parent: int) -> list[int]:
    """The ancestors to watch, nearest first."""
    chain = [parent]
    if not _is_node_launcher(words_of(parent)):
        return chain
    above = parent_of(parent)
    if _is_runner(words_of(above)):
        return [*chain, above]
    if "sshd" in name_of(parent_of(above)):  # sshd ← shell of one command ← node launcher
        return [*chain, above, parent_of(above)]
    return chain


def _is_node_launcher(words: list[str]) -> bool:
    return any(word == "deepspeed.launcher.launch" or word.endswith("deepspeed/launcher/launch.py") for word in words)


def _is_runner(words: list[str]) -> bool:
    return any(
        Path(word).name == "deepspeed" or word == "deepspeed.launcher.runner" or word.endswith("launcher/runner.py")
        for word in words[:6]
    )
