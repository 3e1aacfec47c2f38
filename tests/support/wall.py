"""A wall around a process, which leaves it nothing but its own machine; for `ranks.run_ranks`."""

from __future__ import annotations

import os
import sys
from typing import Any

import jobs


def train_walled_in(arguments: list[str]) -> tuple[int, list[str]]:
    """The training program in a process that may reach its own machine alone; its exit code, and whom it asked for."""
    for name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
        os.environ.pop(name, None)
    asked = wall_in()
    return jobs.train(arguments), asked


def reach_out_walled_in() -> tuple[int, list[str]]:
    """How often a process behind the wall is refused, and whom it asked for."""
    import socket

    asked, refused = wall_in(), 0
    for address in ("huggingface.co", "192.0.2.1"):
        try:
            socket.create_connection((address, 443), timeout=1)
        except OSError:
            refused += 1
    return refused, asked


def wall_in() -> list[str]:
    """Refuse to look up or connect to anything but this machine; returns the list that names what was asked for."""
    asked: list[str] = []
    here = {"localhost", "", os.uname().nodename}

    def guard(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.connect":
            address = arguments[1]
            name = address[0] if isinstance(address, tuple) else "localhost"
        elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
            name = arguments[0] or ""
        else:
            return
        name = name.decode() if isinstance(name, bytes) else str(name)
        if name not in here and not name.startswith(("127.", "::1", "::ffff:127.")):
            asked.append(name)
            raise OSError(f"there is no way to {name}")

    sys.addaudithook(guard)
    return asked
