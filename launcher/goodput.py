"""`pretrain report`: how much of a run's time went into steps that count, and how often it should have saved.

From `ledger.jsonl`, over all starts. The time between two starts (a queue) is nobody's fault and counts for nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from launcher.engine.ledger import KINDS, Life, has_failed, read_ledger
from launcher.errors import CheckpointError
from launcher.units import duration


@dataclass(frozen=True, slots=True, kw_only=True)
class Goodput:
    """What a run's time went into."""

    run: str
    num_starts: int
    num_failures: int
    """Starts that ended neither because the run was done nor because somebody asked."""
    elapsed_s: float
    """Of all starts, from the first line of python to the last."""
    spent_s: dict[str, float]
    """`steps` (that count), `redone` (steps that were taken again, because what they had done was lost), `lost` (what
    else a start that failed spent: the time of a hang), `data_wait`, `evaluation`, `checkpoint`, `rewind`, `start`, and
    `other`."""
    goodput: float
    """Share of `steps` in `elapsed_s`."""
    num_steps: int
    """That count."""
    step_s: float | None
    """Mean length of a step, its wait for data included."""
    checkpoint_s: float | None
    """Mean time that steps waited for a save."""
    mean_time_between_failures_s: float | None
    saved_every_s: float | None
    """Time of steps between two saves, as it was."""
    best_interval_s: float | None
    """As it would have been best; None before the first failure or the first save."""
    best_interval_steps: int | None


def goodput(run: Path) -> Goodput:
    """Add up a run's ledger.

    Raises:
        CheckpointError: There is none.
    """
    lives = [life for life in read_ledger(run) if life.elapsed_s]
    if not lives:
        raise CheckpointError("there is no run here with a ledger", str(run / "ledger.jsonl"), "give a run's folder")
    spent = {kind: sum(life.spent_s.get(kind, 0.0) for life in lives) for kind in KINDS}
    redone_s, num_redone = _redone(lives)
    taken = sum(life.num_steps for life in lives)
    elapsed = sum(life.elapsed_s for life in lives)
    failed = [life for life in lives if has_failed(life)]
    ended = [life for life in lives if not has_failed(life)]
    spent["steps"] -= redone_s
    spent |= {"redone": redone_s, "lost": _rest(failed), "other": _rest(ended)}
    failures, saves = len(failed), sum(life.num_checkpoints for life in lives)
    step_s = (spent["steps"] + redone_s + spent["data_wait"]) / taken if taken else None
    checkpoint_s = spent["checkpoint"] / saves if saves else None
    between_failures = elapsed / failures if failures else None
    best = None
    if checkpoint_s is not None and between_failures is not None:
        best = best_interval(checkpoint_s, between_failures)
    return Goodput(
        run=str(run),
        num_starts=len(lives),
        num_failures=failures,
        elapsed_s=elapsed,
        spent_s=spent,
        goodput=spent["steps"] / elapsed,
        num_steps=taken - num_redone,
        step_s=step_s,
        checkpoint_s=checkpoint_s,
        mean_time_between_failures_s=between_failures,
        saved_every_s=step_s * taken / saves if step_s is not None and saves else None,
        best_interval_s=best,
        best_interval_steps=max(round(best / step_s), 1) if best is not None and step_s else None,
    )


def best_interval(checkpoint_s: float, between_failures_s: float) -> float:
    """The time between two saves at which saving and redoing together cost least.

    Args:
        checkpoint_s: What a save costs.
        between_failures_s: Mean time between two failures.

    Source: Young 1974, the first term; Daly 2006 (Future Generation Computer Systems 22), equation 37, the others.
    """
    if checkpoint_s >= 2 * between_failures_s:
        return between_failures_s
    share = checkpoint_s / (2 * between_failures_s)
    return math.sqrt(2 * checkpoint_s * between_failures_s) * (1 + math.sqrt(share) / 3 + share / 9) - checkpoint_s


def _rest(lives: Sequence[Life]) -> float:
    """Seconds that went into nothing that has a name."""
    return sum(max(life.elapsed_s - sum(life.spent_s.values()), 0.0) for life in lives)


def _redone(lives: Sequence[Life]) -> tuple[float, int]:
    """Seconds and number of the steps that were lost with the life that took them, or taken back within it."""
    seconds, number = 0.0, 0
    followers: list[Life | None] = [*lives[1:], None]
    for life, following in zip(lives, followers, strict=True):
        if not life.num_steps:
            continue
        begins = following.first_step if following is not None and following.first_step >= 0 else life.step
        kept = max(min(begins, life.step) - life.first_step, 0)
        lost = max(life.num_steps - kept, 0)
        seconds += life.spent_s.get("steps", 0.0) * lost / life.num_steps
        number += lost
    return seconds, number


def print_goodput(runs: Sequence[Path], as_json: bool) -> None:
    """Print what each run's time went into."""
    for run in runs:
        found = goodput(run)
        if as_json:
            print(json.dumps(asdict(found), ensure_ascii=False))
            continue
        print("\n".join(_lines(found)))


def _time(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 10 else duration(seconds)


def _lines(found: Goodput) -> list[str]:
    lines = [
        f"{found.run}: {found.num_steps} steps, {found.num_starts} starts, {found.num_failures} of them failed",
        f"  goodput {found.goodput:.1%} of {duration(found.elapsed_s)}",
    ]
    for kind, seconds in sorted(found.spent_s.items(), key=lambda item: -item[1]):
        if seconds >= 0.05:
            lines.append(f"  {kind:<12} {_time(seconds):>12} {seconds / found.elapsed_s:>7.1%}")
    if found.best_interval_s is not None and found.saved_every_s is not None and found.checkpoint_s is not None:
        lines.append(
            f"  a save costs {_time(found.checkpoint_s)} and a failure comes every "
            f"{_time(found.mean_time_between_failures_s or 0.0)}: best to save every "
            f"{_time(found.best_interval_s)} ({found.best_interval_steps} steps); "
            f"it was every {_time(found.saved_every_s)}"
        )
    else:
        lines.append("  how often to save cannot be told before the first failure and the first save")
    return lines
