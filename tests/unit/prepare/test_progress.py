"""What is said while something lasts."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from launcher.prepare import progress


def test_a_call_of_which_nothing_is_known_is_said_to_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PRINT_EVERY_S", 0.01)
    said = io.StringIO()
    deadline = time.monotonic() + 30
    with progress.going_on("training", Console(file=said)):
        while said.getvalue().count("\n") < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    lines = said.getvalue()
    assert lines.startswith("training: 0 s so far\n")
    time.sleep(0.05)
    assert said.getvalue() == lines  # it is over


def test_a_reading_is_a_bar_on_a_terminal() -> None:
    said = io.StringIO()
    with progress.shown("hashing", 4096, Console(file=said, force_terminal=True, width=120)) as report:
        report(4096, 7)
    assert "hashing" in said.getvalue()
    assert "7 documents" in said.getvalue()
