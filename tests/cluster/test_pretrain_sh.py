"""`slurm/pretrain.sh`: what it starts, where, and what becomes of the job."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny
from slurm_cluster import ROOT, Cluster
from slurm_project import EMPTY_SHM, FILL_SHM, SCRIPT, STUB, project, tiny_recipe

from launcher.engine.records import read_metrics

pytestmark = pytest.mark.cluster
GLOO = {"GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1"}


def test_pretrain_sh_trains_on_two_nodes(cluster: Cluster, tmp_path: Path) -> None:
    shards = tiny.make_shards(tmp_path)
    recipe = tiny.write_recipe(
        tmp_path / "r.yaml", tiny.recipe_tree("mlm", shards, tmp_path / "runs", train__num_steps=4)
    )
    code = cluster.submit(
        SCRIPT,
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
    for name in (
        "launcher",
        "recipes",
        "ds_configs",
        "slurm",
    ):  # a project of its own: the quick start writes into data/
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    small = ("model.hidden_size=64", "model.intermediate_size=128", "batch.global_batch=4", "eval.every_steps=0")
    code = cluster.submit(
        SCRIPT,
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
    code = cluster.submit(SCRIPT, *words, output=tmp_path / "out", options=options)
    assert code == 2
    assert "did you mean" in (tmp_path / "out").read_text()


TWO = ("--nodes=2", "--ntasks-per-node=1")


@pytest.mark.parametrize(
    ("codes", "ends_with", "lives", "reason"),
    [
        ([75, 0], 0, 2, "stopped on the way: again"),
        ([2], 2, 1, "the user's mistake: another start would end the same way"),
        ([1], 1, 1, "a fault of ours, likewise"),
        ([137, 0], 0, 2, "killed for its memory: again"),
        ([75, 75, 75], 75, 2, "no new checkpoint in as many lives as PRETRAIN_RESTARTS allows"),
    ],
)
def test_the_exit_code_decides_whether_there_is_another_life(
    codes: list[int], ends_with: int, lives: int, reason: str, cluster: Cluster, tmp_path: Path
) -> None:
    folder = project(tmp_path, STUB.format(codes=codes))
    words, output = ("gpt2", "batch.global_batch=8"), tmp_path / "out"
    code = cluster.submit(SCRIPT, *words, output=output, folder=folder, options=TWO, PRETRAIN_RESTARTS="1")
    told = output.read_text()
    assert (code, told.count("stub of life ")) == (ends_with, lives), f"{reason}: {told}"
    assert "--ds_config zero3.json --recipe gpt2 batch.global_batch=8" in told
    assert ("1 lives in a row" in told or "2 lives in a row" in told) == (lives == 2 and ends_with == 75)
    left = {path.name for path in (tmp_path / "logs").iterdir()}
    assert left == {"rank-00000.log", "rank-00001.log"} | ({"lives.tsv"} if lives > 1 else set())


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
    project(tmp_path, LAYOUT)
    output = tmp_path / "out"
    words = tuple(options.split())
    assert cluster.submit(SCRIPT, output=output, folder=tmp_path, options=words) == 0, reason
    logs = [(tmp_path / "logs" / f"rank-{rank:05d}.log").read_text() for rank in range(ranks)]
    told = sorted("".join(logs).splitlines())
    assert told == [f"rank {rank} of {ranks}, {layout}" for rank in range(ranks)], reason


@pytest.mark.parametrize(("options", "cores"), [("--gpus-per-node=2", 2), ("--gpus-per-node=2 --cpus-per-task=3", 6)])
def test_pretrain_sh_tells_that_gpus_came_without_cores(
    options: str, cores: int, cluster: Cluster, tmp_path: Path
) -> None:
    words = tuple(options.split())
    assert cluster.submit(SCRIPT, output=tmp_path / "out", options=words) == 2
    told = (tmp_path / "out").read_text()
    assert f"2 ranks a node need {cores} cores" in told
    assert "add --ntasks-per-node=2 to sbatch" in told


def test_pretrain_sh_refuses_a_folder_without_the_project(cluster: Cluster, tmp_path: Path) -> None:
    assert cluster.submit(SCRIPT, output=tmp_path / "out", folder=tmp_path) == 2
    assert "submit from the project's folder" in (tmp_path / "out").read_text()


def test_the_tasks_of_an_array_are_requeued_one_by_one(cluster: Cluster, tmp_path: Path) -> None:
    """The last of them has the number of the whole array."""
    folder = project(tmp_path, STUB.format(codes="([75, 0] if os.environ['SLURM_ARRAY_TASK_ID'] == '7' else [0])"))
    words, output = ("gpt2", "batch.global_batch=8"), tmp_path / "out"
    how = {"output": output, "folder": folder, "options": ("--array=6-7", "--nodes=1", "--ntasks=1")}
    job = cluster.sbatch(SCRIPT, *words, PRETRAIN_LOGS="", **how)
    told = [cluster.wait(f"{job}_{number}", output) for number in (6, 7)]
    assert [(fields["JobState"], fields["Restarts"]) for fields in told] == [("COMPLETED", "0"), ("COMPLETED", "1")]
    assert sorted(path.name for path in (folder / "logs").iterdir()) == [f"pretrain-{job}_6", f"pretrain-{job}_7"]


def test_a_node_without_the_submitting_hosts_tmpdir_is_not_at_fault(cluster: Cluster, tmp_path: Path) -> None:
    folder = project(tmp_path, STUB.format(codes=[75, 0]))
    words, output = ("gpt2", "batch.global_batch=8"), tmp_path / "out"
    assert (
        cluster.submit(SCRIPT, *words, output=output, folder=folder, options=TWO, TMPDIR="/tmp/of-the-login-node") == 0
    )
    assert "at fault" not in output.read_text()
    assert "does without" not in output.read_text()


def test_nothing_of_the_submitting_shell_is_needed(cluster: Cluster, tmp_path: Path) -> None:
    """--export=NONE, a folder with a blank in its name, and all of the words of launcher/train.py."""
    folder = tmp_path / "my project"
    folder.mkdir()
    project(folder, "import sys\nprint('stub', sys.argv[-2:], flush=True)")
    recipe = tiny_recipe(tmp_path)
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "activate").write_text(
        f"export VIRTUAL_ENV=here PATH={Path(sys.executable).parent}:$PATH\n"
    )
    words, output = (recipe, "--budget", "24h"), folder / "out put"
    code = cluster.submit(SCRIPT, *words, output=output, folder=folder, options=(*TWO, "--export=NONE"))
    assert code == 0, output.read_text()
    assert "stub ['--budget', '24h']" in output.read_text()


def test_a_python_that_lacks_what_the_launcher_needs_is_told_once(cluster: Cluster, tmp_path: Path) -> None:
    folder = project(tmp_path, "")
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "python").write_text("#!/bin/sh\necho No module named pydantic >&2; exit 1\n")
    (folder / ".venv" / "bin" / "python").chmod(0o755)
    (folder / ".venv" / "bin" / "activate").write_text(f"PATH={folder}/.venv/bin:$PATH\n")
    assert cluster.submit(SCRIPT, "gpt2", output=tmp_path / "out", folder=folder, options=TWO) == 2
    told = (tmp_path / "out").read_text()
    assert told.count("No module named pydantic") == 1
    assert "python on node1 cannot start the launcher: make setup makes .venv" in told


def test_a_node_that_the_check_finds_unfit_is_done_without(cluster: Cluster, tmp_path: Path) -> None:
    """The real check, and no spare: the job is requeued, and Slurm gives another node."""
    folder = project(tmp_path, "import os\nprint('stub on', os.environ['SLURM_STEP_NODELIST'], flush=True)")
    cluster.do("slow", "node2", "20mbit")
    how = {"output": tmp_path / "out", "folder": folder, "options": ("--nodes=3", "--ntasks-per-node=1")}
    words = (tiny_recipe(tmp_path), "batch.global_batch=12")
    try:
        job = cluster.sbatch(SCRIPT, *words, PRETRAIN_CHECK="--tolerance 0.1", OMP_NUM_THREADS="1", **how)
        fields = cluster.wait(job, tmp_path / "out")
    finally:
        cluster.do("heal", "node2")
    told = (tmp_path / "out").read_text()
    assert (fields["JobState"], fields["Restarts"]) == ("COMPLETED", "1"), told
    assert "pretrain.sh: at fault: node2" in told
    assert "the next life does without node2" in told
    assert "stub on node[1,3-4]" in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--spares=1x",), "--spares '1x' is no number of nodes"),
        (("gpt2", "--spares", "1"), "--spares stands before the recipe"),
        (("--spares", "two"), "--spares 'two' is no number of nodes"),
        (("--spares", "2"), "--spares 2 of 2 nodes leaves none to run on"),
        (("--prologue", "none.sh"), "the prologue 'none.sh' is not there"),
        (("no-such-recipe",), "there is no recipe 'no-such-recipe'"),
        (("gpt2", "batch.global_batch=3"), "3 samples per step cannot be cut into 2 equal shares"),
        (("gpt2", "--ds_config=zero9"), "there is no DeepSpeed configuration 'zero9'"),
    ],
)
def test_a_mistake_in_the_command_is_told_once_and_ends_the_job(
    words: tuple[str, ...], message: str, cluster: Cluster, tmp_path: Path
) -> None:
    assert cluster.submit(SCRIPT, *words, output=tmp_path / "out", options=TWO) == 2
    assert (tmp_path / "out").read_text().count(message) == 1


def test_the_prologue_decides_environment_and_container(cluster: Cluster, tmp_path: Path) -> None:
    code = (
        "import os\nnames = ('MINE', 'IN_BOX', 'HF_HUB_OFFLINE', 'MASTER_ADDR')\n"
        "print('seen', *map(os.environ.get, names), flush=True)"
    )
    folder = project(tmp_path, code)
    prologue = tmp_path / "mine.sh"
    # Modules and conda read variables that are not set, and may end elsewhere.
    prologue.write_text('export MINE=yes\nwrap=(env IN_BOX=1)\ncontainer=(--label)\n: "$NOT_SET"\ncd /\n')
    words = ("--prologue", str(prologue), "gpt2")
    old = {"RANK": "7", "MASTER_ADDR": "login"}
    assert cluster.submit(SCRIPT, *words, output=tmp_path / "out", folder=folder, options=TWO, **old) == 0
    assert "0: seen yes 1 1 None" in (tmp_path / "out").read_text(), "and what an earlier launch left does not count"


# A rank that cannot write to its node's own disk ends with 75.
WATCHED = """
import os, pathlib, socket, sys, time
host, folder = socket.gethostname(), pathlib.Path({folder!r})
with open(folder / "seen", "a") as file:
    file.write(os.environ["SLURM_PROCID"] + host + " ")
