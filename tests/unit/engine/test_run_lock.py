"""One job at a time in a run's folder."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import queue
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.engine import run_lock
from launcher.engine.run_lock import HOLDER, LOCK, RunLock
from launcher.errors import RecipeError, RunInUseError

SPAWN = multiprocessing.get_context("spawn")


def never(error: RunInUseError) -> None:
    raise error


def hold_then_die(folder: str) -> None:
    RunLock(Path(folder), {"SLURM_JOB_ID": "17"}, never).__enter__()
    os._exit(9)  # as kill -9 would end it: nothing is tidied up


def elsewhere(record: dict[str, object], **changes: object) -> str:
    return json.dumps({**record, "host": "another-machine", **changes})


def left_behind(folder: Path) -> dict[str, object]:
    """The record of a holder that was killed."""
    process = SPAWN.Process(target=hold_then_die, args=(str(folder),))
    process.start()
    process.join()
    return json.loads((folder / HOLDER).read_text())  # type: ignore[no-any-return]


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """One that others than root may enter: pytest's own they may not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def told_of(folder: str, answers: multiprocessing.Queue[str]) -> None:
    """What is said to one who is not root."""
    if os.geteuid() == 0:
        os.setuid(65534)
    try:
        RunLock(Path(folder), {}, never).__enter__()
    except Exception as error:
        answers.put(str(error))


@pytest.mark.parametrize(
    ("name", "lock", "what"),
    [
        ("closed/runs/mine", None, "made"),
        ("closed", None, "written to"),
        ("closed", 0o666, "written to"),  # another's, whose lock anybody may take
    ],
)
def test_a_folder_that_may_not_be_written_to_is_the_users_to_mend(
    name: str, lock: int | None, what: str, open_folder: Path
) -> None:
    (closed := open_folder / "closed").mkdir()
    if lock is not None:
        (closed / LOCK).touch()
        (closed / LOCK).chmod(lock)
    closed.chmod(0o555)
    answers = SPAWN.Queue()
    process = SPAWN.Process(target=told_of, args=(str(open_folder / name), answers))
    process.start()
    told = answers.get(timeout=60)
    process.join()
    closed.chmod(0o755)
    assert told.startswith(f"RecipeError: the run's folder cannot be {what}: Permission denied")
    assert "runs=" in told


@pytest.mark.parametrize(
    ("name", "why"), [("a file/mine", "Not a directory"), ("x" * 300, "File name too long"), ("a file", "File exists")]
)
def test_a_folder_that_cannot_be_is_told_with_its_name(name: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "a file").touch()
    with pytest.raises(RecipeError) as refused, RunLock(tmp_path / name, {}, never):
        pass
    assert str(refused.value).splitlines()[:2] == [
        f"RecipeError: the run's folder cannot be made: {why}",
        f"  where: {tmp_path / name}",
    ]


def test_a_full_disk_is_no_fault_of_the_folders_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(OSError, match="No space"), RunLock(tmp_path / "mine", {}, never):
        pass


def test_the_second_is_refused_and_told_who_is_at_work(tmp_path: Path) -> None:
    with (
        RunLock(tmp_path, {"SLURM_JOB_ID": "17"}, never),
        pytest.raises(RunInUseError) as refused,
        RunLock(tmp_path, {}, never),
    ):
        pass
    told = str(refused.value)
    assert f"another job is at work in the run's folder: pid {os.getpid()} on {socket.gethostname()}, job 17" in told
    assert "wait for its end or stop it" in told


def test_the_lock_of_a_killed_process_is_free_at_once_on_its_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_behind(tmp_path)
    monkeypatch.setattr(run_lock, "WATCH_S", None)  # an error, if it were waited for
    with RunLock(tmp_path, {}, never):
        assert json.loads((tmp_path / HOLDER).read_text())["pid"] == os.getpid()


def test_a_pid_that_was_given_again_does_not_keep_the_lock(tmp_path: Path) -> None:
    record = left_behind(tmp_path)
    (tmp_path / HOLDER).write_text(json.dumps({**record, "pid": os.getpid()}))
    with RunLock(tmp_path, {}, never):
        pass


