"""What of this environment a rank on another machine needs, what it must never get, and what nobody may read."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, MutableMapping

from launcher.errors import MissingDependencyError, UsageError

FORWARDED = frozenset(
    {
        *("PATH", "LD_LIBRARY_PATH", "LD_PRELOAD", "PYTHONPATH", "VIRTUAL_ENV", "TMPDIR", "XDG_CACHE_HOME", "LANG"),
        *("CC", "CXX", "MAX_JOBS", "I_MPI_FABRICS"),
    }
)
FORWARDED_BEGINNINGS = (
    *("NCCL_", "RCCL_", "GLOO_", "UCX_", "UCC_", "FI_", "OFI_", "SHARP_", "OMPI_MCA_"),
    *("TORCH", "PYTORCH_", "TRITON_", "DS_", "DEEPSPEED_", "HF_", "TRANSFORMERS_", "TOKENIZERS_", "PRETRAIN_"),
    *("CUDA_", "HIP_", "HSA_", "MIOPEN_", "PYTHON", "LC_"),
    *("OMP_", "MKL_", "KMP_", "GOMP_", "OPENBLAS_", "NUMEXPR_"),
)
"""Variables that decide how a rank computes and communicates. Anything else is named with `--env`."""
OF_ONE_PROCESS = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "CROSS_RANK", "CROSS_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT", "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"),
    "PYTHONSTARTUP",
)
"""True of one process or one machine: on another they would be lies."""
NOT_OUTSIDE = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}
"""Training needs nothing from outside: the libraries below are told not to ask, unless the user says otherwise."""

_NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")
_SECRET = re.compile(r"TOKEN(?!IZERS)|KEY|SECRET|PASS|_PWD$|CREDENTIAL|AUTH|COOKIE", re.IGNORECASE)
_SECRET_VALUE = re.compile(r"^(hf_|ghp_|sk-)[A-Za-z0-9_-]{16,}$|://[^/\s:@]+:[^/\s@]+@")


def stay_inside(env: MutableMapping[str, str]) -> None:
    """Tell the hub's client and others, before they are imported, to ask nobody outside and to report to nobody."""
    for name, value in NOT_OUTSIDE.items():
        env.setdefault(name, value)


def refuse_unused_gpus(device: str, env: Mapping[str, str]) -> None:
    """Refuse to train on a CPU where Slurm gave this step GPUs: the queue was waited for in vain.

    Args:
        device: Kind of device DeepSpeed found: `cuda`, `cpu`, …
        env: The environment.

    Raises:
        MissingDependencyError: There are GPUs, and torch does not see them.
    """
    given = env.get("SLURM_STEP_GPUS") or env.get("SLURM_JOB_GPUS")
    if device == "cpu" and given:
        raise MissingDependencyError(
            f"Slurm gave this rank GPUs ({given}), and torch sees none",
            os.uname().nodename,
            "install the build of torch for them, look at nvidia-smi there; or ask for no GPUs",
        )


def is_secret(name: str, value: str = "") -> bool:
    """Whether a variable must not be seen: by its name, or by a value that is a known kind of token or has a login."""
    return bool(_SECRET.search(name) or _SECRET_VALUE.search(value))


def forwarded(env: Mapping[str, str], asked: Iterable[str] = ()) -> dict[str, str]:
    """The variables that go to ranks on other machines, by name in order.

    Args:
        env: The environment of the one who launches.
        asked: `NAME`, taken from `env`, or `NAME=value`.

    Raises:
        UsageError: A name is none, or is not in `env`.
    """
    chosen = dict(NOT_OUTSIDE)
    for name in env:
        if (name in FORWARDED or name.startswith(FORWARDED_BEGINNINGS)) and name not in OF_ONE_PROCESS:
            chosen[name] = env[name]
    for word in asked:
        name, equals, value = word.partition("=")
        if not _NAME.match(name):
            raise UsageError(f"{word!r} is no variable", "--env", "write NAME or NAME=value")
        if not equals and name not in env:
            raise UsageError(f"{name} is not set here", "--env", f"set it, or write {name}=value")
        chosen[name] = value if equals else env[name]
    # A function that bash exported is a variable whose name no other shell can set.
    return {name: chosen[name] for name in sorted(chosen) if _NAME.match(name)}


def described(variables: Mapping[str, str]) -> str:
    """Variables for a log: `NAME=value` of each, secrets without their value."""
    return " ".join(
        f"{name}={'(hidden)' if is_secret(name, value) else value}" for name, value in sorted(variables.items())
    )
