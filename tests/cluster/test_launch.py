"""`pretrain launch` and `pretrain scale` on machines: every back end takes the same steps and leaves nothing."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny
from slurm_cluster import ROOT, SCRIPT, Cluster, unavailable

from launcher.engine.records import read_metrics

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]
PRETRAIN = [sys.executable, "-m", "launcher.cli"]
SHORT = ("train.num_steps=8", "eval.prompts=[]")
TOKEN = "hf_planted0in0the0tests0and0shown0nowhere"
ENV = {"HF_TOKEN": TOKEN, "OMP_NUM_THREADS": "1", "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
ENV |= {"OMPI_MCA_btl_tcp_if_include": "eth0", "OMPI_MCA_oob_tcp_if_include": "eth0", "OMPI_MCA_plm_rsh_agent": "ssh"}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    shards = tiny.make_shards(folder, "bpe")
    tree = tiny.recipe_tree("clm", shards, folder / "runs", schedule__kind="constant", eval__max_samples=8)
    return tiny.write_recipe(folder / "recipe.yaml", tree)


@pytest.fixture(scope="module")
def on_slurm(cluster: Cluster, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of the run that `pretrain launch --via slurm` submits; pretrain check comes first."""
    folder = tmp_path_factory.mktemp("on_slurm")
    words = [*PRETRAIN, "launch", str(recipe), "--via", "slurm", "--nodes", "2", "--slots", "1", "--time", "10"]
    words += ["--ds_config", "zero1.json", *SHORT, f"runs={folder}"]
    env = {**ENV, "SBATCH_OUTPUT": str(folder / "out"), "PRETRAIN_LOGS": str(folder / "logs")}
    path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
    with nobody_sees_the_token(cluster, folder):
        done = cluster.run("ctl", *words, PATH=path, **env)
        assert done.returncode == 0, done.stderr
        fields = cluster.wait(done.stdout.split()[-1], folder / "out")
    told = (folder / "out").read_text()
    assert fields["ExitCode"] == "0:0", told
    assert "all are fit" in told
    return losses(folder)


def losses(runs: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(runs / "tiny" / "metrics.jsonl") if "lr" in line]


def hostfile(folder: Path, *names: str) -> Path:
    file = folder / "hosts"
    file.write_text("".join(f"{name} slots=1\n" for name in names))
    return file


@contextmanager
def nobody_sees_the_token(cluster: Cluster, folder: Path) -> Iterator[None]:
    """Neither in the command line of a process of any machine, nor in a file that is left in the folder."""
    done, seen = threading.Event(), []

    def watch() -> None:
        while not done.wait(0.3):
            seen.extend(cluster.processes(TOKEN).items())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    assert seen == []
    told = [file for file in folder.rglob("*") if file.is_file() and TOKEN.encode() in file.read_bytes()]
    assert told == []