def test_a_holder_on_another_machine_that_writes_on_is_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = left_behind(tmp_path)
    (tmp_path / HOLDER).write_text(elsewhere(record))
    beats = iter(range(2, 9))

    def write_on(_: float) -> None:
        (tmp_path / HOLDER).write_text(elsewhere(record, beat=next(beats)))

    monkeypatch.setattr(run_lock.time, "sleep", write_on)
    with pytest.raises(RunInUseError, match="on another-machine, job 17"), RunLock(tmp_path, {}, never):
        pass


def test_a_holder_on_another_machine_that_writes_no_more_is_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = left_behind(tmp_path)
    (tmp_path / HOLDER).write_text(elsewhere(record))
    monkeypatch.setattr(run_lock, "WATCH_S", 0.3)
    with RunLock(tmp_path, {}, never):
        pass


def test_a_requeued_job_waits_for_what_is_left_of_its_own_life_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = left_behind(tmp_path)
    (tmp_path / HOLDER).write_text(elsewhere(record))
    beats = iter(range(2, 1000))
    lives_until = 40

    def go_on(_: float) -> None:
        beat = next(beats)
        if beat < lives_until:
            (tmp_path / HOLDER).write_text(elsewhere(record, beat=beat))
        elif beat == lives_until:
            (tmp_path / HOLDER).unlink()

    monkeypatch.setattr(run_lock.time, "sleep", go_on)
    with RunLock(tmp_path, {"SLURM_JOB_ID": "17"}, never):  # the same job's
        assert next(beats) > lives_until


def test_of_two_that_find_it_free_at_once_the_last_on_record_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = {**left_behind(tmp_path), "host": "another-machine"}
    (tmp_path / HOLDER).unlink()
    monkeypatch.setattr(run_lock.time, "sleep", lambda _: (tmp_path / HOLDER).write_text(json.dumps(other)))
    with pytest.raises(RunInUseError, match="on another-machine"), RunLock(tmp_path, {}, never):
        pass


def test_a_holder_that_finds_another_on_record_ends_and_leaves_it_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = elsewhere(left_behind(tmp_path))
    monkeypatch.setattr(run_lock, "WRITE_EVERY_S", 0.01)
    told: queue.Queue[RunInUseError] = queue.Queue()
    with RunLock(tmp_path, {}, told.put):
        while told.empty():  # it took this one for dead, or came at the same moment
            (tmp_path / HOLDER).write_text(other)
            time.sleep(0.002)
        assert "another job is at work in the run's folder: pid" in str(told.get())
    assert (tmp_path / HOLDER).read_text() == other


def test_a_holder_whose_record_is_gone_does_not_take_the_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_lock, "WRITE_EVERY_S", 0.05)
    told: queue.Queue[RunInUseError] = queue.Queue()
    with RunLock(tmp_path, {}, told.put):
        os.replace(tmp_path / HOLDER, tmp_path / "taken")  # it stood still, another took it for dead, ran, and left
        assert "another job was at work in the run's folder meanwhile" in str(told.get(timeout=20))
        assert not (tmp_path / HOLDER).exists()


def test_a_holder_without_its_file_system_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "WRITE_EVERY_S", 0.01)
    with RunLock(tmp_path / "run", {}, never) as lock:
        (tmp_path / "run").rename(tmp_path / "away")
        time.sleep(0.1)
        (tmp_path / "away").rename(tmp_path / "run")
        beat = json.loads((tmp_path / "run" / HOLDER).read_text())["beat"]
        while json.loads((tmp_path / "run" / HOLDER).read_text())["beat"] == beat:
            assert lock._thread.is_alive()
            time.sleep(0.01)


def test_a_record_that_cannot_be_written_leaves_no_half_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, *_: object, **__: object) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"), RunLock(tmp_path, {}, never):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_run_that_put_nothing_into_its_folder_leaves_none(tmp_path: Path) -> None:
    with RunLock(tmp_path / "runs" / "run", {}, never):
        pass
    assert not (tmp_path / "runs").exists()
    (tmp_path / "run").mkdir()
    with RunLock(tmp_path / "run", {}, never):
        pass
    assert (tmp_path / "run").exists()  # it was there before
    with RunLock(tmp_path / "run", {}, never):
        (tmp_path / "run" / "something").touch()
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"something", ".lock"}


def test_a_torn_record_is_nobody(tmp_path: Path) -> None:
    (tmp_path / HOLDER).write_text('{"host": "x", "pi')
    with RunLock(tmp_path, {}, never):
        pass


def test_the_lock_needs_no_torch() -> None:
    code = "import launcher.engine.run_lock, launcher.engine.watch, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
