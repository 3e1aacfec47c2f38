"""Commands on the machines of the test cluster, and jobs on its Slurm."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tests" / "cluster" / "cluster"


def unavailable(reason: str) -> None:
    """Skip, or fail where the gate says that everything must be here."""
    if os.environ.get("REQUIRE_CLUSTER"):
        pytest.fail(reason)
    pytest.skip(reason)


@dataclass(frozen=True)
class Cluster:
    """The test cluster: `ctl`, `node1`, `node2`, `node3`."""

    env: dict[str, str]
    folder: Path

    def run(
        self, node: str, *command: str, timeout: int = 300, cwd: Path = ROOT, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a machine."""
        return subprocess.run(
            [str(SCRIPT), "exec", node, *command],
            cwd=cwd,
            env={**self.env, **env},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def submit(
        self,
        script: Path,
        *arguments: str,
        output: Path,
        options: tuple[str, ...] = (),
        folder: Path = ROOT,
        **env: str,
    ) -> int:
        """Submit a batch script from `folder`, wait for its end, and return its exit code."""
        words = ["sbatch", "--parsable", f"--output={output}", *options, str(script), *arguments]
        path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
        logs = str(output.parent / "logs")
        submitted = self.run("ctl", *words, cwd=folder, PATH=path, **{"PRETRAIN_LOGS": logs, **env})
        assert submitted.returncode == 0, submitted.stderr
        job = submitted.stdout.strip()
        deadline = time.monotonic() + 400
        while time.monotonic() < deadline:
            shown = self.run("ctl", "scontrol", "show", "job", job).stdout
            fields = dict(word.partition("=")[::2] for word in shown.split())
            if fields.get("JobState") in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"):
                return int(fields["ExitCode"].partition(":")[0])
            time.sleep(0.5)
        told = output.read_text() if output.exists() else ""
        raise AssertionError(f"job {job} does not end: {shown}\n{told}")
