"""Commands on the machines of the test cluster, and jobs on its Slurm."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    """The test cluster: `ctl`, `node1`, `node2`, `node3`, `node4`."""

    env: dict[str, str]
    folder: Path

    @property
    def path(self) -> str:
        """Of one whose environment is active."""
        return f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"

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

    def do(self, action: str, node: str, *words: str) -> None:
        """`cut`, `slow`, `fill`, `heal`, … (see the script)."""
        subprocess.run([str(SCRIPT), action, node, *words], env=self.env, capture_output=True, timeout=60, check=True)

    def sbatch(
        self,
        script: Path,
        *arguments: str,
        output: Path,
        options: tuple[str, ...] = (),
        folder: Path = ROOT,
        **env: str,
    ) -> str:
        """Submit a batch script from `folder`; returns the job's number."""
        words = ["sbatch", "--parsable", f"--output={output}", *options, str(script), *arguments]
        ours = {"PRETRAIN_LOGS": str(output.parent / "logs"), "PRETRAIN_CHECK": "0", "PRETRAIN_BACKOFF_S": "1"}
        submitted = self.run("ctl", *words, cwd=folder, PATH=self.path, **{**ours, **env})
        assert submitted.returncode == 0, submitted.stderr
        return submitted.stdout.strip()

    def fields(self, job: str) -> dict[str, str]:
        """What Slurm says of a job."""
        shown = self.run("ctl", "scontrol", "show", "job", job).stdout
        return dict(word.partition("=")[::2] for word in shown.split())

    def wait(self, job: str, output: Path, timeout_s: float = 400) -> dict[str, str]:
        """Wait for the end of a job; returns what Slurm says of it."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            fields = self.fields(job)
            if fields.get("JobState") in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"):
                return fields
            time.sleep(0.5)
        told = output.read_text() if output.exists() else ""
        raise AssertionError(f"job {job} does not end: {self.fields(job)}\n{told}")

    def submit(self, script: Path, *arguments: str, output: Path, **how: Any) -> int:
        """Submit a batch script as `sbatch` does, wait for its end, and return its exit code."""
        job = self.sbatch(script, *arguments, output=output, **how)
        return int(self.wait(job, output)["ExitCode"].partition(":")[0])

    def processes(self, words: str) -> dict[str, list[int]]:
        """By node that runs, the pids there of processes whose command line holds these words."""
        found = {}
        for node in ("node1", "node2", "node3", "node4"):
            shown = self.run(node, "ps", "-eo", "pid=,args=")
            lines = [line.strip() for line in shown.stdout.splitlines() if words in line]
            if lines:
                found[node] = [int(line.split()[0]) for line in lines]
        return found