@pytest.mark.parametrize("via", ["hostfile", "ssh", "torchrun", "mpi", "mpich", "intelmpi"])
def test_every_back_end_takes_the_same_steps(
    via: str, cluster: Cluster, recipe: Path, on_slurm: list[float], tmp_path: Path
) -> None:
    if via == "mpich" and shutil.which("mpiexec.hydra") is None:
        unavailable("needs MPICH (apt: mpich)")
    env, intel = dict(ENV), os.environ.get("INTEL_MPI_FOLDER", "")
    if via == "intelmpi":
        if not intel:
            unavailable("needs Intel MPI (pip install --target FOLDER impi-rt) and INTEL_MPI_FOLDER=FOLDER")
        env |= {"I_MPI_ROOT": intel, "PATH": f"{intel}/bin:{os.environ['PATH']}"}
    if via == "mpi" and (shutil.which("mpirun") is None or importlib.util.find_spec("mpi4py") is None):
        unavailable("needs Open MPI (apt: openmpi-bin libopenmpi-dev) and mpi4py")
    words = [*PRETRAIN, "launch", str(recipe), "--via", via, "--ds_config", "zero1.json"]
    words += ["--hostfile", str(hostfile(tmp_path, "node1", "node2")), *SHORT, f"runs={tmp_path}"]
    with nobody_sees_the_token(cluster, tmp_path):
        done = cluster.run("node1", *words, **env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert TOKEN not in done.stdout + done.stderr
    assert losses(tmp_path) == on_slurm
    assert cluster.processes("launcher.train") == {}


def test_ranks_over_ssh_end_with_the_one_who_launched_them(cluster: Cluster, recipe: Path, tmp_path: Path) -> None:
    words = [*PRETRAIN, "launch", str(recipe), "--via", "ssh", "--hostfile", str(hostfile(tmp_path, "node1", "node2"))]
    words += ["--ds_config", "zero1.json", "train.num_steps=100000", f"runs={tmp_path}"]
    launcher = subprocess.Popen([str(SCRIPT), "exec", "node3", *words], cwd=ROOT, env={**cluster.env, **ENV})
    file = tmp_path / "tiny" / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not (file.exists() and len(losses(tmp_path)) > 5):
        assert time.monotonic() < deadline
        assert launcher.poll() is None
        time.sleep(0.5)
    (pid,) = cluster.processes("launch " + str(recipe))["node3"]
    cluster.run("node3", "kill", "-9", str(pid))
    launcher.wait(60)
    while cluster.processes("launcher.train") or cluster.processes("launcher.cluster.node"):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    saved = sorted(path.name for path in (tmp_path / "tiny" / "checkpoints").iterdir() if path.name.startswith("step"))
    assert saved == [f"step-{len(losses(tmp_path)):08d}"], "they saved what they had"


def test_a_shell_of_srun_with_several_tasks_is_no_place_to_train_from(cluster: Cluster, recipe: Path) -> None:
    """Only the shell of the first task has somebody who types: its rank would wait for the others for ever."""
    typed = f"cd {ROOT}\n{sys.executable} -m launcher.train --ds_config zero1.json --recipe {recipe}\nexit\n"
    srun = "srun --nodes=2 --ntasks-per-node=1 --pty bash --norc"
    words = [str(SCRIPT), "exec", "ctl", "script", "--quiet", "--return", "--command", srun, "/dev/null"]
    done = subprocess.run(
        words, input=typed, cwd=ROOT, env=cluster.env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2, done.stdout
    assert "this is one interactive shell of an srun --pty with 2 tasks" in done.stdout
    assert "start the ranks with srun inside of salloc" in done.stdout


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("node1", "node9"), "the name node9 resolves to no address here"),
        (("node1", "localhost"), "localhost resolves to 127.0.0.1, which every host takes for itself"),
        (("node1", "10.77.0.99"), "not reached over ssh: 10.77.0.99"),
    ],
)
def test_hosts_that_cannot_be_are_told_before_anything_starts(
    names: tuple[str, ...], message: str, cluster: Cluster, recipe: Path, tmp_path: Path
) -> None:
    words = ["--via", "ssh", "--hostfile", str(hostfile(tmp_path, *names)), f"runs={tmp_path}"]
    done = cluster.run("node1", *PRETRAIN, "launch", str(recipe), *words)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--partition", "none"], "there is no such partition"),
        (["--gpus-per-node", "9"], "no node has so many GPUs"),
        (["--time", "soon"], "this is no time limit"),
    ],
)
def test_what_slurm_refuses_is_told_with_what_to_do(
    words: list[str], message: str, cluster: Cluster, recipe: Path
) -> None:
    done = cluster.run("ctl", *PRETRAIN, "launch", str(recipe), "--via", "slurm", "batch.global_batch=18", *words)
    assert done.returncode == 2
    assert message in done.stderr, done.stderr


