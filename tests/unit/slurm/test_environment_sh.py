"""`slurm/environment.sh`: which python the ranks get, and what of Slurm's they see."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from slurm_cluster import ROOT


def python_in(folder: Path) -> Path:
    """A folder with a command `python`."""
    folder.mkdir(parents=True)
    (folder / "python").write_text("#!/bin/sh\n")
    (folder / "python").chmod(0o755)
    return folder


@pytest.mark.parametrize(
    ("prologue", "chosen", "reason"),
    [
        ("", "venv", "nothing was loaded"),
        ("PATH={module}:$PATH", "venv", "a module brings a python of its own: the project's comes after it"),
        ("PATH={module}:$PATH; VIRTUAL_ENV={module}", "module", "the prologue activated an environment"),
        ("PATH={module}:$PATH; CONDA_PREFIX={module}", "module", "likewise, of conda"),
        (": $not_set; PATH={module}:$PATH", "venv", "modules read variables that nobody set"),
        ("cd /; PATH={module}:$PATH", "venv", "and may end in another folder"),
    ],
)
def test_the_projects_environment_comes_after_modules_and_gives_way_to_one_that_was_chosen(
    prologue: str, chosen: str, reason: str, tmp_path: Path
) -> None:
    root = tmp_path / "my project"
    places = {"venv": python_in(root / ".venv" / "bin"), "module": python_in(tmp_path / "modules")}
    # As `python -m venv` writes it: it puts itself first, once, and takes an older one off.
    (root / ".venv" / "bin" / "activate").write_text(f'VIRTUAL_ENV="{root}/.venv"; PATH="$VIRTUAL_ENV/bin:$PATH"\n')
    (root / "mine.sh").write_text(prologue.format(module=places["module"]))
    script = 'set -uo pipefail; root=$PWD prologue=mine.sh; . "$0"; command -v python; pwd'
    done = subprocess.run(
        ["bash", "-c", script, str(ROOT / "slurm" / "environment.sh")],
        cwd=root,
        env={"PATH": "/usr/bin:/bin", "VIRTUAL_ENV": "of-the-submitting-shell", "CONDA_PREFIX": "/base"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(places[chosen] / "python"), str(root)], reason


ARRAY = {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_MAX": "3"}
PARTS = {
    "SLURM_HET_SIZE": "2",
    "SLURM_PACK_SIZE": "2",
    "SLURM_NTASKS_HET_GROUP_1": "1",
    "SLURM_NTASKS_PACK_GROUP_1": "1",
}
BOUND = {"SLURM_CPU_BIND": "quiet,mask_cpu:0x8", "SLURM_CPU_BIND_LIST": "0x8", "SLURM_MEM_BIND": "quiet,none"}


@pytest.mark.parametrize(
    ("job", "variables", "stays", "reason"),
    [
        ("NtasksPerTRES=1", {"SLURM_NTASKS_PER_GPU": "1"}, True, "its own"),
        ("NtasksPerTRES:1", {"SLURM_NTASKS_PER_GPU": "1"}, True, "its own, as older versions write it"),
        ("NtasksPerTRES:0", {"SLURM_NTASKS_PER_GPU": "1"}, False, "of another: older versions tell of none as well"),
        ("NumTasks=3 CPUs/Task=1", {"SLURM_NTASKS": "3", "SLURM_TASKS_PER_NODE": "1(x2),1"}, True, "its own"),
        ("NumTasks=1 CPUs/Task=1", {"SLURM_NTASKS": "1", "SLURM_TASKS_PER_NODE": "64"}, False, "of a shell on a node"),
        ("", {"SLURM_STEP_ID": "0", "SLURM_DISTRIBUTION": "block", **BOUND}, False, "of a shell on a node"),
        ("", BOUND, True, "the user's wish"),
        ("ArrayJobId=5 ArrayTaskId=3 JobName=x", ARRAY, True, "a task of an array"),
        ("JobName=x", ARRAY, False, "submitted by a task of an array"),
        ("ArrayJobId=50 ArrayTaskId=3 JobName=x", ARRAY, False, "likewise"),
        ("Requeue=1 Restarts=2 BatchFlag=1", {"SLURM_RESTART_COUNT": "2"}, True, "its own"),
        ("Requeue=1 Restarts=0 BatchFlag=1", {"SLURM_RESTART_COUNT": "2"}, False, "of one that had been requeued"),
        ("HetJobId=7 HetJobOffset=0", PARTS, True, "its own"),
        ("", PARTS, False, "submitted by one of several parts"),
    ],
)
def test_what_slurm_does_not_know_of_this_job_is_left_out(
    job: str, variables: dict[str, str], stays: bool, reason: str, tmp_path: Path
) -> None:
    programs = python_in(tmp_path / "bin")
    (programs / "scontrol").write_text(f"#!/bin/sh\necho '   {job} '\n")
    (programs / "scontrol").chmod(0o755)
    script = 'set -uo pipefail; root=$PWD prologue=none; . "$0"; forget_other_job >&2; env'
    done = subprocess.run(
        ["bash", "-c", script, str(ROOT / "slurm" / "environment.sh")],
        cwd=tmp_path,
        env={"PATH": f"{programs}:/usr/bin:/bin", "SLURM_JOB_ID": "7", **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    there = dict(line.split("=", 1) for line in done.stdout.splitlines())
    asked = {name: value for name, value in variables.items() if name != "SLURM_TASKS_PER_NODE"}
    assert {name: there.get(name) for name in asked} == {
        name: value if stays else None for name, value in asked.items()
    }, reason
