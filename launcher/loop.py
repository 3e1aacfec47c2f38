"""The steps of a run and what happens between them: validation, saves, requests to stop."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console

from launcher.checkpoint.save import Saver
from launcher.checkpoint.state import run_state
from launcher.config.batch import BatchPlan
from launcher.config.loading import resolved_yaml
from launcher.config.objectives import part_names
from launcher.config.recipe import Recipe
from launcher.engine.collectives import CollectiveTimes
from launcher.engine.guards import Guard, refuse_to_learn_nothing
from launcher.engine.ledger import Ledger
from launcher.engine.length import Length
from launcher.engine.metrics import Log, Metrics, Silence
from launcher.engine.pace import is_slow, spread
from launcher.engine.process import device_model
from launcher.engine.records import Progress, StepResult
from launcher.engine.routing import TOLD_EVERY_STEPS, ExpertLoad
from launcher.engine.steps import StopAsked, evaluate, train_steps
from launcher.engine.watch import Watch
from launcher.feed.batches import bytes_per_token, step_batches, validation_batches
from launcher.feed.data import Data
from launcher.models.build import parameters_per_token
from launcher.plan.flops import flops_per_token, peak_flops
from launcher.rewind import Reason, bad_steps, bad_validation, rewind, tell_left_out
from launcher.samples.passed_over import moved_on


@dataclass(slots=True, kw_only=True)
class Run:
    """Everything one rank needs for its steps."""

    recipe: Recipe
    engine: Any
    """DeepSpeed's."""
    own_code: dict[str, str]
    """Name → text of the code that came with the model, as it was when the model was built."""
    data: Data
    plan: BatchPlan
    progress: Progress
    saver: Saver
    length: Length
    watch: Watch
    ledger: Ledger
    hosts: list[str]
    """Of the ranks."""
    console: Console
    """Silent on every rank but 0."""


def run_steps(run: Run) -> int:
    """Train to the last step, or to the end of the step in which a stop is asked for; returns the code to end with."""
    guards, health = run.recipe.guards, run.progress.health
    with open_metrics(run) as metrics, run.watch.steps(), Guard(run.engine, guards, health) as guard:
        run.ledger.begin_steps(run.progress.step)
        try:
            while (reason := _take_steps(run, metrics, guard)) is not None:
                run.watch.pulse.begin("going back")
                with run.ledger.during("rewind"):
                    run.saver.wait()
                    tell_saves(run, metrics)
                    rewind(run.recipe, run.engine, run.data, run.progress, reason, metrics, run.console)
                run.ledger.went_back(run.progress.step)
                guard.health = run.progress.health
            finish_saves(run, metrics)
        except StopAsked as asked:
            step = run.progress.step
            with run.ledger.during("checkpoint"):
                run.saver.wait()
            tell_saves(run, metrics)
            if step > run.progress.saved_step:
                save_run(run)
            finish_saves(run, metrics)
            metrics.event("stop", step=step, code=asked.code)
            run.console.print(
                f"stopped after step {step} as asked ({run.watch.stop.why or 'another rank was'}), saved: "
                "the same command goes on from here",
                highlight=False,
                soft_wrap=True,
            )
            return asked.code
    return 0


