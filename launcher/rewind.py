"""Going back to a checkpoint and passing over the data read since, when leaving out single steps does not help, or a
validation shows that the weights are broken.

What PaLM's authors did by hand (Chowdhery et al. 2022, section 5.1): back to before a spike, past the batches that led
to it. The windows passed over are kept in the run's folder, in each checkpoint and in the log: which data a step takes
follows from them alone (`launcher.samples.passed_over`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from launcher.checkpoint import folder as layout
from launcher.checkpoint.load import CheckpointReader, find_together, restore
from launcher.config.recipe import Recipe
from launcher.engine.metrics import Log
from launcher.engine.process import share
from launcher.engine.records import EvalResult, Health, Progress, StepResult
from launcher.errors import DivergedError
from launcher.feed.data import Data, pass_over
from launcher.samples.cursor import Cursor
from launcher.samples.passed_over import Kept, moved_on, read_kept, with_changes, with_window


def tell_left_out(recipe: Recipe, result: StepResult, progress: Progress, metrics: Log, console: Console) -> None:
    """Write that a step's update was left out, why, and which data did it."""
    position = moved_on(recipe.batch.schedule.position_at(result.step - 1), progress.passed_over)
    fields = {"position": position, "batch_digest": result.batch_digest, "loss": result.loss, "why": result.left_out}
    metrics.event("left_out", step=result.step, **fields)
    console.print(
        f"step {result.step}: {result.left_out}; its update is left out (digest {result.batch_digest})",
        highlight=False,
        soft_wrap=True,
    )


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a run goes back."""

    what: str
    """What is wrong, up to which step."""
    fix: str
    """What the user may do about it."""


def bad_steps(run: Path, progress: Progress) -> Reason:
    """There were too many steps in a row whose update was left out."""
    health = progress.health
    return Reason(
        f"{health.bad_in_a_row or health.overflows_in_a_row} bad steps in a row, the last is {progress.step}",
        f"the steps are the `left_out` events in {run / 'metrics.jsonl'}; `pretrain trace {run} --digest …` shows "
        "their text. Lower optim.lr, exclude documents (data.exclude)",
    )


def bad_validation(step: int, result: EvalResult) -> Reason:
    """A validation came to no finite number: the weights are broken, whatever the steps before it looked like."""
    broken = [name for name, score in result.corpora.items() if not score.is_finite]
    of = f" on {', '.join(broken)}" if len(broken) < len(result.corpora) else ""
    return Reason(
        f"the validation of step {step} is no finite number{of}",
        "lower optim.lr, exclude documents (data.exclude)"
        if step
        else "no step did it: the model computes nothing else of that text; look at model.continue_from, model.config "
        "and train.precision, or exclude documents (data.exclude)",
    )


def rewind(
    recipe: Recipe, engine: Any, data: Data, progress: Progress, reason: Reason, metrics: Log, console: Console
) -> None:
    """Put engine and progress back to a checkpoint, and pass over the data since; every rank calls it.

    Raises:
        DivergedError: There is no checkpoint before, or it was done often enough.
    """
    checkpoints, guards = recipe.run_folder / "checkpoints", recipe.guards
    now = progress.step
    found, skipped = find_together(checkpoints, guards.back_checkpoints)
    for line in skipped:
        console.print(f"warning: {line}", highlight=False, soft_wrap=True)
    _refuse_for_ever(recipe, progress, reason, found.path)
    assert found.path is not None
    target = int(layout.read_json(found.path / "state.json", "step")["step"])
    if target == now:
        is_first = not any(step < now for step in layout.complete_steps(checkpoints))
        before = f"guards.back_checkpoints={guards.back_checkpoints + 1} goes back to one before it; or"
        raise DivergedError(
            f"{reason.what}, and the checkpoint to go back to is that step's",
            str(found.path),
            f"{'there is none before it: begin anew (name=…), and' if is_first else before} {reason.fix}",
        )
    position_at = recipe.batch.schedule.position_at
    first = moved_on(position_at(target), progress.passed_over)
    last = moved_on(position_at(now), progress.passed_over)
    windows = with_window(progress.passed_over, first, last)
    firsts = {step: phase.first for step, phase in zip(recipe.data.phases(), data.train.mixture.phases, strict=True)}
    changes = with_changes(progress.passed_changes, firsts, first, last)
    num_rewinds = progress.num_rewinds + 1
    if engine.global_rank == 0:
        for step in layout.complete_steps(checkpoints):
            if step > target:  # else a later start would go on from there. A crash here only repeats what led here.
                layout.delete(layout.checkpoint_path(checkpoints, step))
        layout.write_latest(checkpoints, target)
        Kept(windows, num_rewinds, changes).write(recipe.run_folder)
    share(None)
    with CheckpointReader(found.path) as reader:
        restore(engine, reader, recipe.train.seed)
        take_over(progress, reader.state)
        saved_at = Cursor.from_dict(reader.state["cursor"]).position
    progress.passed_over, progress.num_rewinds, progress.passed_changes = windows, num_rewinds, changes
    pass_over(data, recipe, windows, changes)
    forget_other_losses(progress, recipe, data, saved_at)
    metrics.rewind(target, progress.tokens, windows)
    fields = {"why": reason.what, "first_position": first, "num_positions": last - first, "changes": changes}
    metrics.event("rewind", step=target, from_step=now, **fields)
    console.print(
        f"{reason.what}: went back to step {target}, and passes over the {last - first} sequences read since "
        f"({progress.num_rewinds} of at most {guards.max_rewinds} times)",
        highlight=False,
        soft_wrap=True,
    )


def take_over(progress: Progress, state: dict[str, Any]) -> None:
    """Set the progress to what a checkpoint's `state.json` says, but for what was passed over later."""
    progress.step = progress.saved_step = state["step"]
    progress.tokens = state["tokens"]
    progress.evaluations = list(state["evaluations"])
    progress.health = Health(**state.get("health", {}))
    progress.passed_over = state.get("passed_over", [])
    progress.passed_changes = state.get("passed_changes", [])
    progress.num_rewinds = state.get("num_rewinds", 0)


