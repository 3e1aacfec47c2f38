"""How much of a run's time went into steps that count."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from launcher.cli import main
from launcher.engine.ledger import NAME
from launcher.errors import CheckpointError
from launcher.goodput import best_interval, goodput


def write_life(run: Path, number: int, *, first: int, last: int, taken: int, saves: int, why: str | None) -> None:
    """A life of 10 s of start, and for each step 1 s and 0.1 s of waiting for data; a save takes 2 s."""
    common: dict[str, Any] = {"life": number, "at": "2026-01-01T00:00:00+00:00"}
    begun = {"step": first, "saved_step": first, "num_steps": 0, "num_checkpoints": 0, "elapsed_s": 10.0}
    spent = {
        "start": 10.0,
        "steps": 1.0 * taken,
        "data_wait": 0.1 * taken,
        "evaluation": 0.0,
        "checkpoint": 2.0 * saves,
    }
    elapsed = sum(spent.values()) + 1.0  # of something else
    done = {"step": last, "saved_step": last, "num_steps": taken, "num_checkpoints": saves, "elapsed_s": elapsed}
    lines: list[dict[str, Any]] = [
        {**common, "event": "start", "host": "n1", "world_size": 8, "step": -1, "saved_step": -1},
        {**common, "event": "spent", **begun, "spent_s": {"start": 10.0}},
        {**common, "event": "spent", **done, "spent_s": spent},
    ]
    if why is not None:
        lines.append({**common, "event": "end", **done, "spent_s": spent, "why": why})
    with (run / NAME).open("a") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines))


def test_steps_that_were_lost_with_a_life_do_not_count(tmp_path: Path) -> None:
    write_life(tmp_path, 1, first=0, last=100, taken=100, saves=4, why=None)  # killed; the last save was of step 80
    write_life(tmp_path, 2, first=80, last=200, taken=120, saves=6, why="done")
    found = goodput(tmp_path)
    assert (found.num_starts, found.num_failures, found.num_steps) == (2, 1, 200)
    assert found.spent_s["steps"] == pytest.approx(200)
    assert found.spent_s["redone"] == pytest.approx(20)
    assert found.spent_s["data_wait"] == pytest.approx(22)
    assert found.spent_s["checkpoint"] == 20
    assert found.spent_s["start"] == 20
    assert (found.spent_s["lost"], found.spent_s["other"]) == (pytest.approx(1), pytest.approx(1))
    assert found.elapsed_s == pytest.approx(sum(found.spent_s.values()))
    assert found.goodput == pytest.approx(200 / 284)
    assert (found.checkpoint_s, found.mean_time_between_failures_s) == (2.0, pytest.approx(284))
    assert found.saved_every_s == pytest.approx(1.1 * 220 / 10)


def test_steps_that_were_taken_back_within_a_life_do_not_count(tmp_path: Path) -> None:
    write_life(tmp_path, 1, first=0, last=40, taken=50, saves=4, why="done")
    found = goodput(tmp_path)
    assert (found.num_steps, found.spent_s["redone"]) == (40, pytest.approx(10))


def test_who_stops_a_run_does_not_make_it_fail(tmp_path: Path) -> None:
    write_life(tmp_path, 1, first=0, last=40, taken=40, saves=1, why="stopped after step 40")
    write_life(tmp_path, 2, first=40, last=50, taken=10, saves=1, why="done")
    found = goodput(tmp_path)
    assert (found.num_failures, found.best_interval_s) == (0, None)


@pytest.mark.parametrize("checkpoint_s", [1.0, 30.0])
@pytest.mark.parametrize("between_failures_s", [600.0, 36000.0])
def test_the_best_interval_costs_least(checkpoint_s: float, between_failures_s: float) -> None:
    def expected_time(interval_s: float) -> float:
        """Daly's equation 20: of a second of work, without the time of a restart."""
        return between_failures_s * math.expm1((interval_s + checkpoint_s) / between_failures_s) / interval_s

    best = best_interval(checkpoint_s, between_failures_s)
    assert expected_time(best) <= min(expected_time(best * 0.999), expected_time(best * 1.001))


def test_the_command_tells_it_in_words_and_in_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_life(tmp_path, 1, first=0, last=100, taken=100, saves=4, why=None)
    write_life(tmp_path, 2, first=80, last=200, taken=120, saves=6, why="done")
    assert main(["report", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "200 steps, 2 starts, 1 of them failed" in told
    assert "goodput 70.4%" in told
    assert "best to save every" in told
    assert main(["report", "--json", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["num_failures"] == 1


def test_a_folder_without_a_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no run here with a ledger"):
        goodput(tmp_path)