def _take_steps(run: Run, metrics: Log, guard: Guard) -> Reason | None:
    """Take steps to the last (then None is returned), or until the run has to go back."""
    recipe, progress, pulse = run.recipe, run.progress, run.watch.pulse
    length = run.length
    if length.begin(progress.step):
        _tell_length(run, metrics)
    # A run that was stopped in a validation, or between a save and its validation, makes up for it.
    is_last = progress.step >= length.last
    if progress.step == 0 or (
        (is_last or is_due(progress.step, recipe.eval.every_steps, length.last))
        and progress.evaluated_step < progress.step
    ):
        reason = validate(run, metrics)
        if reason is not None:
            return reason
    if is_last:
        return None
    batches = step_batches(
        run.data, run.plan, run.engine.global_rank, progress.step, length.at_most, passed_over=progress.passed_over
    )
    load = ExpertLoad.of(run.engine, progress.step)
    times = CollectiveTimes(recipe.train.num_steps - recipe.train.time_collectives + 1, recipe.train.num_steps)
    times.before_step(progress.step + 1)
    pulse.begin_step()
    for result in train_steps(run.engine, batches, recipe, progress.step + 1, length, guard, run.watch.stop):
        pulse.end_step(result.step_s)
        metrics.step(result)
        refuse_to_learn_nothing(result, recipe.objective.has_pairs)
        run.ledger.step(result.step, result.step_s, result.data_wait_s)
        progress.step = result.step
        progress.tokens += result.step_tokens
        _time_collectives(times, result, metrics)
        if length.took(result.step, result.step_s):
            _tell_length(run, metrics)
        if result.own_s is not None:
            _tell_pace(run, result, metrics)
        if result.left_out is not None:
            tell_left_out(recipe, result, progress, metrics, run.console)
        if guard.gives_up:
            return bad_steps(recipe.run_folder, progress)
        if _data_changes(run):
            progress.health.recent_losses = []  # other data, other losses
        if load is not None and is_due(result.step, recipe.eval.every_steps or TOLD_EVERY_STEPS, length.last):
            _tell_load(run, load, metrics)
        _stop_if_asked(result, length.last)
        if is_due(result.step, recipe.eval.every_steps, length.last):
            reason = validate(run, metrics)
            if reason is not None:  # before it is saved
                return reason
        if is_due(result.step, recipe.checkpoint.every_steps, length.last):
            save_run(run)
        tell_saves(run, metrics)
        if result.step >= length.last:
            break
        pulse.begin_step()
    pulse.begin("the end")
    return None


def _time_collectives(times: CollectiveTimes, result: StepResult, metrics: Log) -> None:
    measured = times.after_step(result.step, result.step_s)
    if measured is not None:
        metrics.event("collectives", step=result.step, **measured)
    times.before_step(result.step + 1)


def _tell_length(run: Run, metrics: Log) -> None:
    """Write how many steps the run is to have now."""
    metrics.plan(run.length.last)
    position = run.length.position(run.progress.step)
    metrics.event("budget", step=run.progress.step, last_step=run.length.last, schedule_position=position)


def _tell_pace(run: Run, result: StepResult, metrics: Log) -> None:
    """Write how far the ranks lie apart, and warn of one that keeps the others waiting."""
    found = spread(result.own_s or ())
    host = run.hosts[found.rank]
    metrics.event("pace", step=result.step, host=host, **asdict(found))
    if is_slow(found, run.recipe.guards.slow_rank_factor, result.step_s):
        metrics.event("slow_rank", step=result.step, host=host, **asdict(found))
        run.console.print(
            f"warning: rank {found.rank} on {host} is slow: {found.slowest_s * 1000:.0f} ms a step by itself, "
            f"the others {found.usual_s * 1000:.0f} ms",
            highlight=False,
            soft_wrap=True,
        )


def _data_changes(run: Run) -> bool:
    """Whether the next step is the first of other weights of a mixture."""
    schedule, passed_over = run.recipe.batch.schedule, run.progress.passed_over
    before, now = (
        moved_on(schedule.position_at(step), passed_over) for step in (run.progress.step - 1, run.progress.step)
    )
    return any(before < phase.first <= now for phase in run.data.train.mixture.phases)


def _stop_if_asked(result: StepResult, last: int) -> None:
    if result.stop_code and result.step < last:
        raise StopAsked(result.stop_code)


def is_due(step: int, every_steps: int, last: int) -> bool:
    """Whether something that happens every so many steps, and after the last, happens after this one."""
    return step == last or (every_steps > 0 and step % every_steps == 0)


