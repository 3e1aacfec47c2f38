"""`pretrain drill` on forked ranks, and once with the command itself."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from forked_lives import ForkedLife

from launcher.drill.bench import Bench
from launcher.drill.drills import DRILLS
from launcher.drill.life import Life

NEED_A_LAUNCHER = {"kill-launcher", "kill-node-launcher", "sigterm", "clock-jump"}
IN_CI = {
    "sigterm-rank": "zero2",
    "sigusr1": "zero3",
    "stop-rank": "zero2",
    "kill-in-save-writing": "zero2",
    "kill-in-save-manifest": "zero2",
    "kill-in-save-rename": "zero1",
    "fill-disk": "zero2",
    "truncate-checkpoint": "zero2",
    "flip-checkpoint": "zero3",
    "delete-checkpoint": "zero2",
    "corrupt-shard": "zero2",
    "nan": "zero3",
    "slow-rank": "zero2",
    "two-jobs": "zero2",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the drills of this module share their shards and undisturbed runs."""
    return tmp_path_factory.mktemp("drills")


def hold(name: str, folder: Path, config: str, times: int = 1, seed: int = 0) -> str:
    lives: list[ForkedLife] = []

    def start(words: Sequence[str], env: Mapping[str, str], out: Path) -> Life:
        lives.append(ForkedLife(words, env, out, 2))
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


@pytest.mark.parametrize(("name", "config"), IN_CI.items(), ids=list(IN_CI))
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


def test_every_drill_is_held_here_or_with_the_command() -> None:
    assert set(DRILLS) == NEED_A_LAUNCHER | set(IN_CI) | {"kill-rank"}
