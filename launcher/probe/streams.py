"""How fast bytes go from one host to another: a stream over TCP, timed by whoever receives it."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Callable

CHUNK_BYTES = 1 << 18
STREAM_S = 0.5
"""Long enough for TCP to find the speed of a path (assumption: its start takes tens of round trips of under 1 ms)."""
PINGS = 10
_NOW = struct.pack("ii", 1, 0)
Pace = Callable[[int], float]
"""Bytes about to be sent → seconds to wait first. The tests slow links with it."""


def call(address: str, port: int, secret: str, timeout_s: float) -> socket.socket:
    """Connect to a waiting host and say who calls.

    Raises:
        OSError: It cannot be reached in time.
    """
    connection = socket.create_connection((address, port), timeout=timeout_s)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(secret.encode())
    return connection


def answer(server: socket.socket, secret: str, timeout_s: float) -> socket.socket:
    """Wait for the host that knows the secret; others are hung up on.

    Raises:
        TimeoutError: It did not call in time.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("nobody called")
        server.settimeout(left)
        connection, _ = server.accept()
        connection.settimeout(max(left, 0.1))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError):
            if read_exactly(connection, len(secret)) == secret.encode():
                return connection
        connection.close()


def read_exactly(connection: socket.socket, num_bytes: int) -> bytes:
    """So many bytes, or fewer where the connection ends."""
    received = b""
    while len(received) < num_bytes:
        piece = connection.recv(num_bytes - len(received))
        if not piece:
            break
        received += piece
    return received


def ping(connection: socket.socket) -> float:
    """Shortest round trip, in seconds."""
    best = float("inf")
    for _ in range(PINGS):
        began = time.perf_counter()
        connection.sendall(b".")
        if read_exactly(connection, 1) != b".":
            raise ConnectionError("the connection ended")
        best = min(best, time.perf_counter() - began)
    return best


def pong(connection: socket.socket) -> None:
    """Answer `ping`."""
    for _ in range(PINGS):
        connection.sendall(read_exactly(connection, 1))


def send_stream(connection: socket.socket, seconds: float, pace: Pace | None = None) -> None:
    """Send as much as goes through in so many seconds, and close."""
    chunk = memoryview(bytes(CHUNK_BYTES))
    deadline = time.monotonic() + seconds
    try:
        while (left := deadline - time.monotonic()) > 0:
            connection.settimeout(left + seconds)
            if pace is None:
                connection.sendall(chunk)
            else:
                piece = chunk[: CHUNK_BYTES >> 4]
                time.sleep(min(pace(len(piece)), left))
                connection.sendall(piece)
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(2 * seconds)
        connection.recv(1)  # until the receiver has seen the end
    except OSError:
        pass  # it has seen enough, or the link is so slow that the buffers never empty: it tells what it got
    finally:
        # What a slow link has not taken yet is dropped: it would otherwise go on for minutes behind the next stream.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NOW)
        connection.close()


def receive_stream(connection: socket.socket, seconds: float) -> float:
    """Read a stream to its end, or for twice its length; returns bytes a second, 0 where nothing came."""
    buffer = bytearray(CHUNK_BYTES)
    total, began, last = 0, 0.0, 0.0
    deadline = time.monotonic() + 2 * seconds + 0.5
    try:
        while (left := deadline - time.monotonic()) > 0:
            connection.settimeout(left)
            received = connection.recv_into(buffer)
            now = time.perf_counter()
            if received == 0:
                break
            if began == 0.0:
                began = now  # what came with the first piece took no time that was seen
            else:
                total += received
                last = now
    except OSError:
        pass
    finally:
        connection.close()
    return total / (last - began) if last > began else 0.0
