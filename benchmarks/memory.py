"""What ZeRO's stages take and how fast they step: bytes of tensors beside the formula, and time beside a bare DDP loop.

    python -m benchmarks.memory [--stages 0 1 2 3] [--ds-config FILE …] [--hidden 512] [--layers 8] [--json]

Real ranks, forked from one parent. Every configuration has ranks of its own, all alive at once; they step in turn, a
few steps each, so that a busy machine slows all. Bytes are those of the storages that tensors of a rank see, after a
backward pass and between steps; beside them the peak of its resident memory, over what it had when torch and DeepSpeed
were loaded. With `--rounds 0` that peak is of tensors alone, and the build of stage 3 is watched.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import socket
import statistics
from argparse import Namespace
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from benchmarks.support import parser, show

PRELOAD = [
    "torch",
    "deepspeed",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "transformers",
    "transformers.models.llama.modeling_llama",
    "launcher.engine.start",
    "launcher.engine.steps",
    "launcher.models.build",
    "launcher.plan.memory",
]
VOCABULARY, SEQ_LEN, SEED = 8192, 128, 0
DDP = "bare DDP loop"
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(PRELOAD)


@dataclasses.dataclass(frozen=True, slots=True)
class Memory:
    """One configuration's bytes on rank 0, in MiB; a line for people."""

    name: str
    parameters_mib: float
    gradients_mib: float
    optimizer_mib: float
    buffers_mib: float
    total_mib: float
    formula_mib: float
    """Of state and configured buffers; 0 where there is no formula."""
    optimizer_between_mib: float
    """Of the optimizer, in memory between two steps."""
    groups: int
    """In which the optimizer of a rank steps, one after another."""
    rss_between_mib: float
    rss_peak_mib: float
    """Inside a step, over what the process had before the model was built; where steps are timed, with what the
    allocator keeps."""

    @property
    def line(self) -> str:
        """For people."""
        beside = ""
        if self.formula_mib:
            beside = f" (formula {self.formula_mib:.0f}, {self.total_mib / self.formula_mib - 1:+.1%})"
        return (
            f"{self.name}: tensors {self.total_mib:.0f} MiB{beside}: parameters"
            f" {self.parameters_mib:.0f}, gradients {self.gradients_mib:.0f}, optimizer {self.optimizer_mib:.0f}"
            f" ({self.optimizer_between_mib:.0f} between steps, {self.groups} groups), buffers {self.buffers_mib:.0f};"
            f" RSS {self.rss_between_mib:.0f}, peak inside a step {self.rss_peak_mib:.0f}"
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Build:
    """The most by which a rank grew while a model was built."""

    name: str
    peak_mib: float
    partition_mib: float
    largest_layer_mib: float
    """What a module and its children have, whole, in fp32: they are drawn together."""

    @property
    def line(self) -> str:
        """For people."""
        return (
            f"{self.name}: built with at most {self.peak_mib:.1f} MiB: partition {self.partition_mib:.1f},"
            f" largest layer {self.largest_layer_mib:.1f}"
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Steps:
    """Time of a step beside another configuration's."""

    name: str
    step_ms: float
    beside: dict[str, float]
    """Time over that of others: the median of the rounds' ratios."""
    cpu_beside: dict[str, float]
    """The same of the time that the cores worked for all ranks together: on a busy machine the surer one."""

    @property
    def line(self) -> str:
        """For people."""
        times = ", ".join(
            f"{ratio:.2f} of {name} (cpu {self.cpu_beside[name]:.2f})" for name, ratio in self.beside.items()
        )
        return f"{self.name}: {self.step_ms:.0f} ms a step; {times}"


def main() -> None:
    """Measure and print."""
    made = parser(__doc__, rounds=5)
    made.add_argument("--stages", type=int, nargs="*", default=[0, 1, 2, 3], help="of the builder's configurations")
    made.add_argument("--ds-config", type=Path, nargs="*", default=[], metavar="FILE", help="others, beside them")
    made.add_argument("--hidden", type=int, default=512, help="width of the model (default 512)")
    made.add_argument("--layers", type=int, default=8, help="layers (default 8)")
    made.add_argument("--precision", default="fp32", help="fp32, bf16 or bf16_autocast (default fp32)")
    made.add_argument("--ranks", type=int, default=2, help="real ones, on this machine (default 2)")
    made.add_argument("--micro-batch", type=int, default=4, help=f"sequences of {SEQ_LEN} a rank and step (default 4)")
    made.add_argument("--steps", type=int, default=2, help="steps of a round (default 2); --rounds 0 watches the build")
    made.add_argument("--without-defaults", action="store_true", help="leave out DeepSpeed's own bucket sizes")
    options = made.parse_args()
    groups = [Ranks(name, file, options) for name, file in configurations(options)]
    try:
        results: list[Any] = [result for group in groups for result in group.measured()]
        results += stepped(groups, options)
    finally:
        for group in groups:
            group.end()
    settings = {
        "parameters": groups[0].told[0]["num_parameters"],
        "ranks": options.ranks,
        "precision": options.precision,
        "tokens_a_step": options.ranks * options.micro_batch * SEQ_LEN,
    }
    show("memory", results, as_json=options.json, packages=("torch", "deepspeed", "transformers"), settings=settings)


def configurations(options: Namespace) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Each by its name; None for the loop without DeepSpeed."""
    from launcher.config.deepspeed_build import as_json, build_ds_config
    from launcher.config.deepspeed_choices import DsChoices

    yield DDP, None
    size = num_parameters(options)
    for stage in options.stages:
        yield f"stage {stage}", as_json(build_ds_config(DsChoices(stage=stage, num_parameters=size)))
    if not options.without_defaults:
        for stage in [stage for stage in options.stages if stage >= 2]:
            yield f"stage {stage}, DeepSpeed's buckets", {"zero_optimization": {"stage": stage, "overlap_comm": True}}
    for path in options.ds_config:
        yield path.stem, json.loads(path.read_text(encoding="utf-8"))


def num_parameters(options: Namespace) -> int:
    """Of the benchmark's Llama: four matrices of attention, three of the feed-forward, two of the vocabulary."""
    hidden, layers = int(options.hidden), int(options.layers)
    return layers * (4 * hidden**2 + 3 * hidden * 4 * hidden) + 2 * VOCABULARY * hidden


def stepped(groups: list[Ranks], options: Namespace) -> list[Steps]:
    """Every group's time of a step, the groups in turn."""
    walls: dict[str, list[float]] = {group.name: [] for group in groups}
    cpus: dict[str, list[float]] = {group.name: [] for group in groups}
    for number in range(options.rounds + 1):
        for group in groups if number % 2 == 0 else reversed(groups):
            took = group.ask("steps", options.steps)
            if number:  # the first round warms up
                walls[group.name].append(max(wall for wall, _ in took) / options.steps)
                cpus[group.name].append(sum(cpu for _, cpu in took) / options.steps)
    results: list[Steps] = []
    for name in walls if options.rounds else ():
        others = [other for other in (DDP, "stage 0") if other in walls and other != name]
        named = {other: other for other in others}
        usual = name.removesuffix(", DeepSpeed's buckets")
        if usual != name:
            named[f"{usual} as built"] = usual
        beside, cpu_beside = (
            {shown: ratio(of[name], of[other]) for shown, other in named.items()} for of in (walls, cpus)
        )
        results.append(Steps(name, statistics.median(walls[name]) * 1e3, beside, cpu_beside))
    return results


def ratio(own: list[float], others: list[float]) -> float:
    """The median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(own, others, strict=True))


class Ranks:
    """The ranks of one configuration, which do what they are asked to."""

    def __init__(self, name: str, file: dict[str, Any] | None, options: Namespace) -> None:
        self.name, self.file, self.options = name, file, options
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        self.processes: list[BaseProcess] = []
        self.pipes: list[Connection] = []
        for rank in range(options.ranks):
            mine, theirs = _context.Pipe()
            env = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(options.ranks),
                "LOCAL_WORLD_SIZE": str(options.ranks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
            process = _context.Process(target=serve, args=(theirs, env, file, options), daemon=True)
            process.start()
            theirs.close()
            self.processes.append(process)
            self.pipes.append(mine)
        self.told = [pipe.recv() for pipe in self.pipes]

    def ask(self, what: str, argument: int = 0) -> list[Any]:
        """Every rank's answer."""
        for pipe in self.pipes:
            pipe.send((what, argument))
        return [pipe.recv() for pipe in self.pipes]

    def measured(self) -> Iterator[Memory | Build]:
        """The bytes of rank 0, and of the build where it was watched."""
        if self.file is None:
            return
        told, memory = self.told[0], self.ask("memory")[0]
        groups = memory.pop("groups")
        mib = {f"{key}_mib": value / 2**20 for key, value in memory.items()}
        yield Memory(name=self.name, groups=groups, **mib)
        if "build_peak" in told:
            sizes = (told[key] / 2**20 for key in ("build_peak", "partition", "largest_layer"))
            yield Build(self.name, *sizes)

    def end(self) -> None:
        """Let the ranks go."""
        for pipe in self.pipes:
            pipe.send(("end", 0))
        for process in self.processes:
            process.join(20)
            if process.is_alive():
                process.kill()


def serve(pipe: Connection, env: dict[str, str], file: dict[str, Any] | None, options: Namespace) -> None:
    """One rank: build, then answer until there is nothing more to ask."""
    os.environ.update(env)
    from benchmarks.memory_rank import BareLoop, Engine

    rank = BareLoop(options) if file is None else Engine(file, options)
    pipe.send(rank.told)
    while True:
        what, argument = pipe.recv()
        if what == "end":
            rank.end()
            os._exit(0)  # gloo's threads must not keep the process
        pipe.send(rank.steps(argument) if what == "steps" else rank.memory())


if __name__ == "__main__":
    main()
