"""`slurm/prepare.sh`: a task's share of an array, and how often it is begun anew."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_slurm import FakeSlurm


@pytest.fixture
def slurm(tmp_path: Path) -> FakeSlurm:
    """Whose `python` says how it was called, and ends with 75."""
    fake = FakeSlurm.make(tmp_path)
    python = tmp_path / "bin" / "python"
    python.write_text(f'#!/bin/sh\necho "$@" >>"{tmp_path}/steps"\nexit "${{FAKE_CODE:-75}}"\n')
    python.chmod(0o755)
    return fake


@pytest.mark.parametrize(
    ("life", "code", "calls"),
    [
        (0, 0, ["requeue 7"]),
        (1, 0, ["requeue 7", "update JobId=7 StartTime=now+20"]),
        (4, 0, ["requeue 7", "update JobId=7 StartTime=now+160"]),
        (5, 75, []),
    ],
)
def test_a_file_system_that_refuses_for_good_does_not_requeue_for_ever(
    life: int, code: int, calls: list[str], slurm: FakeSlurm
) -> None:
    restarts = {"SLURM_RESTART_COUNT": str(life)} if life else {}
    slurm.describe(Restarts=str(life))
    ended, told = slurm.run("prepare.sh", "corpus.jsonl", **restarts)
    assert (ended, slurm.calls()) == (code, calls), told
    assert ("given up after 6 lives" in told) == (code == 75)


@pytest.mark.parametrize("name", ["PRETRAIN_RESTARTS", "PRETRAIN_BACKOFF_S"])
@pytest.mark.parametrize("value", ["abc", "-1", "1.5", "010"])
def test_a_budget_that_is_no_number_is_refused_before_anything_runs(name: str, value: str, slurm: FakeSlurm) -> None:
    ended, told = slurm.run("prepare.sh", "corpus.jsonl", **{name: value})
    assert ended == 2
    assert f"{name} '{value}' is no whole number" in told
    assert slurm.calls() == []


def array(task: int, first: int, last: int, step: int, count: int) -> dict[str, str]:
    numbers = {"ID": task, "MIN": first, "MAX": last, "STEP": step, "COUNT": count}
    tasks = {f"SLURM_ARRAY_TASK_{name}": str(number) for name, number in numbers.items()}
    return {"SLURM_ARRAY_JOB_ID": "5", **tasks}


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
    slurm: FakeSlurm, tmp_path: Path, variables: dict[str, str], told: str
) -> None:
    slurm.describe(ArrayJobId="5")
    ended, output = slurm.run("prepare.sh", "c.jsonl", "--out", "o", FAKE_CODE="0", **variables)
    assert ended == 0, output
    assert (tmp_path / "steps").read_text() == f"-m launcher.cli prepare c.jsonl --out o {told}\n"


def test_an_array_with_holes_is_refused_as_nobody_would_build_their_parts(slurm: FakeSlurm, tmp_path: Path) -> None:
    slurm.describe(ArrayJobId="5")
    ended, output = slurm.run("prepare.sh", "c.jsonl", "--out", "o", **array(4, 1, 9, 1, 3))
    assert ended == 2
    assert "the array's 3 tasks do not follow one another" in output
    assert not (tmp_path / "steps").exists()


def test_submitted_by_a_task_of_an_array_it_builds_everything(slurm: FakeSlurm, tmp_path: Path) -> None:
    ended, output = slurm.run("prepare.sh", "c.jsonl", "--out", "o", FAKE_CODE="0", **array(3, 0, 3, 1, 4))
    assert ended == 0, output
    assert (tmp_path / "steps").read_text() == "-m launcher.cli prepare c.jsonl --out o --task 0 --tasks 1\n"
