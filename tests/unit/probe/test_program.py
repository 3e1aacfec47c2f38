"""`pretrain check` alone on a machine, and what its words and launchers can get wrong."""

from __future__ import annotations

import errno
import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
from slurm_cluster import ROOT

from launcher.cluster.rank import find_place
from launcher.probe import facts
from launcher.probe.facts import Question, collect
from launcher.probe.program import _expected


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    tree = tiny.recipe_tree("mlm", tiny.make_shards(folder), folder / "runs")
    return tiny.write_recipe(folder / "r.yaml", tree)


def start(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launcher.probe", *words]
    given = {"PATH": "/usr/bin:/bin", "HOME": "/root", **env}
    return subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("words", "env", "told"),
    [
        (["a", "--recipe", "b"], {}, "two recipes: a and b"),
        (["--hostfile", "nowhere"], {}, "the hostfile cannot be read"),
        ([], {"RANK": "0", "WORLD_SIZE": "2"}, "RANK or WORLD_SIZE is set, but not"),
        (["--wait", "soon"], {}, "is not a number above 0"),
        (["--tolerance", "2"], {}, "is not a share between 0 and 1"),
    ],
)
def test_words_that_cannot_be_understood_are_the_users(words: list[str], env: dict[str, str], told: str) -> None:
    done = start(*words, **env)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


RANKS = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}


def test_a_rank_that_cannot_reach_rank_0_says_so_and_asks_to_be_started_again() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = str(unused.getsockname()[1])
        done = start("--wait", "0.5", **RANKS, RANK="1", LOCAL_RANK="1", MASTER_PORT=port)
    assert done.returncode == 75
    assert "rank 1 on" in done.stderr
    assert "cannot reach rank 0 within 0.5 s" in done.stderr


def test_a_port_that_is_taken_is_told() -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = start("--wait", "1", **RANKS, RANK="0", LOCAL_RANK="0", MASTER_PORT=port)
    assert done.returncode == 2
    assert f"port {port} cannot be listened at" in done.stderr


def test_the_facts_of_a_host_follow_its_recipe_shards_and_files(recipe: Path) -> None:
    question = Question(recipe=str(recipe), overrides=[], ds_config="zero2")
    told = collect(question)
    assert told["errors"] == []
    assert set(told["same"]) == {"code", "python", "versions", "driver", "recipe", "ds_config", "shards"}
    assert 0 < told["room"]["needed_bytes"] < told["room"]["disk_bytes"]
    assert collect(question)["same"] == told["same"]
    other = collect(Question(recipe=str(recipe), overrides=["train.seed=7"], ds_config="zero3"))["same"]
    assert {key for key in other if other[key] != told["same"][key]} == {"recipe", "ds_config"}
    victim = next((recipe.parent / "shards").glob("*.bin"))
    content = victim.read_bytes()
    victim.write_bytes(content[:-2])
    try:
        ((what, fix),) = collect(question)["errors"]
    finally:
        victim.write_bytes(content)
    assert str(victim) in what
    assert "restore the file" in fix
    (broken,) = collect(Question(recipe="nonsense", overrides=[], ds_config=None))["errors"]
    assert broken[0].startswith("there is no recipe")


@pytest.mark.parametrize("file", ["manifest.json", "checksums.xxh3"])
@pytest.mark.parametrize("number", [errno.ESTALE, errno.EACCES])
def test_a_host_that_cannot_read_the_shards_says_so(
    file: str, number: int, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Path.open

    def open_(self: Path, *arguments: Any, **named: Any) -> Any:
        if self.name == file:
            raise OSError(number, "refused", str(self))
        return opened(self, *arguments, **named)

    monkeypatch.setattr(Path, "open", open_)
    ((what, _),) = collect(Question(recipe=str(recipe), overrides=[], ds_config=None))["errors"]
    assert what.startswith("the file system failed" if number == errno.ESTALE else "the file cannot be read")
    assert file in what


def test_a_changed_file_of_the_package_is_other_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    monkeypatch.setattr(facts, "PACKAGE", tmp_path)
    before = facts.code_hash()
    (tmp_path / "a.txt").write_text("no code")
    assert facts.code_hash() == before
    (tmp_path / "a.py").write_text("x = 2\n")
    assert facts.code_hash() != before


def test_the_hosts_of_ranks_are_known_from_slurm_or_a_hostfile(tmp_path: Path) -> None:
    env = {
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0",
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": "3",
        "SLURM_STEP_NODELIST": "n[1-2]",
        "SLURM_STEP_TASKS_PER_NODE": "2,1",
        "SLURM_JOB_ID": "7",
    }
    assert _expected(None, find_place(env), env) == ["n1", "n1", "n2"]
    cyclic = {**env, "SLURM_DISTRIBUTION": "cyclic"}
    assert _expected(None, find_place(cyclic), cyclic) == []
    hostfile = tmp_path / "hosts"
    hostfile.write_text("a slots=1\nb slots=2\n")
    assert _expected(hostfile, find_place(env), env) == ["a", "b", "b"]


def test_alone_on_a_machine_it_measures_what_is_there(recipe: Path) -> None:
    done = start(str(recipe), "--ds_config", "zero1", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [one["name"] for one in told["rounds"]] == ["roll call", "compute"]
    assert {finding["name"] for finding in told["findings"]} >= {"matmul", "memory speed"}


def start_without_rank_0(ranks: list[int], hosts: Path, out: Path) -> list[tuple[int, str, str]]:
    """Ranks of four hosts, the first of which nobody reaches; code, output and errors of each."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = str(unused.getsockname()[1])
    hosts.write_text("nowhere slots=1\n127.0.0.2 slots=1\n127.0.0.3 slots=1\n127.0.0.4 slots=1\n")
    words = ["--hostfile", str(hosts), "--exclude-to", str(out), "--wait", "3", "law-bert-zh"]
    env = {"PATH": "/usr/bin:/bin", "HOME": "/root", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "launcher.probe", *words],
            cwd=ROOT,
            env={**env, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ranks
    ]
    told = [process.communicate(timeout=120) for process in processes]
    return [(process.returncode, *texts) for process, texts in zip(processes, told, strict=True)]


def test_the_host_of_rank_0_is_named_by_the_others_where_most_of_them_agree(tmp_path: Path) -> None:
    ended = start_without_rank_0([1, 2, 3], tmp_path / "hosts", tmp_path / "unfit")
    assert [code for code, *_ in ended] == [75, 75, 75]
    assert "nowhere: 3 of 4 hosts reach 127.0.0.2, and none of them reaches rank 0" in ended[0][1]
    assert (tmp_path / "unfit").read_text() == "nowhere\n"


def test_a_host_that_reaches_nobody_accuses_nobody(tmp_path: Path) -> None:
    ((code, told, _),) = start_without_rank_0([1], tmp_path / "hosts", tmp_path / "unfit")
    assert code == 75
    assert "too few hosts reach each other to say who is cut off" in told
    assert not (tmp_path / "unfit").exists()
