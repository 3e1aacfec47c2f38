"""How a run goes on from what it left: from which checkpoint, with what it had settled on, to which last step.

torch is imported inside the functions: a mistake in the command line is told before.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from launcher.cluster.rank import Place
from launcher.config.batch import BatchPlan
from launcher.config.loading import refuse_other_recipe
from launcher.config.recipe import Recipe
from launcher.engine.completion import completed_step
from launcher.engine.ledger import Ledger
from launcher.engine.length import FittedLength, FixedLength, Length, refuse_without_budget
from launcher.engine.records import Progress, StepBatch
from launcher.feed.batches import longest_step
from launcher.feed.data import Data, pass_over
from launcher.samples.cursor import Cursor
from launcher.samples.passed_over import forget
from launcher.units import size


def is_complete(recipe: Recipe, budget_s: float | None) -> bool:
    """Whether a checkpoint of the last step is there, of this very recipe; a glance, before anything else is done.

    Which step is the last, only the end of a budget tells; whether it was validated, where a stop came before, only the
    end of the run.
    """
    from launcher.checkpoint.find import newest_sound, problem_at_a_glance
    from launcher.checkpoint.folder import complete_steps, read_json, read_recipe

    checkpoints = recipe.run_folder / "checkpoints"
    newest = newest_sound(checkpoints, complete_steps(checkpoints), problem_at_a_glance).path
    if newest is None:
        return False
    refuse_other_recipe(recipe, read_recipe(newest), newest)
    state = read_json(newest / "state.json", "step", "evaluations")
    step, evaluations = int(state["step"]), state["evaluations"]
    if budget_s is None and step < recipe.train.num_steps:
        return False
    if budget_s is None and (not evaluations or evaluations[-1]["step"] == step):
        return True
    return completed_step(recipe.run_folder) == step


def find_checkpoint(recipe: Recipe, console: Console) -> Path | None:
    """The checkpoint to go on from, the same on every rank: the newest whose every byte is as it was written.

    Raises:
        CheckpointError: There are some, but none that can be gone on from.
    """
    from launcher.checkpoint.load import find_together

    found, skipped = find_together(recipe.run_folder / "checkpoints")
    for line in skipped:
        console.print(f"warning: {line}", highlight=False, soft_wrap=True)
    return found.path


def state_before(checkpoint: Path | None) -> dict[str, Any]:
    """What the checkpoint to go on from says of the run; nothing without one."""
    from launcher.checkpoint.folder import read_json

    return read_json(checkpoint / "state.json", "precision") if checkpoint is not None else {}


def settle_precision(recipe: Recipe, before: dict[str, Any]) -> str:
    """What `train.precision` means here: a run that was begun keeps what it began with."""
    from launcher.engine.process import multiplies_bf16, share

    if recipe.train.precision != "auto":
        return recipe.train.precision
    return str(before["precision"] if before else share("bf16_autocast" if multiplies_bf16() else "fp32"))


def settle_micro_batch(
    recipe: Recipe,
    engine: Any,
    data: Data,
    plan: BatchPlan,
    place: Place,
    before: dict[str, Any],
    console: Console,
) -> BatchPlan:
    """The plan with the micro batch that fits, where the recipe leaves it to be measured.

    Raises:
        MemoryShortError: Not even one sample fits.
    """
    from launcher.checkpoint.rehearsal import rehearsal
    from launcher.engine.rehearse import find_micro_batch

    if recipe.batch.micro_batch != "auto":
        return plan
    last_step = recipe.train.num_steps - 1  # of the largest batch: more passes, of the same size

    def step_of(micro_batch: int) -> StepBatch:
        return longest_step(data, plan.with_micro_batch(micro_batch), last_step, place.rank)

    kept = before.get("micro_batch")
    with rehearsal(engine):
        fit = find_micro_batch(engine, recipe, plan.micro_batches(), step_of, place.local_world_size, kept)
    told = f"micro batch {fit.micro_batch}, measured: {size(fit.peak_bytes)} of {size(fit.limit_bytes)} at its peak"
    console.print(told, highlight=False, soft_wrap=True)
    return plan.with_micro_batch(fit.micro_batch)


def resume(
    recipe: Recipe, engine: Any, data: Data, checkpoint: Path | None, precision: str, console: Console
) -> Progress:
    """Go on from a checkpoint, or begin.

    Raises:
        CheckpointError: It is of another model or data.
    """
    from launcher.checkpoint.load import CheckpointReader, restore
    from launcher.rewind import forget_other_losses, recall, take_over

    progress = Progress(precision=precision)
    if checkpoint is None:
        if engine.global_rank == 0:
            forget(recipe.run_folder)
        return progress
    with CheckpointReader(checkpoint) as reader:
        take_over(progress, reader.state)
        recall(progress, recipe.run_folder)
        pass_over(data, recipe, progress.passed_over, progress.passed_changes)
        cursor = Cursor.from_dict(reader.state["cursor"])
        cursor.check(data.train.fingerprint_at(cursor.position))
        forget_other_losses(progress, recipe, data, cursor.position)
        restore(engine, reader, recipe.train.seed)
    console.print(f"going on from {checkpoint}", highlight=False, soft_wrap=True)
    return progress


def settle_length(recipe: Recipe, budget_s: float | None, place: Place, ledger: Ledger) -> Length:
    """How many steps the run is to have.

    Raises:
        UsageError: It was fitted to a budget, and there is none now.
    """
    from launcher.engine.process import share

    if budget_s is None:
        refuse_without_budget(recipe.run_folder)
        return FixedLength(recipe.train.num_steps)
    folder = recipe.run_folder if place.rank == 0 else None
    return FittedLength(budget_s, recipe.train.num_steps, recipe.schedule.warmup_steps, folder, ledger, share)
