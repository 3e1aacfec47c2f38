"""One run's folder on two hosts, where neither sees the other's `flock`: only the record tells."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from slurm_cluster import unavailable

from launcher.engine.run_lock import HOLDER, LOCK

pytestmark = pytest.mark.cluster

PROGRAM = """
import os, sys, time
from pathlib import Path
from launcher.engine.run_lock import RunLock
from launcher.errors import RunInUseError

def end(error):
    print(str(error).splitlines()[0], flush=True)
    os._exit(2)  # whatever the main thread is at

try:
    with RunLock(Path(sys.argv[1]), {}, end):
        print("holds", flush=True)
        time.sleep(float(sys.argv[2]))
except RunInUseError as error:
    end(error)
"""
ON_A_HOST = 'hostname "$1"; mount --bind "$2" "$3/{lock}"; shift 3; exec "$@"'.replace("{lock}", LOCK)
"""A machine of its own, as far as the lock can tell: another name, other pids, and `flock` of a file of its own."""


@pytest.fixture(autouse=True)
def _root() -> None:
    if os.geteuid() != 0:
        unavailable("machines of their own names need root")


def on(host: str, run: Path, hold_s: float) -> subprocess.Popen[str]:
    own = run.parent / f"{host}.lock"
    own.touch()
    (run / LOCK).touch()
    apart = ["unshare", "--uts", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
    program = [sys.executable, "-c", PROGRAM, str(run), str(hold_s)]
    command = [*apart, "sh", "-ec", ON_A_HOST, "sh", host, str(own), str(run), *program]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip()


def test_the_second_host_is_refused_while_the_first_lives_and_let_in_when_it_is_lost(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    first = on("node1", run, 300.0)
    try:
        assert first_line(first) == "holds"
        assert json.loads((run / HOLDER).read_text())["host"] == "node1"
        with on("node2", run, 0.0) as second:
            told = first_line(second)
        assert told.startswith("RunInUseError: another job is at work in the run's folder: pid ")
        assert " on node1, since " in told
    finally:
        first.kill()  # the machine is lost: nobody tidies up
        first.wait()
    assert (run / HOLDER).exists()
    began = time.monotonic()
    with on("node2", run, 0.0) as third:
        assert first_line(third) == "holds"
    assert 10 < time.monotonic() - began < 60


def test_of_two_hosts_that_come_at_one_moment_one_goes_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    both = [on(host, run, 20.0) for host in ("node1", "node2")]
    codes = []
    for process in both:
        told, _ = process.communicate(timeout=120)
        codes.append(process.returncode)
        assert (told == "holds\n") == (process.returncode == 0), told
    assert sorted(codes) == [0, 2]
