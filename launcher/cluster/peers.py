"""A line from every rank to rank 0, over which each learns within seconds that another is gone.

Gloo notices a dead rank at once, NCCL only when a collective times out, and neither tells who it was, nor notices a
machine that was cut off. So each rank holds a TCP connection to rank 0 beside the collectives: an end of it without a
farewell is a death, silence is a machine that stands still. Rank 0 passes on what it learns.

One line of JSON a message:
    rank → 0   {"hello": rank, "secret": …, "host": …, "pid": …, …} · {"beat": 1} · {"farewell": 1}
               {"failed": code} · {"hangs": "why"}
    0 → rank   {"beat": 1} · {"farewell": 1} · {"lost": {…}}
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import socket
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

from launcher.cluster.processes import pid_space, started_at
from launcher.errors import EXIT_REQUEUE, ClusterError

BEAT_S = 2.0
SILENCE_S = 120.0
"""Longer than a machine swaps, a switch restarts or one call of C keeps Python waiting: assumption."""
MISSED_BEATS = 2.5
CONNECT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """A rank that can do no more."""

    rank: int
    host: str
    pid: int
    space: str
    """The pid's namespace: only there does the number mean that process."""
    started: str
    """When the process began, in its kernel's ticks: a number may be given again."""
    code: int
    """What the run ends with on its account."""
    why: str
    has_told: bool = False
    """Whether it has told its user why it ends."""

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host} (pid {self.pid}) {self.why}"


@dataclass(slots=True)
class _Line:
    """A connection and what is known of its other end."""

    socket: socket.socket
    rank: int = -1
    host: str = ""
    pid: int = 0
    space: str = ""
    started: str = ""
    heard_at: float = 0.0
    buffer: bytes = b""
    done: bool = False
    """It said farewell: its end is no loss."""

    def lost(self, code: int, why: str) -> Lost:
        return Lost(
            rank=self.rank,
            host=self.host,
            pid=self.pid,
            space=self.space,
            started=self.started,
            code=code,
            why=why,
        )


