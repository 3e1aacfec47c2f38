"""Hostfiles as DeepSpeed reads them: `host slots=N`, a line each."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.cluster.processes import parent_of, words_of
from launcher.errors import ClusterError

RUNNERS = ("/deepspeed", "deepspeed.launcher.runner", "/deepspeed/launcher/runner.py")
RUNNER_WITHIN = 3
"""Processes above a rank in which DeepSpeed's runner is looked for: node launcher, runner, and a shell between."""

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


def refuse_ignored_hostfile() -> None:
    """Refuse to train where DeepSpeed's runner was given a hostfile that is not there.

    It warns, trains on this machine alone, and passes nothing of it on; its command line is what it was told.

    Raises:
        ClusterError: The hostfile is missing, or wrong.
    """
    pid = os.getppid()
    for _ in range(RUNNER_WITHIN):
        name = given_hostfile(words_of(pid))
        if name is not None:
            read_hostfile(Path(f"/proc/{pid}/cwd").resolve() / name)
            return
        pid = parent_of(pid)


def given_hostfile(words: Sequence[str]) -> str | None:
    """What a command line of DeepSpeed's runner names as its hostfile; None where it is none or names none."""
    runner = next((at for at, word in enumerate(words[:4]) if word.endswith(RUNNERS)), None)
    if runner is None:
        return None
    for word, following in zip(words[runner + 1 :], [*words[runner + 2 :], ""], strict=True):
        if word.endswith(".py"):  # the user's program: what follows is its own
            return None
        if word in ("-H", "--hostfile"):
            return following
        if word.startswith("--hostfile="):
            return word.partition("=")[2]
    return None
