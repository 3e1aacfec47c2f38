"""A rank's end of the wire: it does what rank 0 asks for, one thing at a time, and never waits for others by itself."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from launcher.errors import RequeueError
from launcher.probe import streams
from launcher.probe.wire import Decoder, Message, encode, listen, plain

RETRY_S = 0.2


class Bench(Protocol):
    """What takes an accelerator and torch."""

    def compute(self) -> Message:
        """Speed of arithmetic and memory of this rank's device."""

    def open_store(self, address: str) -> int:
        """Let ranks meet here; returns the port."""

    def reduce(self, address: str, port: int, rank: int, world_size: int, seconds: float) -> Message:
        """Add up a vector with others; speed, and whether the sum was right."""


@dataclass(slots=True)
class Agent:
    """One rank.

    Args:
        rank: Its number in the run.
        host: The name of its host.
        hello: What it says of itself beside them.
        bench: What it computes with.
        pace: Slows what it sends to a host of this name.
    """

    rank: int
    host: str
    hello: Message
    bench: Bench
    pace: Callable[[str], streams.Pace | None] = lambda host: None
    _connection: socket.socket | None = None
    _server: socket.socket = field(default_factory=lambda: listen(0))
    _speaking: threading.Lock = field(default_factory=threading.Lock)

    def run(self, address: str, port: int, patience_s: float) -> int:
        """Say hello to rank 0 and do what it asks for.

        Args:
            address: Of rank 0.
            port: Of its switchboard.
            patience_s: How long it may take to be there.

        Returns:
            The exit code it tells.

        Raises:
            RequeueError: It cannot be reached, or is gone before the end.
        """
        connection = self._connection = self._connect(address, port, patience_s)
        own = plain(connection.getsockname()[0])
        port_here = self._server.getsockname()[1]
        self._say({"rank": self.rank, "host": self.host, "at": own, "port": port_here, **self.hello})
        decoder = Decoder()
        try:
            while received := connection.recv(1 << 16):
                for order in decoder.feed(received):
                    if order["do"] == "end":
                        return int(order["code"])
                    if order["do"] == "clock":  # at once, and not behind a thread's start
                        self._say({"number": order["number"], "time": time.time()})
                    else:
                        threading.Thread(target=self._obey, args=(order,), daemon=True).start()
        except (OSError, ValueError):
            pass
        finally:
            self.close()
        raise RequeueError(
            f"rank {self.rank} on {self.host} lost rank 0 in the middle of the check",
            f"{address}:{port}",
            "see what rank 0 said; its host may be the one to leave out",
        )

    def close(self) -> None:
        """Hang up."""
        for end in (self._connection, self._server):
            if end is not None:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)  # wakes whoever reads from it
                end.close()

    def _connect(self, address: str, port: int, patience_s: float) -> socket.socket:
        deadline = time.monotonic() + patience_s
        while True:
            try:
                connection = socket.create_connection((address, port), timeout=max(deadline - time.monotonic(), 0.1))
                connection.settimeout(None)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return connection
            except OSError as error:
                if time.monotonic() + RETRY_S > deadline:
                    raise RequeueError(
                        f"rank {self.rank} on {self.host} cannot reach rank 0 within {patience_s:g} s: {error}",
                        f"{address}:{port}",
                        "see that the name of rank 0's host leads to it from here, that no firewall stands between "
                        "them, and what rank 0 said",
                    ) from None
                time.sleep(RETRY_S)

    def _obey(self, order: Message) -> None:
        work: dict[str, Callable[[Message], Message]] = {
            "compute": lambda order: self.bench.compute(),
            "store": lambda order: {"port": self.bench.open_store(order["address"])},
            "reduce": lambda order: self.bench.reduce(
                order["address"], order["port"], order["rank"], order["world_size"], order["seconds"]
            ),
            "call": self._call,
            "answer": self._answer,
            "look": self._look,
        }
        try:
            result = work[order["do"]](order)
        except Exception as error:  # whatever a test dies of is its result, told by rank 0
            result = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}
        self._say({**result, "number": order["number"]})

    def _say(self, message: Message) -> None:
        with self._speaking, suppress(OSError):  # a connection that ended is seen by whoever reads from it
            if self._connection is not None:
                self._connection.sendall(encode(message))

    def _call(self, order: Message) -> Message:
        """Stream to another host, then from it; returns how fast it came, and the round trip."""
        address, port, secret, patience = order["address"], order["port"], order["secret"], order["seconds"]
        with streams.call(address, port, secret, patience) as connection:
            round_trip = streams.ping(connection)
        streams.send_stream(streams.call(address, port, secret, patience), streams.STREAM_S, self.pace(order["host"]))
        received = streams.receive_stream(streams.call(address, port, secret, patience), streams.STREAM_S)
        return {"bytes_per_s": received, "round_trip_s": round_trip, **self._meet(order, 1)}

    def _answer(self, order: Message) -> Message:
        """The other end of `_call`."""
        secret, patience = order["secret"], order["seconds"]
        with streams.answer(self._server, secret, patience) as connection:
            streams.pong(connection)
        received = streams.receive_stream(streams.answer(self._server, secret, patience), streams.STREAM_S)
        streams.send_stream(streams.answer(self._server, secret, patience), streams.STREAM_S, self.pace(order["host"]))
        return {"bytes_per_s": received, **self._meet(order, 0)}

    def _meet(self, order: Message, number: int) -> Message:
        """Add up with the other host, accelerator to accelerator, where rank 0 asks for it."""
        if "store" not in order:
            return {}
        address, port = order["store"]["address"], order["store"]["port"]
        try:
            told = self.bench.reduce(address, port, number, 2, order["seconds"])
        except Exception as error:  # whatever the back end dies of: nothing comes through there
            return {"fabric_bytes_per_s": 0.0, "fabric_error": " ".join(str(error).split())[:500]}
        return {"fabric_bytes_per_s": told["bytes_per_s"] if told["right"] else 0.0}

    def _look(self, order: Message) -> Message:
        """Whether a file that rank 0 wrote is seen here."""
        return {"seen": Path(order["path"]).is_file()}
