"""A schedule fitted to a time."""

from __future__ import annotations

import errno
import itertools
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launcher.config.command_line import parse
from launcher.engine.length import NAME, FittedLength, FixedLength, read_fits, refuse_without_budget
from launcher.errors import CheckpointError, UsageError


def ledger(before_s: float = 0.0) -> Any:
    """A start that has taken no time yet, after others."""
    lives = [SimpleNamespace(elapsed_s=before_s)] if before_s else []
    return SimpleNamespace(lives=lives, elapsed_s=0.0, between_steps_s=0.0, last_rites_s=5.0)


def fitted(budget_s: float, of: Any, folder: Path | None = None, num_steps: int = 1000) -> FittedLength:
    return FittedLength(budget_s, num_steps, 100, folder, of, lambda value: value)


def take(length: FittedLength, of: Any, step: int, step_s: float, until: int | None = None) -> int:
    """Steps of so many seconds from `step` on, to the end or to `until`; returns the last."""
    while step < length.last and step != until:
        step += 1
        of.elapsed_s += step_s
        length.took(step, step_s)
    return step


@pytest.mark.parametrize("step_s", [0.5, 1.0, 4.0, 20.0])
def test_the_schedule_ends_when_the_budget_does(step_s: float) -> None:
    of = ledger()
    length = fitted(2000.0, of)
    length.begin(0)
    last = take(length, of, 0, step_s)
    assert 2000 - 5 - 2 * step_s <= of.elapsed_s <= 2000 - 5 + step_s
    if last > 100:
        assert length.position(last) == 1000
    assert [length.position(step) for step in range(1, min(last, 100))] == list(range(1, min(last, 100)))


def test_nothing_jumps_where_the_rest_is_fitted_anew() -> None:
    of = ledger()
    length = fitted(2000.0, of)
    length.begin(0)
    positions, step = [0.0], 0
    while step < length.last:
        positions.append(length.position(step + 1))  # as the step about to be taken sees it
        step += 1
        step_s = 1.0 + (step % 7) / 7 + (2.0 if step > 600 else 0.0)  # slower later
        of.elapsed_s += step_s
        length.took(step, step_s)
    rates = [after - before for before, after in itertools.pairwise(positions)]
    assert min(rates) > 0
    assert max(rates[100:]) < 4
    assert positions[-1] > 990


def test_it_goes_on_across_starts_with_what_is_left(tmp_path: Path) -> None:
    of = ledger()
    first = fitted(2000.0, of, tmp_path)
    first.begin(0)
    take(first, of, 0, 1.0, until=500)
    position = first.position(500)
    of = ledger(before_s=1200.0)  # 700 s of them were not steps
    second = fitted(2000.0, of, tmp_path)
    assert not second.begin(500)
    assert second.position(500) == position  # the steps that were taken stay where they were
    last = take(second, of, 500, 1.0)
    assert 790 <= of.elapsed_s <= 800
    assert second.position(last) == 1000


def test_steps_that_are_taken_again_forget_what_was_decided_after_them(tmp_path: Path) -> None:
    of = ledger()
    first = fitted(2000.0, of, tmp_path)
    first.begin(0)
    take(first, of, 0, 1.0, until=700)
    assert max(fit.from_step for fit in read_fits(tmp_path)) > 300
    second = fitted(2000.0, ledger(900.0), tmp_path)
    second.begin(300)
    assert second.position(300) == first.position(300)
    for step in range(301, 320):
        second.took(step, 1.0)
    assert max(fit.from_step for fit in read_fits(tmp_path)) < 320


def test_a_budget_that_is_used_up_ends_the_run_where_it_stands(tmp_path: Path) -> None:
    length = fitted(2000.0, ledger(before_s=2100.0), tmp_path)
    assert length.begin(420)
    assert length.last == 420


def test_without_a_budget_a_step_stands_where_it_is() -> None:
    length = FixedLength(50)
    assert (length.last, length.position(7), length.took(7, 1.0), length.begin(7)) == (50, 7, False, False)


def test_a_run_with_a_budget_does_not_go_on_without(tmp_path: Path) -> None:
    refuse_without_budget(tmp_path)
    length = fitted(1.0, ledger(before_s=2.0), tmp_path)
    length.begin(3)
    with pytest.raises(UsageError, match="the run was started with --budget") as told:
        refuse_without_budget(tmp_path)
    assert "give it again" in told.value.fix


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text("{")
    with pytest.raises(CheckpointError, match="fitted to its budget cannot be read"):
        read_fits(tmp_path)


def test_a_file_system_that_is_gone_asks_nobody_to_delete_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / NAME).write_text('{"fits": []}')

    def gone(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "read_text", gone)
    with pytest.raises(OSError, match="Input/output error"):  # `launcher.train` ends with 75
        read_fits(tmp_path)


@pytest.mark.parametrize(
    ("text", "seconds"), [("24h", 86400), ("90m", 5400), ("1h30m", 5400), ("45s", 45), ("2d", 172800), ("0.5h", 1800)]
)
def test_a_time_is_read(text: str, seconds: float) -> None:
    assert parse(["--ds_config", "zero2", "--budget", text]).budget == seconds


@pytest.mark.parametrize("text", ["24", "h", "1..5h", "a day", "0h", "-1h"])
def test_what_is_no_time_is_told(text: str) -> None:
    with pytest.raises(UsageError, match=r"write 24h, 90m or 1h30m|expected one argument"):
        parse(["--ds_config", "zero2", "--budget", text])
