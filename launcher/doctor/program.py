"""The whole of `pretrain doctor`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from launcher.config.compiled_ops import torch_cuda
from launcher.doctor.devices import ask_driver, look_at_devices
from launcher.doctor.findings import Finding
from launcher.doctor.job import Job, look_at_job
from launcher.doctor.machine import (
    look_at_environment,
    look_at_hub,
    look_at_limits,
    look_at_ops,
    look_at_programs,
    look_at_reading,
)
from launcher.doctor.versions import look_at_optional, look_at_versions


def examine(job: Job | None, env: Mapping[str, str]) -> list[Finding]:
    """Look at this machine and, where one is given, at a job; nothing is compiled, changed or imported for it.

    Args:
        job: What is to be run.
        env: The environment.

    Raises:
        UsageError: The job's numbers contradict each other.
    """
    return list(_look(job, env))


def _look(job: Job | None, env: Mapping[str, str]) -> Iterator[Finding]:
    yield from look_at_versions()
    devices = ask_driver()
    yield from look_at_devices(devices, torch_cuda())
    yield from look_at_reading()
    yield from look_at_ops(env)
    yield from look_at_programs()
    yield from look_at_optional()
    yield from look_at_limits()
    yield from look_at_environment(env, Path.home(), Path.cwd())
    if job is None:
        yield from look_at_hub(env)
    else:
        smallest = min((device.memory_bytes for device in devices.devices), default=None)
        yield from look_at_job(job, env, smallest)
