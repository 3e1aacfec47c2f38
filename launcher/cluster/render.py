"""The commands that start a job, one pure function a back end."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath

from launcher.cluster.environment import is_secret
from launcher.cluster.job import Job
from launcher.errors import UsageError

SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4")
"""Asks nothing, and notices within a minute that the other machine is gone."""
TRAIN_FILE, TRAIN_MODULE = "launcher/train.py", "launcher.train"
BATCH_SCRIPT = "slurm/pretrain.sh"


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """One command to run on this machine."""

    argv: tuple[str, ...]
    """Its words."""
    env: tuple[tuple[str, str], ...] = ()
    """Variables it gets beside those of this process."""
    host: str = ""
    """Machine it starts ranks on, where it is another one and the command is ssh. Then its standard input is held open
    for as long as the ranks shall live."""
    by_ssh: bool = False
    """Whether it starts ranks on other machines by an ssh of its own."""
    secrets: tuple[tuple[str, str], ...] = ()
    """Variables it is told over standard input, so that no process list shows them."""


def render_local(job: Job) -> list[Start]:
    """DeepSpeed's own launcher on this machine."""
    _one_host_only(job, "local")
    ranks = ("--num_gpus", str(job.world_size), "--master_port", str(job.master_port))
    return [Start(argv=(_beside_python(job, "deepspeed"), *ranks, TRAIN_FILE, *job.arguments), env=_set_here(job))]


def render_hostfile(job: Job) -> list[Start]:
    """DeepSpeed's launcher on every host, each started over an ssh of our own.

    `deepspeed --hostfile` alone would use pdsh, whose end is a `pkill -f` on every machine, and which leaves the ranks
    running when the one who launched is killed.
    """
    if job.hostfile is None:
        raise UsageError(
            "--via hostfile needs a hostfile", "--hostfile", "see hostfiles/, or write one: pretrain hostfile"
        )
    starts = []
    for number, host in enumerate(job.hosts):
        same = ("--num_gpus", str(host.slots)) if len({other.slots for other in job.hosts}) == 1 else ()
        command = (
            *(_beside_python(job, "deepspeed"), "--hostfile", str(job.hostfile), "--no_ssh"),
            *("--node_rank", str(number), "--num_nodes", str(len(job.hosts)), *same),
            *("--master_addr", job.master_addr, "--master_port", str(job.master_port)),
            *(TRAIN_FILE, *job.arguments),
        )
        starts.append(_over_ssh(job, host.name, (), command))
    return starts


def render_ssh(job: Job) -> list[Start]:
    """Ranks over plain ssh, one connection a host."""
    starts, first = [], 0
    for host in job.hosts:
        ranks = (
            *("--ranks", str(host.slots), "--first-rank", str(first), "--world-size", str(job.world_size)),
            *("--master", f"{job.master_addr}:{job.master_port}"),
        )
        command = (job.python, "-u", "-m", TRAIN_MODULE, *job.arguments)
        starts.append(_over_ssh(job, host.name, ranks, command))
        first += host.slots
    return starts


def render_torchrun(job: Job) -> list[Start]:
    """torchrun: alone on this machine, or over ssh on each of several."""
    torchrun = _beside_python(job, "torchrun")
    if len(job.hosts) == 1:
        words = ("--standalone", "--nproc-per-node", str(job.world_size), "-m", TRAIN_MODULE, *job.arguments)
        return [Start(argv=(torchrun, *words), env=_set_here(job))]
    starts = []
    for number, host in enumerate(job.hosts):
        command = (
            *(torchrun, "--nnodes", str(len(job.hosts)), "--nproc-per-node", str(host.slots)),
            *("--node-rank", str(number), "--master-addr", job.master_addr, "--master-port", str(job.master_port)),
            *("-m", TRAIN_MODULE, *job.arguments),
        )
        starts.append(_over_ssh(job, host.name, (), command))
    return starts


def render_openmpi(job: Job) -> list[Start]:
    """Open MPI's mpirun. Not bound to cores: a rank shares those of its node out by itself."""
    hosts = ",".join(f"{host.name}:{host.slots}" for host in job.hosts)
    names = [word for name, _ in job.env for word in ("-x", name)]
    argv = ("mpirun", "-np", str(job.world_size), "--host", hosts, "--bind-to", "none", *names, *_rank_of_mpi(job))
    return [Start(argv=argv, env=_set_here(job), by_ssh=job.hostfile is not None)]


