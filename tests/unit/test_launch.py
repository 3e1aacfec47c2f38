"""`pretrain launch`: what is refused before anything starts, and what becomes of ranks that were started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher import launch
from launcher.cli import main
from launcher.cluster.render import Start
from launcher.cluster.submit import REFUSALS, explain_refusal
from launcher.config import places
from launcher.errors import ClusterError, LauncherError, RequeueError
from launcher.launch import start_all

HOSTFILE = "hostfiles/two_nodes"


@pytest.fixture(autouse=True)
def _in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(places.ROOT)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--via", "hostfile", "--hostfile", "hostfiles/none"], "the hostfile cannot be read"),
        (["--via", "hostfile"], "--via hostfile needs a hostfile"),
        (["--via", "ssh", "--hostfile", HOSTFILE, "--nodes", "3"], "3 nodes are asked for, the hostfile has 2"),
        (["--via", "ssh", "--hostfile", HOSTFILE, "--slots", "9"], "9 ranks a node are asked for, node1 has 8 slots"),
        (["--via", "ssh", "--nodes", "2"], "2 nodes are asked for, and none named"),
        (["--via", "local", "--hostfile", HOSTFILE, "batch.global_batch=32"], "starts ranks on this machine alone"),
        (["--via", "local", "--time", "1:00", "--account", "lab"], "--time, --account: only Slurm knows"),
        (["--via", "slurm", "--hostfile", HOSTFILE], "Slurm chooses its own hosts"),
        (["--via", "slurm", "--prologue", "no/such.sh"], "the prologue is missing"),
        (["--via", "slurm", "--spares", "-1"], "--spares -1"),
        (["--via", "ssh", "--hostfile", HOSTFILE, "batch.global_batch=30"], "30 samples per step cannot be cut"),
        (["--via", "slurm", "--nodes=2", "--gpus-per-node=8", "batch.global_batch=30"], "30 samples per step cannot"),
        (["--via", "local", "train.num_stepz=3"], "did you mean 'num_steps'?"),
        (["--via", "local", "--ds_config", "zero9"], "there is no DeepSpeed configuration 'zero9'"),
        (["--via", "local", "--env", "NOT_SET_HERE"], "NOT_SET_HERE is not set here"),
    ],
)
def test_a_mistake_is_told_before_anything_starts(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["launch", "law-bert-zh", *words, "--print"]) == 2
    told = capsys.readouterr()
    assert message in told.err
    assert told.out == ""


def test_it_is_launched_from_the_projects_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["launch", "law-bert-zh", "--via", "local", "--print"]) == 2
    assert "launch from the project's folder" in capsys.readouterr().err


def test_a_token_of_this_environment_is_not_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnopqrstuvw")
    words = ["--via", "ssh", "--hostfile", HOSTFILE, "batch.global_batch=32", "--print"]
    assert main(["launch", "law-bert-zh", *words]) == 0
    told = capsys.readouterr().out
    assert "the values of HF_TOKEN" in told
    assert "hf_abc" not in told


def test_no_torch_is_needed_to_launch() -> None:
    code = (
        "import sys; sys.modules.update(torch=None, deepspeed=None, transformers=None); from launcher.cli import main; "
        "sys.exit(main(['launch', 'law-bert-zh', '--via', 'local', '--slots', '2', '--print']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "deepspeed --num_gpus 2" in done.stdout


def on_host(host: str, code: str) -> Start:
    """What `_over_ssh` makes, without the ssh."""
    argv = (sys.executable, "-m", "launcher.cluster.node", "--", sys.executable, "-c", code)
    return Start(argv=argv, host=host)


WAIT = "import time; time.sleep(60)"


@pytest.fixture
def _signals() -> object:
    """`start_all` takes the signals of the process; give them back."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, 10, 12)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_signals")
