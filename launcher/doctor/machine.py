"""What this machine has beside its packages: compilers, compiled ops, programs, limits, and the way to the hub."""

from __future__ import annotations

import resource
import shutil
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from launcher import units
from launcher.cluster.environment import forwarded
from launcher.config.compiled_ops import USES, extensions_folder, missing_packages
from launcher.doctor.findings import Finding, State
from launcher.prepare.hub import kept_offline_by
from launcher.shards.gather import compiled

PROGRAMS = {
    "mpirun": ("started through MPI", "apt-get install openmpi-bin"),
    "srun": ("started through Slurm", ""),
    "pdsh": ("started on several hosts through deepspeed --hostfile", "apt-get install pdsh"),
}
"""Program → the runs that need it, and how to get it."""
LEAST_OPEN_FILES = 4096
"""A rank holds its shards' files, sockets to other ranks and NCCL's handles open (assumption; torch's own advice is to
raise a limit of 1,024)."""
LEAST_SHM_BYTES = 1 << 30
"""NCCL's and torch's shared memory of eight ranks (assumption). A container's usual 64 MiB end in "Bus error"."""
FORWARDED = ("NCCL", "PYTHON", "MV2", "UCX", "MLFLOW")
"""Beginnings of the names that DeepSpeed's pdsh launcher forwards by itself. Source: deepspeed/launcher/runner.py,
EXPORT_ENVS."""
OF_EVERY_SHELL = ("PATH", "LANG", "LC_", "VIRTUAL_ENV")
"""Beginnings of names that are set on every host."""
DEEPSPEED_ENV = ".deepspeed_env"
CONNECT_S = 3.0


def look_at_ops(env: Mapping[str, str]) -> Iterator[Finding]:
    """What DeepSpeed compiles on first use."""
    for op, use in USES.items():
        missing = missing_packages(op, env)
        folder = extensions_folder(env) / op
        lock = folder / "lock"
        state: State = "note"
        fix = ""
        if lock.exists():
            # torch's builder waits for its lock for ever (measured: a killed build leaves it); a run clears it away.
            found = f"being compiled, or a killed build left {lock}: a run waits minutes for it"
            fix = f"if none is running: rm {lock}"
        elif (folder / f"{op}.so").is_file():
            state, found = "ok", f"compiled: {folder}"
        elif missing:
            found = f"{use} needs it, and it cannot be compiled here"
            fix = f"apt-get install {' '.join(missing)}"
        else:
            found = f"{use} needs it: compiled at the first use, in minutes, once a node"
        yield Finding(name=op, state=state, found=found, fix=fix)


def look_at_reading() -> Iterator[Finding]:
    """What the project itself compiles when it is installed."""
    if compiled is None:
        yield Finding(
            name="reading of shards",
            state="note",
            found="not compiled: a batch of many short rows is read in several times the microseconds",
            fix="apt-get install gcc python3-dev, then pip install -e . again",
        )
    else:
        yield Finding(name="reading of shards", state="ok", found="compiled")


def look_at_programs() -> Iterator[Finding]:
    """What runs are started by."""
    for name, (use, fix) in PROGRAMS.items():
        path = shutil.which(name)
        if path is not None:
            yield Finding(name=name, state="ok", found=path)
        else:
            yield Finding(name=name, state="note", found=f"not here; only for runs {use}", fix=fix)


def look_at_limits() -> Iterator[Finding]:
    """What the kernel lets a process have. A batch job inherits the limits of the shell that submits it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = 0 <= soft < LEAST_OPEN_FILES
    yield Finding(
        name="open files",
        state="note" if few else "ok",
        found=f"{_limit(soft)} (at most {_limit(hard)})",
        fix=f"ulimit -n {LEAST_OPEN_FILES if hard < 0 else min(hard, 65536)} before the run is started" if few else "",
    )
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    has_fabric = Path("/sys/class/infiniband").is_dir() and any(Path("/sys/class/infiniband").iterdir())
    low = has_fabric and soft >= 0
    yield Finding(
        name="locked memory",
        state="note" if low else "ok",
        found=f"{_limit(soft)}{' bytes' if soft >= 0 else ''}" + ("; InfiniBand registers more" if low else ""),
        fix="ulimit -l unlimited (a daemon's limits: LimitMEMLOCK=infinity for slurmd)" if low else "",
    )
    shm = Path("/dev/shm")
    if shm.is_dir():
        free = shutil.disk_usage(shm).free
        small = free < LEAST_SHM_BYTES
        yield Finding(
            name="/dev/shm",
            state="note" if small else "ok",
            found=f"{units.size(free)} free",
            fix="a container: --ipc=host or --shm-size=8g" if small else "",
        )


def look_at_environment(env: Mapping[str, str], home: Path, here: Path) -> Iterator[Finding]:
    """What is set here and would not be set on other hosts; names only, for a value may be a secret.

    `pretrain launch` and Slurm pass all of it on, `deepspeed --hostfile` its own few, mpirun what -x names.
    """
    matters = [name for name in forwarded(env) if name in env and not name.startswith((*FORWARDED, *OF_EVERY_SHELL))]
    listed = {
        line.partition("=")[0].strip()
        for folder in (home, here)
        if (folder / DEEPSPEED_ENV).is_file()
        for line in (folder / DEEPSPEED_ENV).read_text(encoding="utf-8", errors="replace").splitlines()
    }
    lost = [name for name in matters if name not in listed]
    if not lost:
        yield Finding(name="environment", state="ok", found="nothing is set here that other hosts would lack")
        return
    yield Finding(
        name="environment",
        state="note",
        found=f"set here, and not passed on by deepspeed --hostfile or mpirun by themselves: {', '.join(lost)}",
        fix=f"start with pretrain launch, which does; or NAME=value lines in ./{DEEPSPEED_ENV}; or mpirun -x NAME",
    )


def look_at_hub(env: Mapping[str, str], names: tuple[str, ...] = ()) -> Iterator[Finding]:
    """The Hugging Face hub: nothing of a run reaches it unless the recipe names data sets of it.

    Args:
        env: The environment.
        names: `hub:…` words of the recipe's corpus; without one, nothing is connected to.
    """
    cache = Path(env.get("HF_HOME") or Path(env.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface")
    offline = kept_offline_by(env)
    if not names:
        found = f"{offline} is set" if offline else "a run does not reach it"
        yield Finding(name="hub", state="ok", found=f"{found}; cache {cache}")
        return
    if offline:
        yield Finding(
            name="hub",
            state="wrong",
            found=f"{offline} is set, and the corpus is {', '.join(names)}",
            fix=f"unset {offline} where pretrain prepare runs, or give the folder of a downloaded data set",
        )
        return
    endpoint = urlsplit(env.get("HF_ENDPOINT") or "https://huggingface.co")
    host, port = endpoint.hostname or "huggingface.co", endpoint.port or 443
    try:
        with socket.create_connection((host, port), timeout=CONNECT_S):
            yield Finding(name="hub", state="ok", found=f"{host} answers; cache {cache}")
    except OSError as error:
        yield Finding(
            name="hub",
            state="note",
            found=f"{host}:{port} cannot be reached ({error}); the corpus is {', '.join(names)}",
            fix="download it where there is a network and give its folder, or set HF_ENDPOINT to a mirror",
        )


def _limit(value: int) -> str:
    return "unlimited" if value < 0 else str(value)
