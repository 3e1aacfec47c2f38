"""How many steps a run takes, and where in its schedule each of them stands.

As many as the recipe says; or, with `--budget`, as many as fit into a time: the time of all starts together, start-up,
validations, saves and what was lost included. The recipe's schedule of `train.num_steps` is then stretched or
compressed behind its warm-up, so that it ends when the budget does. How long a step takes is measured as the run goes,
and the rest of the schedule fitted anew at some steps; what was decided is kept in `budget.json`, and a step that was
taken under one fit stays where it was. Nothing jumps: a fit only changes how fast the rest of the schedule passes.
"""

from __future__ import annotations

import json
import logging
import statistics
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from launcher.engine.ledger import Ledger
from launcher.errors import CheckpointError, UsageError
from launcher.shards import faults
from launcher.shards.durable import replace_durably

NAME = "budget.json"
NO_END = 1 << 40
FIRST_FIT = 8
"""Steps of a start before the first fit: assumption."""
MEDIAN_OF = 32


class Length(Protocol):
    """How long a run is."""

    last: int
    """The last step, as far as it is known."""
    at_most: int
    """The last step there can be."""

    def position(self, step: int) -> float:
        """Where a step stands in the recipe's schedule, counted from 1."""

    def begin(self, step: int) -> bool:
        """The run goes on from a step; returns whether `last` was decided anew."""

    def took(self, step: int, step_s: float) -> bool:
        """A step was taken; returns whether `last` was decided anew."""


class FixedLength:
    """As many steps as the recipe says."""

    def __init__(self, num_steps: int) -> None:
        self.last = self.at_most = num_steps

    def position(self, step: int) -> float:
        """The step itself."""
        return step

    def begin(self, step: int) -> bool:
        """Nothing is decided."""
        return False

    def took(self, step: int, step_s: float) -> bool:
        """Nothing is decided."""
        return False


@dataclass(frozen=True, slots=True)
class Fit:
    """A decision on the rest of a run."""

    from_step: int
    """Steps taken when it was made."""
    position: float
    """Where in the recipe's schedule the run stood then."""
    last: int
    """The step at which the schedule ends."""


class FittedLength:
    """As many steps as fit into a time.

    Args:
        budget_s: Seconds, of all starts together.
        num_steps: Of the recipe: the length of the schedule that is fitted.
        warmup_steps: Of the recipe: they are taken as they are.
        folder: Of the run, on rank 0; None on the others.
        ledger: Of this start.
        share: Brings rank 0's value to every rank.

    Raises:
        CheckpointError: What was decided before cannot be read.
    """

    at_most = NO_END

    def __init__(
        self,
        budget_s: float,
        num_steps: int,
        warmup_steps: int,
        folder: Path | None,
        ledger: Ledger,
        share: Callable[[Any], Any],
    ) -> None:
        self._budget_s, self._num_steps, self._warmup_steps = budget_s, num_steps, warmup_steps
        self._folder, self._ledger, self._share = folder, ledger, share
        self._fits = [Fit(*fit) for fit in share([tuple(asdict(fit).values()) for fit in read_fits(folder)])]
        self._step_s: deque[float] = deque(maxlen=MEDIAN_OF)
        self._first = 0
        self._next_fit = 0
        self.last = self._fits[-1].last if self._fits else num_steps

    def position(self, step: int) -> float:
        """Where a step stands in the recipe's schedule."""
        if step <= self._warmup_steps:
            return step
        made = [fit for fit in self._fits if fit.from_step < step]
        if not made:
            return step
        fit = made[-1]
        from_step, position = max(fit.from_step, self._warmup_steps), max(fit.position, self._warmup_steps)
        if step >= fit.last or fit.last <= from_step:
            return self._num_steps
        return position + (self._num_steps - position) * (step - from_step) / (fit.last - from_step)

    def begin(self, step: int) -> bool:
        """The run goes on from a step: what was decided for later ones is void."""
        self._first = step
        self._fits = [fit for fit in self._fits if fit.from_step <= step]
        self.last = self._fits[-1].last if self._fits else self._num_steps
        self._next_fit = step + FIRST_FIT
        left = self._share(self._left_s() > 0)
        if not left:
            self._decide(step, step)
        return not left

    def took(self, step: int, step_s: float) -> bool:
        """A step was taken: at some, the rest of the run is fitted anew."""
        self._step_s.append(step_s)
        if step < self._next_fit:
            return False
        last = step + max(int(self._left_s() / self._all_in_s()), 0)
        self._decide(step, self._share(last))
        # Twice as far from the beginning, then an eighth of what is left: so the end is met within a step or two, and
        # with its schedule at the end, even if steps become twice as long on the way.
        self._next_fit = step + max(min(step - self._first, (self.last - step) // 8), 1)
        return True

    def _decide(self, step: int, last: int) -> None:
        self._fits.append(Fit(step, self.position(step), last))
        self.last = last
        if self._folder is not None:
            kept = {"budget_s": self._budget_s, "fits": [asdict(fit) for fit in self._fits]}
            try:
                replace_durably(self._folder / NAME, json.dumps(kept, indent=1) + "\n")
            except OSError as error:  # the next fit writes this one as well
                logging.getLogger(__name__).warning("%s cannot be written: %s", NAME, error)

    def _left_s(self) -> float:
        """Seconds left for steps, when the last save and validation are paid for."""
        before = sum(life.elapsed_s for life in self._ledger.lives)
        return self._budget_s - before - self._ledger.elapsed_s - self._ledger.last_rites_s

    def _all_in_s(self) -> float:
        """What a step costs, with its part of validations and saves."""
        return statistics.median(self._step_s) + self._ledger.between_steps_s


def read_fits(folder: Path | None) -> list[Fit]:
    """What was decided in earlier starts; nothing without a folder or a budget.

    Raises:
        CheckpointError: The file is damaged.
        OSError: Its place is full or gone: another start may find it.
    """
    if folder is None or not (folder / NAME).exists():
        return []
    try:
        tree = json.loads((folder / NAME).read_text(encoding="utf-8"))
        return [Fit(int(fit["from_step"]), float(fit["position"]), int(fit["last"])) for fit in tree["fits"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        if faults.is_of_place(error):
            raise
        raise CheckpointError(
            f"how the run was fitted to its budget cannot be read: {error}",
            str(folder / NAME),
            "delete it: the rest of the schedule is fitted anew",
        ) from None


def refuse_without_budget(folder: Path) -> None:
    """A run that was fitted to a budget does not go on without one: its learning rate would jump.

    Raises:
        UsageError: It was.
    """
    if (folder / NAME).exists():
        raise UsageError(
            "the run was started with --budget, and this command has none",
            str(folder / NAME),
            "give it again (another one will do), or delete the file to go on with the recipe's own schedule",
        )