def render_hydra(job: Job) -> list[Start]:
    """The mpiexec of MPICH and of Intel MPI, by the name that no other MPI has.

    It starts rank 0 on the first host, and gives its runs no name that a port could be made of: both are told. Secrets
    are named alone. Of those MPICH loses what is last in its environment (seen with 4.0.2): something else has to be.

    Raises:
        UsageError: The hosts have different numbers of ranks, which the two write differently.
    """
    if len({host.slots for host in job.hosts}) > 1:
        raise UsageError(
            "MPICH and Intel MPI are asked for the same number of ranks on every host", "--hostfile", "use --slots N"
        )
    told = {**dict(job.env), "MASTER_ADDR": job.master_addr, "MASTER_PORT": str(job.master_port)}
    secrets = [name for name, value in told.items() if is_secret(name, value)]
    named = ("-genvlist", ",".join(secrets)) if secrets else ("-genvnone",)
    pairs = [word for name, value in sorted(told.items()) if name not in secrets for word in ("-genv", name, value)]
    env = tuple(pair for pair in _set_here(job) if pair[0] in secrets)
    hosts = ",".join(host.name for host in job.hosts)
    argv = ("mpiexec.hydra", "-n", str(job.world_size), "-ppn", str(job.hosts[0].slots), "-hosts", hosts)
    last = (("PRETRAIN_LAST", "1"),) if secrets else ()
    words = (*argv, *named, *pairs, *_rank_of_mpi(job))
    return [Start(argv=words, env=(*env, *last), by_ssh=job.hostfile is not None)]


def render_slurm(job: Job) -> list[Start]:
    """The shipped batch script, submitted: what is not asked for is left to its #SBATCH lines."""
    asked = job.slurm
    words = ["sbatch", "--export=ALL", f"--nodes={asked.nodes + asked.spares}"]
    for option, value in (
        ("ntasks-per-node", asked.tasks_per_node),
        ("gpus-per-node", asked.gpus_per_node),
        ("time", asked.time),
        ("partition", asked.partition),
        ("account", asked.account),
    ):
        if value is not None:
            words.append(f"--{option}={value}")
    words.append(BATCH_SCRIPT)
    if asked.spares:
        words += ["--spares", str(asked.spares)]
    if asked.prologue is not None:
        words += ["--prologue", str(asked.prologue)]
    return [Start(argv=(*words, *job.arguments), env=_set_here(job))]


Renderer = Callable[[Job], list[Start]]
RENDERERS: dict[str, Renderer] = {
    "local": render_local,
    "hostfile": render_hostfile,
    "slurm": render_slurm,
    "mpi": render_openmpi,
    "mpich": render_hydra,
    "intelmpi": render_hydra,
    "torchrun": render_torchrun,
    "ssh": render_ssh,
}


def shown(starts: list[Start]) -> str:
    """The commands as a text to read or to paste; secrets without their value."""
    lines = []
    hidden = sorted({name for start in starts for name, _ in start.secrets})
    if any(start.host for start in starts):
        lines.append("# each in a terminal of its own: where its standard input ends, its ranks are ended")
    if hidden:
        lines.append(f"# type first, as one line of JSON: the values of {', '.join(hidden)}")
    for start in starts:
        set_first = [
            f"{name}='(hidden)'" if is_secret(name, value) else f"{name}={shlex.quote(value)}"
            for name, value in start.env
        ]
        lines.append(" ".join([*set_first, shlex.join(start.argv)]))
    return "\n".join(lines) + "\n"


def _one_host_only(job: Job, via: str) -> None:
    if len(job.hosts) > 1:
        raise UsageError(
            f"--via {via} starts ranks on this machine alone, and there are {len(job.hosts)} hosts",
            "--hostfile",
            "use --via hostfile, ssh, mpi or slurm",
        )


def _over_ssh(job: Job, host: str, ranks: tuple[str, ...], command: tuple[str, ...]) -> Start:
    secrets = tuple((name, value) for name, value in job.env if is_secret(name, value))
    named = ("--secrets", ",".join(name for name, _ in secrets)) if secrets else ()
    variables = [f"{name}={value}" for name, value in job.env if not is_secret(name, value)]
    words = ("env", *variables, job.python, "-m", "launcher.cluster.node", *named, *ranks, "--", *command)
    remote = f"cd {shlex.quote(str(job.folder))} && exec {shlex.join(words)}"
    return Start(argv=(*SSH, host, remote), host=host, secrets=secrets)


def _set_here(job: Job) -> tuple[tuple[str, str], ...]:
    """What a command that inherits the environment of this process has to be given beside it."""
    return tuple((name, value) for name, value in job.env if name in job.added)


def _rank_of_mpi(job: Job) -> tuple[str, ...]:
    return (job.python, "-u", "-m", TRAIN_MODULE, *job.arguments)


def _beside_python(job: Job, name: str) -> str:
    return str(PurePosixPath(job.python).with_name(name))
