"""Slurm's node lists and DeepSpeed's hostfiles."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.cli import main
from launcher.cluster import hosts
from launcher.cluster.allocation import allocated_hosts
from launcher.cluster.hostfile import Host, given_hostfile, read_hostfile
from launcher.cluster.hosts import check_names, check_reach, is_free
from launcher.cluster.slurm import expand_nodelist, tasks_per_node
from launcher.errors import ClusterError

HOSTFILES = Path(__file__).resolve().parents[3] / "hostfiles"


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("node1", ["node1"]),
        ("node[1-3]", ["node1", "node2", "node3"]),
        ("node[08-10,3]", ["node08", "node09", "node10", "node3"]),
        ("a,b[1-2],c", ["a", "b1", "b2", "c"]),
        ("gpu-a[01-02]b", ["gpu-a01b", "gpu-a02b"]),
        ("r[1-2]n[1-2]", ["r1n1", "r1n2", "r2n1", "r2n2"]),
    ],
)
def test_node_lists_are_expanded_in_order(text: str, hosts: list[str]) -> None:
    assert expand_nodelist(text) == hosts


NAMES = st.text("abc-", min_size=1, max_size=4)
RANGES = st.tuples(st.integers(0, 120), st.integers(0, 30), st.integers(1, 4))


@given(st.lists(st.tuples(NAMES, st.lists(RANGES, max_size=3), st.sampled_from(["", "b"])), min_size=1, max_size=4))
def test_what_was_shortened_comes_out_again(pieces: list[tuple[str, list[tuple[int, int, int]], str]]) -> None:
    short, hosts = [], []
    for before, ranges, after in pieces:
        inside = ",".join(f"{first:0{width}d}-{first + more:0{width}d}" for first, more, width in ranges)
        short.append(f"{before}[{inside}]{after}" if ranges else before + after)
        numbers = [f"{n:0{width}d}" for first, more, width in ranges for n in range(first, first + more + 1)]
        hosts += [before + number + after for number in (numbers if ranges else [""])]
    assert expand_nodelist(",".join(short)) == hosts


@pytest.mark.parametrize(
    "text", ["", ",", "a,,b", "a,", "node[1-", "node[a-b]", "[", "node]1", "node[1-2-3]", "node[3-1],a", "node[]"]
)
def test_what_is_no_node_list_is_refused(text: str) -> None:
    with pytest.raises(ClusterError, match="node list"):
        expand_nodelist(text)


@pytest.mark.parametrize(("text", "tasks"), [("4", [4]), ("2(x3),1", [2, 2, 2, 1]), ("1,2,1", [1, 2, 1])])
def test_tasks_per_node_are_expanded(text: str, tasks: list[int]) -> None:
    assert tasks_per_node(text) == tasks


@pytest.mark.parametrize("text", ["", "x", "0", "2(x0)", "2(3)", "2,", "-1"])
def test_what_is_no_list_of_tasks_is_refused(text: str) -> None:
    with pytest.raises(ClusterError, match="is no list of tasks per node"):
        tasks_per_node(text)


@pytest.mark.parametrize("name", ["localhost", "two_nodes"])
def test_shipped_hostfiles_are_read_by_us(name: str) -> None:
    hosts = read_hostfile(HOSTFILES / name)
    assert hosts == {"localhost": [Host("localhost", 2)], "two_nodes": [Host("node1", 8), Host("node2", 8)]}[name]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("node1\n", "'node1' is not a host"),
        ("node1 slots=x\n", "slots=x is not a number of ranks"),
        ("node1 slots=0\n", "write slots=1 or more"),
        ("# nobody\n\n", "the hostfile names no host"),
        ("a slots=1\na slots=2\n", "hosts:2"),
    ],
)
def test_a_wrong_hostfile_is_told_with_its_line(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text(content)
    with pytest.raises(ClusterError) as caught:
        read_hostfile(path)
    assert message in str(caught.value)


def test_a_hostfile_that_is_no_text_is_told(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ClusterError, match="it is no UTF-8 text"):
        read_hostfile(path)


@pytest.mark.slow
def test_shipped_hostfiles_are_read_the_same_by_deepspeed() -> None:
    from deepspeed.launcher.runner import fetch_hostfile

    for path in sorted(HOSTFILES.iterdir()):
        assert list(fetch_hostfile(str(path)).items()) == [(host.name, host.slots) for host in read_hostfile(path)]


def test_a_missing_hostfile_is_an_error_here(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="the hostfile cannot be read"):
        read_hostfile(tmp_path / "none")


RUNNER = ["python", "/venv/bin/deepspeed"]


@pytest.mark.parametrize(
    ("words", "given"),
    [
        ([*RUNNER, "--hostfile", "h", "launcher/train.py"], "h"),
        ([*RUNNER, "-H", "h", "launcher/train.py"], "h"),
        ([*RUNNER, "--num_gpus", "2", "--hostfile=a/h", "launcher/train.py"], "a/h"),
        (["python", "-m", "deepspeed.launcher.runner", "--hostfile", "h", "x.py"], "h"),
        ([*RUNNER, "--num_gpus", "2", "launcher/train.py"], None),
        ([*RUNNER, "launcher/train.py", "--hostfile", "h"], None),
        (["bash", "-c", "deepspeed --hostfile h launcher/train.py"], None),
        ([], None),
    ],
)
def test_a_runners_hostfile_is_read_from_its_command_line(words: list[str], given: str | None) -> None:
    assert given_hostfile(words) == given


# A runner in name, a node launcher below it, and a rank below that.
TRAIN = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', sys.argv[1]]))"
RANK = """
import sys
from launcher.cluster.hostfile import refuse_ignored_hostfile
from launcher.errors import ClusterError
try:
    refuse_ignored_hostfile()
