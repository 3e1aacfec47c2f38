"""Where the data of a step begins, in a run that passed over some.

A run that never did reads one position after another. One that went back to a checkpoint, and left out what it had read
since, goes on behind that window; all its later positions are further on by as much.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import CheckpointError
from launcher.shards.durable import replace_durably

FILE = "passed_over.json"
Window = Sequence[int]
"""First position and number of positions."""


def moved_on(position: int, passed_over: Iterable[Window]) -> int:
    """A position of the run without windows, in the run with them.

    Args:
        position: Samples trained on.
        passed_over: Windows that no step trains on, apart from each other.
    """
    for first, number in sorted((window[0], window[1]) for window in passed_over):
        if position >= first:
            position += number
    return position


def with_window(passed_over: Iterable[Window], first: int, last: int) -> list[list[int]]:
    """The windows with `[first, last)` added; those inside of it are part of it."""
    kept = [[start, number] for start, number in passed_over if start + number <= first or start >= last]
    return sorted([*kept, [first, last - first]])


def put_back(position: int, passed_over: Iterable[Window]) -> int | None:
    """The inverse of `moved_on`: None for a position that no step trains on."""
    moved = 0
    for first, number in sorted((window[0], window[1]) for window in passed_over):
        if position < first:
            break
        if position < first + number:
            return None
        moved += number
    return position - moved


@dataclass(frozen=True, slots=True)
class Kept:
    """What a run's folder says of the data it passed over."""

    windows: list[list[int]]
    num_rewinds: int

    def write(self, run: Path) -> None:
        """Write it so that a crash leaves what was there before, or all of this."""
        replace_durably(run / FILE, json.dumps({"windows": self.windows, "num_rewinds": self.num_rewinds}) + "\n")


def read_kept(run: Path) -> Kept | None:
    """Read what `write` left; None where nothing was ever passed over.

    Raises:
        CheckpointError: The file is damaged.
    """
    path = run / FILE
    if not path.exists():
        return None
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        windows = [[int(first), int(number)] for first, number in tree["windows"]]
        return Kept(windows, int(tree["num_rewinds"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"which data the run passed over cannot be read: {error}",
            str(path),
            "write it anew from the `rewind` events in metrics.jsonl: windows is [[first_position, num_positions], …]",
        ) from None
