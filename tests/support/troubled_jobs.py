"""The training program where something is scarce, slow or wrong; for `ranks.run_ranks`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jobs


def train_with_memory(arguments: list[str], available_bytes: int) -> tuple[int, str]:
    """The training program on a host with so much memory to spare."""
    from launcher.cluster import host_memory

    host_memory.available_bytes = lambda: available_bytes
    return jobs.train_and_tell(arguments)


def train_on_part_of_a_gpu(arguments: list[str], share: float) -> int:
    """The training program beside another that holds the rest of the device."""
    program = (
        "import sys, torch; free, _ = torch.cuda.mem_get_info(); "
        f"held = torch.empty(int(free * (1 - {share})), dtype=torch.uint8, device='cuda'); "
        "print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        return jobs.train(arguments)


def train_on_a_small_disk(arguments: list[str], free: int) -> tuple[int, str]:
    """The training program where only so many bytes are free; returns as `train_aloud`."""
    import shutil

    shutil.disk_usage = lambda path: shutil._ntuple_diskusage(10**12, 10**12 - free, free)  # type: ignore[attr-defined]
    return jobs.train_aloud(arguments)


def train_with_writes_refused(arguments: list[str], times: float, name: str) -> int:
    """The training program on a file system that refuses a file so many times; returns its exit code.

    Args:
        arguments: Of the program.
        times: How often.
        name: Of the file.
    """
    import errno

    from launcher.checkpoint import tensor_file

    plain, refused = tensor_file._open_new, 0

    def open_new(path: Path) -> int:
        nonlocal refused
        if path.name == name and refused < times:
            refused += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return plain(path)

    tensor_file._open_new = open_new
    return jobs.train(arguments)


def train_with_slow_copies(arguments: list[str]) -> int:
    """The training program where a copy of the state takes longer than the next gradients; returns its exit code."""
    import time

    from launcher.checkpoint import background

    plain = background.copy_bytes

    def copy_bytes(*tensors: Any) -> None:
        time.sleep(0.01)
        plain(*tensors)

    background.copy_bytes = copy_bytes
    return jobs.train(arguments)


def train_without_compiler(arguments: list[str], empty: str) -> tuple[int, str]:
    """`train_and_tell` on a machine without a compiler, where nothing has been compiled before.

    Args:
        arguments: Of the training program.
        empty: A folder to make: the only one on PATH, and where compiled operations would lie.
    """
    Path(empty).mkdir()
    os.environ.update(PATH=empty, TORCH_EXTENSIONS_DIR=empty)
    return jobs.train_and_tell(arguments)


def train_on_bad_data(arguments: list[str], kind: str, bad: list[int]) -> int:
    """The training program, where rank 1's part of some batches is bad, whichever step takes them.

    Args:
        arguments: Of the program.
        kind: `loss` or `gradient` for one that is no number, `spike` for a loss ten times as large.
        bad: First positions of the batches.
    """
    import torch

    import launcher.engine.steps as steps
    import launcher.loop as loop
    from launcher.samples.passed_over import moved_on

    is_bad = False
    sound_batches, sound_losses = loop.step_batches, steps.losses

    def batches(data: Any, plan: Any, rank: int, first: int, last: int, passed_over: Any) -> Any:
        nonlocal is_bad
        for step, batch in enumerate(sound_batches(data, plan, rank, first, last, passed_over), start=first):
            is_bad = rank == 1 and moved_on(plan.schedule.position_at(step), passed_over) in bad
            yield batch

    def losses(engine: Any, tensors: Any, z_loss: float = 0.0) -> Any:
        sums = sound_losses(engine, tensors, z_loss)
        if is_bad and torch.is_grad_enabled():
            if kind == "gradient":
                sums.register_hook(lambda gradient: gradient * float("nan"))
            else:
                sums = sums * {"loss": float("nan"), "spike": 10.0}[kind]
        return sums

    loop.step_batches, steps.losses = batches, losses
    return jobs.train(arguments)


def train_without_gradients(arguments: list[str]) -> int:
    """The training program where the loss depends on no weight."""
    return _train_with_other_losses(arguments, lambda sums: sums.detach() + 0 * sums)


def train_with_weights_that_break(arguments: list[str], step: int, times: int) -> int:
    """The training program, where the update of a step leaves a weight that is no number, so many times it is taken.

    Args:
        arguments: Of the program.
        step: Number of the step.
        times: How often.
    """
    import launcher.loop as loop

    sound, broken = loop.train_steps, 0

    def train_steps(engine: Any, *others: Any) -> Any:
        nonlocal broken
        for result in sound(engine, *others):
            if result.step == step and broken < times:
                broken += 1
                next(engine.module.parameters()).data[0] = float("nan")
            yield result

    loop.train_steps = train_steps
    return jobs.train(arguments)


def train_a_model_that_cannot_be_measured(arguments: list[str]) -> int:
    """The training program, where every validation is infinite and no step of training shows why."""
    import torch

    return _train_with_other_losses(arguments, lambda sums: sums if torch.is_grad_enabled() else sums * float("inf"))


def _train_with_other_losses(arguments: list[str], changed: Callable[[Any], Any]) -> int:
    """The training program, whose steps and validations get what is made of their losses."""
    import launcher.engine.steps as steps

    sound = steps.losses

    def losses(engine: Any, tensors: Any, z_loss: float = 0.0) -> Any:
        return changed(sound(engine, tensors, z_loss))

    steps.losses = losses
    return jobs.train(arguments)


def train_asked_to_stop_in_a_validation(arguments: list[str], step: int, breaks: bool) -> int:
    """The training program, where Slurm's warning comes to rank 0 as the validation of a step begins.

    Args:
        arguments: Of the program.
        step: Number of the step.
        breaks: Whether its update left a weight that is no number.
    """
    import signal
    import time

    import launcher.engine.steps as steps
    import launcher.loop as loop

    sound = loop.validate

    def validate(run: Any, metrics: Any) -> Any:
        if run.progress.step == step and run.engine.global_rank == 0:
            os.kill(os.getpid(), signal.SIGUSR1)
            while not run.watch.stop.code:
                time.sleep(0.01)
        return sound(run, metrics)

    loop.validate, steps.BATCHES_BETWEEN_QUESTIONS = validate, 1
    return train_with_weights_that_break(arguments, step, int(breaks))
