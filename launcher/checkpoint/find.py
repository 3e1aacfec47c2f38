"""Which checkpoint to go on from: the newest one whose bytes are what was written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from launcher.checkpoint import folder as layout
from launcher.errors import CheckpointError, DamagedCheckpointError


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A checkpoint that is damaged."""

    step: int
    path: Path
    """Where it lies."""
    why: str
    """What is wrong with which file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The newest sound checkpoint, and those after it."""

    path: Path | None
    """Its folder; None where there is none at all."""
    skipped: tuple[Skipped, ...] = ()
    """Damaged ones, newest first."""


def problem_of(checkpoint: Path, part: int = 0, parts: int = 1) -> str:
    """What is wrong with which file; empty where nothing is. Several ranks look at a part of the files each."""
    return _told(partial(layout.verify, part=part, parts=parts), checkpoint)


def problem_at_a_glance(checkpoint: Path) -> str:
    """The same of sizes and small files only."""
    return _told(layout.glance, checkpoint)


def newest_sound(folder: Path, steps: Sequence[int], problem: Callable[[Path], str] = problem_of) -> Found:
    """Look at the checkpoints, newest first, until one is sound.

    Args:
        folder: The run's `checkpoints/`.
        steps: Of its complete checkpoints, oldest first.
        problem: Says what is wrong with one.

    Raises:
        CheckpointError: There are checkpoints, and every one is damaged: to begin again would lose the run.
        RequeueError: The file system is away.
    """
    skipped: list[Skipped] = []
    for step in reversed(steps):
        path = layout.checkpoint_path(folder, step)
        why = problem(path)
        if not why:
            return Found(path=path, skipped=tuple(skipped))
        skipped.append(Skipped(step=step, path=path, why=why))
    aside = layout.damaged(folder)
    if skipped or aside:
        told = [f"step {entry.step}: {entry.why}" for entry in skipped]
        told += [f"step {step}: put aside as {path.name}" for step, path in reversed(aside)]
        raise CheckpointError(
            f"no checkpoint is left that is not damaged ({'; '.join(told)})",
            str(folder),
            "bring back the files from a copy, or begin anew under another name (name=…)",
        )
    return Found(path=None)


def put_aside(found: Found) -> list[str]:
    """Give the damaged checkpoints other names; only one process calls it.

    Returns:
        A line for each that says what was skipped, why, and where it is now.
    """
    lines = []
    for entry in found.skipped:
        place = layout.put_aside(entry.path, entry.step)
        lines.append(f"the checkpoint of step {entry.step} is damaged and was skipped: {entry.why}; kept as {place}")
    return lines


def _told(check: Callable[[Path], None], checkpoint: Path) -> str:
    try:
        check(checkpoint)
    except DamagedCheckpointError as error:
        return f"{Path(error.where).name}: {error.what}"
    return ""
