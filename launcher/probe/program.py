"""The whole of `pretrain check`, on one rank."""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from launcher.cluster.hostfile import read_hostfile
from launcher.cluster.rank import Place, find_place, with_master
from launcher.cluster.slurm import expand_nodelist, tasks_per_node
from launcher.config.loading import DEFAULT_RECIPE, load_recipe
from launcher.errors import EXIT_OURS, ClusterError, LauncherError, RequeueError, UsageError
from launcher.probe.agent import Agent, Bench
from launcher.probe.coordinator import lead
from launcher.probe.deputy import ask_without_rank_0, deputy_of
from launcher.probe.facts import Question, collect, host_name, runs_folder
from launcher.probe.report import Report, write_lists
from launcher.probe.session import Terms
from launcher.probe.switchboard import Switchboard
from launcher.probe.wire import Message


def run(options: argparse.Namespace) -> int:
    """One rank of a check; rank 0 leads it besides.

    Returns:
        The exit code, the same on all ranks.

    Raises:
        LauncherError: The ranks cannot be told apart, or rank 0 not be reached.
    """
    question = _question(options)
    place = with_master(find_place(os.environ))
    terms = Terms(
        world_size=place.world_size,
        expected=_expected(options.hostfile, place, os.environ),
        roll_call_s=options.wait,
        round_s=options.round,
        tolerance=options.tolerance,
        least_bytes_per_s=1e6 * options.least_mb_per_s,
    )
    host = terms.expected[place.rank] if options.hostfile else host_name(os.environ)
    is_leader = terms.expected.index(host) == place.rank if options.hostfile else place.local_rank == 0
    hello: Message = {"world_size": place.world_size, "facts": collect(question) if is_leader else None}
    agent = Agent(place.rank, host, hello, _LateBench(place.local_rank))
    port = place.master_port + _has_agents_store(os.environ)
    if place.rank != 0:
        try:
            return agent.run(place.master_addr, port, options.wait)
        except RequeueError as error:
            return _go_on_without_rank_0(options, terms, agent, port, error)
    board = _open_board(port, options)
    threading.Thread(target=_follow, args=(agent, board.port, options.wait), daemon=True).start()

    def ask() -> Report:
        with _mark(question) as mark:
            return lead(board, terms, mark)

    return _finish(board, ask, options)


def _open_board(port: int, options: argparse.Namespace) -> Switchboard:
    """Listen for all ranks; lists that an earlier check wrote are gone from then on."""
    board = Switchboard(port)
    for path in (options.exclude_to, options.hostfile_to):
        if path is not None:
            path.unlink(missing_ok=True)
    return board


def _finish(board: Switchboard, ask: Callable[[], Report], options: argparse.Namespace) -> int:
    """Ask, tell what was found, and let every rank end with its code, whatever happens."""
    code = EXIT_OURS
    try:
        report = ask()
        write_lists(report, options.exclude_to, options.hostfile_to)
        print(report.as_json() if options.json else "\n".join(report.lines()), flush=True)
        code = report.exit_code
    finally:
        board.close(code)
    return code


def _go_on_without_rank_0(
    options: argparse.Namespace, terms: Terms, agent: Agent, port: int, error: RequeueError
) -> int:
    """Find out with the others whether rank 0's host is the one that is cut off.

    Raises:
        RequeueError: Nobody else can be asked.
    """
    deputy = deputy_of(terms.expected)
    if deputy is None or agent.host == terms.expected[0] or agent.host not in terms.expected:
        raise error
    if agent.rank == deputy:
        board = _open_board(port, options)
        return _finish(board, lambda: ask_without_rank_0(board, terms, agent.host), options)
    print(error, file=sys.stderr, flush=True)
    again = Agent(agent.rank, agent.host, agent.hello, agent.bench)
    return again.run(terms.expected[deputy], port, 2 * options.wait)


def leave(code: int) -> NoReturn:
    """End this process, whatever a test of the back end still hangs in."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _follow(agent: Agent, port: int, patience_s: float) -> None:
    """Rank 0 as one of all; what becomes of it is for the one that leads to tell."""
    with suppress(LauncherError, OSError):
        agent.run("127.0.0.1", port, patience_s)


def _question(options: argparse.Namespace) -> Question:
    """What the run will be started with, by either way of saying it."""
    words = list(options.overrides)
    named = words.pop(0) if words and "=" not in words[0] else None
    if named is not None and options.recipe is not None:
        raise UsageError(f"two recipes: {named} and {options.recipe}", "command line", "give one")
    return Question(recipe=named or options.recipe or DEFAULT_RECIPE, overrides=words, ds_config=options.ds_config)


def _expected(hostfile: Path | None, place: Place, env: Mapping[str, str]) -> list[str]:
    """The host of every rank, where it can be known before they speak.

    Raises:
        ClusterError: The hostfile has another number of ranks.
    """
    if hostfile is not None:
        hosts = [host.name for host in read_hostfile(hostfile) for _ in range(host.slots)]
        if len(hosts) != place.world_size:
            raise ClusterError(
                f"the hostfile has {len(hosts)} ranks, {place.world_size} were started",
                str(hostfile),
                "give the one that the ranks were started with",
            )
        return hosts
    if place.source != "slurm" or env.get("SLURM_DISTRIBUTION", "block").partition(":")[0] not in ("block", ""):
        return []
    nodes = expand_nodelist(env["SLURM_STEP_NODELIST"])
    tasks = tasks_per_node(env["SLURM_STEP_TASKS_PER_NODE"])
    return [node for node, number in zip(nodes, tasks, strict=True) for _ in range(number)]


def _has_agents_store(env: Mapping[str, str]) -> bool:
    """Whether torchrun itself listens at MASTER_PORT. Source: torch/distributed/rendezvous.py."""
    return env.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


@contextmanager
def _mark(question: Question) -> Iterator[Path | None]:
    """A file where the run's folder will be, for as long as it is looked for; None where none can be written."""
    try:
        folder = runs_folder(load_recipe(question.recipe, question.overrides).recipe)
        path = folder / f".check-{secrets.token_hex(8)}"
        path.touch()
    except (LauncherError, OSError):  # told with the facts, and with the run's first checkpoint
        yield None
        return
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


class _LateBench:
    """The tests that need torch; it is imported by the first of them, after the roll was called.

    Args:
        local_rank: Which device of the host is this rank's.
    """

    def __init__(self, local_rank: int) -> None:
        self._local_rank = local_rank
        self._bench: Bench | None = None

    def compute(self) -> Message:
        """Speed of arithmetic and memory."""
        return self._ready().compute()

    def open_store(self, address: str) -> int:
        """Let ranks meet here."""
        return self._ready().open_store(address)

    def reduce(self, address: str, port: int, rank: int, world_size: int, seconds: float) -> Message:
        """Add up a vector with others."""
        return self._ready().reduce(address, port, rank, world_size, seconds)

    def _ready(self) -> Bench:
        if self._bench is None:
            from launcher.probe.bench import TorchBench

            self._bench = TorchBench(self._local_rank)
        return self._bench
