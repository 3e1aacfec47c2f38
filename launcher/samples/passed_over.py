"""Where the data of a step begins, in a run that passed over some.

A run that never did reads one position after another. One that went back to a checkpoint, and left out what it had read
since, goes on behind that window; all its later positions are further on by as much, and so are the changes of weights
at later steps. A change that came in amid such a window stays there: what was read of each corpus stays read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from launcher.errors import CheckpointError
from launcher.shards import faults
from launcher.shards.durable import replace_durably

FILE = "passed_over.json"
Window = Sequence[int]
"""First position and number of positions."""
Change = Sequence[int]
"""Step, and the position at which its weights came in, amid a window."""


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


def first_of_change(step: int, position: int, passed_over: Iterable[Window], changes: Iterable[Change]) -> int:
    """The first position of the weights that change at a step.

    Args:
        step: As the recipe names it.
        position: Samples trained on by then.
        passed_over: Windows that no step trains on.
        changes: Those that came in amid one of them.
    """
    came_in = {change[0]: change[1] for change in changes}
    return came_in.get(step, moved_on(position, passed_over) if step else 0)


def with_changes(changes: Iterable[Change], firsts: Mapping[int, int], first: int, last: int) -> list[list[int]]:
    """The changes with those added that came in amid the window `[first, last)`.

    Args:
        changes: So far.
        firsts: First position of the weights of every step at which they change, as it was up to now.
        first: First position of the window.
        last: One past its last.
    """
    amid = {step: position for step, position in firsts.items() if first <= position < last}
    return sorted([step, position] for step, position in {**amid, **{c[0]: c[1] for c in changes}}.items())


@dataclass(frozen=True, slots=True)
class Kept:
    """What a run's folder says of the data it passed over."""

    windows: list[list[int]]
    num_rewinds: int
    changes: list[list[int]] = field(default_factory=list)
    """Of weights, that came in amid a window."""

    def write(self, run: Path) -> None:
        """Write it so that a crash leaves what was there before, or all of this."""
        replace_durably(run / FILE, json.dumps(asdict(self)) + "\n")


def forget(run: Path) -> None:
    """Remove what was kept: a run that begins has passed over nothing, whatever was deleted of an earlier one."""
    (run / FILE).unlink(missing_ok=True)


def read_kept(run: Path) -> Kept | None:
    """Read what `write` left; None where nothing was ever passed over.

    Raises:
        CheckpointError: The file is damaged.
        OSError: Its place is full or gone: another start may find it.
    """
    path = run / FILE
    if not path.exists():
        return None
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        pairs = tree["windows"], tree.get("changes", [])
        windows, changes = ([[int(first), int(second)] for first, second in each] for each in pairs)
        return Kept(windows, int(tree["num_rewinds"]), changes)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if faults.is_of_place(error):
            raise
        raise CheckpointError(
            f"which data the run passed over cannot be read: {error}",
            str(path),
            "write it anew from the `rewind` events in metrics.jsonl: windows is [[first_position, num_positions], …], "
            "changes that of the last of them",
        ) from None
