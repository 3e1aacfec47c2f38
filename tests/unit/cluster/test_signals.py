"""What a rank is asked from outside, and whether its launcher is still there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher.cluster import signals
from launcher.cluster.signals import Launchers, StopRequest, StopSignals


def test_signals_are_read_in_order_and_do_nothing_by_themselves() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with StopSignals() as asked:
        assert asked.read() == []
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked.read() == [signal.SIGUSR1, signal.SIGTERM]
        assert asked.read() == []
        asked._writer.send(bytes([signal.SIGCHLD, signal.SIGUSR2]))  # Python writes every signal that has a handler
        assert asked.read() == [signal.SIGUSR2]
    assert signal.getsignal(signal.SIGUSR1) == before


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        with StopSignals() as asked:
            os.kill(os.getpid(), signal.SIGHUP)
            assert asked.read() == []
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_forked_worker_has_its_signals_to_itself() -> None:
    with StopSignals() as asked:
        begun, told = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(told, b"!")
            signal.pause()
            os._exit(0)
        os.read(begun, 1)  # until the child has begun, it has the parent's handlers, and would lose the signal
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGTERM  # it died of it, as workers do
        assert asked.read() == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR2, 75), (signal.SIGINT, 130)])
def test_the_first_request_decides_the_exit_code(number: signal.Signals, code: int) -> None:
    now = [5.0]
    stop = StopRequest(lambda: now[0])
    assert (stop.code, stop.waited_s) == (0, 0.0)
    stop.signal(number)
    stop.signal(signal.SIGTERM)
    now[0] = 8.0
    assert (stop.code, stop.why, stop.waited_s) == (code, number.name, 3.0)


CHILD = """
import time
from launcher.cluster.signals import Launchers

launchers = Launchers()
print("up", flush=True)
while not launchers.gone():
    time.sleep(0.02)
print(launchers.gone(), flush=True)
"""


def run_below(parent: str, tmp_path: Path) -> subprocess.Popen[str]:
    """A parent program that starts the child above and waits."""
    script = tmp_path / "parent.py"
    script.write_text(f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {CHILD!r}])\n")
    words = [sys.executable, "-c", parent.format(script=str(script))] if parent else [sys.executable, str(script)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=Path(signals.__file__).parents[2])


def test_a_rank_notices_the_end_of_its_parent(tmp_path: Path) -> None:
    parent = run_below("", tmp_path)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "up\n"
    parent.kill()
    assert parent.stdout.readline() == "the launcher of this rank is gone\n"
    parent.wait()


def tree(monkeypatch: pytest.MonkeyPatch, *words: list[str]) -> None:
    """Processes 1000, 1001, …, each the parent of the one before, with these command lines."""
    monkeypatch.setattr(signals, "words_of", lambda pid: words[pid - 1000] if pid - 1000 < len(words) else [])
    monkeypatch.setattr(signals, "name_of", lambda pid: words[pid - 1000][0] if pid - 1000 < len(words) else "")
    monkeypatch.setattr(signals, "parent_of", lambda pid: pid + 1)


NODE_LAUNCHER = ["/v/bin/python", "-u", "-m", "deepspeed.launcher.launch", "--world_info=x"]


@pytest.mark.parametrize(
    ("above", "watched"),
    [
        ([["bash"], ["slurmstepd"]], 1),  # srun: Slurm ends what is its own
        ([["/v/bin/python", "/v/bin/torchrun"], ["bash"]], 1),
        ([NODE_LAUNCHER, ["/v/bin/python", "/v/bin/deepspeed", "--num_gpus", "2"], ["bash"], ["sshd"]], 2),
        (
            [NODE_LAUNCHER, ["bash", "-c", "export X; cd Y; python"], ["sshd: me@notty"], ["sshd"]],
            3,
        ),  # over pdsh or ssh
        ([NODE_LAUNCHER, ["bash"], ["tmux"]], 1),  # started by hand: the shell may go
    ],
)
def test_the_launchers_that_are_watched(above: list[list[str]], watched: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(monkeypatch, *above)
    assert signals._chain(1000) == list(range(1000, 1000 + watched))


def test_all_is_well_while_they_are_there() -> None:
    launchers = Launchers()
    time.sleep(0.01)
    assert launchers.gone() == ""
