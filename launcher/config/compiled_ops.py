"""What DeepSpeed compiles for a run, and whether this machine has it, or what it takes; nothing is compiled here."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import sysconfig
import zlib
from collections.abc import Mapping
from ctypes.util import find_library
from importlib.metadata import PackageNotFoundError, distribution, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from launcher.errors import MissingDependencyError

Op = Literal["cpu_adam", "async_io"]
USES: dict[Op, str] = {"cpu_adam": "offload of the optimizer to the host", "async_io": "offload to NVMe"}
PARTS: dict[Op, tuple[str, ...]] = {"cpu_adam": ("cpu_adam",), "async_io": ("pin_memory", "async_io")}
"""What torch builds for each, in a folder of that name."""
STAMP = "loaded.json"
"""Beside what was compiled and has been loaded: for which versions and which processor."""
OWN_PLACES = ("CFLAGS", "LDFLAGS", "CPATH", "C_INCLUDE_PATH", "LIBRARY_PATH")
"""Variables through which a compiler is told of a libaio outside of the system's folders."""


def offload_devices(ds_config: dict[str, Any]) -> tuple[str, str]:
    """Where the optimizer's state and the weights lie between steps: none, cpu or nvme each."""
    zero = ds_config.get("zero_optimization", {})
    optimizer, param = (
        str((zero.get(name) or {}).get("device", "none")) for name in ("offload_optimizer", "offload_param")
    )
    return optimizer, param


def needed_ops(ds_config: dict[str, Any], host_adam: str) -> list[Op]:
    """The operations a run loads.

    Args:
        ds_config: DeepSpeed's configuration.
        host_adam: The recipe's `optim.host_adam`.
    """
    optimizer, param = offload_devices(ds_config)
    ops: list[Op] = []
    if optimizer != "none" and host_adam != "torch":
        ops.append("cpu_adam")
    if "nvme" in (optimizer, param):
        ops.append("async_io")
    return ops


def extensions_folder(env: Mapping[str, str]) -> Path:
    """Where torch keeps what it has compiled. Source: torch/utils/cpp_extension.py, _get_build_directory."""
    given = env.get("TORCH_EXTENSIONS_DIR")
    if given:
        return Path(given)
    cuda = torch_cuda()
    accelerator = "cpu" if cuda is None else f"cu{cuda.replace('.', '')}"
    cache = Path(env.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "torch_extensions" / f"py{sys.version_info.major}{sys.version_info.minor}_{accelerator}"


def torch_cuda() -> str | None:
    """The CUDA that the installed torch was built for, from its version file; None for a build without, or no torch."""
    try:
        path = Path(str(distribution("torch").locate_file("torch/version.py")))
        text = path.read_text(encoding="utf-8")
    except (PackageNotFoundError, OSError):
        return None
    match = re.search(r"^cuda[^=\n]*=\s*'([^']+)'", text, re.MULTILINE)
    return match.group(1) if match else None


def stamp_of(folder: Path) -> dict[str, Any]:
    """What a compiled part depends on, that nobody else looks at: versions, the processor, the very file."""
    library = (folder / f"{folder.name}.so").stat()
    cpu = re.search(r"^(flags|Features)\s*:.*$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    return {
        "versions": {name: version(name) for name in ("torch", "deepspeed")} | {"python": sys.version.split()[0]},
        "cpu": zlib.crc32(cpu.group(0).encode()) if cpu else 0,  # compiled for this processor and perhaps no other
        "library": [library.st_size, library.st_mtime_ns],
    }


def read_stamp(folder: Path) -> dict[str, Any]:
    """What `stamp_of` said when the part was last compiled and loaded; empty where it has not been."""
    try:
        stamp = json.loads((folder / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def is_ready(op: Op, env: Mapping[str, str]) -> bool:
    """Whether an operation has been compiled for this processor and these versions: then no compiler is needed."""
    folders = [extensions_folder(env) / part for part in PARTS[op]]
    try:
        return all(read_stamp(folder) == stamp_of(folder) for folder in folders)
    except (OSError, PackageNotFoundError):
        return False


def missing_packages(op: Op, env: Mapping[str, str] = os.environ) -> list[str]:
    """Debian's names of what this machine lacks to have an operation; empty where it is there, or can be compiled."""
    if is_ready(op, env):
        return []
    missing = []
    if shutil.which(env.get("CXX", "c++")) is None:
        missing.append("g++")
    elif op == "async_io" and shutil.which(_c_compiler(env)) is None:
        missing.append("gcc")
    if find_spec("ninja") is None and shutil.which("ninja") is None:
        missing.append("ninja-build")
    if op == "async_io" and not _has_libaio(env):
        missing.append("libaio-dev")
    return missing


def check_ops(ds_config: dict[str, Any], host_adam: str) -> list[str]:
    """Whether a run can have the operations it needs, before it begins.

    Args:
        ds_config: DeepSpeed's configuration.
        host_adam: The recipe's `optim.host_adam`.

    Returns:
        What is used in place of one that cannot be had.

    Raises:
        MissingDependencyError: The run asked by name for one that cannot be compiled here.
    """
    notes = []
    for op in needed_ops(ds_config, host_adam):
        missing = missing_packages(op)
        if not missing:
            continue
        if op == "cpu_adam" and host_adam == "auto":
            notes.append(
                f"DeepSpeed's CPU Adam cannot be compiled here for want of {', '.join(missing)}: torch's AdamW takes "
                "its place on the host, with the same steps"
            )
            continue
        asked = "optim.host_adam=cpu_adam" if op == "cpu_adam" else "zero_optimization: device nvme"
        instead = "optim.host_adam=auto" if op == "cpu_adam" else "offload to cpu"
        raise MissingDependencyError(
            f"DeepSpeed's {op} cannot be compiled here for want of {', '.join(missing)}",
            asked,
            f"apt-get install {' '.join(missing)}, or use {instead}",
        )
    return notes


def _c_compiler(env: Mapping[str, str]) -> str:
    return (env.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]


def _has_libaio(env: Mapping[str, str]) -> bool:
    if any(env.get(name) for name in OWN_PLACES):
        return True  # it may lie anywhere then: the compiler will tell
    folders = (Path("/usr/include"), Path("/usr/local/include"))
    return find_library("aio") is not None and any((folder / "libaio.h").is_file() for folder in folders)
