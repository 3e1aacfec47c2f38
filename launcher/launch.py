"""`pretrain launch`: one description of a job, started by the back end of choice, or printed."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

from launcher.cluster.environment import described, forwarded
from launcher.cluster.hostfile import Host, read_hostfile
from launcher.cluster.hosts import accelerators_here, check_names, check_reach, free_port
from launcher.cluster.job import Job, SlurmRequest, first_hosts
from launcher.cluster.rank import FIRST_PORT, NUM_PORTS
from launcher.cluster.render import RENDERERS, Start, shown
from launcher.cluster.submit import submit
from launcher.config.arguments import positive
from launcher.config.deepspeed import load_ds_config
from launcher.config.loading import LoadedRecipe, load_recipe
from launcher.errors import (
    EXIT_DONE,
    ClusterError,
    LauncherError,
    MissingDependencyError,
    RequeueError,
    UsageError,
)

OVER_SSH = ("hostfile", "ssh", "torchrun")
END_S = 150.0
"""How long the machines' own ends may take: `node.SAVE_S`, and a little."""
SSH_FAILED = 255
PASSED_ON = {signal.SIGTERM: b"TERM\n", signal.SIGINT: b"TERM\n", signal.SIGUSR1: b"USR1\n", signal.SIGUSR2: b"USR2\n"}


def add_options(command: argparse.ArgumentParser) -> None:
    """The options of the command."""
    command.add_argument("recipe", metavar="RECIPE", help="a YAML file, or the name of a shipped recipe")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. train.num_steps=50")
    command.add_argument("--via", choices=tuple(RENDERERS), required=True, help="what starts the ranks")
    command.add_argument("--print", action="store_true", dest="only_print", help="show what would be run, and stop")
    command.add_argument(
        "--ds_config", default="zero3.json", metavar="NAME_OR_PATH", help="DeepSpeed JSON (%(default)s)"
    )
    command.add_argument("--hostfile", type=Path, metavar="FILE", help="hosts and slots; without it, this machine")
    command.add_argument("--nodes", type=positive, metavar="N", help="how many of the hosts, or of Slurm's nodes")
    command.add_argument("--slots", type=positive, metavar="N", help="ranks a node (default: its accelerators)")
    command.add_argument("--port", type=positive, metavar="N", help="where the ranks meet, on the first host")
    command.add_argument(
        "--env", action="append", default=[], metavar="NAME[=VALUE]", help="a variable for the ranks; may be repeated"
    )
    slurm = command.add_argument_group("Slurm (what is not given, the #SBATCH lines of slurm/pretrain.sh decide)")
    slurm.add_argument("--gpus-per-node", type=positive, metavar="N", help="accelerators a node, a rank each")
    slurm.add_argument("--time", metavar="LIMIT", help="as sbatch takes it: 4:00:00")
    slurm.add_argument("--partition", metavar="NAME")
    slurm.add_argument("--account", metavar="NAME")
    slurm.add_argument("--spares", type=int, default=0, metavar="N", help="nodes held ready for those that fail")
    slurm.add_argument("--prologue", type=Path, metavar="FILE", help="shell read first: modules, a container")


def run(options: argparse.Namespace) -> int:
    """Check, render, and print or start; returns the run's exit code."""
    loaded = load_recipe(options.recipe, options.overrides)
    load_ds_config(options.ds_config)
    job = describe_job(options, loaded, dict(os.environ))
    starts = RENDERERS[options.via](job)
    if options.only_print:
        print(shown(starts), end="")
        return EXIT_DONE
    if options.via == "slurm":
        return submit(starts[0])
    _check_program(starts[0].argv[0])
    if any(start.host for start in starts):
        check_names(job.hosts)
        check_reach(job.hosts)
    ranks = f"{job.world_size} ranks on {', '.join(host.name for host in job.hosts)}"
    print(f"launch: {ranks}; {described(dict(job.env))}", flush=True)
    return start_all(starts)


def describe_job(options: argparse.Namespace, loaded: LoadedRecipe, env: dict[str, str]) -> Job:
    """The job that the options describe.

    Raises:
        ClusterError: Hosts, slots or files are missing.
        BatchShapeError: The recipe's batch cannot be cut for so many ranks.
        UsageError: Options do not go together.
    """
    _refuse_what_does_not_go_together(options)
    folder = Path.cwd()
    if not (folder / "launcher" / "train.py").is_file():
        raise ClusterError("there is no launcher/train.py here", str(folder), "launch from the project's folder")
    hosts = _hosts(options)
    asked = options.slots or options.gpus_per_node
    request = SlurmRequest(
        nodes=options.nodes or 1,
        spares=options.spares,
        tasks_per_node=asked,
        gpus_per_node=options.gpus_per_node,
        time=options.time,
        partition=options.partition,
        account=options.account,
        prologue=options.prologue,
    )
    recipe = loaded.recipe
    world_size = request.nodes * asked if options.via == "slurm" and asked else sum(host.slots for host in hosts)
    if options.via != "slurm" or asked:
        recipe.cut_batch(world_size)
    # Slurm's batch script and mpirun's ranks choose a port by themselves, unless this names one.
    named = [f"MASTER_PORT={options.port}"] if options.port else []
    variables = forwarded(env, [*options.env, *named])
    added = frozenset(name for name, value in variables.items() if env.get(name) != value)
    return Job(
        arguments=("--ds_config", options.ds_config, "--recipe", options.recipe, *options.overrides),
        hosts=hosts,
        hostfile=options.hostfile,
        folder=folder,
        python=sys.executable,
        env=tuple(variables.items()),
        added=added,
        master_port=options.port or _port(str(recipe.run_folder), is_here=len(hosts) == 1 and not options.only_print),
        slurm=request,
    )


