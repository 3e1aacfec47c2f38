"""Which checkpoints stay: the newest, every n-th step's, those with the lowest validation loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from launcher.checkpoint import folder as layout
from launcher.config.recipe import CheckpointConfig
from launcher.errors import CheckpointError


def to_delete(losses: Mapping[int, float | None], keep: CheckpointConfig) -> list[int]:
    """The steps whose checkpoints nothing keeps, oldest first.

    Args:
        losses: Step of each complete checkpoint → validation loss measured at that step, None where none was.
        keep: How much to keep; of equal losses the earlier step is the better.
    """
    steps = sorted(losses)
    kept = set(steps[-keep.keep_last :])
    if keep.keep_every:
        kept |= {step for step in steps if step % keep.keep_every == 0}
    measured = sorted((loss, step) for step, loss in losses.items() if loss is not None and math.isfinite(loss))
    kept |= {step for _, step in measured[: keep.keep_best]}
    return [step for step in steps if step not in kept]


def prune(folder: Path, keep: CheckpointConfig) -> list[int]:
    """Delete what need not be kept; returns the steps that were deleted.

    Raises:
        OSError: The file system refused.
        RequeueError: It is away.
    """
    old = to_delete(validation_losses(folder), keep)
    for step in old:
        layout.delete(layout.checkpoint_path(folder, step))
    return old


def validation_losses(folder: Path) -> dict[int, float | None]:
    """Step of each complete checkpoint → validation loss measured at that step; None where none was.

    Where it cannot be read the step is left out: that may be the best, and must not be deleted.

    Raises:
        RequeueError: The file system is away.
    """
    losses = {}
    for step in layout.complete_steps(folder):
        with suppress(CheckpointError):
            losses[step] = validation_loss(layout.checkpoint_path(folder, step), step)
    return losses


def validation_loss(checkpoint: Path, step: int) -> float | None:
    """Loss of the validation made at the checkpoint's own step; None without one.

    Raises:
        CheckpointError: It cannot be read.
        RequeueError: The file system is away.
    """
    evaluations = layout.read_json(checkpoint / "state.json", "evaluations")["evaluations"]
    losses = [float(row["loss"]) for row in evaluations if row["step"] == step]
    return losses[-1] if losses else None
