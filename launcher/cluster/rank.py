"""Which of the run's processes this one is, from what its launcher left in the environment."""

from __future__ import annotations

import os
import re
import socket
import zlib
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, replace
from typing import Any

from launcher.cluster.slurm import expand_nodelist, tasks_per_node
from launcher.errors import ClusterError, MissingDependencyError

FIRST_PORT, NUM_PORTS = 20_000, 10_000
"""Where a rendezvous port is chosen from: below the ports the kernel hands out by itself (32,768 and up)."""
FIRST_RESERVED_STEP = 0xFFFF_FFF0
"""Slurm numbers what is no srun step from here on: batch script, interactive shell, pending step (slurm.h)."""
SIGNS_OF_MPI = (
    *("OMPI_COMM_WORLD_SIZE", "PMI_RANK", "PMI_SIZE", "PMIX_RANK"),
    *("MPI_LOCALRANKID", "MV2_COMM_WORLD_RANK", "PALS_RANKID"),  # Hydra's, MVAPICH's, Cray's
)
"""Variables of an MPI launcher that alone do not tell a process's place."""

NAME_THE_HOST = "name it: mpirun -x MASTER_ADDR=HOST (MPICH, Intel MPI: mpiexec -genv MASTER_ADDR HOST)"
"""What helps where mpi4py does not."""

