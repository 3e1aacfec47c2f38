"""One training process, from arguments to exit code.

Started by `deepspeed launcher/train.py …` as a file, by srun, mpirun and torchrun as `python -m launcher.train …`.
It holds functions only and nobody imports it.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

# Started as a file, this folder is first on sys.path and the package is not on it at all: `import launcher` fails on
# one node (and works on two, where DeepSpeed's multi-node runner sets PYTHONPATH).
_HERE = Path(__file__).resolve().parent
if __name__ in ("__main__", "__mp_main__"):
    sys.path[:] = [str(_HERE.parent), *(entry for entry in sys.path if Path(entry or ".").resolve() != _HERE)]

import json
import logging
import shutil
import traceback
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any, TextIO, cast

from rich.console import Console

from launcher.cluster.environment import stay_inside
from launcher.cluster.hostfile import refuse_ignored_hostfile
from launcher.cluster.rank import Place, find_place, threads_per_rank, with_master
from launcher.cluster.signals import Launchers, StopSignals
from launcher.config import deepspeed as ds
from launcher.config.batch import BatchPlan
from launcher.config.command_line import parse
from launcher.config.deepspeed_check import buffer_doubts
from launcher.config.doubts import doubts
from launcher.config.loading import LoadedRecipe, load_recipe, resolved_yaml
from launcher.config.recipe import Recipe
from launcher.engine.completion import mark_complete, unmark
from launcher.engine.ledger import Ledger, refuse_fruitless
from launcher.engine.length import Length
from launcher.engine.records import Progress
from launcher.engine.run_lock import RunLock
from launcher.engine.steady import SteadyStream
from launcher.engine.watch import Watch, end_process
from launcher.errors import EXIT_DONE, EXIT_INTERRUPTED, EXIT_OURS, LauncherError, RequeueError, UsageError
from launcher.feed.data import Data, open_data, wasted
from launcher.objectives.base import longest_sequence
from launcher.prepare.ready import check_tokenizer, ensure_shards
from launcher.report import show_summary
from launcher.resume import (
    find_checkpoint,
    is_complete,
    resume,
    settle_length,
    settle_micro_batch,
    settle_precision,
    state_before,
)
from launcher.shards import faults

# torch, deepspeed and transformers are imported inside the functions below: a misspelled key is told in half a second,
# and rank 0 prepares the quick start's shards without them.

FIRST_WORD_S = 5.0
MEND = "make room or mend it; the same command goes on from the last checkpoint"


def main(arguments: Sequence[str]) -> int:
    """Train, and turn whatever happens into an exit code."""
    rank, watch = 0, None
    stay_inside(os.environ)
    with ExitStack() as opened:
        try:
            place = find_place(os.environ)
            rank = place.rank
            refuse_ignored_hostfile()
            options = parse(arguments)
            loaded = load_recipe(options.recipe, options.overrides)
            ds_file = ds.load_ds_config(options.ds_config)
            signals = opened.enter_context(StopSignals())
            recipe = loaded.recipe
            # Alone, it was started by hand: a shell that is logged out of (nohup) does not end it.
            launchers = Launchers() if place.source != "alone" else None
            watch = opened.enter_context(Watch(recipe.guards, recipe.run_folder, rank, signals, launchers))
            if rank == 0:
                lock = opened.enter_context(RunLock(recipe.run_folder, os.environ, watch.end_for))
                watch.on_end.append(lambda _: lock.release())
            return train(loaded, ds_file, options.budget, place, watch)
        except LauncherError as error:
            code, text = error.exit_code, str(error)
        except KeyboardInterrupt:
            code, text = EXIT_INTERRUPTED, "interrupted; the same command goes on from the last checkpoint"
        except Exception as error:
            if watch is not None:
                watch.ask_for_news()  # a lost rank comes out of the others' collectives as an error
            code, text = EXIT_OURS, traceback.format_exc()
            if isinstance(error, OSError) and faults.is_of_place(error):
                told = RequeueError(f"the file system failed: {error.strerror}", str(error.filename or ""), MEND)
                code, text = told.exit_code, str(told)
        tell(text, rank, watch)
        if watch is not None:
            watch.failed(code)
            watch.before_end(text.splitlines()[0] if code != EXIT_OURS else text.splitlines()[-1])
    return code


def tell(text: str, rank: int, watch: Watch | None) -> None:
    """Print an error once. Every rank finds the same mistake of the user's; rank 0 has the first word.

    The launcher ends the other ranks as soon as rank 0 has ended. One that is still here after a while found
    something that rank 0 did not (a missing folder on its node), and says so.
    """
    if rank != 0:
        if watch is not None and watch.another_told(FIRST_WORD_S):
            return
        if watch is None:
            time.sleep(FIRST_WORD_S)
        text = f"rank {rank}: {text}"
    print(text, file=SteadyStream(sys.stderr), flush=True)


def train(loaded: LoadedRecipe, ds_file: dict[str, Any], budget_s: float | None, place: Place, watch: Watch) -> int:
    """The whole run: shards → order → objective → loader → model → engine → resume → steps → save → summary.

    Returns:
        The exit code: 0, or what the run was asked to stop with.
    """
    recipe = loaded.recipe
    console = Console(quiet=place.rank != 0, file=cast(TextIO, SteadyStream(sys.stdout)), markup=False)
    plan = recipe.cut_batch(place.world_size)
    note(doubts(recipe, ds_file), console)
    complete = is_complete(recipe, budget_s)
    if place.rank == 0 and (loaded.is_quickstart or not complete):  # the other ranks wait for it in join
        ensure_shards(loaded, console)
    if complete:
        console.print(f"run        {recipe.run_folder}: has all its steps, nothing to train", highlight=False)
    else:
        if place.rank == 0:
            unmark(recipe.run_folder)
        device = join(place, watch)
        watch.pulse.begin("looking through the checkpoints")
        checkpoint = find_checkpoint(recipe, console)
        watch.pulse.begin("opening the shards")
        data = open_data(recipe)
        check_tokenizer(recipe, data.tokenizer)
        note(wasted(data), console)
        before = state_before(checkpoint)
        precision = settle_precision(recipe, before)
        ds_config = ds.resolve_ds_config(ds_file, recipe, plan, precision)
        own_code = read_own_code(recipe, watch)
        config = configure(recipe, data)
        tell_tokens(recipe, config, console)
        tell_buffers(ds_config, console)
        prepare_offload(ds_config, place, console)
        watch.pulse.begin("building the model")
        model = build(recipe, config, plan, ds_config, device)
        keep_log(recipe, place.rank)  # the run's folder begins here: whatever the user can mend was told before
        ledger = keep_ledger(recipe, place, watch)
        engine = start(recipe, model, ds_config)
        watch.pulse.begin("measuring the micro batch")
        plan = settle_micro_batch(recipe, engine, data, plan, place, before, console)
        watch.pulse.begin("reading the checkpoint")
        progress = resume(recipe, engine, data, checkpoint, precision, console)
        progress.micro_batch = plan.micro_batch
        keep_inputs(recipe, ds_config | ds.batch_keys(plan), place.rank)
        length = settle_length(recipe, budget_s, place, ledger)
        code = take_steps(recipe, engine, own_code, data, plan, progress, length, watch, ledger, console)
        leave(watch, ds_config, place)
        if code != EXIT_DONE:
            watch.before_end(f"stopped after step {progress.step}")
            return code
    watch.part()
    if place.rank == 0:
        mark_complete(recipe.run_folder, summarise(recipe, console))
    watch.before_end("done")
    return EXIT_DONE


def join(place: Place, watch: Watch) -> str:
    """Join the other ranks; returns the name of this rank's device."""
    from launcher.engine.process import join_ranks, share

    place = with_master(place)
    device = join_ranks(place, threads_per_rank(place, os.environ, len(os.sched_getaffinity(0))))
    watch.connect(place.world_size, place.master_addr, share)
    return str(device)


