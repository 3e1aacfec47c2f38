"""Builds take turns on a node, and what a killed one left behind stops nobody."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from launcher.engine import compiled_ops
from launcher.engine.compiled_ops import _turn, _wait_for_others
from launcher.errors import MissingDependencyError

fork = multiprocessing.get_context("fork")


def take_turn(path: Path, log: Path) -> None:
    with _turn(path, "op"):
        with log.open("a") as file:
            file.write("in ")
        time.sleep(0.05)
        with log.open("a") as file:
            file.write("out ")


def hold_for_ever(path: Path, holds: Event) -> None:
    with _turn(path, "op"):
        holds.set()
        time.sleep(600)


def test_one_process_at_a_time_builds(tmp_path: Path) -> None:
    log = tmp_path / "log"
    builders = [fork.Process(target=take_turn, args=(tmp_path / "op.turn", log)) for _ in range(4)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
    assert log.read_text() == "in out " * 4


def test_who_was_killed_while_building_lets_the_next_one_in_and_is_known(tmp_path: Path) -> None:
    path, holds = tmp_path / "op.turn", fork.Event()
    builder = fork.Process(target=hold_for_ever, args=(path, holds))
    builder.start()
    assert holds.wait(60)
    assert builder.pid is not None
    os.kill(builder.pid, signal.SIGKILL)
    builder.join()
    with _turn(path, "op") as left_unfinished:
        assert left_unfinished
    with _turn(path, "op") as left_unfinished:
        assert not left_unfinished, "the one after it found everything in order"


def test_a_build_that_takes_too_long_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, holds = tmp_path / "op.turn", fork.Event()
    builder = fork.Process(target=hold_for_ever, args=(path, holds))
    builder.start()
    assert holds.wait(60)
    monkeypatch.setattr(compiled_ops, "LONGEST_BUILD_S", -1.0)
    with (
        pytest.raises(MissingDependencyError, match="somebody else has been compiling DeepSpeed's op"),
        _turn(path, "op"),
    ):
        pass
    builder.kill()
    builder.join()


def test_a_lock_of_a_killed_build_is_deleted_and_told(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.touch()
    told: list[str] = []
    _wait_for_others(tmp_path, told.append, quiet_s=0.0)
    assert told == [f"{lock} was left by a build that was killed, and is deleted"]
    assert not lock.exists()


def test_a_build_of_another_program_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / "lock"
    lock.touch()
    told: list[str] = []

    def tell(line: str) -> None:
        told.append(line)
        lock.unlink()  # the other program is done as soon as it was waited for

    _wait_for_others(tmp_path, tell, quiet_s=3600.0)
    assert told == [f"another program compiles {tmp_path.name}, or was killed at it: waiting for {tmp_path}"]
    lock.touch()
    monkeypatch.setattr(compiled_ops, "LONGEST_BUILD_S", -1.0)
    with pytest.raises(MissingDependencyError, match="look whether a compiler is still running"):
        _wait_for_others(tmp_path, told.append, quiet_s=3600.0)


def test_compilers_that_outlive_a_killed_build_are_waited_for(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    compiler = subprocess.Popen(["sleep", "600"], cwd=tmp_path)
    told: list[str] = []

    def tell(line: str) -> None:
        told.append(line)
        if len(told) == 1:
            compiler.kill()
            compiler.wait()

    _wait_for_others(tmp_path, tell, quiet_s=0.0)
    assert [line.split(":")[0] for line in told] == [
        f"another program compiles {tmp_path.name}, or was killed at it",
        f"{tmp_path / 'lock'} was left by a build that was killed, and is deleted",
    ]