def open_metrics(run: Run) -> Log:
    """The run's log, with what it takes to tell how much of the hardware a step uses."""
    recipe, engine = run.recipe, run.engine
    if engine.global_rank != 0:
        return Silence()
    config, share = engine.module.config, recipe.objective.predicted_share
    # An encoder-decoder's tokens pass through one of the two; its targets are a few per cent of its inputs.
    flops = flops_per_token(
        parameters_per_token(engine.module, share), config.num_hidden_layers, config.hidden_size, recipe.data.seq_len
    )
    peak = peak_flops(device_model())
    return Metrics(
        recipe.run_folder,
        first_step=run.progress.step + 1,
        num_steps=run.length.last,
        tokens=run.progress.tokens,
        passed_over=run.progress.passed_over,
        samples_at=recipe.batch.schedule.position_at,
        flops_per_token=flops,
        peak_flops=peak * engine.world_size if peak else None,
        console=run.console,
    )


def validate(run: Run, metrics: Log) -> Reason | None:
    """Measure the model on the held-out documents.

    Returns:
        Why the run has to go back, where what came out is no finite number.

    Raises:
        StopAsked: Before it was done.
    """
    progress = run.progress
    if not run.data.validation:
        return None
    run.watch.pulse.begin("a validation")
    world_size, rank, plan = run.engine.world_size, run.engine.global_rank, run.plan
    sharing = plan.sequence_parallel, plan.tensor_parallel
    batches = validation_batches(run.recipe, run.data, world_size, rank, *sharing)
    parts = part_names(run.recipe.objective)
    watched = run.watch.pulse.during(batches)
    with run.ledger.during("evaluation"):
        result = evaluate(run.engine, watched, bytes_per_token(run.data), parts, run.watch.stop)
    metrics.evaluation(progress.step, result)
    if not result.whole.is_finite:
        return bad_validation(progress.step, result)
    score = {name: value for name, value in asdict(result.whole).items() if value is not None}
    progress.evaluations.append({"step": progress.step, **score})
    return None


def save_run(run: Run) -> None:
    """Begin to write a checkpoint that holds all of the run."""
    recipe, progress = run.recipe, run.progress
    run.watch.pulse.begin("a save")
    position = moved_on(recipe.batch.schedule.position_at(progress.step), progress.passed_over)
    cursor = run.data.train.cursor_at(position)
    state = run_state(recipe, progress, cursor, run.data.manifests)
    config = run.engine.module.config.to_json_string(use_diff=False)
    texts = {"recipe.yaml": resolved_yaml(recipe), "config.json": config, **run.own_code}
    with run.ledger.during("checkpoint"):
        run.saver.save(state, texts)


def tell_saves(run: Run, metrics: Log) -> None:
    """Write how the saves ended that have ended; training goes on without one that failed."""
    for outcome in run.saver.outcomes():
        if outcome.problem is None:
            run.progress.saved_step = outcome.step
            run.ledger.saved(outcome.step)
            fields = {name: value for name, value in asdict(outcome).items() if name != "problem"}
            metrics.event("checkpoint", **fields)
        else:
            metrics.event("checkpoint_failed", step=outcome.step, why=outcome.problem.what)
            run.console.print(f"warning: step {outcome.step}: {outcome.problem.what}", highlight=False, soft_wrap=True)


def finish_saves(run: Run, metrics: Log) -> None:
    """Wait for the save in flight.

    Raises:
        SaveError: On every rank, if the last save failed.
    """
    run.watch.pulse.begin("a save")
    try:
        with run.ledger.during("checkpoint"):
            run.saver.finish()
    finally:
        tell_saves(run, metrics)


def _tell_load(run: Run, load: ExpertLoad, metrics: Log) -> None:
    """Write how the experts of every layer are used, and warn of those that are not."""
    report = load.measure(run.progress.step)
    metrics.event("routing", **asdict(report.window))
    if report.warning is not None:
        run.console.print(f"warning: {report.warning}", highlight=False, soft_wrap=True)
