"""Whether a rank still gets on."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from launcher.config.guards import GuardsConfig
from launcher.engine.watchdog import Pulse, write_stacks


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


LIMITS = GuardsConfig(hang_factor=10.0, hang_floor_s=30.0, slow_s=600.0)


def steps(pulse: Pulse, clock: Clock, *lengths: float) -> None:
    for length in lengths:
        pulse.begin_step()
        clock.now += length
        pulse.end_step(length)


@pytest.mark.parametrize(
    ("lengths", "limit"),
    [
        ((), 600.0),  # the first step compiles
        ((300.0,), 600.0),  # and tells nothing of the others
        ((300.0, 1.0, 1.0, 1.0), 30.0),  # the floor
        ((300.0, 8.0, 8.0, 8.0), 80.0),  # ten times the median
        ((300.0, 8.0, 8.0, 500.0), 80.0),  # which one long step does not move
    ],
)
def test_a_step_may_take_many_times_what_is_usual(lengths: tuple[float, ...], limit: float) -> None:
    clock = Clock()
    pulse = Pulse(LIMITS, clock)
    steps(pulse, clock, *lengths)
    pulse.begin_step()
    clock.now += limit - 1
    assert pulse.overdue() == ""
    clock.now += 2
    assert pulse.overdue() == f"has not got on with a step for {limit + 1:.0f} s (allowed: {limit:.0f} s)"


def test_a_save_and_the_start_may_take_longer_than_a_step() -> None:
    clock = Clock()
    pulse = Pulse(LIMITS, clock)
    clock.now += 500
    assert pulse.overdue() == ""
    steps(pulse, clock, 1.0, 1.0)
    pulse.begin("a save")
    clock.now += 500
    assert pulse.overdue() == ""
    clock.now += 200
    assert "with a save for 700 s" in pulse.overdue()


def test_a_long_validation_is_alive_as_long_as_its_batches_come() -> None:
    clock = Clock()
    pulse = Pulse(LIMITS, clock)
    pulse.begin("a validation")
    for _ in pulse.during(range(5)):
        assert pulse.overdue() == ""
        clock.now += 400
    clock.now += 201
    assert "with a validation" in pulse.overdue()


def test_after_the_end_of_training_nothing_is_late() -> None:
    clock = Clock()
    pulse = Pulse(LIMITS, clock)
    pulse.rest()
    clock.now += 1e6
    assert pulse.overdue() == ""


def test_the_stacks_of_all_threads_are_written(tmp_path: Path) -> None:
    waiting = threading.Event()
    thread = threading.Thread(target=waits_for_ever, args=(waiting,))
    thread.start()
    path = write_stacks(tmp_path / "logs", 3, "has not got on")
    path = write_stacks(tmp_path / "logs", 3, "a second time")
    waiting.set()
    thread.join()
    text = path.read_text()
    assert path.name == "stacks-rank-00003.txt"
    assert "has not got on" in text
    assert "a second time" in text
    assert text.count("waits_for_ever") == 2
    assert text.count("test_the_stacks_of_all_threads_are_written") == 2
    assert os.fspath(path).startswith(os.fspath(tmp_path))


def waits_for_ever(event: threading.Event) -> None:
    event.wait()
