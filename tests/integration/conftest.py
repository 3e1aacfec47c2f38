from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from launcher.config.compiled_ops import Op, missing_packages


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of the tiny corpus."""
    return tiny.make_shards(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def cpu_adam() -> None:
    """DeepSpeed's CPU Adam, compiled before the first rank waits for it: a minute or two on a fresh machine."""
    compile_op("cpu_adam")


@pytest.fixture(scope="session")
def async_io() -> None:
    """DeepSpeed's asynchronous I/O, compiled: minutes on a fresh machine."""
    compile_op("async_io")


def compile_op(op: Op) -> None:
    missing = missing_packages(op)
    if missing and "REQUIRE_CLUSTER" not in os.environ:
        pytest.skip(f"{op} cannot be compiled for want of {', '.join(missing)}")
    program = f"from launcher.engine.compiled_ops import load_op; load_op({op!r})"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=1500)
