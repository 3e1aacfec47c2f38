"""Hostfiles as DeepSpeed reads them: `host slots=N`, a line each."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import ClusterError

_LINE = re.compile(r"^(\S+)\s+slots=(\S+)$")


@dataclass(frozen=True, slots=True)
class Host:
    """One machine."""

    name: str
    slots: int
    """Ranks to start there: its accelerators."""


def read_hostfile(path: Path) -> list[Host]:
    """Read and check a hostfile. DeepSpeed takes a missing one for "train on this machine alone", without an error.

    Raises:
        ClusterError: It is missing or empty, a line is malformed, or a host stands twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise ClusterError(f"the hostfile cannot be read: {reason}", str(path), "see hostfiles/ for examples") from None
    hosts: list[Host] = []
    for number, line in enumerate(lines, start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = _LINE.match(text)
        if match is None:
            raise ClusterError(f"{text!r} is not a host", f"{path}:{number}", "write: HOST slots=N")
        name, slots = match.groups()
        if not slots.isdecimal() or int(slots) < 1:
            raise ClusterError(f"slots={slots} is not a number of ranks", f"{path}:{number}", "write slots=1 or more")
        if any(host.name == name for host in hosts):
            raise ClusterError(f"the host {name} stands twice", f"{path}:{number}", "add up its slots on one line")
        hosts.append(Host(name, int(slots)))
    if not hosts:
        raise ClusterError("the hostfile names no host", str(path), "write: HOST slots=N")
    return hosts
