"""Commands of Slurm that only write down how they were called, for tests of what the batch scripts decide."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from slurm_cluster import ROOT

SCONTROL = """
case "$1 $2" in
"show hostnames") echo "$3" | tr , '\\n' ;;
"show job") cat {folder}/job ;;
*) echo "$*" >>{folder}/calls ;;
esac
"""
SRUN = """
echo "$*" | tr "\\n" " " | sed "s/$/\\n/" >>{folder}/steps
case "$*" in
*launcher.life*) echo "20000 ${{FAKE_STEP:-0}}" ;;
*launcher.probe*) exec {python} -c 'import time; time.sleep('${{FAKE_CHECK_S:-0}}')' ;;
*launcher.train*) exit "${{FAKE_CODE:-0}}" ;;
*)
    for word in "$@"; do
        case $word in --nodelist=*) grep -qxF -- "${{word#*=}}" {folder}/ill && exit 1 ;; esac
    done
    ;;
esac
exit 0
"""
SINFO = "cat {folder}/nodes\n"


@dataclass(frozen=True)
class FakeSlurm:
    """A job of two nodes, node1 and node2, in a partition of four; what is asked of Slurm is kept in a folder."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> FakeSlurm:
        """Write the commands."""
        (folder / "bin").mkdir(parents=True)
        for name, text in (("scontrol", SCONTROL), ("srun", SRUN), ("sinfo", SINFO)):
            command = folder / "bin" / name
            filled = text.format(folder=shlex.quote(str(folder)), python=shlex.quote(sys.executable))
            command.write_text(f"#!/usr/bin/env bash\n{filled}")
            command.chmod(0o755)
        (folder / "ill").touch()
        fake = cls(folder)
        (fake.project / "slurm").mkdir(parents=True)
        (fake.project / "launcher").mkdir()
        for script in (ROOT / "slurm").glob("*.sh"):
            if script.name != "prologue.sh":  # of the one who runs these tests
                (fake.project / "slurm" / script.name).symlink_to(script)
        for name in ("train.py", "cli.py"):
            (fake.project / "launcher" / name).touch()
        fake.describe()
        fake.states(node1="alloc", node2="alloc", node3="idle", node4="idle")
        return fake

    @property
    def project(self) -> Path:
        """Where the job was submitted: nothing but the scripts, and files of the names they look for."""
        return self.folder / "my project"

    def describe(self, **fields: str) -> None:
        """What `scontrol show job` says besides that it runs."""
        told = {"JobState": "RUNNING", "ReqNodeList": "(null)", "ExcNodeList": "(null)", "NumTasks": "2", **fields}
        (self.folder / "job").write_text("".join(f"   {name}={value} Other=x\n" for name, value in told.items()))

    def states(self, **states: str) -> None:
        """The nodes of the partition, and how they are."""
        (self.folder / "nodes").write_text("".join(f"{name} {state}\n" for name, state in states.items()))

    def fails(self, *nodes: str) -> None:
        """On these nothing can be started."""
        (self.folder / "ill").write_text("".join(f"{node}\n" for node in nodes))

    def calls(self) -> list[str]:
        """What was asked of scontrol but questions."""
        return self._lines("calls")

    def steps(self) -> list[str]:
        """The command lines of srun."""
        return self._lines("steps")

    def signal_during(self, program: str, process: subprocess.Popen[str]) -> str:
        """Give a batch script the time limit's warning as soon as it starts a program; returns all that it said."""
        begun = self._num_steps(program)
        until = time.monotonic() + 60
        while self._num_steps(program) == begun and time.monotonic() < until:
            time.sleep(0.1)
        process.send_signal(signal.SIGUSR1)
        told, _ = process.communicate(timeout=60)
        return told

    def environment(self, **variables: str) -> dict[str, str]:
        """Of the batch script."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "PRETRAIN_"))}
        python = Path(sys.executable).parent
        return {
            **own,
            "PATH": f"{self.folder}/bin:{python}:{os.environ['PATH']}",
            "SLURM_SUBMIT_DIR": str(self.project),
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "node1,node2",
            "SLURM_JOB_PARTITION": "batch",
            "SLURM_TASKS_PER_NODE": "1(x2)",
            "SLURMD_NODENAME": "node1",
            "PRETRAIN_LOGS": str(self.folder / "logs"),
            "PRETRAIN_CHECK": "0",
            **variables,
        }

    def start(self, script: str, *words: str, **variables: str) -> subprocess.Popen[str]:
        """Start one of the folder `slurm/`, as the leader of a group of its own."""
        return subprocess.Popen(
            ["bash", str(ROOT / "slurm" / script), *words],
            cwd=self.project,
            env=self.environment(**variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, script: str, *words: str, **variables: str) -> tuple[int, str]:
        """Run one to its end; returns its exit code and all it said."""
        process = self.start(script, *words, **variables)
        told, _ = process.communicate(timeout=60)
        return process.returncode, told

    def _num_steps(self, program: str) -> int:
        return sum(program in step for step in self.steps())

    def _lines(self, name: str) -> list[str]:
        file = self.folder / name
        return file.read_text().splitlines() if file.exists() else []
