"""One start of the training command, watched and disturbed from outside."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from launcher.cluster.processes import state_of, words_of
from launcher.errors import LauncherError

PATIENCE_S = 600.0
"""For anything a run does: assumption."""
MARK = "PRETRAIN_DRILL"
"""Environment variable that every process of a life inherits: how those left behind are found."""


class DrillError(LauncherError):
    """A promise did not hold, or a drill could not be held."""


class Life(Protocol):
    """A started run."""

    def rank(self, number: int) -> int:
        """The pid of a rank.

        Raises:
            DrillError: It does not run.
        """

    def launcher(self) -> int:
        """The pid of what started the ranks."""

    def wait(self) -> int:
        """Wait for the end of what was started; returns its exit code."""

    def is_running(self) -> bool:
        """Whether what was started runs."""

    def told(self) -> str:
        """What it wrote."""

    def left_behind(self) -> list[int]:
        """Processes of this life that still exist."""


Starter = Callable[[Sequence[str], Mapping[str, str], Path], Life]
"""Starts training with these words behind `train.py`, more environment, and a folder for its output."""


class CommandLife:
    """Ranks started by the `deepspeed` command, as a user would."""

    def __init__(self, words: Sequence[str], env: Mapping[str, str], folder: Path, num_ranks: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._out = folder / "output.txt"
        self._mark = uuid.uuid4().hex
        root = Path(__file__).resolve().parents[2]
        program = Path(sys.executable).with_name("deepspeed")
        command = [str(program), "--num_gpus", str(num_ranks), "--master_port", str(_free_port())]
        command += [str(root / "launcher" / "train.py"), *words]
        kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
        with self._out.open("ab") as out:
            self._process = subprocess.Popen(
                command, stdout=out, stderr=out, env={**kept, **env, MARK: self._mark}, start_new_session=True
            )

    def rank(self, number: int) -> int:
        """The pid of a rank."""
        for pid in self.left_behind():
            if f"RANK={number}" in _environment(pid) and "deepspeed.launcher.launch" not in words_of(pid):
                return pid
        raise DrillError(f"rank {number} does not run", str(self._out), "see what it wrote")

    def launcher(self) -> int:
        """The pid of the `deepspeed` command."""
        return self._process.pid

    def node_launcher(self) -> int:
        """The pid of DeepSpeed's node launcher, which the ranks are children of."""
        for pid in self.left_behind():
            if "deepspeed.launcher.launch" in words_of(pid):
                return pid
        raise DrillError("DeepSpeed's node launcher does not run", str(self._out), "see what it wrote")

    def wait(self) -> int:
        """Wait for the end of the command; returns its exit code."""
        try:
            return self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.end_all()
            raise DrillError(f"the run did not end within {PATIENCE_S:.0f} s", str(self._out)) from None

    def is_running(self) -> bool:
        """Whether the command runs."""
        return self._process.poll() is None

    def told(self) -> str:
        """What it wrote."""
        return self._out.read_text(encoding="utf-8", errors="replace")

    def left_behind(self) -> list[int]:
        """Processes that inherited this life's mark."""
        marked = f"{MARK}={self._mark}"
        pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]
        return [pid for pid in pids if marked in _environment(pid)]

    def end_all(self) -> None:
        """Kill whatever is left of it."""
        for pid in self.left_behind():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


def wait_until(reached: Callable[[], bool], life: Life, what: str) -> None:
    """Wait for something a run does.

    Raises:
        DrillError: It ends before, or takes too long.
    """
    deadline = time.monotonic() + PATIENCE_S
    while not reached():
        if not life.is_running() or time.monotonic() > deadline:
            raise DrillError(f"the run never came to this: {what}", fix=f"it wrote:\n{life.told()[-2000:]}")
        time.sleep(0.005)


def wait_for_nobody(life: Life, within_s: float) -> None:
    """Wait until no process of a life is left.

    Raises:
        DrillError: One is.
    """
    deadline = time.monotonic() + within_s
    while left := life.left_behind():
        if time.monotonic() > deadline:
            states = ", ".join(f"{pid} ({state_of(pid)})" for pid in left)
            raise DrillError(f"{within_s:.0f} s after the end of the launcher there still are its processes: {states}")
        time.sleep(0.1)


def send(pid: int, number: int) -> None:
    """Send a signal; a process that has ended by itself meanwhile is no matter."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _environment(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
