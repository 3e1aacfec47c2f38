"""Where the time of a run went, over all of its starts."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path

import pytest

from launcher.engine.ledger import NAME, Ledger, read_ledger, refuse_fruitless
from launcher.errors import FruitlessError


def live(folder: Path, first: int, last: int, ends: str | None) -> None:
    """A life of a second a step, which saves every tenth."""
    ledger = Ledger(folder, 2)
    ledger.begin_steps(first)
    for step in range(first + 1, last + 1):
        ledger.step(step, 1.0, 0.25)
        if step % 10 == 0:
            ledger.saved(step)
    if ends is not None:
        ledger.end(ends)


def test_the_last_line_of_a_life_tells_all_of_it(tmp_path: Path) -> None:
    live(tmp_path, 0, 20, "stopped after step 20")
    live(tmp_path, 20, 40, None)  # killed
    first, second = read_ledger(tmp_path)
    assert (first.number, first.first_step, first.step, first.saved_step) == (1, 0, 20, 20)
    assert (first.num_steps, first.num_checkpoints, first.ended) == (20, 2, "stopped after step 20")
    assert (first.spent_s["steps"], first.spent_s["data_wait"]) == (15.0, 5.0)
    assert (second.number, second.first_step, second.step, second.ended) == (2, 20, 40, "")
    assert second.world_size == 2


def test_a_torn_line_is_left_out(tmp_path: Path) -> None:
    live(tmp_path, 0, 10, "done")
    with (tmp_path / NAME).open("a") as file:
        file.write('{"event": "start", "life": 2, "ho')
    assert [life.ended for life in read_ledger(tmp_path)] == ["done"]
    live(tmp_path, 10, 20, "done")  # and takes nothing of the next life with it
    assert [(life.number, life.step) for life in read_ledger(tmp_path)] == [(1, 10), (2, 20)]


def test_a_validation_that_is_broken_off_counts(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, 1)
    with contextlib.suppress(KeyError), ledger.during("evaluation"):
        time.sleep(0.01)
        raise KeyError
    ledger.end("stopped")
    assert read_ledger(tmp_path)[0].spent_s["evaluation"] >= 0.01


def test_only_the_first_reason_to_end_counts(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, 1)
    ledger.end("stopped (SIGTERM)")
    ledger.end("something that followed from it")
    lines = [json.loads(line) for line in (tmp_path / NAME).read_text().splitlines()]
    assert [line["why"] for line in lines if line["event"] == "end"] == ["stopped (SIGTERM)"]


def test_the_other_ranks_write_nothing(tmp_path: Path) -> None:
    Ledger(None, 2).end("done")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("ends", "refused"),
    [
        (["it failed"] * 5, True),
        ([None] * 5, True),  # killed before the first step, five times
        (["it failed"] * 4, False),
        (["it failed"] * 4 + ["stopped (SIGTERM)"], False),  # somebody wanted it so
    ],
)
def test_a_run_that_fails_without_a_step_again_and_again_is_not_started(
    ends: list[str | None], refused: bool, tmp_path: Path
) -> None:
    for why in ends:
        live(tmp_path, 0, 0, why)
    if not refused:
        refuse_fruitless(read_ledger(tmp_path), 5, tmp_path)
        return
    with pytest.raises(FruitlessError, match="the last 5 starts failed without a step") as told:
        refuse_fruitless(read_ledger(tmp_path), 5, tmp_path)
    assert "guards.max_fruitless_starts" in told.value.fix


def test_one_step_in_between_is_enough_to_go_on(tmp_path: Path) -> None:
    for last in (0, 0, 1, 0, 0):
        live(tmp_path, 0, last, "it failed")
    refuse_fruitless(read_ledger(tmp_path), 5, tmp_path)


def test_a_ledger_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    ledger = Ledger(None, 1)
    ledger._file = tmp_path / NAME
    ledger.saved(3)