_WHERE = {
    "environment": "RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE or LOCAL_SIZE",
    "slurm": "SLURM_PROCID, SLURM_STEP_NUM_TASKS, SLURM_LOCALID, SLURM_STEP_TASKS_PER_NODE",
    "mpi": "rank and size variables of OMPI_COMM_WORLD_, or PMI_ and MPI_LOCAL",
    "alone": "environment",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One process of a run."""

    rank: int
    """Number of this process, from 0."""
    world_size: int
    """Number of processes."""
    local_rank: int
    """Number of this process on its node: which accelerator it takes."""
    local_world_size: int
    """Processes on this node."""
    master_addr: str
    """Host of rank 0; empty where it has yet to be asked (MPI over several nodes)."""
    master_port: int
    """Port the ranks meet at."""
    source: str
    """Who told: `environment`, `slurm`, `mpi` or `alone`."""


def find_place(env: Mapping[str, str]) -> Place:
    """Work out this process's place.

    torchrun and DeepSpeed set RANK and its companions; MPI and a Slurm step have names of their own; a process that
    finds nothing of either is alone.

    Args:
        env: The environment.

    Returns:
        The place. Its `master_addr` is empty for MPI over several nodes: see `with_master`.

    Raises:
        ClusterError: The variables are incomplete, no numbers, or contradict each other.
    """
    if "RANK" in env or "WORLD_SIZE" in env:
        place = _from_launcher(env)
    # MPI before Slurm: in a Slurm job mpirun starts its daemons with srun, and the ranks of all nodes but the first
    # inherit the daemon's SLURM_PROCID and SLURM_STEP_NUM_TASKS.
    elif "OMPI_COMM_WORLD_RANK" in env:
        place = _from_mpi(
            env,
            "OMPI_COMM_WORLD_RANK",
            "OMPI_COMM_WORLD_SIZE",
            "OMPI_COMM_WORLD_LOCAL_RANK",
            "OMPI_COMM_WORLD_LOCAL_SIZE",
        )
    elif "PMI_RANK" in env and "MPI_LOCALRANKID" in env:  # MPICH and Intel MPI (Hydra)
        place = _from_mpi(env, "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")
    elif _in_slurm_step(env):
        place = _from_slurm(env)
    else:
        _refuse_half_an_mpi(env)
        place = Place(
            rank=0,
            world_size=1,
            local_rank=0,
            local_world_size=1,
            master_addr="127.0.0.1",
            master_port=_master_port(env) if "MASTER_PORT" in env else _free_port(),
            source="alone",
        )
    _check(place)
    return place


def with_master(place: Place) -> Place:
    """Fill in the host of rank 0 where the environment did not tell it: asked for over MPI.

    Raises:
        MissingDependencyError: mpi4py is not installed, or finds no MPI library.
        ClusterError: mpi4py was built for another MPI than the one that started the ranks, or that MPI would never end.
    """
    if place.master_addr:
        return place
    MPI = _mpi("the host of rank 0 is not known", "MASTER_ADDR", NAME_THE_HOST)
    # Under another MPI's mpirun every process is a world of its own: each would wait at an address of its own.
    if MPI.COMM_WORLD.Get_size() != place.world_size:
        raise ClusterError(
            f"mpirun started {place.world_size} ranks, and mpi4py sees {MPI.COMM_WORLD.Get_size()}: "
            "it uses another MPI than mpirun",
            "mpi4py",
            "pip install --force-reinstall --no-cache-dir --no-binary mpi4py mpi4py with this MPI's mpicc on the PATH, "
            f"or {NAME_THE_HOST}",
        )
    host = MPI.COMM_WORLD.bcast(socket.gethostname() if place.rank == 0 else "", root=0)
    return replace(place, master_addr=host)


def in_mpi(env: Mapping[str, str]) -> bool:
    """Whether mpirun or mpiexec started this process."""
    return any(name in env for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE"))


def names_over_mpi() -> list[str]:
    """The host of every rank of mpirun's, in their order; empty on all but rank 0.

    Raises:
        MissingDependencyError: mpi4py is not installed, or finds no MPI library.
        ClusterError: That MPI would never end.
    """
    MPI = _mpi("the ranks' hosts are not known", "mpirun", "write the hostfile by hand (see hostfiles/)")
    return MPI.COMM_WORLD.gather(socket.gethostname(), root=0) or []


def _mpi(unknown: str, where: str, instead: str) -> Any:
    """mpi4py's MPI, for the MPI that started this process, which is joined.

    It is looked at before: who has joined can leave only by MPI_Finalize, where some hang.

    Raises:
        MissingDependencyError: It is not installed, or finds no library of that MPI.
        ClusterError: Ranks of that MPI hang in MPI_Finalize.
    """
    # Its wheels serve both kinds, and would take the first library they find.
    os.environ.setdefault("MPI4PY_MPIABI", "openmpi" if "OMPI_COMM_WORLD_SIZE" in os.environ else "mpich")
    try:
        import mpi4py

        mpi4py.rc.initialize, mpi4py.rc.finalize = False, True
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        told = " ".join(str(error).split())
        raise MissingDependencyError(
            f"{unknown}, and mpi4py, which could ask for it, is missing or finds no MPI library ({told})",
            where,
            f"pip install mpi4py, or {instead}",
        ) from None
    _refuse_to_hang_at_the_end(MPI.Get_library_version(), unknown, where, instead)
    if not MPI.Is_initialized():
        MPI.Init_thread(MPI.THREAD_FUNNELED)
    return MPI


def _refuse_to_hang_at_the_end(library: str, unknown: str, where: str, instead: str) -> None:
    """Refuse an MPICH whose ranks wait for each other for ever when they end, two times in five on TCP.

    In MPI_Finalize the ranks that have closed their UCX connections wait in a barrier where they answer nobody, so that
    those that are still closing theirs wait too (mended by pmodels/mpich pull request 6596, after 4.1).

    Raises:
        ClusterError: It is one.
    """
    version = re.search(r"MPICH Version:\s*((\d+)\.(\d+)\S*)", library)
    if version is not None and (int(version[2]), int(version[3])) < (4, 2) and "ch4:ucx" in library:
        raise ClusterError(
            f"{unknown}, and MPICH {version[1]} over UCX, which could be asked for it, often never comes out of "
            "MPI_Finalize: the ranks would do their work and not end",
            where,
            f"{instead}, or use MPICH 4.2 or later",
        )


def export(place: Place, env: MutableMapping[str, str]) -> None:
    """Write a place as torch and DeepSpeed read it.

    Without LOCAL_SIZE DeepSpeed counts the CPU's devices by asking `numactl`, in a process of its own after every
    backward pass of stage 3.
    """
    env.update(
        RANK=str(place.rank),
        WORLD_SIZE=str(place.world_size),
        LOCAL_RANK=str(place.local_rank),
        LOCAL_WORLD_SIZE=str(place.local_world_size),
        LOCAL_SIZE=str(place.local_world_size),
        MASTER_ADDR=place.master_addr,
        MASTER_PORT=str(place.master_port),
    )


def threads_per_rank(place: Place, env: Mapping[str, str], num_cores: int) -> int:
    """CPU threads a rank may compute with.

    Args:
        place: Tells how many ranks share the node.
        env: Tells whether Slurm gave each task cores of its own (`--cpus-per-task` with binding): then the cores this
            process may use are not shared.
        num_cores: Cores this process may use (`len(os.sched_getaffinity(0))`).
    """
    bound = (
        place.source == "slurm" and "SLURM_CPUS_PER_TASK" in env and num_cores <= _number(env, "SLURM_CPUS_PER_TASK")
    )
    return max(num_cores if bound else num_cores // place.local_world_size, 1)


def _check(place: Place) -> None:
    """Refuse numbers that cannot all be true.

    Raises:
        ClusterError: They contradict each other.
    """
    possible = (
        0 <= place.local_rank <= place.rank < place.world_size
        and place.local_rank < place.local_world_size <= place.world_size
    )
    if not possible:
        raise ClusterError(
            f"rank {place.rank} of {place.world_size}, local rank {place.local_rank} of {place.local_world_size}: "
            "this cannot be",
            _WHERE[place.source],
            "unset what an earlier launcher left in the environment",
        )


def _from_launcher(env: Mapping[str, str]) -> Place:
    needed = ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"]
    local_size = "LOCAL_WORLD_SIZE" if "LOCAL_WORLD_SIZE" in env else "LOCAL_SIZE"  # torchrun's, DeepSpeed's
    is_alone = env.get("WORLD_SIZE") == "1"
    if not is_alone:  # a local rank that is guessed puts two ranks on one accelerator
        needed += ["LOCAL_RANK", local_size]
    missing = [name for name in needed if not env.get(name)]
    if missing:
        raise ClusterError(
            f"RANK or WORLD_SIZE is set, but not {', '.join(missing)}",
            "environment",
            "start with deepspeed, torchrun, srun or mpirun, or unset RANK and WORLD_SIZE to run alone",
        )
    return Place(
        rank=_number(env, "RANK"),
        world_size=_number(env, "WORLD_SIZE"),
        local_rank=_number(env, "LOCAL_RANK") if "LOCAL_RANK" in env else 0,
        local_world_size=_number(env, local_size) if local_size in env else 1,
        master_addr=env["MASTER_ADDR"],
        master_port=_master_port(env),
        source="environment",
    )


def _in_slurm_step(env: Mapping[str, str]) -> bool:
    """Whether srun started this process.

    A batch script has SLURM_PROCID=0 too, and SLURM_NTASKS of the whole job; a plain python in it is alone. Only a
    step that srun made has a number of its own.
    """
    step = env.get("SLURM_STEP_ID", "")
    return step.isdecimal() and int(step) < FIRST_RESERVED_STEP


def _from_slurm(env: Mapping[str, str]) -> Place:
    needed = (
        "SLURM_PROCID",
        "SLURM_LOCALID",
        "SLURM_NODEID",
        "SLURM_STEP_NUM_TASKS",
        "SLURM_STEP_NODELIST",
        "SLURM_STEP_TASKS_PER_NODE",
        "SLURM_JOB_ID",
    )
    missing = [name for name in needed if not env.get(name)]
    if missing:
        raise ClusterError(f"this is a Slurm step without {', '.join(missing)}", "environment", "start it with srun")
    if "SLURM_PTY_PORT" in env and env["SLURM_STEP_NUM_TASKS"] != "1":
        raise ClusterError(
            f"this is one interactive shell of an srun --pty with {env['SLURM_STEP_NUM_TASKS']} tasks: the others, "
            "which this rank would wait for, run nothing",
            "SLURM_PTY_PORT",
            "start the ranks with srun inside of salloc, or take a shell with srun --ntasks=1 --pty",
        )
    hosts = expand_nodelist(env["SLURM_STEP_NODELIST"])
    tasks = tasks_per_node(env["SLURM_STEP_TASKS_PER_NODE"])
    node, world_size = _number(env, "SLURM_NODEID"), _number(env, "SLURM_STEP_NUM_TASKS")
    if not 0 <= node < len(tasks) or len(tasks) != len(hosts) or sum(tasks) != world_size:
        raise ClusterError(
            f"node {node} of {env['SLURM_STEP_NODELIST']}, {env['SLURM_STEP_TASKS_PER_NODE']} tasks on each and "
            f"{world_size} in all cannot all be",
            "SLURM_NODEID, SLURM_STEP_NODELIST, SLURM_STEP_TASKS_PER_NODE, SLURM_STEP_NUM_TASKS",
            "start it with srun, and set no SLURM_ variables by hand",
        )
    return Place(
        rank=_number(env, "SLURM_PROCID"),
        world_size=world_size,
        local_rank=_number(env, "SLURM_LOCALID"),
        local_world_size=tasks[node],
        master_addr=env.get("MASTER_ADDR") or hosts[0],
        master_port=_master_port(env) if "MASTER_PORT" in env else _job_port(_number(env, "SLURM_JOB_ID")),
        source="slurm",
    )


def _from_mpi(env: Mapping[str, str], rank: str, size: str, local_rank: str, local_size: str) -> Place:
    missing = [name for name in (size, local_rank, local_size) if name not in env]
    if missing:
        raise ClusterError(f"{rank} is set, but not {', '.join(missing)}", "environment", "start it with mpirun")
    world_size, local_world_size = _number(env, size), _number(env, local_size)
    here = "127.0.0.1" if world_size == local_world_size else ""
    # Every rank must choose the same port without a word: the job's name is all they share. Two runs on one node have
    # names that differ in a digit or two, so the name is hashed.
    # Hydra outside of Slurm gives no name at all: its runs share one port unless MASTER_PORT is set.
    job = zlib.crc32((env.get("PMIX_NAMESPACE") or env.get("PMI_JOBID") or env.get("SLURM_JOB_ID", "")).encode())
    return Place(
        rank=_number(env, rank),
        world_size=world_size,
        local_rank=_number(env, local_rank),
        local_world_size=local_world_size,
        master_addr=env.get("MASTER_ADDR") or here,
        master_port=_master_port(env) if "MASTER_PORT" in env else _job_port(job),
        source="mpi",
    )


def _refuse_half_an_mpi(env: Mapping[str, str]) -> None:
    """Refuse to be alone where an MPI launcher left only part of what tells a place.

    Taken for alone, each of its processes would train a model of its own, all into one folder.
    """
    signs = [name for name in SIGNS_OF_MPI if name in env]
    if not signs or "1" in (env.get("OMPI_COMM_WORLD_SIZE"), env.get("PMI_SIZE")):
        return
    raise ClusterError(
        f"an MPI launcher set {', '.join(signs)}, which does not tell this process's rank on its node",
        "environment",
        "start with srun, or with mpirun of Open MPI, MPICH or Intel MPI; or set RANK, WORLD_SIZE, LOCAL_RANK, "
        "LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT; or unset what was left over, to run alone",
    )


def _job_port(job: int) -> int:
    return FIRST_PORT + job % NUM_PORTS


def _master_port(env: Mapping[str, str]) -> int:
    port = _number(env, "MASTER_PORT")
    if not 0 < port < 65_536:
        raise ClusterError(f"MASTER_PORT is {port}, not a port", "environment", "use 1024 to 65535, or unset it")
    return port


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _number(env: Mapping[str, str], name: str) -> int:
    try:
        return int(env[name])
    except ValueError:
        raise ClusterError(f"{name} is {env[name]!r}, not a number", "environment", f"unset {name}") from None