def note(lines: Iterable[str], console: Console) -> None:
    """Print what can run, but is likely not what was meant."""
    for line in lines:
        console.print(f"note: {line}", highlight=False, soft_wrap=True)


def tell_buffers(ds_config: dict[str, Any], console: Console) -> None:
    """Say where buffers would take most of this device: the file does not know on what it is used."""
    from launcher.engine.process import device_bytes

    note(buffer_doubts(ds_config, device_bytes()), console)


def prepare_offload(ds_config: dict[str, Any], place: Place, console: Console) -> None:
    """Compile what the host's or NVMe's part takes, and make a folder there.

    Raises:
        MissingDependencyError: NVMe is asked for, and there is no libaio or no compiler.
        DsConfigError: There is no such drive.
    """
    from launcher.config.deepspeed import swap_folders

    if swap_folders(ds_config):
        from launcher.engine.compiled_ops import load_op
        from launcher.engine.swap_files import prepare_swap_files

        prepare_swap_files(ds_config, place)
        load_op("async_io", lambda line: note([line], console))


def leave(watch: Watch, ds_config: dict[str, Any], place: Place) -> None:
    """Part from the other ranks."""
    from launcher.engine.process import leave_ranks
    from launcher.engine.swap_files import clear_swap_files

    leave_ranks(watch.part)
    clear_swap_files(ds_config, place)