try:
    pathlib.Path("/dev/shm/scratch").write_bytes(bytes(4096))
except OSError:
    sys.exit(75)
sys.exit(0)
"""


@pytest.mark.parametrize(
    ("options", "words", "restarts", "reason"),
    [
        (("--nodes=2", "--ntasks-per-node=1"), (), "1", "requeued, without the node that has no room"),
        (("--nodes=3", "--ntasks-per-node=1"), ("--spares", "1"), "0", "in place, on the spare"),
    ],
)
def test_a_node_whose_disk_is_full_is_done_without(
    options: tuple[str, ...], words: tuple[str, ...], restarts: str, reason: str, cluster: Cluster, tmp_path: Path
) -> None:
    folder = project(tmp_path, WATCHED.format(folder=str(tmp_path)))
    assert cluster.run("node2", "sh", "-c", FILL_SHM).returncode == 0
    try:
        job = cluster.sbatch(SCRIPT, *words, "gpt2", output=tmp_path / "out", folder=folder, options=options)
        fields = cluster.wait(job, tmp_path / "out")
    finally:
        cluster.run("node2", "sh", "-c", EMPTY_SHM)
    told = (tmp_path / "out").read_text()
    assert (fields["JobState"], fields["Restarts"]) == ("COMPLETED", restarts), f"{reason}: {told}"
    assert not [rank for rank in (tmp_path / "seen").read_text().split()[-2:] if rank.endswith("node2")], reason
    assert "at fault: node2" in told or "the next life does without node2" in told


def test_a_spare_takes_the_place_of_a_node_that_dies(cluster: Cluster, tmp_path: Path) -> None:
    # The rank that is left ends with 75, as real ones do when another is gone.
    wait = "import os, sys, time\nprint('stub on', os.environ['SLURM_STEP_NODELIST'], flush=True)\n"
    wait += "if os.path.exists('killed'): sys.exit(0)\nopen('first', 'w').close()\n"
    wait += "while not os.path.exists('killed'): time.sleep(0.1)\ntime.sleep(1); sys.exit(75)"
    folder = project(tmp_path, wait)
    options = ("--nodes=3", "--ntasks-per-node=1")
    words, how = ("--spares", "1", "gpt2"), {"output": tmp_path / "out", "folder": folder, "options": options}
    job = cluster.sbatch(SCRIPT, *words, **how, PRETRAIN_PROBE_S="5", PRETRAIN_LINGER_S="2")
    try:
        for _ in range(200):
            if (tmp_path / "first").exists():
                break
            time.sleep(0.2)
        cluster.do("kill-node", "node2")
        (tmp_path / "killed").touch()
        fields = cluster.wait(job, tmp_path / "out")
    finally:
        cluster.do("heal", "node2")
    told = (tmp_path / "out").read_text()
    assert "stub on node[1-2]" in told
    assert (fields["JobState"], fields["Restarts"]) == ("COMPLETED", "0"), told
    assert "node2 left the job" in told
    assert "stub on node[1,3]" in told