class TestStartedRanks:
    def test_all_done_is_done(self) -> None:
        assert start_all([on_host("a", "pass"), on_host("b", "pass")]) == 0

    @pytest.mark.parametrize("code", [1, 2, 75])
    def test_the_first_code_is_the_jobs_and_the_others_end(self, code: int) -> None:
        began = time.monotonic()
        assert start_all([on_host("a", WAIT), on_host("b", f"import sys; sys.exit({code})")]) == code
        assert time.monotonic() - began < 30

    def test_a_rank_that_was_killed_may_be_started_again(self) -> None:
        with pytest.raises(RequeueError, match="a rank on b was ended by signal 9"):
            start_all([on_host("a", WAIT), on_host("b", "import os; os.kill(os.getpid(), 9)")])

    def test_ssh_that_fails_at_once_is_the_users_to_mend(self) -> None:
        with pytest.raises(ClusterError, match="ssh to b failed"):
            start_all([on_host("a", WAIT), on_host("b", "import sys; sys.exit(255)")])

    def test_a_signal_is_passed_on_to_every_host(self, tmp_path: Path) -> None:
        code = (
            "import os, pathlib, signal, sys, time; "
            "signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75)); "
            "pathlib.Path(sys.argv[1]).touch(); time.sleep(60)"
        )
        starts = [
            Start(argv=(*on_host(name, code).argv, str(tmp_path / name)), host=name, env=(("A", "1"),)) for name in "ab"
        ]
        wait = f"until [ -e {tmp_path}/a ] && [ -e {tmp_path}/b ]; do sleep 0.1; done; kill -USR1 {os.getpid()}"
        watcher = subprocess.Popen(["bash", "-c", wait])
        assert start_all(starts) == 75
        assert watcher.wait(10) == 0


@pytest.mark.parametrize(
    ("said", "message", "fix"),
    [
        (
            "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified",
            "the account is missing or is not yours",
            "--account NAME",
        ),
        ("sbatch: error: invalid partition specified: gpu", "there is no such partition", "sinfo -s"),
        (
            "sbatch: error: Batch job submission failed: Requested node configuration is not available",
            "no node has so many GPUs",
            "%G",
        ),
        ("sbatch: error: something new\n  and more", "sbatch refused: sbatch: error: something new and more", "mend"),
        ("", "sbatch refused: without a word", "mend"),
    ],
)
def test_what_sbatch_says_becomes_what_to_do(said: str, message: str, fix: str) -> None:
    error = explain_refusal(said)
    assert message in error.what
    assert fix in error.fix
    assert error.exit_code == 2


def test_every_refusal_says_what_to_do() -> None:
    assert all(piece == piece.lower() and meaning and fix for piece, meaning, fix in REFUSALS)


def test_without_slurm_it_says_where_to_launch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["launch", "law-bert-zh", "--via", "slurm"]) == 2
    assert "there is no sbatch here" in capsys.readouterr().err


def command(folder: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a program of this name before all others."""
    file = folder / "bin" / name
    file.parent.mkdir()
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{file.parent}:{os.environ['PATH']}")


def test_a_launcher_that_is_missing_beside_python_is_told_with_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert main(["launch", "law-bert-zh", "--via", "torchrun", "--slots", "2"]) == 2
    told = capsys.readouterr().err
    assert "there is no torchrun here" in told
    assert f"where: {tmp_path}\n" in told


def test_what_sbatch_warns_of_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command(
        *(tmp_path, "sbatch", "printf 'sbatch: moved to f\\374r-alle\\n' >&2; echo Submitted batch job 7", monkeypatch)
    )
    assert main(["launch", "law-bert-zh", "--via", "slurm"]) == 0
    told = capsys.readouterr()
    assert (told.out, told.err) == ("Submitted batch job 7\n", "sbatch: moved to f\ufffdr-alle\n")


@pytest.mark.parametrize(("code", "number"), [(137, 9), (247, 9), (241, 15), (143, 15)])
def test_a_signal_is_told_from_either_way_of_counting_it(code: int, number: int) -> None:
    """A shell says 128 and the signal; DeepSpeed's launcher ends with minus the signal, of which 256 less are left."""
    with pytest.raises(RequeueError, match=f"ended by signal {number}\n"):
        start_all([Start(argv=(sys.executable, "-c", f"raise SystemExit({code})"))])


def test_255_is_no_signal_but_the_code_of_a_launcher_whose_ssh_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    told = "sh ended with 255: it failed, or its ssh to a host did"
    failing = Start(argv=("sh", "-c", "exit 255"), by_ssh=True)
    with pytest.raises(ClusterError, match=told):
        start_all([failing])
    monkeypatch.setattr(launch, "END_S", 0.0)  # so that it has lived
    with pytest.raises(RequeueError, match=told):
        start_all([failing])


@pytest.mark.parametrize("end_s", [launch.END_S, 0.0], ids=["at once", "after a while"])
def test_255_of_a_launcher_that_asks_no_other_machine_is_no_fault_of_the_cluster(
    end_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "END_S", end_s)
    with pytest.raises(LauncherError, match="sh ended with 255") as raised:
        start_all([Start(argv=("sh", "-c", "exit 255"))])
    assert type(raised.value) is LauncherError
    assert raised.value.exit_code == 1
    assert "ssh" not in str(raised.value)
