"""One job at a time in a run's folder, on any of the machines that see it.

Two locks, since neither is enough: `flock` is exact, but on many shared file systems holds on one machine only; a
record that its holder writes anew every few seconds is seen everywhere, and says who it is. A holder that was killed
leaves the record, and nobody writes it any more: whoever comes next watches it for a while, with its own clock only,
since those of two machines differ. On the same machine the kernel tells at once that the holder is gone.

Two that came at the same moment, or a holder that stood still so long that it was taken for dead, are told apart by the
record: whoever finds another's in the place of its own, or none (the other is done already), ends. So of two only the
one that wrote last goes on.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from launcher.cluster.processes import pid_space, started_at
from launcher.errors import RecipeError, RunInUseError
from launcher.shards import faults

LOCK, HOLDER = ".lock", ".holder.json"
WRITE_EVERY_S = 5.0
WATCH_S = 15.0
"""Three times as long as a holder takes to write: one that is late once is not taken for dead. Assumption."""

OWN_PAST_S = 300.0
"""How long a job waits for what is left of its own life before: longer than ranks that are cut off live. Assumption."""


class RunLock:
    """Holds a run's folder; a context manager.

    It makes the folder and those above it, and removes what it made again if nothing was put there.

    Args:
        folder: Of the run.
        env: Tells the job's number, for whoever is refused.
        on_loss: Told, in another thread, that another job has taken the folder meanwhile; it may have left again.

    Raises:
        RunInUseError: On entering, if another process holds it.
        RecipeError: On entering, if it cannot be made, or not written to.
    """

    def __init__(self, folder: Path, env: Mapping[str, str], on_loss: Callable[[RunInUseError], None]) -> None:
        self._folder = folder
        self._on_loss = on_loss
        self._descriptor = -1
        self._made: list[Path] = []
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._write_on, name="lock", daemon=True)
        self._beat = 0
        self._record = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "space": pid_space(),
            "process_started": started_at(os.getpid()),
            "job": env.get("SLURM_JOB_ID", ""),
            "since": datetime.now().astimezone().isoformat(timespec="seconds"),
            "name": secrets.token_hex(8),
        }

    def __enter__(self) -> RunLock:
        deadline = time.monotonic() + OWN_PAST_S
        while True:
            try:
                self._take()
                break
            except RunInUseError:
                # A requeued job may begin before the last ranks of its life before have ended on a node cut off.
                holder = _read(self._folder / HOLDER)
                own = holder is not None and holder["job"] != "" and holder["job"] == self._record["job"]
                if not own or time.monotonic() > deadline:
                    raise
                time.sleep(WRITE_EVERY_S)
        self._thread.start()
        return self

    def _take(self) -> None:
        """Take both locks.

        Raises:
            RunInUseError: Another process holds one of them.
            RecipeError: There can be no such folder here, or nothing be written to it.
        """
        self._open()
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._refuse(_read(self._folder / HOLDER))
        except OSError:  # a file system without flock: the record alone has to do
            pass
        self._wait_out(_read(self._folder / HOLDER))
        with _of_the_user(self._folder, "written to"):
            self._write()
        time.sleep(0.01)
        other = self._other()
        if other is not None:  # both found it free at the same moment
            self._refuse(other)

    def _open(self) -> None:
        with _of_the_user(self._folder, "made"):
            self._made = self._made or [path for path in (self._folder, *self._folder.parents) if not path.exists()]
            self._folder.mkdir(parents=True, exist_ok=True)
        with _of_the_user(self._folder, "written to"):
            # Held by the kernel until this process ends, however it ends.
            self._descriptor = os.open(self._folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Leave the folder to others; nothing happens the second time."""
        if self._descriptor < 0:
            return
        self._closed.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(WRITE_EVERY_S)
        with contextlib.suppress(OSError):
            if self._other() is None:
                (self._folder / HOLDER).unlink()
            if {path.name for path in self._folder.iterdir()} == {LOCK}:
                (self._folder / LOCK).unlink()
                for folder in self._made:
                    folder.rmdir()
        os.close(self._descriptor)
        self._descriptor = -1

    def _wait_out(self, holder: dict[str, Any] | None) -> None:
        """Make sure that whoever is on record has ended.

        Raises:
            RunInUseError: It has not.
        """
        if holder is None:
            return
        if (holder["host"], holder["space"]) == (socket.gethostname(), pid_space()):
            if started_at(int(holder["pid"])) == holder["process_started"] != "":
                self._refuse(holder)
            return
        deadline = time.monotonic() + WATCH_S
        while time.monotonic() < deadline:
            time.sleep(WATCH_S / 30)
            now = _read(self._folder / HOLDER)
            if now is None:
                return
            if (now["name"], now["beat"]) != (holder["name"], holder["beat"]):
                self._refuse(now)

    def _other(self) -> dict[str, Any] | None:
        """Who else is on record."""
        holder = _read(self._folder / HOLDER)
        return holder if holder is not None and holder["name"] != self._record["name"] else None

    def _refuse(self, holder: dict[str, Any] | None) -> None:
        os.close(self._descriptor)
        self._descriptor = -1
        raise self._in_use(holder)

    def _in_use(self, holder: dict[str, Any] | None) -> RunInUseError:
        who = "another process"
        if holder is not None:
            job = f", job {holder['job']}" if holder["job"] else ""
            who = f"pid {holder['pid']} on {holder['host']}{job}, since {holder['since']}"
        return RunInUseError(
            f"another job is at work in the run's folder: {who}",
            str(self._folder),
            "wait for its end or stop it, or give this run another name (name=…)",
        )

    def _write_on(self) -> None:
        while not self._closed.wait(WRITE_EVERY_S):
            with contextlib.suppress(OSError):  # the file system is away: it will come back, or a save will tell
                loss = self._loss()
                if self._closed.is_set():  # `release` did not wait any longer: nobody on record is its doing
                    return
                if loss is not None:
                    self._on_loss(loss)
                    return
                self._write()

    def _loss(self) -> RunInUseError | None:
        """Why the folder is not this job's any more; None where it is, as far as can be seen.

        Raises:
            OSError: The folder cannot be listed.
        """
        other = self._other()
        if other is not None:
            return self._in_use(other)
        record = self._folder / HOLDER
        if record.exists() or record in self._folder.iterdir():
            return None
        return RunInUseError(
            "another job was at work in the run's folder meanwhile: this one's record there is gone",
            str(record),
            "run the same command again: it goes on from the newest checkpoint",
        )

    def _write(self) -> None:
        self._beat += 1
        temporary = self._folder / f"{HOLDER}.{self._record['name']}"
        try:
            temporary.write_text(json.dumps({**self._record, "beat": self._beat}), encoding="utf-8")
            os.replace(temporary, self._folder / HOLDER)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def _of_the_user(folder: Path, what: str) -> Iterator[None]:
    """What the file system refuses in here for good is the user's to mend: the folder cannot be `what`."""
    try:
        yield
    except OSError as error:
        if faults.is_of_place(error):
            raise
        raise RecipeError(
            f"the run's folder cannot be {what}: {error.strerror}",
            str(folder),
            "name a place where you may write (runs=FOLDER), or another run (name=NAME)",
        ) from None


def _read(path: Path) -> dict[str, Any] | None:
    """Who is on record; None for nobody, or nothing that can be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    needed = ("host", "pid", "space", "process_started", "job", "since", "name", "beat")
    return value if isinstance(value, dict) and all(key in value for key in needed) else None
