"""`pretrain scale`: the same recipe on growing numbers of ranks or nodes, and what came of it."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.cluster.environment import stay_inside
from launcher.cluster.hosts import free_port
from launcher.config.batch import plan_batch
from launcher.config.deepspeed import load_ds_config
from launcher.config.loading import load_recipe
from launcher.config.recipe import Recipe
from launcher.engine.records import read_metrics
from launcher.errors import EXIT_DONE, ClusterError, RequeueError, ScaleError, UsageError
from launcher.scale.options import LEAST_STEPS
from launcher.scale.plot import as_svg
from launcher.scale.table import Row, against_smallest, as_markdown, row_of, write_all

COLLECTIVE_STEPS = 10
"""Steps at the end of every run in which collectives are timed."""
NODE = "launcher.cluster.node"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What is asked for."""

    recipe: str
    overrides: tuple[str, ...]
    ds_config: str
    sizes: tuple[int, ...]
    is_weak: bool
    """The batch grows with the size; else it is the recipe's at every size."""
    steps: int
    warm_up: int
    out: Path
    per_node: int | None
    """Ranks of a node on Slurm; None on this machine, where sizes are ranks."""
    srun_options: tuple[str, ...] = ()
    """Further ones, of a container."""
    before_python: tuple[str, ...] = ()
    """Words of a container. In one, python is the container's."""

    def words(self, size: int, global_batch: int) -> list[str]:
        """What launcher/train.py gets for a size."""
        return [
            *("--ds_config", self.ds_config, "--recipe", self.recipe, *self.overrides),
            *(f"name={_name(size)}", f"runs={self.out / 'runs'}", f"batch.global_batch={global_batch}"),
            *("batch.warmup=[]", "eval.every_steps=0", f"eval.max_samples={self.ranks(size)}", "eval.prompts=[]"),
            *("checkpoint.every_steps=0", f"train.time_collectives={COLLECTIVE_STEPS}"),
            f"train.num_steps={self.warm_up + self.steps + COLLECTIVE_STEPS}",
        ]

    def ranks(self, size: int) -> int:
        """Ranks of a size."""
        return size * (self.per_node or 1)

    def command(self, size: int, words: Sequence[str]) -> list[str]:
        """What starts the ranks of a size."""
        train = ["-u", "-m", "launcher.train", *words]
        if self.per_node is None:
            place = ("--ranks", str(size), "--world-size", str(size), "--master", f"127.0.0.1:{free_port()}")
            return [sys.executable, "-m", NODE, *place, "--", sys.executable, *train]
        layout = [f"--nodes={size}", f"--ntasks={self.ranks(size)}", f"--ntasks-per-node={self.per_node}"]
        python = "python" if self.srun_options or self.before_python else sys.executable
        options = ["--export=ALL", "--kill-on-bad-exit=1", *layout, *self.srun_options]
        return ["srun", *options, *self.before_python, python, *train]


def run(options: argparse.Namespace) -> int:
    """Run every size, smallest first, and write table.json, .csv, .md and scaling.svg.

    Raises:
        UsageError: The sizes are none.
        BatchShapeError: The batch cannot be cut for a size; told before anything runs.
        ClusterError: The job has fewer nodes than the largest size.
        ScaleError: A run did not end.
    """
    sweep = _sweep(options, os.environ)
    recipe = load_recipe(sweep.recipe, sweep.overrides).recipe
    load_ds_config(sweep.ds_config)
    batches = {size: _batch(sweep, recipe, size) for size in sweep.sizes}
    rows = []
    for size, global_batch in batches.items():
        rows.append(_run_size(sweep, size, global_batch))
        print(as_markdown(rows[-1:]).splitlines()[-1], flush=True)
    rows = against_smallest(rows)
    kind = "weak" if sweep.is_weak else "strong"
    about = {"recipe": sweep.recipe, "ds_config": sweep.ds_config, "scaling": kind, "warm_up": sweep.warm_up}
    write_all(sweep.out, rows, about)
    title = f"{sweep.recipe}: {kind} scaling, {sweep.ds_config}"
    (sweep.out / "scaling.svg").write_text(as_svg(rows, title), encoding="utf-8")
    print(f"\n{as_markdown(rows)}\n{sweep.out}/: table.json table.csv table.md scaling.svg")
    return EXIT_DONE


