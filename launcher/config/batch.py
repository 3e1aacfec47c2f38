"""How a global batch is cut into equal passes over the ranks."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.errors import BatchShapeError


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """The cut of one optimizer step: global_batch = world_size × micro_batch × grad_accum_steps."""

    global_batch: int
    """Samples of a step, over all ranks."""
    micro_batch: int
    """Samples of one pass on one rank."""
    grad_accum_steps: int
    """Passes of a step."""
    world_size: int
    """Data-parallel ranks."""


def plan_batch(global_batch: int, micro_batch: int | None, world_size: int) -> BatchPlan:
    """Solve the number of accumulation passes from the world size; the global batch never changes.

    Args:
        global_batch: Samples of a step, over all ranks.
        micro_batch: Samples of one pass on one rank; None takes a rank's whole share in one pass.
        world_size: Number of ranks.

    Raises:
        BatchShapeError: The batch does not divide; the fix names the nearest ones that do.
    """
    micro = micro_batch if micro_batch is not None else max(global_batch // world_size, 1)
    samples_per_pass = micro * world_size
    if global_batch % samples_per_pass == 0:
        return BatchPlan(
            global_batch=global_batch,
            micro_batch=micro,
            grad_accum_steps=global_batch // samples_per_pass,
            world_size=world_size,
        )
    cut = samples_per_pass if micro_batch is not None else world_size
    below = global_batch // cut * cut
    choices = [str(value) for value in (below, below + cut) if value > 0]
    cut_by = (
        f"passes of {cut} ({micro} per rank on {world_size} ranks)" if micro_batch else f"{world_size} equal shares"
    )
    raise BatchShapeError(
        f"{global_batch} samples per step cannot be cut into {cut_by}",
        "batch.global_batch",
        f"use {' or '.join(choices)}" + (", or another batch.micro_batch" if micro_batch and micro_batch > 1 else ""),
    )
