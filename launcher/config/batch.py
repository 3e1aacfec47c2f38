"""How many samples each step has, and how they are cut into equal passes over the ranks."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from launcher.errors import BatchShapeError, RecipeError

NEAREST = 4
"""Numbers of ranks that an error names on either side of the one that does not divide."""


@dataclass(frozen=True, slots=True)
class BatchStage:
    """A part of the run whose steps have the same number of samples."""

    first_step: int
    """Steps taken when it begins."""
    first_position: int
    """Samples consumed when it begins."""
    global_batch: int
    """Samples of each of its steps, over all ranks."""


@dataclass(frozen=True)
class BatchSchedule:
    """The samples of every step: a pure function of the step, so a run needs to remember nothing of it."""

    stages: tuple[BatchStage, ...]
    """One after another; the first begins at step 0, the last never ends."""

    @classmethod
    def constant(cls, global_batch: int) -> BatchSchedule:
        """Every step alike."""
        return cls((BatchStage(0, 0, global_batch),))

    def global_batch_at(self, step: int) -> int:
        """Samples of the step that is taken after so many steps."""
        return self._stage_of(step).global_batch

    def position_at(self, step: int) -> int:
        """Samples that so many steps consume: where the next one begins."""
        stage = self._stage_of(step)
        return stage.first_position + (step - stage.first_step) * stage.global_batch

    def step_of(self, position: int) -> int:
        """Steps that were completed before the sample at a position was trained on."""
        stage = self.stages[bisect_right(self._first_positions, position) - 1]
        return stage.first_step + (position - stage.first_position) // stage.global_batch

    def _stage_of(self, step: int) -> BatchStage:
        return self.stages[bisect_right(self._first_steps, step) - 1]

    @cached_property
    def _first_steps(self) -> list[int]:
        return [stage.first_step for stage in self.stages]

    @cached_property
    def _first_positions(self) -> list[int]:
        return [stage.first_position for stage in self.stages]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """The cut of every step: its global batch = world_size × micro_batch × passes."""

    schedule: BatchSchedule
    """Samples of each step, over all ranks."""
    micro_batch: int
    """Samples of one pass on one rank."""
    world_size: int
    """Data-parallel ranks, or groups of ranks that compute each sample together."""
    sequence_parallel: int = 1
    """Ranks of such a group that compute a part of each sequence each."""
    tensor_parallel: int = 1
    """Ranks of such a group that compute whole sequences with a part of each matrix."""

    @property
    def ranks_per_sample(self) -> int:
        """Ranks of such a group; they stand side by side."""
        return self.sequence_parallel * self.tensor_parallel

    @property
    def global_batch(self) -> int:
        """Samples of a step, over all ranks, once a warm-up is over."""
        return self.schedule.stages[-1].global_batch

    @property
    def grad_accum_steps(self) -> int:
        """Passes of a step, once a warm-up is over."""
        return self.global_batch // (self.micro_batch * self.world_size)

    def passes_at(self, step: int) -> int:
        """Passes of the step that is taken after so many steps."""
        return self.schedule.global_batch_at(step) // (self.micro_batch * self.world_size)

    def micro_batches(self) -> list[int]:
        """Every micro batch that would cut all steps into whole passes, ascending."""
        share = _common_share(self.schedule, self.world_size)
        return [size for size in range(1, share + 1) if share % size == 0]

    def with_micro_batch(self, micro_batch: int) -> BatchPlan:
        """The same steps in passes of another size, one of `micro_batches()`."""
        return replace(self, micro_batch=micro_batch)


def plan_batch(
    global_batch: int | BatchSchedule,
    micro_batch: int | Literal["auto"] | None,
    world_size: int,
    sequence_parallel: int = 1,
    tensor_parallel: int = 1,
) -> BatchPlan:
    """Solve the number of accumulation passes from the world size; the global batch never changes.

    Args:
        global_batch: Samples of a step, over all ranks; of every step, where they differ.
        micro_batch: Samples of one pass on one rank; None takes a rank's whole share in one pass (of a warm-up, the
            most that divides the share of every step); `auto` is one until it has been measured what fits.
        world_size: Number of ranks.
        sequence_parallel: Ranks that compute each sample together, a part of it each.
        tensor_parallel: Ranks that compute each sample together, with a part of each matrix.

    Raises:
        BatchShapeError: A batch does not divide; the fix names the nearest ones that do, and the nearest numbers of
            ranks that can keep this one.
        RecipeError: The ranks cannot be cut into such groups.
    """
    ranks_per_sample = sequence_parallel * tensor_parallel
    if world_size % ranks_per_sample:
        fitting = ", ".join(str(n) for n in range(1, world_size + 1) if world_size % n == 0)
        raise RecipeError(
            f"a world size of {world_size} cannot be cut into groups of {ranks_per_sample} ranks",
            "model.tensor_parallel" if tensor_parallel > 1 else "model.sequence_parallel",
            f"use one of: {fitting}",
        )
    world_size //= ranks_per_sample
    schedule = BatchSchedule.constant(global_batch) if isinstance(global_batch, int) else global_batch
    given = micro_batch if isinstance(micro_batch, int) else None
    for stage in schedule.stages:
        where = "batch.global_batch" if stage is schedule.stages[-1] else "batch.warmup"
        _check_divides(stage.global_batch, given, world_size, where, world_sizes(schedule, given), ranks_per_sample)
    micro = micro_batch if micro_batch is not None else _common_share(schedule, world_size)
    return BatchPlan(
        schedule=schedule,
        micro_batch=1 if micro == "auto" else micro,
        world_size=world_size,
        sequence_parallel=sequence_parallel,
        tensor_parallel=tensor_parallel,
    )


def _common_share(schedule: BatchSchedule, world_size: int) -> int:
    """Most samples of a pass on a rank that cut every step into whole passes."""
    return math.gcd(*(stage.global_batch // world_size for stage in schedule.stages))


def _check_divides(
    global_batch: int, micro_batch: int | None, world_size: int, where: str, sizes: list[int], ranks_per_sample: int
) -> None:
    """Raises BatchShapeError; see `plan_batch`."""
    micro = micro_batch or 1
    cut = micro * world_size
    if global_batch % cut == 0:
        return
    below = global_batch // cut * cut
    choices = [str(value) for value in (below, below + cut) if value > 0]
    cut_by = (
        f"passes of {cut} ({micro} per rank on {world_size} ranks)" if micro_batch else f"{world_size} equal shares"
    )
    fixes = [f"use {' or '.join(choices)}"]
    if micro_batch and micro_batch > 1:
        fixes.append("or another batch.micro_batch")
    near = [n for n in sizes if n < world_size][-NEAREST:] + [n for n in sizes if n > world_size][:NEAREST]
    if near:
        fixes.append(f"or a number of ranks that keeps this one: {', '.join(str(n * ranks_per_sample) for n in near)}")
    raise BatchShapeError(f"{global_batch} samples per step cannot be cut into {cut_by}", where, ", ".join(fixes))


def world_sizes(schedule: BatchSchedule, micro_batch: int | None) -> list[int]:
    """Every number of ranks over which all steps can be cut, ascending."""
    num_passes, over = divmod(math.gcd(*(stage.global_batch for stage in schedule.stages)), micro_batch or 1)
    return [n for n in range(1, num_passes + 1) if num_passes % n == 0] if not over else []
