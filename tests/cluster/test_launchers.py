"""Every launcher's ranks find their place and each other on two machines."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
from slurm_cluster import ROOT, Cluster, unavailable

from launcher.cluster.slurm import expand_nodelist
from launcher.engine.metrics import read_metrics

pytestmark = pytest.mark.cluster
PROBE = str(Path(__file__).with_name("probe.py"))
GLOO = {"GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1"}


def check_places(folder: Path, source: str) -> None:
    places = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(4)]
    assert [place["sum"] for place in places] == [10.0] * 4
    assert [place["host"] for place in places] == ["node1", "node1", "node2", "node2"]
    assert [place["local_rank"] for place in places] == [0, 1, 0, 1]
    assert {place["local_world_size"] for place in places} == {2}
    assert {place["source"] for place in places} == {source}
    assert len({(place["master_addr"], place["master_port"]) for place in places}) == 1


def test_srun(cluster: Cluster, tmp_path: Path) -> None:
    done = cluster.run("ctl", "srun", "--nodes=2", "--ntasks-per-node=2", sys.executable, PROBE, str(tmp_path), **GLOO)
    assert done.returncode == 0, done.stderr
    check_places(tmp_path, "slurm")


def test_mpirun(cluster: Cluster, tmp_path: Path) -> None:
    if shutil.which("mpirun") is None or importlib.util.find_spec("mpi4py") is None:
        unavailable("needs Open MPI (apt: openmpi-bin libopenmpi-dev) and mpi4py")
    words = ["mpirun", "-np", "4", "--host", "node1:2,node2:2", "--mca", "btl_tcp_if_include", "eth0"]
    words += ["--mca", "plm_rsh_agent", "ssh", "--mca", "oob_tcp_if_include", "eth0", "-x", "GLOO_SOCKET_IFNAME"]
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    done = cluster.run("node1", *words, sys.executable, PROBE, str(tmp_path), **GLOO, **root)
    assert done.returncode == 0, done.stderr
    check_places(tmp_path, "mpi")


def test_mpirun_in_a_slurm_job(cluster: Cluster, tmp_path: Path) -> None:
    if shutil.which("mpirun") is None or importlib.util.find_spec("mpi4py") is None:
        unavailable("needs Open MPI (apt: openmpi-bin libopenmpi-dev) and mpi4py")
    script = tmp_path / "job.sh"
    words = "mpirun -np 4 --map-by ppr:2:node --mca btl_tcp_if_include eth0"
    script.write_text(f"#!/bin/bash\n{words} {sys.executable} {PROBE} {tmp_path}\n")
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    options = ("--nodes=2", "--ntasks-per-node=2")
    code = cluster.submit(script, output=tmp_path / "out", options=options, **GLOO, **root)
    assert code == 0, (tmp_path / "out").read_text()
    check_places(tmp_path, "mpi")


def test_deepspeed_over_pdsh(cluster: Cluster, tmp_path: Path) -> None:
    deepspeed = str(Path(sys.executable).with_name("deepspeed"))
    words = [deepspeed, "--hostfile", str(cluster.folder / "hostfile"), "--master_addr", "10.77.0.11", PROBE]
    done = cluster.run("node1", *words, str(tmp_path), **GLOO, PDSH_RCMD_TYPE="ssh")
    assert done.returncode == 0, done.stderr + done.stdout
    check_places(tmp_path, "environment")


def test_a_plain_python_in_a_batch_script_is_alone(cluster: Cluster, tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    code = "import os; from launcher.cluster.rank import *; p = find_place(os.environ); print(p.source, p.world_size)"
    script.write_text(f"#!/bin/bash\n#SBATCH --nodes=2 --ntasks-per-node=2\ncd {ROOT}\n{sys.executable} -c '{code}'\n")
    assert cluster.submit(script, output=tmp_path / "out") == 0
    assert (tmp_path / "out").read_text().strip() == "alone 1"


def test_pretrain_sh_trains_on_two_nodes(cluster: Cluster, tmp_path: Path) -> None:
    shards = tiny.make_shards(tmp_path)
    recipe = tiny.write_recipe(
        tmp_path / "r.yaml", tiny.recipe_tree("mlm", shards, tmp_path / "runs", train__num_steps=4)
    )
    code = cluster.submit(
        ROOT / "slurm" / "pretrain.sh",
        *("--ds_config", "zero3.json", "--recipe", str(recipe), "optim.lr=0.002"),
        output=tmp_path / "out",
        **GLOO,
        options=("--nodes=2", "--ntasks-per-node=2"),
    )
    assert code == 0, (tmp_path / "out").read_text()
    steps: list[dict[str, Any]] = [x for x in read_metrics(tmp_path / "runs" / "tiny" / "metrics.jsonl") if "lr" in x]
    assert [x["step"] for x in steps] == [1, 2, 3, 4]
    logs = sorted(path.name for path in (tmp_path / "runs" / "tiny" / "logs").iterdir())
    assert logs == [f"rank-0000{rank}.log" for rank in range(4)]
    assert (tmp_path / "runs" / "tiny" / "export" / "model.safetensors").is_file()


def test_pretrain_sh_makes_and_trains_the_quick_start_on_two_nodes(cluster: Cluster, tmp_path: Path) -> None:
    for name in ("launcher", "recipes", "ds_configs"):  # a project of its own: the quick start writes into data/
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    small = ("model.hidden_size=64", "model.intermediate_size=128", "batch.global_batch=4", "eval.every_steps=0")
    code = cluster.submit(
        ROOT / "slurm" / "pretrain.sh",
        *("--ds_config", "zero1.json", "train.num_steps=4", *small, f"runs={tmp_path / 'runs'}", "name=quick"),
        output=tmp_path / "out",
        folder=tmp_path,
        options=("--nodes=2", "--ntasks-per-node=1"),
        **GLOO,
    )
    assert code == 0, (tmp_path / "out").read_text()
    steps: list[dict[str, Any]] = [x for x in read_metrics(tmp_path / "runs" / "quick" / "metrics.jsonl") if "lr" in x]
    assert [x["step"] for x in steps] == [1, 2, 3, 4]


def test_pretrain_sh_tells_the_users_mistake_with_its_code(cluster: Cluster, tmp_path: Path) -> None:
    options = ("--nodes=2", "--ntasks-per-node=2")
    words = ("--ds_config", "zero1.json", "train.num_stepz=4")
    code = cluster.submit(ROOT / "slurm" / "pretrain.sh", *words, output=tmp_path / "out", options=options)
    assert code == 2
    assert "did you mean" in (tmp_path / "out").read_text()


# Rank 1 is a second behind: by then srun has ended it, and would tell its 143 for the job's code.
STUB = """
import os, sys, time
life, rank = os.environ.get("SLURM_RESTART_COUNT", "0"), os.environ["SLURM_PROCID"]
if rank == "0":
    print("life", life, *sys.argv[1:], flush=True)
