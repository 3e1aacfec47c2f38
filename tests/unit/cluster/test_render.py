"""One job, rendered for every back end: whole texts, compared with tests/golden/launch."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.cluster.hostfile import Host
from launcher.cluster.job import Job, SlurmRequest
from launcher.cluster.render import RENDERERS, shown
from launcher.errors import UsageError

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "launch"
TOKEN = "hf_abcdefghijklmnopqrstuvwxyz"
ENV = (
    ("HF_HUB_OFFLINE", "1"),
    ("HF_TOKEN", TOKEN),
    ("NCCL_SOCKET_IFNAME", "^lo,docker"),
    ("PATH", "/home/me/my tools:/usr/bin"),
)
JOB = Job(
    arguments=("--ds_config", "zero3.json", "--recipe", "llama-8b", "train.num_steps=50", 'eval.prompts=["it\'s"]'),
    hosts=(Host("node1", 8), Host("node2", 8)),
    hostfile=Path("hostfiles/two_nodes"),
    folder=Path("/home/me/pretraining"),
    python="/home/me/pretraining/.venv/bin/python",
    env=ENV,
    added=frozenset({"HF_HUB_OFFLINE", "HF_TOKEN"}),
    master_port=21234,
    slurm=SlurmRequest(
        nodes=2,
        spares=1,
        tasks_per_node=8,
        gpus_per_node=8,
        time="4:00:00",
        partition="gpu",
        account="lab",
        prologue=Path("my-prologue.sh"),
    ),
)
ALONE = replace(JOB, hosts=(Host("localhost", 2),), hostfile=None)
CASES = {
    "local": ("local", ALONE),
    "hostfile": ("hostfile", JOB),
    "slurm": ("slurm", JOB),
    "slurm_defaults": ("slurm", replace(JOB, slurm=SlurmRequest(nodes=1))),
    "mpi": ("mpi", JOB),
    "mpich": ("mpich", JOB),
    "intelmpi": ("intelmpi", JOB),
    "torchrun_alone": ("torchrun", ALONE),
    "torchrun": ("torchrun", JOB),
    "ssh": ("ssh", replace(JOB, hosts=(Host("node1", 8), Host("node2", 4)))),
}


@pytest.mark.parametrize("name", CASES)
def test_a_job_is_rendered_as_committed(name: str) -> None:
    via, job = CASES[name]
    text = shown(RENDERERS[via](job))
    file = GOLDEN / f"{name}.txt"
    if os.environ.get("WRITE_RECORD"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8")


def test_every_back_end_has_a_text() -> None:
    assert {via for via, _ in CASES.values()} == set(RENDERERS)


@pytest.mark.parametrize("name", CASES)
def test_mpi_alone_reaches_the_hosts_of_a_hostfile_by_an_ssh_of_its_own(name: str) -> None:
    via, job = CASES[name]
    assert {start.by_ssh for start in RENDERERS[via](job)} == {via in ("mpi", "mpich", "intelmpi")}


@pytest.mark.parametrize("via", ["mpi", "mpich", "intelmpi"])
def test_mpi_on_this_machine_asks_no_ssh(via: str) -> None:
    assert [start.by_ssh for start in RENDERERS[via](ALONE)] == [False]


@pytest.mark.parametrize("name", CASES)
def test_no_command_and_no_text_holds_a_secret(name: str) -> None:
    via, job = CASES[name]
    starts = RENDERERS[via](job)
    assert TOKEN not in shown(starts)
    assert all(TOKEN not in word for start in starts for word in start.argv)
    told = [dict(start.env).get("HF_TOKEN") or dict(start.secrets).get("HF_TOKEN") for start in starts]
    assert told == [TOKEN] * len(starts), "and yet every rank gets it"


@pytest.mark.parametrize("name", ["hostfile", "ssh", "torchrun"])
def test_over_ssh_every_variable_is_named_and_quoted(name: str) -> None:
    via, job = CASES[name]
    for start in RENDERERS[via](job):
        remote = start.argv[-1]
        assert "'PATH=/home/me/my tools:/usr/bin'" in remote
        assert "'NCCL_SOCKET_IFNAME=^lo,docker'" in remote
        assert remote.startswith("cd /home/me/pretraining && exec env ")


@pytest.mark.parametrize("name", CASES)
def test_nothing_kills_by_a_pattern(name: str) -> None:
    via, job = CASES[name]
    text = shown(RENDERERS[via](job))
    assert not [word for word in ("pkill", "killall", "pdsh") if word in text]


@pytest.mark.parametrize(
    ("via", "job", "message"),
    [
        ("local", JOB, "--via local starts ranks on this machine alone, and there are 2 hosts"),
        ("hostfile", ALONE, "--via hostfile needs a hostfile"),
        ("mpich", CASES["ssh"][1], "the same number of ranks on every host"),
    ],
)
def test_what_a_back_end_cannot_do_is_told(via: str, job: Job, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        RENDERERS[via](job)
    assert message in str(caught.value)
