"""What cannot be written ends no run."""

from __future__ import annotations

import errno
import io
import logging
import os
from pathlib import Path

import pytest

from launcher.engine import steady
from launcher.engine.steady import SteadyFile, SteadyStream


def test_lines_of_a_full_disk_come_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = SteadyFile(tmp_path / "log")
    file.write("one")
    room, write = [2], os.write

    def write_what_fits(descriptor: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = write(descriptor, data[: room[0]])
        room[0] -= written
        return written

    monkeypatch.setattr(steady.os, "write", write_what_fits)
    with caplog.at_level(logging.WARNING):
        file.write("two")
        file.write("three")
        room[0] = 1000
        file.write("four")
    file.close()
    assert (tmp_path / "log").read_text() == "one\ntwo\nthree\nfour\n"
    assert [record.message.partition("log ")[2][:13] for record in caplog.records] == ["cannot be wri", "is written ag"]


def test_a_folder_that_is_away_for_a_while_loses_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "mount"
    folder.mkdir()
    file = SteadyFile(folder / "log")
    file.write("one")
    file.close()
    folder.rename(tmp_path / "away")
    file.write("two")
    (tmp_path / "away").rename(folder)
    file.close()
    assert (folder / "log").read_text() == "one\ntwo\n"


class Gone(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


def test_a_terminal_that_was_closed_ends_nothing() -> None:
    stream = SteadyStream(Gone())
    assert stream.write("x") == 1
    stream.flush()
    print("more", file=stream)


def test_a_terminal_that_is_there_is_written_to() -> None:
    there = io.StringIO()
    print("more", file=SteadyStream(there), flush=True)
    assert there.getvalue() == "more\n"
