"""A run on Slurm meets what happens on clusters, and takes the steps of one that nothing happened to."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from slurm_cluster import ROOT, Cluster

from launcher.drill import sabotage
from launcher.engine.records import read_metrics

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]
SCRIPT = ROOT / "slurm" / "pretrain.sh"
STEPS, EVERY = 240, 10
OPTIONS = ("--nodes=2", "--ntasks-per-node=1", "--time=20", "--exclude=node4")
# Of a machine that does nothing else a step would be over before anything can happen to it.
PACE = sabotage.order("slow", seconds=0.1)
ENV = {"OMP_NUM_THREADS": "1", "PRETRAIN_PROBE_S": "15", "PRETRAIN_LINGER_S": "5"}


def write_recipe(folder: Path, shards: Path) -> Path:
    tree = tiny.recipe_tree(
        "clm",
        shards,
        folder / "runs",
        train__num_steps=STEPS,
        checkpoint__every_steps=EVERY,
        schedule__kind="constant",
        eval__max_samples=8,
    )
    return tiny.write_recipe(folder / "recipe.yaml", tree)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_shards(tmp_path_factory.mktemp("shards"), "bpe")


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of the same run on two nodes with nothing in its way."""
    folder = tmp_path_factory.mktemp("undisturbed")
    words = ("-m", "launcher.train", "--ds_config", "zero1.json", "--recipe", str(write_recipe(folder, shards)))
    done = cluster.run("ctl", "srun", *OPTIONS, sys.executable, *words, timeout=900, **ENV)
    assert done.returncode == 0, done.stderr
    return losses(folder)


def metrics(folder: Path) -> list[dict[str, Any]]:
    file = folder / "runs" / "tiny" / "metrics.jsonl"
    return [line for line in read_metrics(file) if "lr" in line] if file.exists() else []


def losses(folder: Path) -> list[float]:
    lines = metrics(folder)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    return [line["loss"] for line in lines]


def until(reached: Callable[[], bool], what: str, output: Path, timeout_s: float = 300) -> None:
    deadline = time.monotonic() + timeout_s
    while not reached():
        assert time.monotonic() < deadline, f"{what} did not come\n{output.read_text() if output.exists() else ''}"
        time.sleep(0.2)


def goes_on(cluster: Cluster, job: str, folder: Path, life: int, steps: int) -> None:
    """Wait until this life of the job has taken so many steps."""

    def reached() -> bool:
        if cluster.fields(job).get("Restarts") != str(life) or len(cluster.processes("-m launcher.train")) != 2:
            return False
        seen = metrics(folder)
        return bool(seen) and seen[-1]["step"] >= start + steps

    output = folder / "out"
    until(lambda: cluster.fields(job).get("Restarts") == str(life), f"life {life}", output)
    seen = metrics(folder)
    start = seen[-1]["step"] // EVERY * EVERY if seen else 0
    until(reached, f"step {start + steps} in life {life}", output)


def kill_task(cluster: Cluster, job: str, folder: Path) -> None:
    pid = cluster.processes("-u -m launcher.train")["node2"][-1]
    cluster.run("node2", "kill", "-9", str(pid))


def requeue(cluster: Cluster, job: str, folder: Path) -> None:
    cluster.run("ctl", "scontrol", "requeue", job)


def reach_time_limit(cluster: Cluster, job: str, folder: Path) -> None:
    """The limit comes so near that Slurm gives its warning."""
    cluster.run("ctl", "scontrol", "update", f"JobId={job}", "TimeLimit=2")
    until(lambda: "USR1 at" in (folder / "out").read_text(), "the warning", folder / "out")
    until(lambda: cluster.fields(job)["JobState"] != "RUNNING", "the end of this life", folder / "out")
    cluster.run("ctl", "scontrol", "update", f"JobId={job}", "TimeLimit=20")


def fill_disk(cluster: Cluster, job: str, folder: Path) -> None:
    """There is no room for what node2 writes into the checkpoints' folder: a save fails, and training goes on."""
    checkpoints = str(folder / "runs" / "tiny" / "checkpoints")
    cluster.do("fill", "node2", checkpoints)
    told = "the checkpoint could not be written: rank 1"
    until(lambda: told in (folder / "out").read_text(), "the failed save", folder / "out")
    cluster.do("free", "node2", checkpoints)
    assert "No space left on device" in (folder / "out").read_text()


def test_stopped_by_processes_disks_and_slurm_it_takes_the_same_steps(
    cluster: Cluster, shards: Path, undisturbed: list[float], tmp_path: Path
) -> None:
    words, output = ("--ds_config", "zero1.json", "--recipe", str(write_recipe(tmp_path, shards))), tmp_path / "out"
    job = cluster.sbatch(SCRIPT, *words, output=output, options=OPTIONS, **ENV, **PACE)
    try:
        for life, act in enumerate((kill_task, requeue, reach_time_limit, fill_disk)):
            goes_on(cluster, job, tmp_path, life, EVERY)
            act(cluster, job, tmp_path)
        goes_on(cluster, job, tmp_path, 3, EVERY)
        before = metrics(tmp_path)[-1]["step"]
    finally:
        cluster.run("ctl", "scancel", job)
    assert cluster.wait(job, output)["JobState"] == "CANCELLED"
    until(lambda: cluster.processes("launcher.train") == {}, "the end of all ranks", output)
    assert before < STEPS, "it was cancelled in the middle"
    assert cluster.submit(SCRIPT, *words, output=tmp_path / "again", options=OPTIONS, **ENV) == 0
    assert losses(tmp_path) == undisturbed
    assert cluster.processes("launcher.train") == {}
    assert (tmp_path / "runs" / "tiny" / "export" / "model.safetensors").is_file()


def test_its_nodes_killed_and_cut_off_it_takes_the_same_steps_on_others(
    cluster: Cluster, shards: Path, undisturbed: list[float], tmp_path: Path
) -> None:
    words, output = ("--ds_config", "zero1.json", "--recipe", str(write_recipe(tmp_path, shards))), tmp_path / "out"
    job = cluster.sbatch(SCRIPT, *words, output=output, options=OPTIONS, **ENV, **PACE)
    try:
        goes_on(cluster, job, tmp_path, 0, EVERY)
        cluster.do("kill-node", "node2")
        goes_on(cluster, job, tmp_path, 1, EVERY)
        assert cluster.fields(job)["NodeList"] == "node[1,3]"
        cluster.do("heal", "node2")
        until(lambda: "node2 idle" in states(cluster), "node2", output)
        cluster.do("cut", "node1")  # the batch script's own
        cluster.run("ctl", "scontrol", "update", f"JobId={job}", "ExcNodeList=node4")
        until(lambda: cluster.fields(job).get("Restarts") == "2", "the third life", output)
        cluster.run("ctl", "scontrol", "update", f"JobId={job}", "ExcNodeList=node4")
        fields = cluster.wait(job, output)
        told = (fields["JobState"], fields["Restarts"], fields["NodeList"])
        assert told == ("COMPLETED", "2", "node[2-3]"), output.read_text()
    finally:
        cluster.run("ctl", "scancel", job)
        cluster.do("heal", "node1")
        cluster.do("heal", "node2")
    assert losses(tmp_path) == undisturbed
    until(lambda: cluster.processes("launcher.train") == {}, "the end of all ranks", output)


def states(cluster: Cluster) -> str:
    return cluster.run("ctl", "sinfo", "-h", "-N", "-o", "%N %t").stdout
