"""`pretrain drill` on forked ranks, and once with the command itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from forked_lives import ForkedLife

from launcher.cli import main
from launcher.drill.bench import Bench
from launcher.drill.drills import DRILLS
from launcher.drill.life import CommandLife, Life

ROOT = Path(__file__).resolve().parents[2]
NEED_A_LAUNCHER = ("kill-launcher", "kill-node-launcher", "sigterm", "clock-jump")
HELD = {  # with the ZeRO stage; what the tests beside this file show as well, or is alike but for the place, is slow
    "stop-rank": "zero2",
    "kill-in-save-rename": "zero2",
    "fill-disk": "zero2",
    "flip-checkpoint": "zero2",
    "cut-shard": "zero2",
}
HELD_IN_ALL = {
    "sigterm-rank": "zero2",
    "sigusr1": "zero3",
    "kill-in-save-writing": "zero2",
    "kill-in-save-manifest": "zero1",
    "kill-in-save-tidying": "zero2",
    "truncate-checkpoint": "zero2",
    "delete-checkpoint": "zero3",
    "corrupt-shard": "zero2",
    "nan": "zero3",
    "slow-rank": "zero2",
    "two-jobs": "zero2",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the drills of this module share their shards and undisturbed runs."""
    return tmp_path_factory.mktemp("drills")


def hold(name: str, folder: Path, config: str, times: int = 1, seed: int = 0, by_command: bool = False) -> str:
    """A drill on forked ranks; `by_command`: the life that is disturbed is started by `deepspeed`."""
    lives: list[ForkedLife | CommandLife] = []

    def start(words: Sequence[str], env: Mapping[str, str], out: Path) -> Life:
        kind = CommandLife if by_command and out.name == "first" else ForkedLife
        lives.append(kind(words, env, out, 2))
        return lives[-1]

    try:
        return DRILLS[name].run(Bench(name, folder, start, config, 2, times, seed))
    finally:
        for life in lives:
            life.end_all()


def skip_unless_possible(name: str) -> None:
    lack = DRILLS[name].needs()
    if lack and os.environ.get("REQUIRE_CLUSTER"):
        pytest.fail(f"the gate holds every drill: {lack}")
    if lack:
        pytest.skip(lack)


@pytest.mark.parametrize(
    ("name", "config"),
    [*HELD.items(), *(pytest.param(*row, marks=pytest.mark.slow) for row in HELD_IN_ALL.items())],
    ids=[*HELD, *HELD_IN_ALL],
)
def test_a_drill_holds(name: str, config: str, folder: Path) -> None:
    skip_unless_possible(name)
    assert hold(name, folder, config)


def test_a_rank_killed_at_random_moments_five_times_in_a_row_loses_nothing(folder: Path) -> None:
    assert hold("kill-rank", folder, "zero2", times=5)


@pytest.mark.slow
@pytest.mark.parametrize("config", ["zero1", "zero3"])
def test_a_rank_killed_at_random_moments_fifty_times_loses_nothing(config: str, folder: Path) -> None:
    for seed in range(10):  # a run has room for five
        assert hold("kill-rank", folder, config, times=5, seed=seed)


def test_ranks_whose_launcher_is_killed_lose_nothing(folder: Path) -> None:
    assert hold("kill-launcher", folder, "zero2", by_command=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", NEED_A_LAUNCHER)
def test_a_drill_holds_with_the_command_itself(name: str, folder: Path) -> None:
    skip_unless_possible(name)
    words = [sys.executable, "-m", "launcher.cli", "drill", name, "--json", "--out", str(folder)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    outcome = json.loads(done.stdout)
    assert (done.returncode, outcome["outcome"]) == (0, "holds"), outcome["told"]


def test_every_drill_is_held() -> None:
    assert set(DRILLS) == {*NEED_A_LAUNCHER, *HELD, *HELD_IN_ALL, "kill-rank"}


def test_a_drill_that_there_is_not_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["drill", "kill-rnak"]) == 2
    assert "did you mean 'kill-rank'?" in capsys.readouterr().err
    assert main(["drill", "--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(DRILLS)