def configure(recipe: Recipe, data: Data) -> Any:
    """The `transformers` configuration of the run's model.

    Raises:
        ModelError: The recipe's numbers fit neither the family, nor the objective, nor the shards.
    """
    from launcher.models.configuration import build_config

    return build_config(recipe.model, recipe.objective.head, data.tokenizer, longest_sequence(data.objective))


def read_own_code(recipe: Recipe, watch: Watch) -> dict[str, str]:
    """The code that came with the model, name → text, read once: its folder may change while the run goes on.

    Raises:
        ModelError: A file of it is not there.
    """
    from launcher.models.code_copies import remove_copies
    from launcher.models.local import code_texts

    watch.on_end.append(lambda _: remove_copies())
    return code_texts(recipe.model.continue_from, recipe.model.trusted_code)


def tell_tokens(recipe: Recipe, config: Any, console: Console) -> None:
    """Say what the shards' tokenizer has that a continued model does not know, or knows as something else."""
    from launcher.models.configuration import told_of_tokens

    for line in told_of_tokens(config, recipe.model, recipe.data.tokenizer_folder):
        console.print(line, highlight=False, soft_wrap=True)


def keep_log(recipe: Recipe, rank: int) -> None:
    """Send what libraries log on this rank to the run's folder."""
    logs = recipe.run_folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(
        filename=logs / f"rank-{rank:05d}.log",
        level=logging.INFO,
        format="%(asctime)s %(name)s %(levelname)s %(message)s",
    )
    logging.captureWarnings(True)


def keep_ledger(recipe: Recipe, place: Place, watch: Watch) -> Ledger:
    """Write down where this start's time goes.

    Raises:
        FruitlessError: Many starts before it took no step.
    """
    ledger = Ledger(recipe.run_folder if place.rank == 0 else None, place.world_size)
    watch.on_end.append(ledger.end)
    refuse_fruitless(ledger.lives, recipe.guards.max_fruitless_starts, recipe.run_folder)
    return ledger


def build(recipe: Recipe, config: Any, plan: BatchPlan, ds_config: dict[str, Any], device: str) -> Any:
    """The model of the run, ready for DeepSpeed.

    Raises:
        ModelError: It cannot be built as the recipe wants it, or not here.
    """
    from launcher.models.build import build_model

    micro_batch = plan.micro_batches()[-1] if recipe.batch.micro_batch == "auto" else plan.micro_batch
    return build_model(
        config,
        recipe.model,
        recipe.objective.head,
        seed=recipe.train.seed,
        seq_len=recipe.data.seq_len,
        documents_apart=recipe.data.keeps_documents_apart,
        micro_batch_tokens=int(micro_batch * recipe.data.seq_len * recipe.objective.predicted_share),
        ds_config=ds_config,
        device=device,
    )


