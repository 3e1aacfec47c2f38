"""`ledger.jsonl`: where the time of a run went, over all of its starts.

One line of JSON a moment, appended: `start`, then `spent` every half minute and after every save, in the end `end`.
Each has what this life has spent up to there, so that the last line of a life tells all of it, and one that was killed
misses half a minute at most.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from launcher.cluster.processes import age_s
from launcher.errors import FruitlessError

NAME = "ledger.jsonl"
WRITE_EVERY_S = 30.0
KINDS = ("start", "steps", "data_wait", "evaluation", "checkpoint", "rewind")


@dataclass(slots=True)
class Life:
    """One start of a run, as far as its lines tell."""

    number: int
    """From 1."""
    first_step: int
    """Steps taken before it."""
    world_size: int
    host: str
    at: str
    """When it began, by the clock of its machine."""
    step: int
    """The last step it is known to have taken."""
    saved_step: int
    """Of the newest checkpoint it is known to have written or begun with."""
    elapsed_s: float = 0.0
    """From the start of the process on."""
    spent_s: dict[str, float] = field(default_factory=dict)
    """By kind; what is missing is neither of them."""
    num_steps: int = 0
    """Steps taken, those among them that were taken back."""
    num_checkpoints: int = 0
    ended: str = ""
    """Why it ended; empty if it had no time to say: killed, or its machine lost."""


class Ledger:
    """Writes the lines of one life; on every rank, but only rank 0's has a file.

    Args:
        folder: Of the run; None for one that only counts.
        world_size: Number of ranks.
    """

    def __init__(self, folder: Path | None, world_size: int) -> None:
        self._file = folder / NAME if folder is not None else None
        self.lives = read_ledger(folder) if folder is not None else []
        """The lives before this one."""
        self._number = len(self.lives) + 1
        self._world_size = world_size
        self._began = time.monotonic() - age_s(os.getpid())
        self._spent = dict.fromkeys(KINDS, 0.0)
        self._last = dict.fromkeys(KINDS, 0.0)
        self._num_steps = self._num_checkpoints = 0
        self._step = self._saved_step = -1
        self._written_at = 0.0
        self._lock = threading.Lock()
        self._has_ended = False
        self._write("start", host=socket.gethostname(), world_size=world_size)

    @property
    def elapsed_s(self) -> float:
        """Seconds since this process started."""
        return time.monotonic() - self._began

    @property
    def between_steps_s(self) -> float:
        """Seconds of validations, saves and returns, for each step of this life."""
        between = sum(self._spent[kind] for kind in ("evaluation", "checkpoint", "rewind"))
        return between / max(self._num_steps, 1)

    @property
    def last_rites_s(self) -> float:
        """Seconds that a last validation and save will take, as those before them did."""
        return self._last["evaluation"] + self._last["checkpoint"]

    def begin_steps(self, step: int) -> None:
        """All is ready; the run goes on from a step."""
        self._spent["start"] = self.elapsed_s
        self._step = self._saved_step = step
        self._write("spent")

    def step(self, step: int, step_s: float, data_wait_s: float) -> None:
        """A step was taken."""
        self._step = step
        self._num_steps += 1
        self._spent["steps"] += step_s - data_wait_s
        self._spent["data_wait"] += data_wait_s
        if time.monotonic() - self._written_at > WRITE_EVERY_S:
            self._write("spent")

    @contextlib.contextmanager
    def during(self, kind: str) -> Iterator[None]:
        """Count the time of a validation, a save or a return to a checkpoint."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._last[kind] = time.monotonic() - began
            self._spent[kind] += self._last[kind]

    def saved(self, step: int) -> None:
        """A checkpoint stands."""
        self._saved_step = step
        self._num_checkpoints += 1
        self._write("spent")

    def went_back(self, step: int) -> None:
        """The run went back to a step."""
        self._step = self._saved_step = step
        self._write("spent")

    def end(self, why: str) -> None:
        """Say why this life ends; only the first reason counts."""
        with self._lock:
            if self._has_ended:
                return
            self._has_ended = True
        self._write("end", why=why)

    def _write(self, event: str, **fields: Any) -> None:
        self._written_at = time.monotonic()
        if self._file is None:
            return
        line = {
            "event": event,
            "life": self._number,
            "at": datetime.now().astimezone().isoformat(timespec="seconds"),
            "elapsed_s": round(self.elapsed_s, 3),
            "step": self._step,
            "saved_step": self._saved_step,
            "num_steps": self._num_steps,
            "num_checkpoints": self._num_checkpoints,
            "spent_s": {kind: round(seconds, 3) for kind, seconds in self._spent.items()},
            **fields,
        }
        try:
            with self._file.open("ab+") as file:
                if file.tell():  # behind what a crash or a full disk tore a line of its own begins
                    file.seek(-1, os.SEEK_END)
                    file.write(b"" if file.read(1) == b"\n" else b"\n")
                file.write(json.dumps(line).encode() + b"\n")
        except OSError as error:  # the next line tells as much as this one would have
            logging.getLogger(__name__).warning("the ledger cannot be written: %s", error)


def has_failed(life: Life) -> bool:
    """Whether a life ended neither because it was done nor because somebody asked."""
    return not life.ended.startswith(("done", "stopped", "interrupted"))


def refuse_fruitless(lives: list[Life], at_most: int, folder: Path) -> None:
    """Refuse to start once more what failed without a step so many times in a row.

    Raises:
        FruitlessError: It did.
    """
    last = lives[-at_most:]
    if len(last) < at_most or any(life.num_steps or not has_failed(life) for life in last):
        return
    raise FruitlessError(
        f"the last {at_most} starts failed without a step; of the last is known: {last[-1].ended or 'it was killed'}",
        str(folder / "logs"),
        f"see the logs; when it is mended, delete {folder / NAME} or raise guards.max_fruitless_starts",
    )


def read_ledger(folder: Path) -> list[Life]:
    """The lives of a run so far, in order; lines that a crash tore are left out."""
    lives: dict[int, Life] = {}
    path = folder / NAME
    if not path.exists():
        return []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            _add(lives, json.loads(text))
        except (ValueError, KeyError, TypeError):
            continue
    return [lives[number] for number in sorted(lives)]


def _add(lives: dict[int, Life], line: dict[str, Any]) -> None:
    number = int(line["life"])
    if line["event"] == "start":
        host, world_size = str(line["host"]), int(line["world_size"])
        lives[number] = Life(number, -1, world_size, host, str(line["at"]), -1, -1)
        return
    life = lives[number]
    life.elapsed_s = float(line["elapsed_s"])
    life.step, life.saved_step = int(line["step"]), int(line["saved_step"])
    if life.first_step < 0:
        life.first_step = life.step
    life.num_steps, life.num_checkpoints = int(line["num_steps"]), int(line["num_checkpoints"])
    life.spent_s = {str(kind): float(seconds) for kind, seconds in line["spent_s"].items()}
    if line["event"] == "end":
        life.ended = str(line["why"])
