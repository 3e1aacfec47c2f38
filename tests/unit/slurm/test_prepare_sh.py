"""`slurm/prepare.sh`: which share a task builds, and how often it is begun anew."""

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
    ended, told = slurm.run("prepare.sh", "corpus.jsonl", **restarts)
    assert (ended, slurm.calls()) == (code, calls), told
    assert ("given up after 6 lives" in told) == (code == 75)


def array(number: int, first: int, last: int, count: int, step: int = 1) -> dict[str, str]:
    told = {"ID": number, "MIN": first, "MAX": last, "COUNT": count, "STEP": step}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in told.items()}


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({}, "--task 0 --tasks 1"),
        (array(3, 0, 15, 16), "--task 3 --tasks 16"),
        (array(9, 1, 13, 4, step=4), "--task 2 --tasks 4"),
        (array(5, 5, 5, 1), "--task 0 --tasks 1"),
    ],
)
def test_each_task_of_an_array_builds_its_share(variables: dict[str, str], words: str, slurm: FakeSlurm) -> None:
    code, told = slurm.run("prepare.sh", "corpus.jsonl", FAKE_CODE="0", **variables)
    assert code == 0, told
    assert slurm.steps()[-1].endswith(words)


def test_an_array_with_gaps_is_refused(slurm: FakeSlurm) -> None:
    """--array=0,2,5: nobody would build what tasks 1, 3 and 4 are to build."""
    code, told = slurm.run("prepare.sh", "corpus.jsonl", **array(2, 0, 5, 3))
    assert code == 2
    assert "an array with gaps: give a whole range" in told
    assert slurm.steps() == []
