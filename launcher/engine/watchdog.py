"""Whether a rank still gets on: how long it has been since the last sign, and how long that may be."""

from __future__ import annotations

import contextlib
import faulthandler
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TextIO, TypeVar

from launcher.config.guards import GuardsConfig

MEDIAN_OF = 64
"""Steps the usual length of a step is taken from: assumption."""

_Item = TypeVar("_Item")


class Pulse:
    """When this rank last got on, at what, and how long it may take now.

    Args:
        limits: Of the recipe.
        clock: Seconds, monotonic: the time of day may jump.
    """

    def __init__(self, limits: GuardsConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._steps: deque[float] = deque(maxlen=MEDIAN_OF)
        self._has_taken_one = False
        self._at = "starting"
        self._since = clock()
        self._limit_s = limits.slow_s

    def begin(self, what: str) -> None:
        """Something else than a step begins, which may take its time (a save, a validation)."""
        self._at, self._limit_s, self._since = what, self._limits.slow_s, self._clock()

    def rest(self) -> None:
        """Nothing is late from here on: what is left to do may take any time."""
        self._limit_s = math.inf

    def begin_step(self) -> None:
        """The next step begins."""
        usual = statistics.median(self._steps) * self._limits.hang_factor if self._steps else self._limits.slow_s
        self._at, self._limit_s, self._since = "a step", max(usual, self._limits.hang_floor_s), self._clock()

    def end_step(self, step_s: float) -> None:
        """A step was taken; the first one of a start (compilation, warm-up) tells nothing of the others."""
        if self._has_taken_one:
            self._steps.append(step_s)
        self._has_taken_one = True
        self.begin("what comes between steps")

    def beat(self) -> None:
        """It gets on."""
        self._since = self._clock()

    def during(self, items: Iterable[_Item]) -> Iterator[_Item]:
        """The items themselves; each is a sign."""
        for item in items:
            self.beat()
            yield item

    def overdue(self) -> str:
        """What takes too long, in words; empty while all is well."""
        late = self._clock() - self._since
        if late <= self._limit_s:
            return ""
        return f"has not got on with {self._at} for {late:.0f} s (allowed: {self._limit_s:.0f} s)"


def write_stacks(folder: Path, rank: int, why: str) -> Path:
    """Write what every thread of this process is doing to `folder/stacks-rank-N.txt`, after what is there already.

    Where the file system refuses, the rank ends without: that it ends matters more.
    """
    path = folder / f"stacks-rank-{rank:05d}.txt"
    with contextlib.suppress(OSError), _open_to_append(path) as file:
        file.write(f"{datetime.now().isoformat(timespec='seconds')} {why}\n")
        file.flush()
        faulthandler.dump_traceback(file, all_threads=True)
        file.write("\n")
    return path


def _open_to_append(path: Path) -> TextIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("a", encoding="utf-8")
