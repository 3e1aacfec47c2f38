"""The ranks of one machine, held by their launcher's connection."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher.errors import EXIT_INTERRUPTED

NODE = [sys.executable, "-m", "launcher.cluster.node"]
# Say what it is told, in one write; then wait for a signal, and say which.
RANK = """
import os, signal, sys, time
def stop(number, frame):
    print("rank", os.environ.get("RANK"), "got", signal.Signals(number).name, flush=True)
    if number == signal.SIGTERM:
        sys.exit(75)
for name in ("TERM", "USR1"):
    signal.signal(getattr(signal, "SIG" + name), stop)
print("rank", os.environ.get("RANK"), "pid", os.getpid(), flush=True)
time.sleep(60)
"""


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*NODE, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def pids_of(node: subprocess.Popen[str], ranks: int) -> list[int]:
    assert node.stdout is not None
    return [int(node.stdout.readline().split()[-1]) for _ in range(ranks)]


def is_gone(pid: int) -> bool:
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists():
            return True
        time.sleep(0.05)
    return False


def test_each_rank_knows_its_place() -> None:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    code = f"import os; print(*[os.environ[name] for name in {names}])"
    words = ("--ranks", "2", "--first-rank", "4", "--world-size", "6", "--master", "node1:21000")
    node = start(*words, "--", sys.executable, "-c", code)
    assert node.stdout is not None
    assert sorted(node.stdout.readline() for _ in range(2)) == ["4 6 0 2 node1 21000\n", "5 6 1 2 node1 21000\n"]
    assert node.wait(30) == 0


def test_secrets_come_over_standard_input_and_through_no_process_list() -> None:
    node = start("--secrets", "HF_TOKEN", "--", sys.executable, "-c", "import os; print(os.environ['HF_TOKEN'])")
    assert node.stdin is not None
    node.stdin.write(json.dumps({"HF_TOKEN": "hf_hidden"}) + "\n")
    node.stdin.flush()
    assert node.stdout is not None
    assert node.stdout.readline() == "hf_hidden\n"
    assert b"hf_hidden" not in Path(f"/proc/{node.pid}/cmdline").read_bytes()
    assert node.wait(30) == 0


def test_the_end_of_standard_input_ends_the_ranks_and_they_may_save_first() -> None:
    node = start("--ranks", "2", "--", sys.executable, "-c", RANK)
    pids = pids_of(node, 2)
    told, _ = node.communicate()
    assert sorted(told.splitlines()) == ["rank 0 got SIGTERM", "rank 1 got SIGTERM"]
    assert node.returncode == EXIT_INTERRUPTED
    assert all(is_gone(pid) for pid in pids)


def test_a_named_signal_reaches_every_rank() -> None:
    node = start("--ranks", "2", "--", sys.executable, "-c", RANK)
    pids_of(node, 2)
    assert node.stdin is not None
    assert node.stdout is not None
    node.stdin.write("USR1\n")
    node.stdin.flush()
    assert sorted(node.stdout.readline() for _ in range(2)) == ["rank 0 got SIGUSR1\n", "rank 1 got SIGUSR1\n"]
    node.communicate()


def test_one_failed_rank_ends_the_others_with_its_code() -> None:
    code = "import os, sys, time; sys.exit(2) if os.environ['RANK'] == '1' else time.sleep(60)"
    node = start("--ranks", "2", "--", sys.executable, "-c", code)
    assert node.wait(30) == 2


def test_a_rank_ended_by_a_signal_is_told_as_a_shell_tells_it() -> None:
    node = start("--ranks", "2", "--", sys.executable, "-c", RANK)
    os.kill(pids_of(node, 2)[0], signal.SIGKILL)
    assert node.wait(30) == 128 + signal.SIGKILL


def test_what_a_rank_left_behind_ends_with_it(tmp_path: Path) -> None:
    code = "import subprocess; print(subprocess.Popen(['sleep', '60'], stdout=-3, stderr=-3).pid, flush=True)"
    node = start("--", sys.executable, "-c", code)
    assert node.stdout is not None
    left = int(node.stdout.readline())
    assert node.wait(30) == 0
    assert is_gone(left)


@pytest.mark.parametrize(
    ("words", "told", "message"),
    [
        (("--", "/no/such/python"), "", "/no/such/python cannot be started: No such file or directory"),
        (("--secrets", "A,B", "--", "true"), '{"A": "x"}\n', "the values of A, B did not come"),
        (("--secrets", "A", "--", "true"), "", "the values of A did not come"),
    ],
)
def test_what_cannot_be_started_is_told(words: tuple[str, ...], told: str, message: str) -> None:
    node = start(*words)
    said, _ = node.communicate(told)
    assert node.returncode == 2
    assert message in said
