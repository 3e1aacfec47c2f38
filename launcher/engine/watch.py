"""The thread of every rank that looks after the rest: signals, launchers, other ranks, hangs.

It alone can act while the rank waits in a collective that will never end. What it does is end the process: everything
on disk is written so that a run killed at any moment goes on.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from launcher.cluster.bus_error import BusErrors
from launcher.cluster.peers import Lost, Peers, is_here
from launcher.cluster.processes import state_of
from launcher.cluster.signals import Launchers, StopRequest, StopSignals
from launcher.config.guards import GuardsConfig
from launcher.engine.watchdog import Pulse, write_stacks
from launcher.errors import EXIT_INTERRUPTED, EXIT_OURS, EXIT_REQUEUE, LauncherError

_log = logging.getLogger(__name__)
_log.addHandler(
    logging.NullHandler()
)  # before the run has a log, python would write to stderr what is told there anyway

LOOK_EVERY_S = 0.25
SUSPENDED_S = 10.0
"""Between two looks there is no such time unless the whole process stood still. Assumption."""
LAST_WORDS_S = 3.0
"""Time for the other ranks to write their stacks, and for news of a death to come before its cause is guessed."""
END_WITHIN_S = 20.0
"""An end is not put off any longer for its last words: on a file system that hangs they would never be written.
Assumption."""


class Watch:
    """What one rank keeps an eye on; a context manager, whose thread lives as long as it is open.

    Args:
        guards: Of the recipe.
        folder: Of the run.
        rank: This one.
        signals: Installed by the main thread.
        launchers: The processes above; None where there are none without which this one has no business to run.

    `on_end` has what is to be done before the process ends, by whomever; each is told why it does.
    """

    def __init__(
        self, guards: GuardsConfig, folder: Path, rank: int, signals: StopSignals, launchers: Launchers | None = None
    ) -> None:
        self.stop = StopRequest()
        self.pulse = Pulse(guards)
        self.on_end: list[Callable[[str], None]] = []
        self._guards, self._folder, self._rank, self._signals = guards, folder, rank, signals
        self._launchers = launchers
        self._bus_errors = BusErrors()
        self._harm: LauncherError | None = None
        self._peers: Peers | None = None
        self._interrupts = 0
        self._takes_steps = False
        self._fails = False
        self._told = threading.Event()
        self._closed = threading.Event()
        self._stderr: TextIO | None = None
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> Watch:
        self._stderr = _stderr_of_its_own()
        self._bus_errors.__enter__()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join(2 * LAST_WORDS_S)
        self._bus_errors.__exit__(None, None, None)
        if self._peers is not None:
            self._peers.close()
        if self._stderr is not None:
            self._stderr.close()

    def connect(self, world_size: int, master_addr: str, share: Callable[[Any], Any]) -> None:
        """Watch the other ranks from here on.

        Args:
            world_size: Number of ranks.
            master_addr: Host of rank 0.
            share: Brings rank 0's value to every rank.
        """
        if world_size == 1:
            return
        peers = Peers(self._rank, world_size)
        if self._rank == 0:
            share(peers.listen(master_addr))
        else:
            peers.connect(share(None))
        self._peers = peers

    @contextlib.contextmanager
    def steps(self) -> Iterator[None]:
        """In here a request to stop waits for the end of the step; elsewhere the process ends at once."""
        self._takes_steps = True
        yield
        if not self.stop.code:
            self._takes_steps = False

    def part(self) -> None:
        """All ranks are done: whoever ends from here on is not lost, and nothing is late."""
        self.pulse.rest()
        if self._peers is not None:
            self._peers.farewell()

    def failed(self, code: int) -> None:
        """This rank ends with an error: so do the others, with the same code."""
        if self._peers is not None:
            self._peers.tell({"failed": code})

    def end_for(self, error: LauncherError) -> None:
        """Something that another thread found must end this process, whatever the main thread is at."""
        self._harm = error

    def before_end(self, why: str) -> None:
        """Do what is to be done before the process ends."""
        for act in self.on_end:
            with contextlib.suppress(Exception):
                act(why)

    def another_told(self, timeout_s: float) -> bool:
        """This rank is about to tell of an error: wait whether another tells first; from here on it ends by itself."""
        self._fails = True
        return self._told.wait(timeout_s)

    def ask_for_news(self) -> None:
        """An error came out of a collective: if another rank's end was its cause, this call does not return."""
        if self._peers is not None:
            time.sleep(LAST_WORDS_S)

    def _run(self) -> None:
        try:
            self._look_after()
        except Exception:  # unwatched, this rank might wait for ever
            self.failed(EXIT_OURS)
            self._end(EXIT_OURS, traceback.format_exc(), speaks=True)

    def _look_after(self) -> None:
        looked_at, turned_at = 0.0, time.monotonic()
        while not self._closed.is_set():
            lost = self._peers.poll(LOOK_EVERY_S) if self._peers is not None else self._closed.wait(LOOK_EVERY_S)
            for number in self._signals.read():
                self._take(number)
            if time.monotonic() - looked_at > 4 * LOOK_EVERY_S:
                looked_at = time.monotonic()
                gone = self._launchers.gone() if self._launchers is not None else ""
                if gone:
                    self.stop.ask(EXIT_REQUEUE, gone)
            if self.stop.code:
                self._hurry()
            if self._harm is not None:
                self.failed(self._harm.exit_code)
                self._end(self._harm.exit_code, str(self._harm), speaks=True)
            unreachable = self._bus_errors.told()
            if unreachable:
                self.failed(EXIT_REQUEUE)
                told = f"rank {self._rank} on {socket.gethostname()} {unreachable}: stopped"
                self._end(EXIT_REQUEUE, f"{told}; the same command goes on from the last checkpoint", speaks=True)
            if isinstance(lost, Lost):
                self._follow(lost)
            # Stopped and continued (a suspended job, a debugger), it finds hours gone: not by hanging.
            if time.monotonic() - turned_at > SUSPENDED_S:
                self.pulse.beat()
            turned_at = time.monotonic()
            late = self.pulse.overdue()
            if late:
                self._give_up(late)

    def _take(self, number: signal.Signals) -> None:
        _log.info("%s", number.name)
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            self._end(EXIT_INTERRUPTED, "interrupted twice: stopped at once", speaks=self._rank == 0)
        self.stop.signal(number)

    def _hurry(self) -> None:
        """End, where nothing is in the middle of a step, or where the step takes longer than there is time."""
        again = "the same command goes on from the last checkpoint"
        if not self._takes_steps:
            self.failed(self.stop.code)
            self._end(self.stop.code, f"stopped ({self.stop.why}); {again}", speaks=self._rank == 0)
        if self.stop.waited_s > self._guards.stop_within_s:
            self.failed(self.stop.code)
            told = f"stopped ({self.stop.why}) without saving: guards.stop_within_s={self._guards.stop_within_s:g}"
            self._end(self.stop.code, f"{told} was over; {again}", speaks=self._rank == 0)

    def _follow(self, lost: Lost) -> None:
        """Another rank is lost: so is this one."""
        if self._fails:
            self._told.set()
            return
        _end_anyway(lost.code)
        stands_still = "silent" in lost.why or "not got on" in lost.why
        if stands_still:
            path = write_stacks(self._folder / "logs", self._rank, str(lost))
            time.sleep(LAST_WORDS_S)
            if lost.rank != self._rank and is_here(lost):  # it cannot end itself
                with contextlib.suppress(OSError), path.open("a", encoding="utf-8") as file:
                    file.write(f"rank {lost.rank} (pid {lost.pid}): {state_of(lost.pid)}\n")
                with contextlib.suppress(OSError):
                    os.kill(lost.pid, signal.SIGKILL)
        told = f"{lost}: stopped; the same command goes on from the last checkpoint"
        self._end(lost.code, told, speaks=self._rank == (1 if lost.rank == 0 else 0) and not lost.has_told)

    def _give_up(self, late: str) -> None:
        """This rank hangs: write where, tell the others, end."""
        _end_anyway(EXIT_REQUEUE)
        write_stacks(self._folder / "logs", self._rank, late)
        if self._peers is not None:
            self._peers.tell({"hangs": late})
            time.sleep(LAST_WORDS_S)
            lost = self._peers.poll(0) or self._peers.silent()
            if lost is not None and lost.rank != self._rank:
                self._follow(lost)
        told = (
            f"rank {self._rank} {late}: stopped; what every rank was doing is in {self._folder}/logs/stacks-rank-*.txt"
        )
        self._end(EXIT_REQUEUE, told, speaks=self._rank == 0)

    def _end(self, code: int, told: str, *, speaks: bool) -> None:
        _end_anyway(code)
        _log.error("%s", told)
        self.before_end(told)
        if speaks and self._stderr is not None:
            with contextlib.suppress(OSError, ValueError):
                print(told, file=self._stderr, flush=True)
        end_process(code)


def _stderr_of_its_own() -> TextIO | None:
    """Where last words go; None where stderr is closed.

    While DeepSpeed tries what a compiler can do, descriptor 2 of the whole process is a file that it deletes.
    """
    try:
        return os.fdopen(os.dup(2), "w", errors="backslashreplace")
    except OSError:
        return None


def _end_anyway(code: int) -> None:
    """End within END_WITHIN_S, whatever the last words wait for."""
    timer = threading.Timer(END_WITHIN_S, os._exit, (code,))
    timer.daemon = True
    timer.start()


def end_process(code: int) -> None:
    """End at once: after an error, gloo's and NCCL's threads may keep an ordinary exit waiting for ever."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    logging.shutdown()
    os._exit(code)