def _sweep(options: argparse.Namespace, env: Mapping[str, str]) -> Sweep:
    words = options.sizes.split(",")
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise UsageError(f"{options.sizes!r} are no sizes", "--sizes", "write numbers of 1 or more, as 1,2,4")
    if options.steps < LEAST_STEPS:
        raise UsageError(f"{options.steps} steps say little of the spread", "--steps", f"take {LEAST_STEPS} or more")
    sizes = tuple(sorted({int(word) for word in words}))
    out = options.out or Path("scaling") / Path(options.recipe).stem
    per_node = None
    if env.get("SLURM_JOB_ID"):
        per_node = _per_node(env)
        nodes = env.get("SLURM_JOB_NUM_NODES", "")
        if not nodes.isdecimal() or int(nodes) < sizes[-1]:
            raise ClusterError(
                f"the largest size is {sizes[-1]} nodes, and the job has {nodes or 'none'}",
                "--sizes",
                f"sbatch --nodes={sizes[-1]} slurm/scaling.sh …",
            )
    elif options.srun_option or options.before_python:
        raise UsageError("this is no job of Slurm", "--srun-option, --before-python", "leave them out")
    return Sweep(
        recipe=options.recipe,
        overrides=tuple(options.overrides),
        ds_config=options.ds_config,
        sizes=sizes,
        is_weak=options.weak,
        steps=options.steps,
        warm_up=options.warm_up,
        out=out.absolute(),
        per_node=per_node,
        srun_options=tuple(options.srun_option),
        before_python=tuple(options.before_python),
    )


def _per_node(env: Mapping[str, str]) -> int:
    """Ranks of a node: the tasks asked for, else the accelerators, else one."""
    text = env.get("SLURM_NTASKS_PER_NODE") or env.get("SLURM_GPUS_PER_NODE") or env.get("SLURM_GPUS_ON_NODE") or "1"
    count = text.rpartition(":")[2]
    if not count.isdecimal() or int(count) < 1:
        raise ClusterError(f"{text!r} is no number of ranks a node", "environment", "give sbatch --ntasks-per-node=N")
    return int(count)


def _batch(sweep: Sweep, recipe: Recipe, size: int) -> int:
    batch = recipe.batch.global_batch
    if sweep.is_weak:
        batch = batch * size // sweep.sizes[0]
    sharing = recipe.model.sequence_parallel, recipe.model.tensor_parallel
    plan_batch(batch, recipe.batch.micro_batch, sweep.ranks(size), *sharing)
    return batch


def _run_size(sweep: Sweep, size: int, global_batch: int) -> Row:
    folder = sweep.out / "runs" / _name(size)
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier test: it would go on from there
    folder.mkdir(parents=True)
    command = sweep.command(size, sweep.words(size, global_batch))
    env = dict(os.environ)
    stay_inside(env)
    log = sweep.out / f"{_name(size)}.log"
    try:
        with log.open("wb") as file:
            # An open pipe: the process that holds local ranks ends them with its standard input.
            code = _call(command, env, file.fileno())
    except OSError as error:
        raise RequeueError(
            f"{command[0]} cannot be started: {error.strerror}", str(log), "mend it, try again"
        ) from None
    if code != EXIT_DONE:
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-15:]
        raise ScaleError(
            "\n".join([f"the run of size {size} ended with {code}:", *said]), str(log), "mend what it says"
        )
    row = row_of(size, global_batch, sweep.warm_up, read_metrics(folder / "metrics.jsonl"))
    for name in ("checkpoints", "export"):  # large, and of no use
        shutil.rmtree(folder / name, ignore_errors=True)
    return row


def _call(command: list[str], env: dict[str, str], output: int) -> int:
    process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=output, stderr=output)
    try:
        return process.wait()
    finally:
        if process.stdin is not None:
            process.stdin.close()
        process.wait()


def _name(size: int) -> str:
    return f"size-{size:05d}"