except ClusterError as error:
    sys.exit(f"refused: {error}")
"""


@pytest.mark.parametrize(("name", "refused"), [("none", True), ("hosts", False)])
def test_a_rank_refuses_a_hostfile_that_its_runner_did_not_find(name: str, refused: bool, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("localhost slots=2\n")
    runner = tmp_path / "deepspeed"
    runner.write_text(f"import subprocess, sys; subprocess.call([sys.executable, '-c', {TRAIN!r}, {RANK!r}])")
    words = [sys.executable, str(runner), "--hostfile", name, "launcher/train.py"]
    env = {**os.environ, "PYTHONPATH": str(HOSTFILES.parent)}
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=True)
    assert ("refused: ClusterError: the hostfile cannot be read" in done.stderr) == refused, done.stderr


@pytest.mark.parametrize(
    ("env", "hosts", "reason"),
    [
        ({"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "n[1-2]"}, [("n1", 1), ("n2", 1)], "nothing said of tasks"),
        (
            {"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_TASKS_PER_NODE": "3,1"},
            [("n1", 3), ("n2", 1)],
            "Slurm's tasks",
        ),
        (
            {
                "SLURM_JOB_ID": "1",
                "SLURM_JOB_NODELIST": "n[1-2]",
                "SLURM_TASKS_PER_NODE": "1(x2)",
                "SLURM_GPUS_PER_NODE": "a100:8",
            },
            [("n1", 8), ("n2", 8)],
            "GPUs before tasks",
        ),
        ({"LSB_MCPU_HOSTS": "b 1 a 8"}, [("b", 1), ("a", 8)], "LSF, in its order"),
    ],
)
def test_an_allocation_becomes_hosts(env: dict[str, str], hosts: list[tuple[str, int]], reason: str) -> None:
    assert [(host.name, host.slots) for host in allocated_hosts(env)] == hosts, reason


@pytest.mark.parametrize(
    ("variable", "content", "hosts"),
    [
        ("PBS_NODEFILE", "a\na\nb\nb\n", [Host("a", 2), Host("b", 2)]),
        ("LSB_DJOB_HOSTFILE", "a\nb\na\n", [Host("a", 2), Host("b", 1)]),
    ],
)
def test_a_list_of_hosts_is_counted(variable: str, content: str, hosts: list[Host], tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text(content)
    assert allocated_hosts({variable: str(tmp_path / "hosts")}) == hosts


def test_torques_accelerators_come_before_its_cores(tmp_path: Path) -> None:
    (tmp_path / "cores").write_text("n-1\n" * 16)
    (tmp_path / "gpus").write_text("n-1-gpu0\nn-1-gpu1\n")
    env = {"PBS_NODEFILE": str(tmp_path / "cores"), "PBS_GPUFILE": str(tmp_path / "gpus")}
    assert allocated_hosts(env) == [Host("n-1", 2)]


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({}, "this is no allocation"),
        ({"SLURM_JOB_ID": "7"}, "job 7 tells no hosts: SLURM_JOB_NODELIST is missing or empty"),
        ({"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": ""}, "SLURM_JOB_NODELIST is missing or empty"),
        (
            {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "a,b", "SLURM_TASKS_PER_NODE": "2"},
            "2 hosts, but tasks of 1",
        ),
        ({"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "a", "SLURM_GPUS_ON_NODE": "x"}, "'x' is no number of GPUs"),
        ({"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "a["}, "where: SLURM_JOB_NODELIST\n"),
        (
            {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "a", "SLURM_TASKS_PER_NODE": "x"},
            "where: SLURM_TASKS_PER_NODE\n",
        ),
        ({"PBS_NODEFILE": "/no/such/file"}, "the allocation's list of hosts cannot be read"),
        ({"PBS_NODEFILE": "/dev/null"}, "the allocation's list of hosts is empty"),
        ({"LSB_MCPU_HOSTS": "a b"}, "is no list of hosts and slots"),
    ],
)
def test_an_allocation_told_by_halves_is_refused(env: dict[str, str], message: str) -> None:
    with pytest.raises(ClusterError) as caught:
        allocated_hosts(env)
    assert message in str(caught.value)


def test_a_written_hostfile_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[08-10]")
    monkeypatch.setenv("SLURM_GPUS_PER_NODE", "4")
    monkeypatch.delenv("SLURM_TASKS_PER_NODE", raising=False)
    assert main(["hostfile", "--out", str(tmp_path / "hosts")]) == 0
    assert read_hostfile(tmp_path / "hosts") == [Host(name, 4) for name in ("n08", "n09", "n10")]
    assert (tmp_path / "hosts").read_text().startswith("# job 7 of Slurm\n")
    assert main(["hostfile", "--out", str(tmp_path / "hosts"), "--slots", "2"]) == 0
    assert read_hostfile(tmp_path / "hosts")[0] == Host("n08", 2)
    assert main(["hostfile", "--out", str(tmp_path / "no" / "hosts")]) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["two_nodes", "--slots", "4", "--out", "x"], "a hostfile is checked as it is, without --slots, --out"),
        (["--reach"], "--reach asks the hosts of a file, and none is named"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(HOSTFILES)
    assert main(["hostfile", *words]) == 2
    assert capsys.readouterr().err.startswith(f"UsageError: {message}")


def test_where_all_ports_are_taken_both_ways_to_name_one_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "is_free", lambda port: False)
    with pytest.raises(ClusterError, match="MASTER_PORT, or --port of pretrain launch"):
        hosts.free_port()


def answer(code: int, out: str = "", err: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.CompletedProcess([], code, out, err)


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"a": answer(0, "8\n"), "b": answer(0)}, ""),
        ({"a": answer(255, "", "banner\nssh: connect to host a port 22: No route to host"), "b": answer(0)}, "a (ssh:"),
        ({"a": answer(255), "b": answer(255)}, "not reached over ssh: a (ssh ended with 255), b"),
        (
            {"a": answer(0, "4\n"), "b": answer(0, "0\n")},
            "a has 4 accelerators for 8 slots; b has 0 accelerators for 8",
        ),
    ],
)
def test_hosts_are_asked_before_ranks_are_started(
    answers: dict[str, subprocess.CompletedProcess[str]], message: str
) -> None:
    hosts = [Host("a", 8), Host("b", 8)]
    if not message:
        check_reach(hosts, answers.__getitem__)
        return
    with pytest.raises(ClusterError) as caught:
        check_reach(hosts, answers.__getitem__)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["localhost"], ""),
        (["localhost", "127.0.0.2"], "localhost resolves to 127.0.0.1, which every host takes for itself"),
        (["10.0.0.1", "10.1"], "10.0.0.1 and 10.1 are one machine, 10.0.0.1"),
        (["no-such-host.invalid"], "the name no-such-host.invalid resolves to no address here"),
    ],
)
def test_a_name_must_mean_the_same_machine_to_all(names: list[str], message: str) -> None:
    hosts = [Host(name, 1) for name in names]
    if not message:
        check_names(hosts)
        return
    with pytest.raises(ClusterError) as caught:
        check_names(hosts)
    assert message in str(caught.value)


def test_a_port_that_is_listened_at_is_not_free() -> None:
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        assert not is_free(listener.getsockname()[1])
    assert is_free(0)


def test_a_banner_in_another_encoding_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ssh = tmp_path / "ssh"
    ssh.write_text("#!/bin/sh\nprintf 'Universit\\344t\\n' >&2; echo 8\n")
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    check_reach([Host("node1", 8)])
    with pytest.raises(ClusterError, match="node1 has 8 accelerators for 9 slots"):
        check_reach([Host("node1", 9)])