def _refuse_what_does_not_go_together(options: argparse.Namespace) -> None:
    if options.via == "slurm":
        if options.hostfile is not None:
            raise UsageError("Slurm chooses its own hosts", "--hostfile", "leave it out")
        if options.spares < 0:
            raise UsageError(f"--spares {options.spares}", "command line", "give 0 or more")
        if options.prologue is not None and not options.prologue.is_file():
            raise ClusterError("the prologue is missing", str(options.prologue), "see slurm/prologue.example.sh")
        return
    of_slurm = {
        "--gpus-per-node": options.gpus_per_node,
        "--time": options.time,
        "--partition": options.partition,
        "--account": options.account,
        "--spares": options.spares or None,
        "--prologue": options.prologue,
    }
    given = [name for name, value in of_slurm.items() if value is not None]
    if given:
        raise UsageError(f"{', '.join(given)}: only Slurm knows", "command line", "use --via slurm, or leave it out")


def _hosts(options: argparse.Namespace) -> tuple[Host, ...]:
    if options.hostfile is not None:
        return first_hosts(read_hostfile(options.hostfile), options.nodes, options.slots)
    if options.via != "slurm" and (options.nodes or 1) > 1:
        raise ClusterError(f"{options.nodes} nodes are asked for, and none named", "--nodes", "give --hostfile FILE")
    return (Host("localhost", options.slots or accelerators_here() or 1),)


def _port(name: str, is_here: bool) -> int:
    """A port that follows from the run's name, so that two runs on one host rarely want the same; a free one here."""
    first = FIRST_PORT + zlib.crc32(name.encode()) % NUM_PORTS
    return free_port(first) if is_here else first


def _check_program(name: str) -> None:
    if shutil.which(name) is None:
        program = Path(name)
        where = str(program.parent) if program.is_absolute() else "PATH"
        raise MissingDependencyError(f"there is no {program.name} here", where, "install it, or use another --via")


def start_all(starts: list[Start]) -> int:
    """Run the commands side by side until all have ended; when one fails, the others are asked to end.

    Returns:
        The exit code of the first that failed.

    Raises:
        ClusterError: ssh failed before anything ran.
        RequeueError: A connection or a rank was lost on the way.
        LauncherError: A launcher failed that asks no other machine.
    """
    began = time.monotonic()
    running: dict[subprocess.Popen[bytes], Start] = {}
    for start in starts:
        process = subprocess.Popen(
            start.argv,
            env={**os.environ, **dict(start.env)},
            stdin=subprocess.PIPE if start.host else None,
            start_new_session=bool(start.host),  # Ctrl-C reaches the ranks as a signal over the connection
        )
        running[process] = start
        if start.secrets:
            _tell(process, json.dumps(dict(start.secrets)).encode() + b"\n")
    for number in PASSED_ON:
        signal.signal(number, lambda received, _: _pass_on(list(running), signal.Signals(received)))
    first: tuple[int, Start] | None = None
    deadline = float("inf")
    while None in [process.poll() for process in running]:  # each is polled: `any` would stop at the first
        time.sleep(0.1)
        failed = next(((process.returncode, start) for process, start in running.items() if process.returncode), None)
        if failed is not None and first is None:
            first, deadline = failed, time.monotonic() + END_S
            for process in running:
                if process.stdin is not None:
                    with contextlib.suppress(OSError):
                        process.stdin.close()
        if time.monotonic() > deadline:
            for process in running:
                process.kill()  # ssh alone: what it started has been told to end
    first = first or next(((p.returncode, start) for p, start in running.items() if p.returncode), None)
    return EXIT_DONE if first is None else _judge(*first, time.monotonic() - began)


def _judge(code: int, start: Start, lived_s: float) -> int:
    where, at_once = start.host or "this machine", lived_s < END_S / 10
    if code == SSH_FAILED and start.host:
        if at_once:
            raise ClusterError(f"ssh to {where} failed", where, f"try: ssh -o BatchMode=yes {where} true")
        raise RequeueError(f"the connection to {where} was lost", where, "run the same command again")
    if code == SSH_FAILED:  # of a launcher that ended with -1, or with what its own ssh did
        told = f"{Path(start.argv[0]).name} ended with {code}"
        if not start.by_ssh:
            raise LauncherError(told, where, "see what it said; the same command goes on from the last checkpoint")
        told += ": it failed, or its ssh to a host did"
        if at_once:
            raise ClusterError(told, where, "see what it said; try: ssh -o BatchMode=yes HOST true")
        raise RequeueError(told, where, "run the same command again")
    if code < 0 or code > 128:
        # A shell says 128 and the signal; of DeepSpeed's minus the signal, 256 less are left.
        number = -code if code < 0 else code - 128 if code - 128 < signal.NSIG else 256 - code
        raise RequeueError(f"a rank on {where} was ended by signal {number}", where, "run the same command again")
    return code


def _pass_on(processes: list[subprocess.Popen[bytes]], number: signal.Signals) -> None:
    for process in processes:
        if process.poll() is not None:
            continue
        if process.stdin is not None:
            _tell(process, PASSED_ON[number])
        elif number != signal.SIGINT:  # Ctrl-C reaches the whole foreground group
            process.send_signal(number)


def _tell(process: subprocess.Popen[bytes], line: bytes) -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError, ValueError):  # it has just ended
        process.stdin.write(line)
        process.stdin.flush()
