"""What ends a rank whose main thread cannot: the watch thread, whatever stands in its way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = """
import sys, time
from pathlib import Path
from launcher.cluster.signals import StopSignals
from launcher.config.guards import GuardsConfig
from launcher.engine import watch as module
from launcher.errors import RunInUseError

module.LAST_WORDS_S, module.END_WITHIN_S = 0.1, 1.0
watch = None
{before}
guards, launchers = GuardsConfig(slow_s={slow_s}), module.Launchers()
with StopSignals() as signals, module.Watch(guards, Path(sys.argv[1]), 0, signals, launchers) as watch:
    {then}
    time.sleep(60)
"""


def ended(folder: Path, before: str = "", then: str = "", slow_s: float = 0.3) -> tuple[int, str]:
    """Exit code of a rank that sleeps, and what it wrote."""
    program = PROGRAM.format(before=before, then=then, slow_s=slow_s)
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, timeout=30, check=False
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("place", ["sound", "refused", "hangs"])
def test_a_hang_ends_the_process_wherever_its_stacks_cannot_be_written(place: str, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    if place == "refused":
        logs.write_text("a file where a folder should be")
    elif place == "hangs":
        logs.mkdir()
        os.mkfifo(logs / "stacks-rank-00000.txt")  # to open it waits for a reader, as on a file system that is gone
    code, told = ended(tmp_path)
    assert code == 75
    if place != "hangs":
        assert told.startswith("rank 0 has not got on with starting for ")
        assert "Traceback" not in told


def test_a_process_that_was_suspended_is_not_taken_for_one_that_hangs(tmp_path: Path) -> None:
    before = "import signal, os; module.SUSPENDED_S = 1.0"
    then = "print('ready', flush=True); [time.sleep(0.1) for _ in range(12)]; os._exit(0)"  # goes on for a second
    program = PROGRAM.format(before=before, then=then, slow_s=2.0)
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGSTOP)
        time.sleep(2.5)
        process.send_signal(signal.SIGCONT)
        assert process.wait(timeout=10) == 0


def test_a_mistake_in_the_watch_thread_does_not_leave_the_rank_unwatched(tmp_path: Path) -> None:
    broken = "module.Launchers.gone = lambda self: 1 / 0"
    code, told = ended(tmp_path, before=broken, slow_s=60.0)
    assert code == 1
    assert told.rstrip().endswith("ZeroDivisionError: division by zero")


def test_what_another_thread_found_ends_the_process_with_its_words(tmp_path: Path) -> None:
    taken = "watch.end_for(RunInUseError('another job is at work', 'here', 'wait'))"
    code, told = ended(tmp_path, then=taken, slow_s=60.0)
    assert code == 2
    assert told == "RunInUseError: another job is at work\n  where: here\n  fix:   wait\n"


def test_what_ends_the_process_is_told_though_stderr_has_been_put_away(tmp_path: Path) -> None:
    """As DeepSpeed does while it tries a compiler."""
    then = "import os; os.dup2(os.open(os.devnull, os.O_WRONLY), 2); watch.end_for(RunInUseError('another job'))"
    code, told = ended(tmp_path, then=then, slow_s=60.0)
    assert code == 2
    assert told == "RunInUseError: another job\n"


def test_where_stderr_is_closed_the_process_ends_all_the_same(tmp_path: Path) -> None:
    then = "watch.end_for(RunInUseError('another job'))"
    assert ended(tmp_path, before="import os; os.close(2)", then=then, slow_s=60.0) == (2, "")
