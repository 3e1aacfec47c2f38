"""A real Slurm of four machines, each in namespaces of its own on this host."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_cluster import SCRIPT, Cluster, unavailable


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if os.geteuid() != 0:
        unavailable("a Slurm cluster of namespaces needs root")
    # One that is up already (tests/cluster/cluster up 4) is used and left up, for work on these tests.
    own = os.environ.get("CLUSTER_DIR")
    folder = Path(own) if own else tmp_path_factory.mktemp("cluster") / "state"
    env = {**os.environ, "CLUSTER_DIR": str(folder)}
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        env.pop(name, None)
    up = subprocess.run([str(SCRIPT), "up", "4"], env=env, capture_output=True, text=True, timeout=540, check=False)
    try:
        if up.returncode != 0:
            unavailable(f"the cluster does not start: {up.stdout}{up.stderr}")
        yield Cluster(env, folder)
    finally:
        if not own:
            subprocess.run([str(SCRIPT), "down"], env=env, capture_output=True, timeout=120, check=False)
