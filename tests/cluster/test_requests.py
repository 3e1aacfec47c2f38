"""What a job asks Slurm for, and what becomes of that: in its environment, in its steps, and in its next lives."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
import tiny
from slurm_cluster import ROOT, Cluster
from slurm_project import EMPTY_SHM, FILL_SHM, SCRIPT, STUB, project, tiny_recipe

from launcher.shards.verify import verify

pytestmark = pytest.mark.cluster
WORDS = ("gpt2", "batch.global_batch=8")
TWO = ("--nodes=2", "--ntasks-per-node=1")
WHERE = (
    "import os\nprint('stub on', os.environ['SLURM_STEP_NODELIST'], os.environ['SLURM_STEP_NUM_TASKS'], flush=True)\n"
)


def test_a_signal_during_the_check_ends_it_and_requeues_the_job(cluster: Cluster, tmp_path: Path) -> None:
    """As the time limit's comes. The check of the first life waits for longer than the job would have."""
    folder, output = project(tmp_path, WHERE), tmp_path / "out"
    (folder / "launcher" / "probe").unlink()
    (folder / "launcher" / "probe").mkdir()
    (folder / "launcher" / "probe" / "__main__.py").write_text(
        "import os, time\nif not int(os.environ.get('SLURM_RESTART_COUNT', 0)):\n"
        "    open('checking', 'w').close()\n    time.sleep(120)\n"
    )
    job = cluster.sbatch(SCRIPT, *WORDS, output=output, folder=folder, options=TWO, PRETRAIN_CHECK="1")
    until = time.monotonic() + 60
    while not (folder / "checking").exists():
        assert time.monotonic() < until, output.read_text()
        time.sleep(0.2)
    began = time.monotonic()
    cluster.run("ctl", "scancel", "--batch", "--signal=USR1", job)
    fields = cluster.wait(job, output)
    told = output.read_text()
    assert (fields["JobState"], fields["Restarts"]) == ("COMPLETED", "1"), told
    assert time.monotonic() - began < 60, told
    assert told.count("stub on") == 1


