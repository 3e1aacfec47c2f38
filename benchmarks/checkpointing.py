"""What a checkpoint costs training: written beside it, against written while it waits.

Ranks of this machine train a GPT-2 shape through the launcher's own engine. In every round a save is timed for which
training waits, then one in the background: all steps from its beginning until its last byte is on the disk, less as
many steps without a save. The bar is a share of the first: at most 15 %. Beside other programs wall time tells little;
the processor time that a rank takes more than in as many steps without a save is told as well.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import support

BAR = 0.15
QUIET_STEPS = 2
SHAPE = {
    "family": "gpt2",
    "hidden_size": 768,
    "num_attention_heads": 12,
    "max_position_embeddings": 128,
    "config": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
}
VOCAB_SIZE = 50_304


@dataclass(frozen=True, slots=True)
class Cost:
    """Medians over the rounds, seconds."""

    state_bytes: int
    rounds: int
    step_s: float
    """A step without a save."""
    waiting_s: float
    """A save while training waits."""
    first_extra_s: float
    """Extra time of the first save in the background, whose buffer is touched for the first time."""
    extra_s: float
    """Extra time of all steps from a save's beginning until its last byte is on the disk."""
    extra_cpu_s: float
    """The same in processor time of one rank, all of its threads."""
    copy_s: float
    """Of the extra time, the copy that training waits for."""
    durable_s: float
    """From the save's beginning until its last byte is on the disk."""
    ratio: float
    """Extra time over waiting time: the median of the rounds' ratios."""
    ratio_min: float
    ratio_max: float

    @property
    def line(self) -> str:
        """For people."""
        verdict = "met" if self.ratio <= BAR else "MISSED"
        return (
            f"{self.state_bytes / 1e9:.2f} GB of state, steps of {self.step_s:.2f} s: a save costs "
            f"{self.waiting_s:.2f} s while training waits, {self.extra_s:.2f} s beside it "
            f"({self.extra_cpu_s:.2f} s of a rank's processor time; the copy {self.copy_s:.2f} s; on the disk after "
            f"{self.durable_s:.2f} s; the first one {self.first_extra_s:.2f} s)\n"
            f"  ratio {self.ratio:.3f} ({self.ratio_min:.3f} to {self.ratio_max:.3f} over {self.rounds} rounds)"
            f"  bar {BAR:g}: {verdict}"
        )


def main() -> None:
    """Start the ranks, or be one of them."""
    parser = support.parser(__doc__, rounds=5)
    parser.add_argument("--ranks", type=int, default=2, help="processes (default %(default)s)")
    parser.add_argument("--stage", type=int, default=2, help="of ZeRO (default %(default)s)")
    parser.add_argument("--tokens", type=int, default=128, help="of a step on one rank (default %(default)s)")
    parser.add_argument(
        "--layers", type=int, default=8, help="of the model: 0.1 GB of state each, beside 0.5 (%(default)s)"
    )
    parser.add_argument("--folder", type=Path, help="on the disk to measure (default: a temporary one here)")
    options = parser.parse_args()
    if "RANK" in os.environ:
        costs = measure(options)
        if os.environ["RANK"] == "0":
            settings = {"ranks": options.ranks, "stage": options.stage, "tokens": options.tokens}
            support.show(
                "checkpointing", [costs], as_json=options.json, packages=["torch", "deepspeed"], settings=settings
            )
        return
    folder = Path(tempfile.mkdtemp(prefix="checkpointing-", dir=options.folder or Path.cwd()))
    try:
        sys.exit(start(options.ranks, folder))
    finally:
        shutil.rmtree(folder)