def recall(progress: Progress, run: Path) -> None:
    """Add what the run has passed over since the checkpoint that it starts from was written."""
    kept = read_kept(run)
    if kept is not None:
        progress.passed_over, progress.num_rewinds = kept.windows, kept.num_rewinds
        progress.passed_changes = kept.changes


def forget_other_losses(progress: Progress, recipe: Recipe, data: Data, saved_at: int) -> None:
    """Forget a checkpoint's losses if weights changed amid what is passed over behind it: other data, other losses.

    Args:
        progress: The checkpoint's, with what has been passed over since.
        recipe: Of the run.
        data: Of the run, its weights changing where they do by now.
        saved_at: The position at which the checkpoint's next step would have begun.
    """
    begins = moved_on(recipe.batch.schedule.position_at(progress.step), progress.passed_over)
    if any(saved_at < phase.first < begins for phase in data.train.mixture.phases):
        progress.health.recent_losses = []


def _refuse_for_ever(recipe: Recipe, progress: Progress, reason: Reason, checkpoint: Path | None) -> None:
    run = str(recipe.run_folder)
    if checkpoint is None:
        fix = f"{reason.fix}, or save more often (checkpoint.every_steps)" if progress.step else reason.fix
        raise DivergedError(f"{reason.what}, and no checkpoint to go back to", run, fix)
    if progress.num_rewinds >= recipe.guards.max_rewinds:
        raise DivergedError(
            f"{reason.what}, though the run went back {progress.num_rewinds} times and passed over the data each time",
            run,
            f"{reason.fix}, or raise guards.max_rewinds, and guards.back_checkpoints to go back further",
        )
