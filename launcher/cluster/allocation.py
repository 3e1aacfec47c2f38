"""The machines that a batch system or mpirun has given, as hosts and slots."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from launcher.cluster.hostfile import Host
from launcher.cluster.slurm import expand_nodelist, tasks_per_node
from launcher.errors import ClusterError

KNOWN = "SLURM_JOB_NODELIST, PBS_NODEFILE, LSB_DJOB_HOSTFILE or LSB_MCPU_HOSTS"


def allocated_hosts(env: Mapping[str, str]) -> list[Host]:
    """The hosts of the allocation this process is in, in its order.

    Slots are accelerators where the batch system tells them, else tasks.

    Raises:
        ClusterError: There is no allocation, or it is told by halves.
    """
    if env.get("SLURM_JOB_ID"):
        return _of_slurm(env)
    if env.get("PBS_NODEFILE"):
        gpus = env.get("PBS_GPUFILE")  # Torque's: a line like node1-gpu0 for each
        names = [name.rpartition("-gpu")[0] for name in _lines("PBS_GPUFILE", gpus)] if gpus else []
        return counted(names or _lines("PBS_NODEFILE", env["PBS_NODEFILE"]))
    if env.get("LSB_DJOB_HOSTFILE"):
        return counted(_lines("LSB_DJOB_HOSTFILE", env["LSB_DJOB_HOSTFILE"]))
    if env.get("LSB_MCPU_HOSTS"):
        return _of_lsf(env["LSB_MCPU_HOSTS"])
    raise ClusterError(
        "this is no allocation: there is none of the variables that tell its hosts",
        KNOWN,
        "run it inside a job of Slurm, PBS or LSF, or as mpirun … pretrain hostfile",
    )


def counted(names: list[str]) -> list[Host]:
    """Hosts from a list in which each stands once a slot."""
    return [Host(name, slots) for name, slots in Counter(names).items()]


def written(hosts: list[Host], origin: str) -> str:
    """A hostfile."""
    return f"# {origin}\n" + "".join(f"{host.name} slots={host.slots}\n" for host in hosts)


def with_slots(hosts: list[Host], slots: int | None) -> list[Host]:
    """The hosts, with this many slots on each where it is given."""
    return hosts if slots is None else [Host(host.name, slots) for host in hosts]


def _of_slurm(env: Mapping[str, str]) -> list[Host]:
    text = env.get("SLURM_JOB_NODELIST", "")
    if not text:
        raise ClusterError(
            f"job {env['SLURM_JOB_ID']} tells no hosts: SLURM_JOB_NODELIST is missing or empty",
            "environment",
            "run it in the job's own script or shell (sbatch, salloc), with its variables untouched",
        )
    names = expand_nodelist(text, "SLURM_JOB_NODELIST")
    gpus = env.get("SLURM_GPUS_PER_NODE") or env.get("SLURM_GPUS_ON_NODE")
    if gpus:
        count = gpus.rpartition(":")[2]
        if not count.isdecimal() or int(count) < 1:
            raise ClusterError(f"{gpus!r} is no number of GPUs", "SLURM_GPUS_PER_NODE", "use --slots N")
        return [Host(name, int(count)) for name in names]
    variable = "SLURM_TASKS_PER_NODE"
    tasks = tasks_per_node(env.get(variable, "1" if len(names) == 1 else f"1(x{len(names)})"), variable)
    if len(tasks) != len(names):
        raise ClusterError(
            f"{len(names)} hosts, but tasks of {len(tasks)}",
            "SLURM_JOB_NODELIST, SLURM_TASKS_PER_NODE",
            "use --slots N",
        )
    return [Host(name, slots) for name, slots in zip(names, tasks, strict=True)]


def _lines(variable: str, path: str) -> list[str]:
    try:
        names = Path(path).read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise ClusterError(
            f"the allocation's list of hosts cannot be read: {error}", f"{variable}={path}", "run it inside the job"
        ) from None
    if not names and variable != "PBS_GPUFILE":
        raise ClusterError("the allocation's list of hosts is empty", f"{variable}={path}", "ask for nodes")
    return names


def _of_lsf(text: str) -> list[Host]:
    words = text.split()
    if len(words) % 2 or not all(number.isdecimal() and int(number) > 0 for number in words[1::2]):
        raise ClusterError(f"{text!r} is no list of hosts and slots", "LSB_MCPU_HOSTS", "LSF sets it: host1 8 host2 8")
    return [Host(name, int(slots)) for name, slots in zip(words[::2], words[1::2], strict=True)]


def origin_of(env: Mapping[str, str]) -> str:
    """What the hosts were read from, for the first line of the file."""
    for name, system in (("SLURM_JOB_ID", "Slurm"), ("PBS_JOBID", "PBS"), ("LSB_JOBID", "LSF")):
        if env.get(name):
            return f"job {env[name]} of {system}"
    return f"written on {os.uname().nodename}"
