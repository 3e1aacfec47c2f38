"""Processes that build parts: what becomes of the others when one is killed."""

from __future__ import annotations

import errno
import io
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import active_children, spawn
from pathlib import Path

import pytest
from rich.console import Console

from launcher.errors import LauncherError
from launcher.prepare.encoders import EncodeOptions
from launcher.prepare.filters import FilterOptions
from launcher.prepare.part import Part, PartSettings, Report
from launcher.prepare.pool import Workers
from launcher.prepare.readers import ReadOptions
from launcher.prepare.tokenizer import load_tokenizer
from launcher.prepare.worker import Job


@pytest.fixture
def settings(tokenizer_folder: Path, tmp_path: Path) -> PartSettings:
    handle = load_tokenizer(tokenizer_folder)
    return PartSettings(
        sources=(),
        read=ReadOptions(),
        filters=FilterOptions(),
        dedupe=False,
        encode=EncodeOptions(),
        tokenizer_json=" " * 1_000_000,  # more than a pipe holds, as of any real tokenizer
        tokenizer=handle.info,
        validation_share=0.0,
        folder=tmp_path,
        records=tmp_path,
    )


PARTS = [Part(number, (), "") for number in range(6)]


def in_two(job: Job, settings: PartSettings) -> None:
    with Workers(2) as workers:
        workers.run(job, settings, PARTS, "at work", 6, Console(quiet=True))


def raised_by(call: Callable[[], None]) -> BaseException | None:
    """What a call raises; it must end within a minute."""
    raised: list[BaseException | None] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            raised.append(error)
        else:
            raised.append(None)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(60)
    assert raised, "it waits for ever"
    return raised[0]


def tell(settings: PartSettings, part: Part, report: Report) -> None:
    for _ in range(500):
        report(1, 2)
    (settings.folder / f"{part.number}").touch()


def tell_much(settings: PartSettings, part: Part, report: Report) -> None:
    for _ in range(10):  # more than a pipe holds
        tell(settings, part, report)


def die(settings: PartSettings, part: Part, report: Report) -> None:
    tell(settings, part, report)
    if part.number == 3:
        os.kill(os.getpid(), signal.SIGKILL)


def test_every_part_is_done_and_all_progress_is_heard(settings: PartSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[int, int]] = []
    monkeypatch.setattr("launcher.prepare.progress._Lines.add", lambda _, *told: heard.append(told))
    in_two(tell, settings)
    assert sorted(path.name for path in settings.folder.iterdir()) == [str(part.number) for part in PARTS]
    assert heard == [(1, 2)] * 500 * len(PARTS)


def test_where_there_is_no_terminal_a_line_tells_throughput_and_time_left(
    settings: PartSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr("launcher.prepare.progress.time.monotonic", lambda: next(clock))
    monkeypatch.setattr("launcher.prepare.progress.PRINT_EVERY_S", 20)
    said = io.StringIO()

    def job(_: PartSettings, __: Part, report: Report) -> None:
        report(10_000_000, 20)  # ten seconds
        report(10_000_000, 20)  # ten more

    with Workers(1) as workers:
        workers.run(job, settings, PARTS[:1], "tokenizing", 100_000_000, Console(file=said, width=200))
    assert said.getvalue().strip() == "tokenizing: 20%, 40 documents, 976.6 KiB/s, 1 min 20 s left"


def test_progress_that_cannot_be_shown_keeps_no_worker_waiting(
    settings: PartSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The terminal is closed, or the disk of the log is full."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("launcher.prepare.progress._Lines.add", refuse)
    assert raised_by(lambda: in_two(tell_much, settings)) is None
    assert len(list(settings.folder.iterdir())) == len(PARTS)


def test_a_worker_that_is_killed_ends_the_build(settings: PartSettings) -> None:
    error = raised_by(lambda: in_two(die, settings))
    assert isinstance(error, LauncherError)
    assert "a process was killed" in str(error)


def test_a_worker_that_is_killed_before_it_has_begun_ends_the_build(
    settings: PartSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spawn, "_python_exe", b"/bin/false")
    error = raised_by(lambda: in_two(tell, settings))
    assert isinstance(error, LauncherError)
    assert "a process was killed" in str(error)


def test_a_process_of_multiprocessings_own_that_is_killed_is_a_failure_too(
    settings: PartSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its broken pipe is not that of who reads our output, which would be a good end."""

    def refuse(*_: object) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    monkeypatch.setattr("launcher.prepare.pool.ProcessPoolExecutor", refuse)
    error = raised_by(lambda: in_two(tell, settings))
    assert isinstance(error, LauncherError)
    assert "a process was killed" in str(error)


def name_yourself(settings: PartSettings, part: Part, report: Report) -> None:
    (settings.folder / f"{part.number}-{os.getpid()}").touch()


def test_one_job_after_another_is_done_by_the_same_processes(settings: PartSettings, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with Workers(2) as workers:
        for each in (settings, replace(settings, folder=tmp_path / "other")):
            workers.run(name_yourself, each, PARTS, "at work", 6, Console(quiet=True))
    names = [path.name.split("-") for path in tmp_path.rglob("*-*")]
    assert sorted(number for number, _ in names) == sorted(str(part.number) for part in (*PARTS, *PARTS))
    pids = {int(pid) for _, pid in names}
    assert len(pids) <= 2
    assert os.getpid() not in pids


def test_processes_that_were_given_nothing_to_do_end() -> None:
    with Workers(2):
        started = active_children()
    assert len(started) == 2
    assert active_children() == []


def test_processes_that_have_yet_to_start_do_not_hear_ctrl_c() -> None:
    """Each would print a traceback of whatever it is importing."""
    with Workers(2):
        deaf = []
        for process in active_children():
            lines = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii").splitlines()
            masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigBlk", "SigIgn"))]
            deaf.append(any(mask >> (signal.SIGINT - 1) & 1 for mask in masks))
        assert deaf == [True, True]
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
