"""`pretrain doctor` holds a job against what Slurm says of the cluster."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from launcher.doctor import slurm
from launcher.doctor.findings import Finding
from launcher.doctor.slurm import Wanted, look_at_slurm, of_script, read_partitions, seconds

SINFO = """\
gpu*|up|idle|6|64|gpu:a100:8(S:0-1),nvme:1|2-00:00:00|1:00:00
gpu*|up|down*|2|64|gpu:a100:8(S:0-1)|2-00:00:00|1:00:00
small|up|mix|4|32+|gpu:2|1:00:00|n/a
cpu|up|idle|100|128|(null)|infinite|infinite
old|inact|idle|1|8|(null)|infinite|infinite
"""
ACCOUNTS = "lab|\nteaching|small\n"


def answer(words: Sequence[str]) -> str:
    return {"sinfo": SINFO, "id": "me\n", "sacctmgr": ACCOUNTS}[words[0]]


@pytest.fixture
def _on_a_login_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm.shutil, "which", lambda name: f"/usr/bin/{name}")


def look(**wanted: object) -> dict[str, Finding]:
    return {finding.name: finding for finding in look_at_slurm(Wanted(**wanted), answer)}  # type: ignore[arg-type]


@pytest.mark.usefixtures("_on_a_login_node")
class TestOnALoginNode:
    def test_a_job_that_fits_is_told_with_its_partition(self) -> None:
        found = look(nodes=6, ranks_per_node=8, account="lab", time="24:00:00", needs_gpus=True)
        assert {finding.state for finding in found.values()} == {"ok"}
        assert found["slurm"].found == "partition gpu: 8 nodes, of 64 cores and 8 GPUs"
        assert found["time"].found == "24:00:00; at most 2-00:00:00"

    @pytest.mark.parametrize(
        ("wanted", "name", "state", "told", "fix"),
        [
            ({"partition": "gpus"}, "slurm", "wrong", "there is no partition 'gpus'", "did you mean 'gpu'?"),
            ({"partition": "old"}, "slurm", "wrong", "takes no jobs", "another"),
            ({"nodes": 9}, "nodes", "wrong", "9 nodes are asked for, gpu has 8", "--nodes=8"),
            ({"nodes": 7}, "nodes", "note", "6 of the 8 nodes", "sinfo -R"),
            (
                {"ranks_per_node": 9},
                "gpus",
                "wrong",
                "9 ranks a node are asked for; the nodes have room for 8",
                "fewer",
            ),
            ({"partition": "small", "ranks_per_node": 4}, "gpus", "wrong", "room for 2 (GPUs)", "more nodes"),
            ({"partition": "cpu", "needs_gpus": True}, "gpus", "wrong", "no node here has one", "%G"),
            ({"time": "3-00:00:00"}, "time", "wrong", "longer than the partition's limit", "--time=2-00:00:00"),
            ({"time": "soon"}, "time", "wrong", "'soon' is no time limit", "4:00:00"),
            ({}, "time", "note", "a job gets 1:00:00", "--time"),
            ({"partition": "small"}, "time", "note", "the partition's 1:00:00", "--time"),
            ({"account": "labs"}, "account", "wrong", "the account 'labs' is not me's in gpu", "did you mean 'lab'?"),
            ({"account": "teaching"}, "account", "wrong", "is not me's in gpu", "lab"),
            ({"account": "teaching", "partition": "small"}, "account", "ok", "teaching", ""),
        ],
    )
    def test_what_the_cluster_has_not_is_told(
        self, wanted: dict[str, object], name: str, state: str, told: str, fix: str
    ) -> None:
        finding = look(**wanted)[name]
        assert (finding.state, told in finding.found, fix in finding.fix) == (state, True, True), finding

    def test_without_a_default_partition_one_must_be_named(self) -> None:
        (finding,) = look_at_slurm(Wanted(), lambda words: SINFO.replace("*|up", "|up"))
        assert (finding.state, finding.fix) == ("wrong", "--partition NAME: gpu, small, cpu, old")

    @pytest.mark.parametrize(("wanted", "state"), [(Wanted(), "note"), (Wanted(time="1:00:00"), "wrong")])
    def test_a_controller_that_does_not_answer_is_told(self, wanted: Wanted, state: str) -> None:
        def silent(words: Sequence[str]) -> str:
            raise OSError("slurm_load_partitions: Unable to contact slurm controller")

        (finding,) = look_at_slurm(wanted, silent)
        assert (finding.state, "Unable to contact" in finding.found) == (state, True)

    def test_a_cluster_that_keeps_no_accounts_says_nothing_of_them(self) -> None:
        def without(words: Sequence[str]) -> str:
            if words[0] == "sacctmgr":
                raise OSError("You are not running a supported accounting_storage plugin")
            return answer(words)

        assert [one.name for one in look_at_slurm(Wanted(account="lab", time="1:00"), without)] == ["slurm", "time"]


def test_elsewhere_it_says_that_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm.shutil, "which", lambda name: None)
    assert list(look_at_slurm(Wanted(nodes=2), answer)) == []
    (finding,) = look_at_slurm(Wanted(partition="gpu"), answer)
    assert (finding.state, finding.found) == ("note", "there is no Slurm here: not known is what it has")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 5400), ("90:30", 5430), ("4:00:00", 14_400), ("2-0", 172_800), ("1-12:30", 131_400), ("infinite", None)],
)
def test_times_are_read_as_slurm_writes_them(text: str, expected: int | None) -> None:
    assert seconds(text) == expected


def test_gpus_and_cores_are_read_from_sinfo() -> None:
    told = [(nodes.partition, nodes.number, nodes.cores, nodes.gpus) for nodes in read_partitions(SINFO)]
    assert told == [("gpu", 6, 64, 8), ("gpu", 2, 64, 8), ("small", 4, 32, 2), ("cpu", 100, 128, 0), ("old", 1, 8, 0)]


def test_the_lines_of_a_batch_script_count_and_commented_ones_do_not(tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/bash\n#SBATCH --partition=gpu\n##SBATCH --account=lab\n#SBATCH --time=4:00:00\n")
    assert of_script(script) == {"partition": "gpu", "time": "4:00:00"}
