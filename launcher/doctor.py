"""What this machine has of what a run may need, told before one is queued: `pretrain doctor`."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from ctypes.util import find_library
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from launcher.config.deepspeed_keys import other_version

State = Literal["ok", "note", "missing"]
PACKAGES = ("torch", "deepspeed", "transformers", "accelerate", "datasets", "tokenizers")
OPTIONAL = {
    "mpi4py": "ranks started by mpirun are found without it through the environment; pip install mpi4py",
    "megablocks": "model.experts=megablocks; README has the install that works",
    "gigatoken": "BPE is prepared several times as fast; pip install -e '.[fast]'",
    "rjieba": "whole-word masking of Chinese; pip install -e '.[words]'",
    "liger-kernel": "model.liger=true; pip install liger-kernel",
}
COMPILERS = {"g++": "g++", "ninja": "ninja-build"}
"""Program → Debian package."""
PROGRAMS = {
    "mpirun": "started through MPI; apt-get install openmpi-bin",
    "srun": "started through Slurm",
    "pdsh": "started on several hosts through deepspeed --hostfile; apt-get install pdsh",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing a run may need."""

    name: str
    state: State
    """`missing` stops every run; a `note` stops only those that need it."""
    found: str
    """What is there, or what cannot be done without it."""


def examine() -> list[Finding]:
    """Look at the machine this runs on; nothing is compiled or changed."""
    return [finding for look in (_packages, _devices, _compiled_ops, _programs, _optional) for finding in look()]


def print_findings(*, as_json: bool) -> bool:
    """Print what was found.

    Args:
        as_json: One object in place of lines.

    Returns:
        Whether nothing that every run needs is missing.
    """
    findings = examine()
    is_sound = all(finding.state != "missing" for finding in findings)
    if as_json:
        print(json.dumps({"sound": is_sound, "findings": [asdict(finding) for finding in findings]}))
        return is_sound
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        print(f"{finding.state:<8}{finding.name:<{width}}  {finding.found}")
    return is_sound


def _packages() -> Iterator[Finding]:
    yield Finding(name="python", state="ok", found=f"{sys.version.split()[0]}, {sys.executable}")
    for name in PACKAGES:
        installed = _version(name)
        yield Finding(
            name=name,
            state="missing" if installed is None else "ok",
            found=installed or f"no run without it: pip install {name}",
        )
    other = other_version()
    if other is not None:
        yield Finding(name="deepspeed's keys", state="note", found=other)


def _devices() -> Iterator[Finding]:
    if _version("torch") is None:
        return
    import torch

    cores = len(os.sched_getaffinity(0))
    if not torch.cuda.is_available():
        yield Finding(name="accelerator", state="note", found=f"none: runs compute on {cores} cores, through gloo")
        return
    for number in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(number)
        precision = "bf16" if torch.cuda.is_bf16_supported() else "fp16 (no bf16)"
        found = f"{device.name}, {device.total_memory / 1e9:.0f} GB, {precision}"
        yield Finding(name=f"cuda:{number}", state="ok", found=found)


def _compiled_ops() -> Iterator[Finding]:
    """What DeepSpeed compiles on first use."""
    compilers = [package for name, package in COMPILERS.items() if shutil.which(name) is None]
    for op, need, missing in (
        ("cpu_adam", "offload of the optimizer to the host", compilers),
        ("async_io", "offload to NVMe", compilers + ([] if _has_libaio() else ["libaio-dev"])),
    ):
        folder = _extensions() / op
        lock = folder / "lock"
        if (folder / f"{op}.so").is_file() and not lock.exists():
            found, state = f"compiled: {folder}", "ok"
        elif lock.exists():
            # torch's builder waits for its lock for ever (measured: a killed build leaves it).
            found, state = f"being compiled, or a killed build left {lock}: delete it if none is running", "note"
        elif missing:
            found, state = f"{need} needs it, and it cannot be compiled: apt-get install {' '.join(missing)}", "note"
        else:
            found, state = f"{need} needs it: compiled at the first use, in minutes, once a node", "note"
        yield Finding(name=op, state=state, found=found)  # type: ignore[arg-type]


def _programs() -> Iterator[Finding]:
    for name, use in PROGRAMS.items():
        path = shutil.which(name)
        found = path or f"not here; runs {use}"
        yield Finding(name=name, state="note" if path is None else "ok", found=found)


def _optional() -> Iterator[Finding]:
    for name, use in OPTIONAL.items():
        installed = _version(name)
        yield Finding(name=name, state="note" if installed is None else "ok", found=installed or f"not here; {use}")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _has_libaio() -> bool:
    folders = (Path("/usr/include"), Path("/usr/local/include"))
    return find_library("aio") is not None and any((folder / "libaio.h").is_file() for folder in folders)


def _extensions() -> Path:
    """Where torch keeps what it has compiled. Source: torch/utils/cpp_extension.py, _get_build_directory."""
    given = os.environ.get("TORCH_EXTENSIONS_DIR")
    if given:
        return Path(given)
    import torch

    cuda = torch.version.cuda
    accelerator = "cpu" if cuda is None else f"cu{cuda.replace('.', '')}"
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return cache / "torch_extensions" / f"py{sys.version_info.major}{sys.version_info.minor}_{accelerator}"