time.sleep(int(rank))
sys.exit({codes}[int(life)])
"""


@pytest.mark.parametrize(("codes", "ends_with", "lives"), [([75, 0], 0, 2), ([2], 2, 1), ([1], 1, 1)])
def test_pretrain_sh_requeues_on_75_and_passes_other_codes_on(
    codes: list[int], ends_with: int, lives: int, cluster: Cluster, tmp_path: Path
) -> None:
    (tmp_path / "launcher").mkdir()
    (tmp_path / "launcher" / "__init__.py").touch()
    (tmp_path / "launcher" / "train.py").write_text(STUB.format(codes=codes))
    code = cluster.submit(
        ROOT / "slurm" / "pretrain.sh",
        output=tmp_path / "out",
        folder=tmp_path,
        options=("--nodes=2", "--ntasks-per-node=1"),
    )
    told = (tmp_path / "out").read_text()
    assert code == ends_with, told
    assert told.count("life ") == lives
    assert "--ds_config zero3.json" in told
    assert not list(tmp_path.glob(".pretrain-*"))


# One line a rank: every rank's print is one write, so that lines of different ranks do not mix.
LAYOUT = """
import os, sys
sys.stdout.write("rank {SLURM_PROCID} of {SLURM_STEP_NUM_TASKS}, {SLURM_STEP_TASKS_PER_NODE}\\n".format(**os.environ))
"""


@pytest.mark.parametrize(
    ("options", "ranks", "layout", "reason"),
    [
        ("--nodes=2", 2, "1(x2)", "nothing said: one a node"),
        ("--nodes=2 --ntasks=4", 4, "3,1", "a number of tasks, laid out by Slurm"),
        ("--nodes=2 --ntasks-per-node=2 --gpus-per-node=2", 4, "2(x2)", "both said"),
        ("--nodes=2 --ntasks-per-node=2 --cpus-per-task=2", 4, "2(x2)", "cores of their own"),
        ("--nodes=2 --ntasks-per-gpu=1 --gpus-per-node=2", 4, "2(x2)", "Slurm works the tasks out"),
        ("--nodes=2 --cpus-per-gpu=2 --gpus-per-node=2", 4, "2(x2)", "GPUs that come with cores: one a GPU"),
        ("--nodes=2 --exclusive --gpus-per-node=test:2", 4, "2(x2)", "as many as asked for, though the node has eight"),
    ],
)
def test_pretrain_sh_starts_as_many_ranks_as_asked_for(
    options: str, ranks: int, layout: str, reason: str, cluster: Cluster, tmp_path: Path
) -> None:
    (tmp_path / "launcher").mkdir()
    (tmp_path / "launcher" / "__init__.py").touch()
    (tmp_path / "launcher" / "train.py").write_text(LAYOUT)
    output = tmp_path / "out"
    words = tuple(options.split())
    assert cluster.submit(ROOT / "slurm" / "pretrain.sh", output=output, folder=tmp_path, options=words) == 0, reason
    told = sorted(line for line in output.read_text().splitlines() if line.startswith("rank "))
    assert told == [f"rank {rank} of {ranks}, {layout}" for rank in range(ranks)], reason


@pytest.mark.parametrize(("options", "cores"), [("--gpus-per-node=2", 2), ("--gpus-per-node=2 --cpus-per-task=3", 6)])
def test_pretrain_sh_tells_that_gpus_came_without_cores(
    options: str, cores: int, cluster: Cluster, tmp_path: Path
) -> None:
    words = tuple(options.split())
    assert cluster.submit(ROOT / "slurm" / "pretrain.sh", output=tmp_path / "out", options=words) == 2
    told = (tmp_path / "out").read_text()
    assert f"2 ranks a node need {cores} cores" in told
    assert "add --ntasks-per-node=2 to sbatch" in told


@pytest.mark.parametrize("text", ["node[1-3,07-09],gpu-a[01-02]", "r[1-2]n[1-2]", "a,b[09-11,3],c"])
def test_node_lists_are_read_as_scontrol_reads_them(text: str, cluster: Cluster) -> None:
    shown = cluster.run("ctl", "scontrol", "show", "hostnames", text)
    assert shown.returncode == 0, shown.stderr
    assert expand_nodelist(text) == shown.stdout.split()


def test_pretrain_sh_refuses_a_folder_without_the_project(cluster: Cluster, tmp_path: Path) -> None:
    assert cluster.submit(ROOT / "slurm" / "pretrain.sh", output=tmp_path / "out", folder=tmp_path) == 2
    assert "submit from the project's folder" in (tmp_path / "out").read_text()