class Peers:
    """This rank's part of the lines; `poll` is called again and again by one thread.

    Rank 0 makes it with `listen`, the others with `connect`, which take and give the address in between.
    """

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank = rank
        self._world_size = world_size
        self._selector = selectors.DefaultSelector()
        self._lines: list[_Line] = []
        self._listener: socket.socket | None = None
        self._secret = ""
        self._beaten_at = 0.0
        self._lost: Lost | None = None
        self._done = False

    def listen(self, master_addr: str) -> dict[str, Any]:
        """Rank 0: open a port; returns what the others need to know."""
        alone = master_addr in ("127.0.0.1", "localhost")
        if not alone and socket.has_dualstack_ipv6():
            self._listener = socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096)
        else:
            self._listener = socket.create_server(("127.0.0.1" if alone else "", 0), backlog=4096)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ, None)
        self._secret = secrets.token_hex(16)
        return {"address": master_addr, "port": self._listener.getsockname()[1], "secret": self._secret, **_myself()}

    def connect(self, known: dict[str, Any]) -> None:
        """Any other rank: hold a line to rank 0.

        Raises:
            ClusterError: Rank 0 cannot be reached.
        """
        try:
            link = socket.create_connection((known["address"], known["port"]), timeout=CONNECT_S)
        except OSError as error:
            raise ClusterError(
                f"rank {self.rank} cannot reach rank 0 at port {known['port']}: {error}",
                known["address"],
                "open the ports between the nodes of a job: ranks need them for their collectives as well",
            ) from None
        names = {name: known[name] for name in ("host", "pid", "space", "started")}
        line = _Line(link, rank=0, heard_at=time.monotonic(), **names)
        self._keep(line)
        self._send(line, {"hello": self.rank, "secret": known["secret"], **_myself()})

    def poll(self, timeout_s: float) -> Lost | None:
        """Read what came in, say that this rank lives; returns the rank that was lost first, if one was."""
        for key, _ in self._selector.select(timeout_s):
            if key.data is None:
                self._accept()
            else:
                self._read(key.data)
        now = time.monotonic()
        if now - self._beaten_at > BEAT_S:
            # A process that stood still itself (stopped, swapped out) has heard nobody: that is not their silence.
            if now - self._beaten_at > SILENCE_S / 2:
                for line in self._lines:
                    line.heard_at = now
            self._beaten_at = now
            for line in self._lines:
                self._send(line, {"beat": 1})
        for line in self._lines:
            if line.rank >= 0 and not line.done and now - line.heard_at > SILENCE_S:
                self._note(line.lost(EXIT_REQUEUE, f"has been silent for {now - line.heard_at:.0f} s"))
        return self._lost

    def tell(self, message: dict[str, Any]) -> None:
        """Say `failed` or `hangs` of this rank: to rank 0, or as rank 0 to all."""
        if self.rank != 0:
            for line in list(self._lines):
                self._send(line, message)
            return
        own = _Line(socket.socket(), rank=0, **_myself())
        own.socket.close()
        self._heard(own, message)

    def silent(self) -> Lost | None:
        """The rank that has missed several beats, if there is one: in a hang, the one that stands still."""
        now = time.monotonic()
        for line in self._lines:
            if line.rank >= 0 and not line.done and now - line.heard_at > MISSED_BEATS * BEAT_S:
                return line.lost(EXIT_REQUEUE, f"has been silent for {now - line.heard_at:.0f} s")
        return None

    def farewell(self) -> None:
        """Part: whatever ends from here on is no loss."""
        self._done = True
        for line in list(self._lines):
            line.done = True
            self._send(line, {"farewell": 1})

    def close(self) -> None:
        """Give the sockets back."""
        for line in self._lines:
            line.socket.close()
        if self._listener is not None:
            self._listener.close()
        self._selector.close()

    def _accept(self) -> None:
        if self._listener is None:
            return
        with contextlib.suppress(OSError):
            link, _ = self._listener.accept()
            self._keep(_Line(link, heard_at=time.monotonic()))

    def _keep(self, line: _Line) -> None:
        line.socket.setblocking(False)
        self._lines.append(line)
        self._selector.register(line.socket, selectors.EVENT_READ, line)

    def _read(self, line: _Line) -> None:
        try:
            came = line.socket.recv(65_536)
        except BlockingIOError:
            return
        except OSError:
            came = b""
        if not came:
            self._ended(line)
            return
        line.heard_at = time.monotonic()
        *whole, line.buffer = (line.buffer + came).split(b"\n")
        for text in whole:
            try:
                message = json.loads(text)
            except ValueError:
                message = {}
            if isinstance(message, dict):
                self._heard(line, message)

    def _ended(self, line: _Line) -> None:
        self._selector.unregister(line.socket)
        line.socket.close()
        self._lines.remove(line)
        if line.rank >= 0 and not line.done and not self._done:
            self._note(line.lost(EXIT_REQUEUE, "has died"))

    def _heard(self, line: _Line, message: dict[str, Any]) -> None:
        if "hello" in message:
            if secrets.compare_digest(str(message.get("secret")), self._secret):  # else a stranger
                line.rank, line.host, line.pid = int(message["hello"]), str(message["host"]), int(message["pid"])
                line.space, line.started = str(message["space"]), str(message["started"])
        elif line.rank < 0:
            return
        elif "farewell" in message:
            line.done = True
        elif "failed" in message:
            told = f"has ended with exit code {message['failed']}"
            self._note(replace(line.lost(int(message["failed"]), told), has_told=True))
        elif "hangs" in message:
            self._note(self.silent() or line.lost(EXIT_REQUEUE, str(message["hangs"])))
        elif "lost" in message and self._lost is None:
            self._lost = Lost(**message["lost"])

    def _note(self, lost: Lost) -> None:
        if self._lost is not None:
            return
        self._lost = lost
        if self.rank == 0:
            for line in self._lines:
                self._send(line, {"lost": asdict(lost)})

    def _send(self, line: _Line, message: dict[str, Any]) -> None:
        # A few bytes now and then: a buffer that is full belongs to a process that stands still, which silence tells.
        with contextlib.suppress(OSError):
            line.socket.send(json.dumps(message).encode() + b"\n")


def is_here(lost: Lost) -> bool:
    """Whether that very process still exists, on this machine."""
    return (lost.host, lost.space) == (socket.gethostname(), pid_space()) and started_at(lost.pid) == lost.started != ""


def _myself() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "space": pid_space(),
        "started": started_at(os.getpid()),
    }
