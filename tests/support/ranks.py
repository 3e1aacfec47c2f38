"""Real ranks for tests: processes forked from one parent that has imported torch, deepspeed and transformers once.

Two ranks through the `deepspeed` command take most of a minute to start; forked ones take a second. Each runs in a
fresh process of its own, since an engine changes torch for good (one engine a process).
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

PRELOAD = [
    "torch",
    "torch.utils.tensorboard",
    "deepspeed",
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.runtime.zero.muon.muon_optimizer",  # every engine imports it, and with it the whole of torch.compile
    "transformers",
    "transformers.generation.utils",
    "transformers.integrations.deepspeed",
    "transformers.modeling_layers",
    "transformers.models.auto.tokenization_auto",
    "setuptools",
    "rich.progress",
    "launcher.checkpoint.load",
    "launcher.checkpoint.background",
    "launcher.engine.metrics",
    "launcher.engine.start",
    "launcher.engine.steps",
    "launcher.export",
    "launcher.feed.batches",
    "launcher.loop",
    "launcher.models.build",
    "launcher.objectives.build",
    "launcher.prepare.ready",
]
TIMEOUT_S = 300

_forked = multiprocessing.get_context("forkserver")
_forked.set_forkserver_preload(PRELOAD)
_fresh = multiprocessing.get_context("spawn")  # what a parent has seen of CUDA is of no use to its forks


class RankFailedError(AssertionError):
    """A rank raised; its traceback is the message."""


def run_ranks(job: Callable[..., Any], world_size: int, *arguments: Any) -> list[Any]:
    """Run a function in `world_size` ranks at once and return what each returned.

    Args:
        job: A function of an importable module (tests/support/jobs.py).
        world_size: Number of ranks.
        arguments: Given to every rank.
    """
    return _outcome(_start(_forked, job, world_size, arguments))


def run_on_gpus(job: Callable[..., Any], world_size: int, *arguments: Any) -> list[Any]:
    """The same on GPUs, in processes that import everything themselves."""
    return _outcome(_start(_fresh, job, world_size, arguments))


def _outcome(ranks: list[tuple[BaseProcess, Connection]]) -> list[Any]:
    results = [_result(reader) for _, reader in ranks]
    for process, _ in ranks:
        process.join(10)
        if process.is_alive():
            process.kill()
    failures = [f"rank {rank}: {text}" for rank, (ok, text) in enumerate(results) if not ok]
    if failures:
        raise RankFailedError("\n".join(failures))
    return [value for _, value in results]


def kill_ranks_when(reached: Callable[[], bool], job: Callable[..., Any], world_size: int, *arguments: Any) -> None:
    """Start ranks and kill all of them (SIGKILL) as soon as `reached`; they may be done by then."""
    ranks = _start(_forked, job, world_size, arguments)
    deadline = time.monotonic() + TIMEOUT_S
    while not reached() and any(process.is_alive() for process, _ in ranks):
        if time.monotonic() > deadline:
            break
        time.sleep(0.002)
    for process, _ in ranks:
        process.kill()
        process.join()
    if not reached():
        raise RankFailedError("the ranks ended before they got there")


class Life:
    """Ranks that run a program as their launcher would let them: with outputs and exit codes, to be ended from outside.

    Args:
        program: Returns an exit code (tests/support/jobs.py).
        world_size: Number of ranks.
        folder: Where each rank's `out-N.txt` goes, stdout and stderr together.
        arguments: Given to every rank.
    """

    def __init__(self, program: Callable[..., int], world_size: int, folder: Path, *arguments: Any) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("out-*.txt"):
            old.unlink()
        self.ranks = [
            process for process, _ in _start(_forked, _as_program, world_size, (program, arguments, str(folder)))
        ]

    def signal(self, rank: int, number: int) -> None:
        """Send a signal to one rank."""
        pid = self.ranks[rank].pid
        assert pid is not None
        os.kill(pid, number)

    def wait(self, *, but: tuple[int, ...] = (), within_s: float = TIMEOUT_S) -> list[int | None]:
        """Wait for the end of all ranks (`but` some); returns their exit codes. What does not end is killed."""
        deadline = time.monotonic() + within_s
        for rank, process in enumerate(self.ranks):
            if rank not in but:
                process.join(max(deadline - time.monotonic(), 0))
        for process in self.ranks:
            process.kill()
            process.join()
        return [process.exitcode for process in self.ranks]

    def wait_for(self, rank: int, timeout_s: float) -> None:
        """Wait for the end of one rank.

        Raises:
            TimeoutError: It still runs.
        """
        self.ranks[rank].join(timeout_s)
        if self.ranks[rank].is_alive():
            raise TimeoutError

    def wait_until(self, reached: Callable[[], bool]) -> None:
        """Wait for something the ranks do."""
        deadline = time.monotonic() + TIMEOUT_S
        while not reached():
            if time.monotonic() > deadline or not all(process.is_alive() for process in self.ranks):
                codes = self.wait(but=tuple(range(len(self.ranks))))
                raise RankFailedError(f"the ranks never got there: {codes}\n{self.told()}")
            time.sleep(0.002)

    def told(self) -> str:
        """What the ranks wrote, rank by rank."""
        return "".join(path.read_text(errors="replace") for path in sorted(self._folder.glob("out-*.txt")))


def _as_program(program: Callable[..., int], arguments: Any, folder: str) -> None:
    path = Path(folder) / f"out-{os.environ['RANK']}.txt"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    code = program(*arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _start(
    context: BaseContext, job: Callable[..., Any], world_size: int, arguments: Any
) -> list[tuple[BaseProcess, Connection]]:
    shared = {
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
    }
    share_gpus = _ranks_share_gpus(world_size)
    ranks = []
    for rank in range(world_size):
        reader, writer = context.Pipe(duplex=False)
        variables = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        if share_gpus:
            variables["NCCL_HOSTID"] = f"host{rank}"
        process = context.Process(target=_run, args=(writer, job, arguments, variables, str(Path.cwd())))
        process.start()
        writer.close()
        ranks.append((process, reader))
    return ranks


def _ranks_share_gpus(world_size: int) -> bool:
    """Whether two ranks have one GPU: NCCL, which refuses that, is told that each is on a machine of its own."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":  # no test of GPUs: nothing of torch is needed here
        return False
    import torch

    return 0 < torch.cuda.device_count() < world_size


def _run(writer: Connection, job: Callable[..., Any], arguments: Any, variables: dict[str, str], folder: str) -> None:
    # DeepSpeed collects garbage when a stage-3 engine starts: in a fork that goes over all that its parent imported,
    # and copies the pages it lies in, a second for each rank.
    gc.freeze()
    os.environ.update(variables)
    os.chdir(folder)
    try:
        writer.send((True, job(*arguments)))
    except BaseException:
        writer.send((False, traceback.format_exc()))
    finally:
        writer.close()
        os._exit(0)  # gloo's threads of a failed rank must not keep the process


def _result(reader: Connection) -> tuple[bool, Any]:
    if not reader.poll(TIMEOUT_S):
        return False, f"nothing came in {TIMEOUT_S} s"
    try:
        return reader.recv()  # type: ignore[no-any-return]
    except EOFError:
        return False, "the process died"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