def start(recipe: Recipe, model: Any, ds_config: dict[str, Any]) -> Any:
    """Hand the model to DeepSpeed; returns the engine."""
    from launcher.checkpoint.rng import seed_generators
    from launcher.engine.start import start_engine
    from launcher.models.expert_parallel import watch_shared_experts

    engine = start_engine(model, recipe.optim, ds_config)
    watch_shared_experts(engine.module)
    if recipe.model.compile:
        engine.compile()
    seed_generators(recipe.train.seed, engine.global_rank // recipe.model.tensor_parallel)
    return engine


def keep_inputs(recipe: Recipe, ds_config: dict[str, Any], rank: int) -> None:
    """Leave in the run's folder what it was started with."""
    if rank == 0:
        (folder := recipe.run_folder).mkdir(parents=True, exist_ok=True)
        (folder / "recipe.yaml").write_text(resolved_yaml(recipe), encoding="utf-8")
        (folder / "ds_config.json").write_text(json.dumps(ds_config, indent=2) + "\n", encoding="utf-8")
        shutil.copytree(recipe.data.tokenizer_folder, folder / "tokenizer", dirs_exist_ok=True)


def take_steps(
    recipe: Recipe,
    engine: Any,
    own_code: dict[str, str],
    data: Data,
    plan: BatchPlan,
    progress: Progress,
    length: Length,
    watch: Watch,
    ledger: Ledger,
    console: Console,
) -> int:
    """Train to the last step, validating and saving on the way; returns the exit code a stop was asked for with."""
    from launcher.checkpoint.background import make_saver
    from launcher.engine.process import hosts
    from launcher.loop import Run, run_steps

    return run_steps(
        Run(
            recipe=recipe,
            engine=engine,
            own_code=own_code,
            data=data,
            plan=plan,
            progress=progress,
            saver=make_saver(engine, recipe.run_folder / "checkpoints", recipe.checkpoint),
            length=length,
            watch=watch,
            ledger=ledger,
            hosts=hosts(),
            console=console,
        )
    )


def summarise(recipe: Recipe, console: Console) -> int:
    """Export the newest checkpoint, let the exported model answer, and say where everything lies; returns its step.

    Raises:
        RequeueError: It is damaged: the same command takes its last steps again.
    """
    from launcher.ask import fill, generate
    from launcher.checkpoint.find import newest_sound, put_aside
    from launcher.checkpoint.folder import complete_steps, read_json
    from launcher.export import export_checkpoint

    run = recipe.run_folder
    found = newest_sound(run / "checkpoints", complete_steps(run / "checkpoints"))
    if found.skipped or found.path is None:
        told = "; ".join(put_aside(found))
        raise RequeueError(told, str(run / "checkpoints"), f"run the same command again: it goes on from {found.path}")
    path = found.path
    state = read_json(path / "state.json", "evaluations", "data")
    trusted = recipe.model.trusted_code
    folder = export_checkpoint(path, run, run / "export", trusted=trusted)
    prompts, ask = list(recipe.eval.prompts), generate if recipe.objective.head in ("causal", "seq2seq") else fill
    try:
        answers = ask(folder, prompts, trusted=trusted) if prompts else []
    except UsageError as error:  # a finished run does not fail for a question
        console.print(f"note: eval.prompts: {error}", highlight=False, soft_wrap=True)
        answers = []
    show_summary(console, recipe, state, path, answers)
    return int(state["step"])


if __name__ == "__main__":
    exit_code = main(sys.argv[1:])
    if exit_code != EXIT_DONE:
        end_process(exit_code)
