"""`slurm/prepare.sh`: how often a task is begun anew."""

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


@pytest.mark.parametrize("name", ["PRETRAIN_RESTARTS", "PRETRAIN_BACKOFF_S"])
@pytest.mark.parametrize("value", ["abc", "-1", "1.5", "010"])
def test_a_budget_that_is_no_number_is_refused_before_anything_runs(name: str, value: str, slurm: FakeSlurm) -> None:
    ended, told = slurm.run("prepare.sh", "corpus.jsonl", **{name: value})
    assert ended == 2
    assert f"{name} '{value}' is no whole number" in told
    assert slurm.calls() == []
