"""Which rank is slow: a run is as fast as its slowest, and the time of a step is the same on all.

Each rank measures what it takes by itself, where no other has a say: the wait for its data, and the forward pass before
the first exchange. At stage 3 that pass gathers weights from everybody; there a few products of matrices stand in its
place.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator

SIDE, PRODUCTS = 512, 20
"""About 30 ms on one core of a server, once in `pace_every_steps`: assumption."""
WORTH = 0.1
"""Of a step: what a slow rank costs less is not told. Assumption."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How far the ranks lie apart, in seconds a step of what each takes by itself."""

    usual_s: float
    """Median of all but the slowest."""
    slowest_s: float
    rank: int
    """The slowest."""


class Pace:
    """Measures this rank's own time.

    Args:
        engine: DeepSpeed engine.
        every_steps: Steps between two results; 0 for none.
    """

    def __init__(self, engine: Any, every_steps: int) -> None:
        self._every = every_steps if torch.distributed.get_world_size() > 1 else 0
        self._device = engine.device
        self._gathers_weights = engine.zero_optimization_stage() == 3
        self._own_s = 0.0
        self._num_measured = 0
        self._wait_s = 0.0
        self._num_steps = 0

    @contextlib.contextmanager
    def forward(self, step: int) -> Iterator[None]:
        """Measure the forward pass in here. On an accelerator, which runs behind, only where a result is due."""
        measures = self._every and not self._gathers_weights and (self._device.type == "cpu" or self._is_due(step))
        if not measures:
            yield
            return
        get_accelerator().synchronize()
        began = time.perf_counter()
        yield
        get_accelerator().synchronize()
        self._own_s += time.perf_counter() - began
        self._num_measured += 1

    def result(self, step: int, wait_s: float) -> float:
        """This rank's own seconds a step since the last result; 0 where none is due.

        Args:
            step: Number of the step.
            wait_s: What this rank waited for its data in it.
        """
        self._wait_s += wait_s
        self._num_steps += 1
        if not self._is_due(step):
            return 0.0
        own_s = self._probe() if self._gathers_weights else self._own_s / max(self._num_measured, 1)
        own_s += self._wait_s / self._num_steps
        self._own_s = self._wait_s = 0.0
        self._num_measured = self._num_steps = 0
        return own_s

    def _is_due(self, step: int) -> bool:
        return self._every > 0 and step % self._every == 0

    def _probe(self) -> float:
        factor = torch.ones(SIDE, SIDE, device=self._device)
        get_accelerator().synchronize()
        began = time.perf_counter()
        for _ in range(PRODUCTS):
            torch.mm(factor, factor)
        get_accelerator().synchronize()
        return time.perf_counter() - began


def spread(own_s: Sequence[float]) -> Spread:
    """The slowest of the ranks, and what is usual among the others."""
    rank = max(range(len(own_s)), key=lambda number: own_s[number])
    others = [seconds for number, seconds in enumerate(own_s) if number != rank]
    return Spread(usual_s=statistics.median(others), slowest_s=own_s[rank], rank=rank)


def is_slow(found: Spread, factor: float, step_s: float) -> bool:
    """Whether the slowest rank is so far off that the run would be faster without it."""
    return found.slowest_s > factor * found.usual_s and found.slowest_s - found.usual_s > WORTH * step_s
