"""Rank 0's end of the wires: it asks all ranks at once and waits for each only so long.

One thread for all of them. Who does not answer in time, or whose connection ends, is lost: it is named, never asked
again, and nobody waits for it twice.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from launcher.errors import ClusterError
from launcher.probe.wire import Decoder, Message, encode, listen, plain


@dataclass(frozen=True, slots=True)
class Answer:
    """What a rank said, and when."""

    said: Message
    asked_at: float
    """Wall clock of this process, seconds."""
    came_at: float


@dataclass(slots=True)
class _Wire:
    connection: socket.socket
    rank: int | None = None
    decoder: Decoder = field(default_factory=Decoder)


class Switchboard:
    """Connections to all ranks.

    Args:
        port: To listen at.

    Raises:
        ClusterError: The port is taken.
    """

    def __init__(self, port: int) -> None:
        try:
            self._server = listen(port)
        except OSError as error:
            raise ClusterError(
                f"port {port} cannot be listened at: {error.strerror}",
                "MASTER_PORT",
                "set MASTER_PORT to another one on all ranks, or end what is left of an earlier run",
            ) from None
        self._server.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._server, selectors.EVENT_READ, None)
        self._wires: dict[int, _Wire] = {}
        self._asked = 0
        self.hellos: dict[int, Message] = {}
        """Rank → what it said of itself."""
        self.lost: dict[int, str] = {}
        """Rank → why it is asked no more."""
        self.refused: list[str] = []
        """Of connections that were no ranks of this run."""
        self.address = ""
        """Where ranks of other hosts reach this one."""

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.getsockname()[1])

    def roll_call(self, check: Callable[[Message], str], world_size: int, patience_s: float) -> None:
        """Wait until every rank has said hello, or for so long."""
        deadline = time.monotonic() + patience_s

        def heard(wire: _Wire, message: Message) -> None:
            trouble = check(message) or ("is there twice" if message["rank"] in self.hellos else "")
            if trouble:
                self.refused.append(f"{message.get('host')}: rank {message.get('rank')} {trouble}")
                self._hang_up(wire)
                return
            wire.rank = message["rank"]
            self._wires[message["rank"]] = wire
            self.hellos[message["rank"]] = message

        while len(self.hellos) < world_size and self._listen(deadline, heard):
            pass

    def ask(self, orders: Mapping[int, Message], patience_s: float) -> dict[int, Answer]:
        """Give orders to ranks and collect what they answer within so many seconds.

        Args:
            orders: Rank → what it is to do; those that were lost before are left out.
            patience_s: How long the slowest of them may take.

        Returns:
            Rank → its answer; who is missing here is lost from now on.
        """
        self._asked += 1
        number = self._asked
        waiting: dict[int, float] = {}
        answers: dict[int, Answer] = {}
        for rank, order in orders.items():
            if rank in self._wires and rank not in self.lost:
                waiting[rank] = time.time()
                self._send(rank, {**order, "number": number})

        def heard(wire: _Wire, message: Message) -> None:
            if wire.rank in waiting and message.get("number") == number:  # else an answer that comes too late
                answers[wire.rank] = Answer(message, waiting.pop(wire.rank), time.time())

        deadline = time.monotonic() + patience_s
        while waiting.keys() - self.lost.keys() and self._listen(deadline, heard):
            pass
        for rank in waiting.keys() - self.lost.keys():
            self.lost[rank] = f"no answer in {patience_s:g} s"
        return answers

    def close(self, code: int) -> None:
        """Let every rank end with a code."""
        for rank in list(self._wires):
            if rank not in self.lost or self.lost[rank].startswith("no answer"):
                self._send(rank, {"do": "end", "code": code})
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        self._selector.close()

    def _listen(self, deadline: float, heard: Callable[[_Wire, Message], None]) -> bool:
        """Handle what comes until something has, or the time is over; returns whether there is time left."""
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        for key, _ in self._selector.select(left):
            if key.data is None:
                self._take_connection()
            else:
                self._read(key.data, heard)
        return True

    def _take_connection(self) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self._server.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.settimeout(5.0)  # sending to a rank that reads nothing must not hold all others up
            here, there = plain(connection.getsockname()[0]), plain(connection.getpeername()[0])
            if here != there:
                self.address = here
            self._selector.register(connection, selectors.EVENT_READ, _Wire(connection))

    def _read(self, wire: _Wire, heard: Callable[[_Wire, Message], None]) -> None:
        try:
            received = wire.connection.recv(1 << 16)
            for message in wire.decoder.feed(received):
                heard(wire, message)
        except (OSError, ValueError):
            received = b""
        if not received:
            self._hang_up(wire)

    def _hang_up(self, wire: _Wire) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(wire.connection)
        wire.connection.close()
        if wire.rank is not None:
            self.lost.setdefault(wire.rank, "its process ended, or its connection was cut")

    def _send(self, rank: int, message: Message) -> None:
        wire = self._wires[rank]
        try:
            wire.connection.sendall(encode(message))
        except OSError:
            self._hang_up(wire)