def start(num_ranks: int, folder: Path) -> int:
    """Run this script once for each rank; returns the largest exit code."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(num_ranks), "LOCAL_WORLD_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1"}
    shared |= {"MASTER_PORT": str(port), "OMP_NUM_THREADS": str(max(len(os.sched_getaffinity(0)) // num_ranks, 1))}
    words = [sys.executable, "-m", "benchmarks.checkpointing", *sys.argv[1:], "--folder", str(folder)]
    ranks = []
    for rank in range(num_ranks):
        env = {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        ranks.append(subprocess.Popen(words, env=env))
    return max(process.wait() for process in ranks)


def measure(options: argparse.Namespace) -> Cost:
    """One rank's measurement; every rank takes the same steps."""
    from launcher.checkpoint.background import BackgroundSaver
    from launcher.checkpoint.save import Saver
    from launcher.config.recipe import CheckpointConfig
    from launcher.engine.process import share

    engine, steps = begin(options)
    keep = CheckpointConfig(keep_last=1)
    waiting = Saver(engine, options.folder / "waiting", keep)
    beside = BackgroundSaver(engine, options.folder / "beside", keep)
    take = step_timer(steps)
    [take() for _ in range(3)]
    number = 0
    rows: list[dict[str, float]] = []
    for round_number in range(options.rounds + 1):
        row: dict[str, float] = {}
        quiet = [take() for _ in range(QUIET_STEPS)]
        number += 1
        waiting.save({"step": number}, {})
        (outcome,) = waiting.outcomes()
        row["waiting_s"], num_bytes = outcome.blocked_s, outcome.num_bytes
        take()  # the first step after it reads memory that was thrown out of the caches
        quiet += [take() for _ in range(QUIET_STEPS)]
        number += 1
        begun, begun_cpu, num_steps, done = time.perf_counter(), time.process_time(), 0, False
        beside.save({"step": number}, {})
        while not done:
            take()
            num_steps += 1
            done = share(not beside.in_flight)
        elapsed, elapsed_cpu = time.perf_counter() - begun, time.process_time() - begun_cpu
        beside.wait()
        (outcome,) = beside.outcomes()
        if outcome.problem is not None:
            raise outcome.problem
        quiet += [take() for _ in range(QUIET_STEPS)]
        row["step_s"] = statistics.median(step.wall_s for step in quiet)
        row["extra_s"] = elapsed - num_steps * row["step_s"]
        row["extra_cpu_s"] = elapsed_cpu - num_steps * statistics.median(step.cpu_s for step in quiet)
        row["copy_s"], row["durable_s"] = outcome.blocked_s, outcome.durable_s
        row["ratio"] = row["extra_s"] / row["waiting_s"]
        rows.append(row)
        if round_number == 0:
            first = row["extra_s"]
    rows = rows[1:]
    ratios = [row["ratio"] for row in rows]
    middle: Callable[[str], float] = lambda key: statistics.median(row[key] for row in rows)  # noqa: E731
    return Cost(
        state_bytes=num_bytes,
        rounds=len(rows),
        step_s=middle("step_s"),
        waiting_s=middle("waiting_s"),
        first_extra_s=first,
        extra_s=middle("extra_s"),
        extra_cpu_s=middle("extra_cpu_s"),
        copy_s=middle("copy_s"),
        durable_s=middle("durable_s"),
        ratio=statistics.median(ratios),
        ratio_min=min(ratios),
        ratio_max=max(ratios),
    )


def begin(options: argparse.Namespace) -> tuple[Any, Iterator[Any]]:
    """An engine, and its steps on made-up tokens."""
    from transformers import GPT2Config

    from launcher.cluster.rank import find_place
    from launcher.cluster.signals import StopRequest
    from launcher.config.loading import check_recipe
    from launcher.engine.guards import Guard
    from launcher.engine.length import FixedLength
    from launcher.engine.process import join_ranks
    from launcher.engine.records import Arrays, Health, StepBatch
    from launcher.engine.start import start_engine
    from launcher.engine.steps import train_steps
    from launcher.models.build import build_model

    join_ranks(find_place(os.environ), max(len(os.sched_getaffinity(0)) // options.ranks, 1))
    recipe = check_recipe(
        {
            "name": "checkpointing",
            "data": {"shards": "none", "seq_len": options.tokens},
            "objective": {"kind": "clm"},
            "model": {**SHAPE, "num_hidden_layers": options.layers},
            "batch": {"global_batch": options.ranks},
            "optim": {"lr": 1e-4},
            "train": {"num_steps": 10_000, "precision": "fp32"},
        },
        "this benchmark",
    )
    config = GPT2Config(
        n_embd=SHAPE["hidden_size"],
        n_layer=options.layers,
        n_head=SHAPE["num_attention_heads"],
        n_positions=options.tokens,
        vocab_size=VOCAB_SIZE,
        use_cache=False,
        **SHAPE["config"],  # type: ignore[arg-type]
    )
    ds_config = {
        "train_batch_size": options.ranks,
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": options.stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1_000_000,
    }
    model = build_model(config, recipe.model, "causal", seed=1, ds_config=ds_config)
    engine = start_engine(model, recipe.optim, ds_config)
    tokens = np.random.default_rng(engine.global_rank).integers(0, VOCAB_SIZE, (1, options.tokens))
    passes: list[Arrays] = [{"input_ids": tokens, "labels": tokens.copy()}]
    batch = StepBatch(passes=passes, num_targets=options.tokens, num_tokens=options.tokens, digest=0)
    guard = Guard(engine, recipe.guards, Health()).__enter__()
    return engine, train_steps(
        engine, repeat(batch), recipe, 1, FixedLength(recipe.train.num_steps), guard, StopRequest()
    )


class StepTime(NamedTuple):
    """What one step took on this rank."""

    wall_s: float
    cpu_s: float


def step_timer(steps: Iterator[Any]) -> Callable[[], StepTime]:
    """A function that takes a step and tells its time."""

    def take() -> StepTime:
        begun, begun_cpu = time.perf_counter(), time.process_time()
        next(steps)
        return StepTime(time.perf_counter() - begun, time.process_time() - begun_cpu)

    return take


if __name__ == "__main__":
    main()
