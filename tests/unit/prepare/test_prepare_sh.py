"""`slurm/prepare.sh`: which share of the parts a task of an array builds. (On a real Slurm: `tests/cluster`.)"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def run_script(folder: Path, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    (folder / "launcher").mkdir()
    (folder / "launcher" / "cli.py").touch()
    shutil.copytree(ROOT / "slurm", folder / "slurm", ignore=shutil.ignore_patterns("prologue.sh"))
    (folder / "bin").mkdir()
    python = folder / "bin" / "python"
    python.write_text('#!/bin/sh\necho "asked: $*"\n')
    python.chmod(0o755)
    environment = {"PATH": f"{folder / 'bin'}:/usr/bin:/bin", "SLURM_SUBMIT_DIR": str(folder), **variables}
    words = ["bash", str(folder / "slurm" / "prepare.sh"), "c.jsonl", "--out", "o"]
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60)


def array(task: int, first: int, last: int, step: int, count: int) -> dict[str, str]:
    numbers = {"ID": task, "MIN": first, "MAX": last, "STEP": step, "COUNT": count}
    return {f"SLURM_ARRAY_TASK_{name}": str(number) for name, number in numbers.items()}


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({}, "--task 0 --tasks 1"),
        (array(0, 0, 15, 1, 16), "--task 0 --tasks 16"),
        (array(5, 3, 5, 1, 3), "--task 2 --tasks 3"),
        (array(6, 0, 8, 2, 5), "--task 3 --tasks 5"),
    ],
    ids=["one machine", "from 0", "from 3", "every second number"],
)
def test_a_task_builds_its_share_whatever_the_array_counts_from(
    tmp_path: Path, variables: dict[str, str], told: str
) -> None:
    ended = run_script(tmp_path, variables)
    assert ended.returncode == 0, ended.stderr
    assert f"asked: -m launcher.cli prepare c.jsonl --out o {told}" in ended.stdout


def test_an_array_with_holes_is_refused_as_nobody_would_build_their_parts(tmp_path: Path) -> None:
    ended = run_script(tmp_path, array(4, 1, 9, 1, 3))
    assert ended.returncode == 2
    assert "the array's 3 tasks do not follow one another" in ended.stderr
    assert "asked" not in ended.stdout
