"""Real ranks for tests: processes forked from one parent that has imported torch, deepspeed and transformers once.

Two ranks through the `deepspeed` command take most of a minute to start; forked ones take a second. Each runs in a
fresh process of its own, since an engine changes torch for good (one engine a process).
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
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
    "launcher.checkpoint.save",
    "launcher.engine.metrics",
    "launcher.engine.start",
    "launcher.engine.steps",
    "launcher.export",
    "launcher.feed",
    "launcher.models.build",
    "launcher.objectives.build",
    "launcher.prepare.ready",
]
TIMEOUT_S = 300

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(PRELOAD)


class RankFailedError(AssertionError):
    """A rank raised; its traceback is the message."""


def run_ranks(job: Callable[..., Any], world_size: int, *arguments: Any) -> list[Any]:
    """Run a function in `world_size` ranks at once and return what each returned.

    Args:
        job: A function of an importable module (tests/support/jobs.py).
        world_size: Number of ranks.
        arguments: Given to every rank.
    """
    ranks = _start(job, world_size, arguments)
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
    ranks = _start(job, world_size, arguments)
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


def _start(job: Callable[..., Any], world_size: int, arguments: Any) -> list[tuple[BaseProcess, Connection]]:
    shared = {
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
    }
    ranks = []
    for rank in range(world_size):
        reader, writer = _context.Pipe(duplex=False)
        variables = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        process = _context.Process(target=_run, args=(writer, job, arguments, variables, str(Path.cwd())))
        process.start()
        writer.close()
        ranks.append((process, reader))
    return ranks


def _run(writer: Connection, job: Callable[..., Any], arguments: Any, variables: dict[str, str], folder: str) -> None:
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