def test_one_bad_node_after_another_is_left_out_for_as_long_as_enough_others_are_left(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Four nodes and a job of two: the first two are left out together, and come back for the third."""
    met = tmp_path / "met"
    bad = "import os, sys, socket, time\nlife = int(os.environ.get('SLURM_RESTART_COUNT', 0))\n"
    bad += "if os.environ['SLURM_PROCID'] == '0':\n"
    bad += "    print('life on', os.environ['SLURM_STEP_NODELIST'], flush=True)\n"
    bad += f"    open(f'{met}-{{life}}', 'w').close()\n"
    # Whatever node comes beside node1 has no room in its memory's file system, until all three have been met. It ends
    # when the other has said where it is: Slurm kills that one for it.
    bad += "if life < 3 and socket.gethostname() != 'node1':\n"
    bad += f"    while not os.path.exists(f'{met}-{{life}}'):\n        time.sleep(0.1)\n    time.sleep(1)\n"
    bad += f"    os.system({FILL_SHM!r})\n    sys.exit(75)\n"
    bad += "time.sleep(0 if life > 2 else 120)\n"
    folder, output = project(tmp_path, bad), tmp_path / "out"
    options = (*TWO, "--nodelist=node1")  # the batch script's own stays well
    job = cluster.sbatch(SCRIPT, *WORDS, output=output, folder=folder, options=options, PRETRAIN_PROBE_S="20")
    try:
        for node in ("node2", "node3", "node4"):
            until = time.monotonic() + 60
            while node not in cluster.fields(job).get("ExcNodeList", ""):
                assert time.monotonic() < until, told_of(output)
                time.sleep(0.2)
            cluster.run(node, "sh", "-c", EMPTY_SHM)
        fields = cluster.wait(job, output)
    finally:
        for node in ("node2", "node3", "node4"):
            cluster.run(node, "sh", "-c", EMPTY_SHM)
    told = output.read_text()
    assert (fields["JobState"], fields["Restarts"]) == ("COMPLETED", "3"), told
    on = [line.split()[-1] for line in told.splitlines() if "life on" in line]
    assert on[:3] == ["node[1-2]", "node[1,3]", "node[1,4]"]
    updates = [line.partition("does without ")[2].split()[0] for line in told.splitlines() if "does without" in line]
    assert updates == ["node2", "node2,node3", "node4"], told


def told_of(output: Path) -> str:
    return output.read_text() if output.exists() else ""


def test_a_node_that_was_asked_for_by_name_is_not_left_out(cluster: Cluster, tmp_path: Path) -> None:
    """Left out, it would keep the job waiting for ever (BadConstraints)."""
    folder, output = project(tmp_path, STUB.format(codes=[75, 0])), tmp_path / "out"
    assert cluster.run("node2", "sh", "-c", FILL_SHM).returncode == 0
    try:
        job = cluster.sbatch(SCRIPT, *WORDS, output=output, folder=folder, options=(*TWO, "--nodelist=node[1-2]"))
        fields = cluster.wait(job, output, timeout_s=90)
    finally:
        cluster.run("node2", "sh", "-c", EMPTY_SHM)
    told = output.read_text()
    assert (fields["JobState"], fields["Restarts"]) == ("COMPLETED", "1"), told
    assert "node2 cannot be done without: the job asks for it by name (--nodelist)" in told


@pytest.mark.parametrize(
    ("options", "layout"),
    [
        (("--nodes=2", "--gpus=16", "--ntasks-per-node=1"), "2"),
        (("--nodes=2", "--gpus=4", "--ntasks-per-gpu=1"), "4"),
        (("--nodes=1", "--gpus=2", "--ntasks-per-node=2"), "2"),
    ],
)
def test_gpus_counted_over_the_whole_job_stop_no_question_to_one_node(
    options: tuple[str, ...], layout: str, cluster: Cluster, tmp_path: Path
) -> None:
    """Each node is asked for a port, and after a failure whether it is at fault: none is, and none is left out."""
    code = WHERE + "import sys; sys.exit(0 if os.environ.get('SLURM_RESTART_COUNT') else 75)\n"
    folder, output = project(tmp_path, code), tmp_path / "out"
    job = cluster.sbatch(SCRIPT, *WORDS, output=output, folder=folder, options=options)
    fields = cluster.wait(job, output)
    told = output.read_text()
    assert (fields["JobState"], fields["Restarts"]) == ("COMPLETED", "1"), told
    assert f" {layout}\n" in told
    assert "at fault" not in told
    assert "does without" not in told
    assert "Unable to create step" not in told
    assert "port of the job" not in told


def test_gpus_that_lie_unevenly_are_refused(cluster: Cluster, tmp_path: Path) -> None:
    """Of four, Slurm takes three on the first node: two ranks there, and two on the other's one."""
    options = ("--nodes=2", "--gpus=4", "--ntasks-per-node=2")
    assert cluster.submit(SCRIPT, *WORDS, output=tmp_path / "out", options=options) == 2
    assert "ask for them with --gpus-per-node=N" in (tmp_path / "out").read_text()


@pytest.mark.parametrize(
    ("outer", "inner", "ranks", "reason"),
    [
        (
            ("--ntasks=1", "--gpus-per-node=2", "--cpus-per-task=5", "--mem=3G"),
            "--nodes=2",
            2,
            "a shell on a node (srun)",
        ),
        (("--ntasks=3", "--gpus=2", "--exclusive"), "--nodes=2", 2, "three tasks and two GPUs of the whole job"),
        (("--ntasks=1",), "--nodes=1 --gpus-per-node=8 --exclusive", 8, "by chance as many tasks as nodes"),
    ],
)
def test_submitted_from_inside_of_another_job_it_gets_what_it_asks_for(
    outer: tuple[str, ...], inner: str, ranks: int, reason: str, cluster: Cluster, tmp_path: Path
) -> None:
    folder, output = project(tmp_path, WHERE), tmp_path / "out"
    (tmp_path / "inner.sh").write_text(
        f"[ $SLURM_PROCID = 0 ] || exit 0\nexport SLURM_PTY_PORT=1 SLURM_PTY_WIN_ROW=1\n"
        "export SLURM_CPU_BIND=quiet,mask_cpu:0x8\n"
        f"sbatch --parsable --output={output} {inner} {SCRIPT} {' '.join(WORDS)} >{tmp_path}/job\n"
    )
    env = {"PRETRAIN_LOGS": str(tmp_path / "logs"), "PRETRAIN_CHECK": "0", "PATH": cluster.path}
    done = cluster.run("ctl", "srun", *outer, "bash", str(tmp_path / "inner.sh"), cwd=folder, **env)
    assert done.returncode == 0, done.stderr
    fields = cluster.wait((tmp_path / "job").read_text().strip(), output)
    told = output.read_text()
    assert fields["JobState"] == "COMPLETED", told
    assert re.search(rf"stub on node\S+ {ranks}\n", told), reason
    assert "cpu binding" not in told
    assert "is of the job that this one was submitted from: left out" in told


def test_submitted_by_one_of_several_parts_it_is_one_run(cluster: Cluster, tmp_path: Path) -> None:
    """srun would look for its hosts among those of the parts."""
    folder, output = project(tmp_path, WHERE), tmp_path / "out"
    sbatch = f"sbatch --parsable --output={output} {' '.join(TWO)} {SCRIPT} {' '.join(WORDS)} >{tmp_path}/job"
    (tmp_path / "outer.sh").write_text(f"#!/bin/bash\n{sbatch}\n")
    parts = ("--wait", f"--output={tmp_path}/outer", "--ntasks=1", ":", "--ntasks=1")
    env = {"PRETRAIN_CHECK": "0", "PRETRAIN_RESTARTS": "0", "PATH": cluster.path}
    done = cluster.run("ctl", "sbatch", *parts, str(tmp_path / "outer.sh"), cwd=folder, **env)
    assert done.returncode == 0, done.stderr
    fields = cluster.wait((tmp_path / "job").read_text().strip(), output)
    assert (fields["JobState"], fields["Restarts"]) == ("COMPLETED", "0"), told_of(output)
    assert "stub on" in told_of(output)


def test_submitted_by_a_task_of_an_array_it_is_none(cluster: Cluster, tmp_path: Path) -> None:
    """One would build a fourth of the shards and say that all is well, the other requeue the job that submitted it."""
    tiny.make_shards(tmp_path)
    built = tmp_path / "built"
    folder = project(tmp_path, STUB.format(codes=[75, 0]))
    words = f"{tmp_path}/corpus.jsonl --tokenizer {tmp_path}/tokenizer --out {built}"
    lines = [
        "#!/bin/bash",
        "[ $SLURM_ARRAY_TASK_ID = 3 ] || exit 0",
        f"sbatch --wait --output={tmp_path}/prepared {ROOT}/slurm/prepare.sh {words}",
        f"sbatch --parsable --output={tmp_path}/out {SCRIPT} {' '.join(WORDS)} >{tmp_path}/job",
    ]
    (tmp_path / "outer.sh").write_text("\n".join(lines) + "\n")
    how = {"output": tmp_path / "outer-%a", "folder": folder, "options": ("--array=0-3",)}
    job = cluster.sbatch(tmp_path / "outer.sh", **how)
    assert cluster.wait(f"{job}_3", tmp_path / "outer-3")["JobState"] == "COMPLETED"
    assert "task 0 of 1" in told_of(tmp_path / "prepared")
    assert verify(built) == []
    fields = cluster.wait((tmp_path / "job").read_text().strip(), tmp_path / "out")
    assert (fields["JobState"], fields["Restarts"]) == ("COMPLETED", "1"), told_of(tmp_path / "out")


@pytest.mark.parametrize(
    ("submitted_in", "begins_in", "code", "reason"),
    [
        ("elsewhere", "my project", 0, "the project is named"),
        ("other project", "my project", 0, "another one is named than that in which it is submitted"),
        ("my project", "elsewhere", 0, "the folder is for what Slurm writes"),
        ("elsewhere", "another place", 2, "there is no project"),
    ],
)
def test_the_project_is_where_chdir_lets_a_job_begin_or_where_it_was_submitted(
    submitted_in: str, begins_in: str, code: int, reason: str, cluster: Cluster, tmp_path: Path
) -> None:
    for name in ("my project", "other project", "elsewhere", "another place"):
        (tmp_path / name).mkdir()
    folder, output = project(tmp_path / "my project", WHERE), tmp_path / "out"
    project(tmp_path / "other project", "raise SystemExit('of another project')")
    options = (*TWO, f"--chdir={tmp_path / begins_in}")
    how = {"output": output, "folder": tmp_path / submitted_in, "options": options}
    assert cluster.submit(SCRIPT, *WORDS, PRETRAIN_LOGS="", **how) == code, f"{reason}: {output.read_text()}"
    told = output.read_text()
    if code == 0:
        assert "stub on" in told
        assert len(list((folder / "logs").glob("pretrain-*/rank-00000.log"))) == 1
    else:
        places = f"{tmp_path / begins_in} or {tmp_path / submitted_in}"
        assert f"no launcher/train.py in {places}: submit from the project's folder, or name it" in told


def test_the_real_check_is_ended_by_a_signal_as_well(cluster: Cluster, tmp_path: Path) -> None:
    folder, output = project(tmp_path, WHERE), tmp_path / "out"
    recipe = tiny_recipe(tmp_path)
    env = {"PRETRAIN_CHECK": "1", "OMP_NUM_THREADS": "1"}
    job = cluster.sbatch(SCRIPT, recipe, "batch.global_batch=12", output=output, folder=folder, options=TWO, **env)
    until = time.monotonic() + 60
    while not cluster.processes("launcher.probe"):
        assert time.monotonic() < until, told_of(output)
        time.sleep(0.1)
    cluster.run("ctl", "scancel", "--batch", "--signal=USR1", job)
    fields = cluster.wait(job, output)
    told = output.read_text()
    assert (fields["JobState"], fields["Restarts"]) == ("COMPLETED", "1"), told
    assert told.count("stub on") == 1
    assert "at fault" not in told
    assert cluster.processes("launcher.probe") == {}