def test_the_doctor_holds_a_job_against_the_cluster(cluster: Cluster, recipe: Path) -> None:
    words = [*PRETRAIN, "doctor", str(recipe), "--ds_config", "zero1.json", "--json"]
    done = cluster.run("ctl", *words, "--nodes", "2", "--ranks", "4", "--time", "1:00:00")
    found = {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert found["slurm"]["found"] == "partition batch: 4 nodes, of 64 cores and 8 GPUs", done.stderr
    assert found["time"]["state"] == "ok"
    done = cluster.run("ctl", *words, "--nodes", "5", "--ranks", "45", "--partition", "batc")
    assert done.returncode == 2
    assert "did you mean 'batch'?" in done.stdout


def test_a_hostfile_is_written_in_a_job_and_by_mpirun(cluster: Cluster, tmp_path: Path) -> None:
    written = f"{' '.join(PRETRAIN)} hostfile --out {tmp_path}/slurm"
    script = tmp_path / "job.sh"
    script.write_text(f"#!/bin/bash\n#SBATCH --nodes=2 --ntasks-per-node=2 --gpus-per-node=4\n{written}\n")
    assert cluster.submit(script, output=tmp_path / "out") == 0, (tmp_path / "out").read_text()
    assert (tmp_path / "slurm").read_text().splitlines()[1:] == ["node1 slots=4", "node2 slots=4"]
    if shutil.which("mpirun") is None or importlib.util.find_spec("mpi4py") is None:
        unavailable("needs Open MPI (apt: openmpi-bin libopenmpi-dev) and mpi4py")
    words = ["mpirun", "-np", "3", "--host", "node1:2,node2:1", *PRETRAIN, "hostfile", "--out", str(tmp_path / "mpi")]
    done = cluster.run("node1", *words, **ENV)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mpi").read_text().splitlines()[1:] == ["node1 slots=2", "node2 slots=1"]


def test_a_scaling_test_runs_in_the_prologues_container(cluster: Cluster, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "slurm", tmp_path / "slurm")
    (tmp_path / "slurm" / "prologue.sh").write_text("container=('--container-image=my image')\nwrap=(apptainer exec)\n")
    (tmp_path / "launcher").mkdir()
    for name in ("__init__.py", "train.py"):
        (tmp_path / "launcher" / name).touch()
    (tmp_path / "launcher" / "cli.py").write_text("import sys\nprint(sys.argv[1:])\n")
    words = ("gpt2", "--sizes", "1", "--weak")
    assert cluster.submit(ROOT / "slurm" / "scaling.sh", *words, output=tmp_path / "out", folder=tmp_path) == 0
    of_container = ["--srun-option=--container-image=my image", "--before-python=apptainer", "--before-python=exec"]
    assert (tmp_path / "out").read_text().strip() == str(["scale", *words, *of_container])


def test_a_scaling_test_makes_a_table_and_a_picture(cluster: Cluster, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "scaling"
    words = (str(recipe), "--sizes", "1,2", "--weak", "--ds_config", "zero1.json", "--out", str(out))
    options = ("--nodes=2", "--ntasks-per-node=1")
    code = cluster.submit(
        ROOT / "slurm" / "scaling.sh", *words, output=tmp_path / "out", options=options, OMP_NUM_THREADS="1"
    )
    assert code == 0, (tmp_path / "out").read_text()
    rows: list[dict[str, Any]] = json.loads((out / "table.json").read_text())["rows"]
    assert [(row["size"], row["hosts"], row["ranks"], row["global_batch"]) for row in rows] == [
        (1, 1, 1, 8),
        (2, 2, 2, 16),
    ]
    assert all(row["steps"] >= 20 and row["tokens_per_s"] > 0 and 0 < row["efficiency"] <= 2 for row in rows)
    assert 0 < rows[1]["collectives_share"] < 1
    assert rows[1]["slowest_host"] in ("node1", "node2")
    assert (out / "scaling.svg").read_text().startswith("<svg")
    assert {path.name for path in out.iterdir()} >= {"table.csv", "table.md"}
