"""Accelerators, their driver, and which torch was built for them: asked of the driver's own program, never of torch."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from launcher.doctor.findings import Finding

QUERY = ("nvidia-smi", "--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader,nounits")
PATIENCE_S = 20.0
"""A driver that does not answer by then hangs (assumption; a first call without persistence mode takes seconds)."""
OLDEST_CAPABILITY = {12: 5.0, 13: 7.5}
"""Major version of CUDA → the oldest compute capability that torch's builds of it run on. Source: NVIDIA's CUDA 13.0
release notes, which drop Maxwell, Pascal and Volta."""
BF16_CAPABILITY = 8.0
"""Ampere is the first that multiplies bf16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One accelerator."""

    name: str
    memory_bytes: int
    capability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Devices:
    """What the driver of this machine says."""

    devices: tuple[Device, ...]
    driver_cuda: tuple[int, int] | None
    """The newest CUDA the driver can run; None without a driver."""
    trouble: str = ""
    """Why the driver's program did not answer."""


def ask_driver() -> Devices:
    """Ask `nvidia-smi`; a machine without it has no accelerator."""
    if shutil.which(QUERY[0]) is None:
        has_driver = Path("/proc/driver/nvidia/version").is_file()
        return Devices(
            devices=(), driver_cuda=None, trouble="a driver is loaded, but nvidia-smi is missing" if has_driver else ""
        )
    try:
        listed = subprocess.run(QUERY, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        header = subprocess.run(QUERY[:1], capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    except subprocess.TimeoutExpired:
        return Devices(devices=(), driver_cuda=None, trouble=f"nvidia-smi does not answer within {PATIENCE_S:.0f} s")
    except OSError as error:
        return Devices(devices=(), driver_cuda=None, trouble=f"nvidia-smi cannot be run: {error.strerror}")
    if listed.returncode != 0:
        said = (listed.stdout + listed.stderr).strip().splitlines()
        return Devices(
            devices=(), driver_cuda=None, trouble=f"nvidia-smi fails: {said[0] if said else 'without a word'}"
        )
    match = re.search(r"CUDA Version:\s*([0-9]+)\.([0-9]+)", header.stdout)
    cuda = (int(match.group(1)), int(match.group(2))) if match else None
    return Devices(devices=tuple(_read(listed.stdout)), driver_cuda=cuda)


def _read(text: str) -> Iterator[Device]:
    for line in text.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 3:
            name, memory, capability = fields
            yield Device(
                name=name,
                memory_bytes=int(float(memory)) << 20 if memory.replace(".", "").isdigit() else 0,
                capability=float(capability) if capability.replace(".", "").isdigit() else 0.0,
            )


def look_at_devices(found: Devices, cuda: str | None) -> Iterator[Finding]:
    """The accelerators here, and whether torch and driver fit them.

    Args:
        found: What the driver says.
        cuda: What torch was built for.
    """
    built = f"torch is built for CUDA {cuda}" if cuda else "torch is a build without CUDA"
    if found.trouble:
        fix = "ask who runs this machine to mend its driver (nvidia-smi must answer)"
        yield Finding(name="accelerator", state="note", found=found.trouble, fix=fix)
    elif not found.devices:
        cores = len(os.sched_getaffinity(0))
        told = f"none here, {cores} cores: a run computes on them, through gloo; {built}"
        yield Finding(name="accelerator", state="note", found=told, fix="on a login node: none is needed")
    for number, device in enumerate(found.devices):
        precision = "bf16" if device.capability >= BF16_CAPABILITY else "fp16 (no bf16)"
        told = f"{device.name}, {device.memory_bytes / 1e9:.0f} GB, {precision}"
        yield Finding(name=f"cuda:{number}", state="ok", found=told)
    if found.devices:
        yield _fit(found, cuda)


def _fit(found: Devices, cuda: str | None) -> Finding:
    """Whether torch can use the devices."""
    name = "torch's CUDA"
    if cuda is None:
        told = f"{len(found.devices)} accelerators, and torch is a build without CUDA: it would compute on the cores"
        return Finding(name=name, state="wrong", found=told, fix="pip install torch from the index of a CUDA build")
    major = int(cuda.partition(".")[0])
    if found.driver_cuda is not None and found.driver_cuda[0] < major:
        driver = f"{found.driver_cuda[0]}.{found.driver_cuda[1]}"
        told = f"torch is built for CUDA {cuda}, and the driver runs {driver} at most"
        return Finding(
            name=name, state="wrong", found=told, fix=f"a newer driver, or a build of torch for CUDA {driver}"
        )
    oldest = OLDEST_CAPABILITY.get(major, 0.0)
    old = sorted({device.name for device in found.devices if 0 < device.capability < oldest})
    if old:
        told = f"torch's build for CUDA {cuda} has no code for {', '.join(old)}"
        return Finding(name=name, state="wrong", found=told, fix="a build of torch for an older CUDA")
    return Finding(name=name, state="ok", found=f"{cuda}, and the driver runs it")
