"""Messages over a socket: a length of four bytes and JSON; what comes from elsewhere is only ever read as data."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

Message = dict[str, Any]
LONGEST = 1 << 24
"""Bytes of a message; whoever announces more does not speak this protocol."""


def encode(message: Message) -> bytes:
    """A message as it goes over the wire."""
    body = json.dumps(message).encode()
    return len(body).to_bytes(4, "big") + body


class Decoder:
    """Bytes in, whole messages out."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, received: bytes) -> Iterator[Message]:
        """Take in what was received.

        Yields:
            Every message that is complete with it.

        Raises:
            ValueError: These are no messages.
        """
        self._bytes += received
        while len(self._bytes) >= 4:
            size = int.from_bytes(self._bytes[:4], "big")
            if size > LONGEST:
                raise ValueError(f"a message of {size} bytes")
            if len(self._bytes) < 4 + size:
                return
            message = json.loads(self._bytes[4 : 4 + size])
            del self._bytes[: 4 + size]
            if not isinstance(message, dict):
                raise ValueError("a message that is no object")
            yield message


def listen(port: int) -> socket.socket:
    """A socket that takes connections from anywhere, over IPv6 as well where there is any."""
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096)
        except OSError as error:
            if error.errno not in (97, 99):  # no such family, no such address: IPv6 is switched off here
                raise
    return socket.create_server(("", port), backlog=4096)


def plain(address: str) -> str:
    """An address as it is dialled: IPv4 without its wrapping in IPv6."""
    return address.removeprefix("::ffff:")
