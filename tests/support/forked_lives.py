"""Drills on forked ranks: a second a start, where the `deepspeed` command takes most of a minute."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jobs
import ranks

from launcher.cluster.processes import started_at
from launcher.drill import sabotage
from launcher.drill.life import DrillError


class ForkedLife:
    """`launcher.drill.life.Life` of ranks without a launcher: nothing but themselves takes one along with another."""

    def __init__(self, words: Sequence[str], env: Mapping[str, str], folder: Path, num_ranks: int) -> None:
        self._life = ranks.Life(train_under, num_ranks, folder, list(words), dict(env))
        self._processes = self._life.ranks

    def rank(self, number: int) -> int:
        pid = self._processes[number].pid
        if pid is None or not started_at(pid):
            raise DrillError(f"rank {number} does not run")
        return pid

    def launcher(self) -> int:
        raise DrillError("forked ranks have no launcher")

    def wait(self) -> int:
        """As DeepSpeed's node launcher: the code of the first rank that failed; what stands still is killed at last."""
        deadline = time.monotonic() + ranks.TIMEOUT_S
        while self.is_running() and not any(process.exitcode for process in self._processes):
            if time.monotonic() > deadline:
                raise DrillError(f"nothing came to an end in {ranks.TIMEOUT_S} s:\n{self.told()}")
            time.sleep(0.02)
        codes = self._life.wait(within_s=30.0)
        return next((code if code > 0 else 256 + code for code in codes if code), 0)

    def is_running(self) -> bool:
        return any(process.is_alive() for process in self._processes)

    def told(self) -> str:
        return self._life.told()

    def left_behind(self) -> list[int]:
        return [process.pid for process in self._processes if process.pid and started_at(process.pid)]

    def end_all(self) -> None:
        for pid in self.left_behind():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


def train_under(words: list[str], env: dict[str, str]) -> int:
    """The training program with more environment and what was ordered in it."""
    os.environ.update(env)
    sabotage.arm(os.environ)
    return jobs.train(words)
