"""What DeepSpeed has to compile for a run, and whether this machine has what that takes; nothing is compiled here."""

from __future__ import annotations

import os
import shutil
import sysconfig
from ctypes.util import find_library
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from launcher.errors import MissingDependencyError

Op = Literal["cpu_adam", "async_io"]
USES: dict[Op, str] = {"cpu_adam": "offload of the optimizer to the host", "async_io": "offload to NVMe"}
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


def missing_packages(op: Op) -> list[str]:
    """Debian's names of what this machine lacks to compile an operation; empty where it can be tried."""
    missing = []
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        missing.append("g++")
    elif op == "async_io" and shutil.which(_c_compiler()) is None:
        missing.append("gcc")
    if find_spec("ninja") is None and shutil.which("ninja") is None:
        missing.append("ninja-build")
    if op == "async_io" and not _has_libaio():
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


def _c_compiler() -> str:
    return (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]


def _has_libaio() -> bool:
    if any(os.environ.get(name) for name in OWN_PLACES):
        return True  # it may lie anywhere then: the compiler will tell
    folders = (Path("/usr/include"), Path("/usr/local/include"))
    return find_library("aio") is not None and any((folder / "libaio.h").is_file() for folder in folders)
