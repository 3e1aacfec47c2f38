"""What `slurm/pretrain.sh` decides about a job's next life."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest
from fake_slurm import FakeSlurm
from slurm_cluster import ROOT

WORDS = ("gpt2", "batch.global_batch=8")


@pytest.fixture
def slurm(tmp_path: Path) -> FakeSlurm:
    return FakeSlurm.make(tmp_path)


def test_a_signal_during_the_check_ends_it_and_requeues_the_job(slurm: FakeSlurm) -> None:
    """Two minutes are left then, and a check may take longer."""
    process = slurm.start("pretrain.sh", *WORDS, PRETRAIN_CHECK="1", FAKE_CHECK_S="40")
    began = time.monotonic()
    told = slurm.signal_during("launcher.probe", process)
    assert process.returncode == 0, told
    assert time.monotonic() - began < 15
    assert slurm.calls() == ["requeue 7"]
    assert "ranks on node1" not in told, "nothing is begun that had to be ended at once"


def test_a_signal_before_the_check_lets_none_begin(slurm: FakeSlurm) -> None:
    """While a node is asked for a port: bash tells of it when that has ended."""
    srun = slurm.folder / "bin" / "srun"
    srun.write_text(srun.read_text().replace('echo "20000', 'sleep 2; echo "20000'))
    process = slurm.start("pretrain.sh", *WORDS, PRETRAIN_CHECK="1", FAKE_CHECK_S="40")
    told = slurm.signal_during("launcher.life", process)
    assert process.returncode == 0, told
    assert slurm.calls() == ["requeue 7"]
    assert not [step for step in slurm.steps() if "launcher.probe" in step]
    assert "ranks on node1" not in told


def test_lives_that_end_before_their_first_step_are_counted(slurm: FakeSlurm) -> None:
    """Of a time limit that is shorter than its warning, no life comes to a step."""
    codes, told = [], ""
    for _ in range(3):
        process = slurm.start("pretrain.sh", *WORDS, PRETRAIN_CHECK="1", FAKE_CHECK_S="40", PRETRAIN_RESTARTS="2")
        told = slurm.signal_during("launcher.probe", process)
        codes.append(process.returncode)
    assert codes == [0, 0, 75], told
    assert "given up: 3 lives in a row left no checkpoint after step 0" in told
    assert slurm.calls() == ["requeue 7", "requeue 7", "update JobId=7 StartTime=now+10"]


def excluded(slurm: FakeSlurm) -> str:
    """What the last update left out; nothing where there was none."""
    updates = [call.partition("ExcNodeList=")[2] for call in slurm.calls() if "ExcNodeList=" in call]
    return updates[-1] if updates else ""


@pytest.mark.parametrize(
    ("states", "fields", "earlier", "left_out", "said"),
    [
        ({}, {}, "", "node2", "the next life does without node2"),
        ({"node5": "idle"}, {"ExcNodeList": "node3"}, "", "node3,node2", "does without node3,node2"),
        ({}, {"ExcNodeList": "node3"}, "", "node3,node2", "does without node3,node2"),
        # Three of four cannot be left out of a job of two: those of earlier lives come back, the user's do not.
        ({}, {"ExcNodeList": "node3,node4"}, "node3 node4", "node2", "the next life does without node2 "),
        ({}, {"ExcNodeList": "node3,node4"}, "node4", "node3,node2", "the next life does without node3,node2"),
        ({}, {"ExcNodeList": "node3,node4"}, "", "", "too few other nodes to do without node3,node4,node2"),
        ({"node4": "drain", "node3": "down*"}, {}, "", "", "too few other nodes to do without node2"),
        ({}, {"ReqNodeList": "node2"}, "", "", "node2 cannot be done without: the job asks for it by name"),
    ],
)
def test_nodes_at_fault_are_left_out_of_the_next_life_for_as_long_as_enough_others_are_left(
    states: dict[str, str], fields: dict[str, str], earlier: str, left_out: str, said: str, slurm: FakeSlurm
) -> None:
    slurm.states(**{"node1": "alloc", "node2": "alloc", "node3": "idle", "node4": "idle", **states})
    slurm.describe(**fields)
    slurm.fails("node2")
    logs = slurm.folder / "logs"
    logs.mkdir()
    (logs / "lives.tsv").write_text("".join(f"2026\t75\t0\t0\t{node}\n" for node in earlier.split()))
    code, told = slurm.run("pretrain.sh", *WORDS, FAKE_CODE="75")
    assert code == 0, told
    assert said in told
    assert excluded(slurm) == left_out
    assert (logs / "lives.tsv").read_text().splitlines()[-1].endswith("\tnode2")


def test_exclusions_of_a_job_that_meets_one_bad_node_after_another_stay_bounded(slurm: FakeSlurm) -> None:
    """Six lives in a partition of four: a job of two nodes always finds two."""
    seen = []
    for life in range(6):
        bad = f"node{life % 3 + 2}"
        slurm.fails(bad)
        code, told = slurm.run(
            *("pretrain.sh", *WORDS), FAKE_CODE="75", PRETRAIN_RESTARTS="9", SLURM_JOB_NODELIST=f"node1,{bad}"
        )
        assert code == 0, told
        seen.append(excluded(slurm))
        slurm.describe(ExcNodeList=seen[-1])
    assert seen == ["node2", "node2,node3", "node4", "node4,node2", "node3", "node3,node4"]


@pytest.mark.parametrize(("lives", "wait"), [(1, 10), (2, 20), (6, 320), (7, 600), (60, 600), (68, 600)])
def test_the_wait_before_a_life_doubles_up_to_ten_minutes(lives: int, wait: int, slurm: FakeSlurm) -> None:
    (slurm.folder / "logs").mkdir()
    (slurm.folder / "logs" / "lives.tsv").write_text("2026\t75\t0\t0\t\n" * lives)
    code, told = slurm.run("pretrain.sh", *WORDS, FAKE_CODE="75", PRETRAIN_RESTARTS="100")
    assert code == 0, told
    assert slurm.calls() == ["requeue 7", f"update JobId=7 StartTime=now+{wait}"]


WITH_A_SPARE = {"SLURM_JOB_NODELIST": "node1,node2,node3", "SLURM_TASKS_PER_NODE": "1(x3)", "FAKE_CODE": "75"}


def test_a_signal_in_the_wait_before_a_life_in_place_requeues_the_job_and_counts_no_life_twice(
    slurm: FakeSlurm,
) -> None:
    lives = slurm.folder / "logs" / "lives.tsv"
    lives.parent.mkdir()
    lives.write_text("2026\t75\t0\t0\t\n")
    process = slurm.start("pretrain.sh", "--spares", "1", *WORDS, **WITH_A_SPARE, PRETRAIN_BACKOFF_S="40")
    began = time.monotonic()
    while len(lives.read_text().splitlines()) < 2 and time.monotonic() < began + 60:
        time.sleep(0.1)
    time.sleep(0.5)  # into the wait
    process.send_signal(signal.SIGUSR1)
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 0, told
    assert time.monotonic() - began < 30
    assert slurm.calls() == ["requeue 7", "update JobId=7 StartTime=now+40"]
    assert len(lives.read_text().splitlines()) == 2


def test_a_life_after_which_too_few_nodes_are_left_in_place_counts_once(slurm: FakeSlurm) -> None:
    slurm.states(**{f"node{number}": "idle" for number in range(1, 7)})
    srun, fails = slurm.folder / "bin" / "srun", f"printf 'node2\\nnode3\\n' >'{slurm.folder}/ill'"
    srun.write_text(srun.read_text().replace("*launcher.train*)", f"*launcher.train*) {fails};"))  # in the middle of it
    code, told = slurm.run("pretrain.sh", "--spares", "1", *WORDS, **WITH_A_SPARE)
    assert code == 0, told
    assert excluded(slurm) == "node2,node3"
    (life,) = (slurm.folder / "logs" / "lives.tsv").read_text().splitlines()
    assert life.endswith("\tnode2 node3")


def test_a_run_with_spares_goes_on_in_place_where_slurm_does_not_tell_the_scripts_own_node(slurm: FakeSlurm) -> None:
    srun, folder = slurm.folder / "bin" / "srun", slurm.folder
    first = f"if mkdir '{folder}/first' 2>/dev/null; then exit 75; fi"
    srun.write_text(srun.read_text().replace("*launcher.train*)", f"*launcher.train*) {first};"))
    variables = {**WITH_A_SPARE, "FAKE_CODE": "0", "SLURMD_NODENAME": "", "PRETRAIN_BACKOFF_S": "0"}
    code, told = slurm.run("pretrain.sh", "--spares", "1", *WORDS, **variables)
    assert code == 0, told
    assert sum("launcher.train" in step for step in slurm.steps()) == 2, told
    assert slurm.calls() == []


def test_a_node_at_fault_on_which_the_script_runs_cannot_leave_the_job(slurm: FakeSlurm) -> None:
    """Its name is Slurm's, whether the environment has it or not."""
    slurm.states(node1="drain", node2="alloc", node3="alloc", node4="idle", node5="idle")
    slurm.describe(BatchHost="node1")
    code, told = slurm.run("pretrain.sh", "--spares", "1", *WORDS, **{**WITH_A_SPARE, "SLURMD_NODENAME": ""})
    assert code == 0, told
    assert slurm.calls()[:1] == ["requeue 7"], told
    assert excluded(slurm) == "node1"


def with_a_project(folder: Path) -> Path:
    (folder / "launcher").mkdir(parents=True)
    (folder / "launcher" / "train.py").touch()
    (folder / "slurm").mkdir()
    for name in ("environment.sh", "nodes.sh"):
        (folder / "slurm" / name).symlink_to(ROOT / "slurm" / name)
    return folder


@pytest.mark.parametrize("is_elsewhere", [False, True], ids=["submitted in another project", "chdir to another place"])
def test_chdir_chooses_among_two_projects_and_one_without_any_keeps_the_submitting_folder(
    is_elsewhere: bool, slurm: FakeSlurm, tmp_path: Path
) -> None:
    other = with_a_project(tmp_path / "other project")
    (tmp_path / "nothing").mkdir()
    here = tmp_path / "nothing" if is_elsewhere else slurm.project  # where sbatch --chdir lets the script begin
    process = subprocess.run(
        ["bash", str(ROOT / "slurm" / "pretrain.sh"), *WORDS],
        cwd=here,
        env=slurm.environment(SLURM_SUBMIT_DIR=str(other), PRETRAIN_LOGS=""),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    logs = {folder.name for folder in (other, slurm.project) if (folder / "logs" / "pretrain-7").is_dir()}
    assert logs == {other.name if is_elsewhere else slurm.project.name}


def test_logs_that_can_be_written_nowhere_are_told_with_the_variable_that_names_their_folder(slurm: FakeSlurm) -> None:
    code, told = slurm.run("pretrain.sh", *WORDS, PRETRAIN_LOGS="/proc/version/logs")
    assert code == 75
    assert "the folder of the logs cannot be made (PRETRAIN_LOGS)" in told
    assert slurm.steps() == []


def test_what_a_rank_of_the_life_before_ends_with_does_not_end_the_one_in_place(slurm: FakeSlurm) -> None:
    """On a node that was cut off it may run on, and end when the next life has begun."""
    srun, folder = slurm.folder / "bin" / "srun", slurm.folder
    late = f"(until [ -e '{folder}/second' ]; do sleep 0.1; done; echo 75 1 node2 >\"$PRETRAIN_FIRST_CODE\") >&- 2>&- &"
    first = f"if mkdir '{folder}/first' 2>/dev/null; then {late} exit 75; fi"
    text = srun.read_text()
    srun.write_text(text.replace("*launcher.train*)", f"*launcher.train*) {first}; touch '{folder}/second'; sleep 4;"))
    variables = {**WITH_A_SPARE, "FAKE_CODE": "0", "PRETRAIN_LINGER_S": "1"}
    code, told = slurm.run("pretrain.sh", "--spares", "1", *WORDS, **variables)
    assert "left behind" not in told
    assert code == 0, told
    assert sum("launcher.train" in step for step in slurm.steps()) == 2


@pytest.mark.parametrize("value", ["many", "1.5", "-1", ""])
def test_a_budget_that_is_no_number_is_refused_rather_than_endless(value: str, slurm: FakeSlurm) -> None:
    code, told = slurm.run("pretrain.sh", *WORDS, FAKE_CODE="75", PRETRAIN_RESTARTS=value)
    if value == "":  # as good as not set
        assert code == 0
        return
    assert code == 2
    assert f"PRETRAIN_RESTARTS '{value}' is no whole number" in told


@pytest.mark.parametrize(
    ("variables", "train", "reason"),
    [
        ({"SLURM_NTASKS": "2"}, "--ntasks=2", "its own"),
        ({"SLURM_NTASKS": "5"}, "--nodes=2 --ntasks-per-node=1 --ntasks=2", "of the job it was submitted from"),
        ({"SLURM_GPUS_PER_NODE": "4"}, "--nodes=2 --ntasks-per-node=1 --ntasks=2", "likewise"),
        (
            {"SLURM_NTASKS": "2", "SLURM_TASKS_PER_NODE": "64(x2)", "SLURM_GPUS_ON_NODE": "8"},
            "--nodes=2 --ntasks-per-node=8 --ntasks=16",
            "likewise, by chance as many as this one's nodes",
        ),
    ],
)
def test_requests_of_another_job_are_not_taken_for_this_ones(
    variables: dict[str, str], train: str, reason: str, slurm: FakeSlurm
) -> None:
    code, told = slurm.run("pretrain.sh", *WORDS, **variables)
    assert code == 0, told
    step = next(step for step in slurm.steps() if "launcher.train" in step and "launcher.life" not in step)
    assert train in step, reason
    assert ("left out" in told) == (reason != "its own")


def test_what_a_container_prints_first_is_not_taken_for_a_port(slurm: FakeSlurm) -> None:
    srun = slurm.folder / "bin" / "srun"
    srun.write_text(srun.read_text().replace('echo "20000', 'echo "Welcome to the image 9"; echo "20000'))
    code, told = slurm.run("pretrain.sh", *WORDS, FAKE_STEP="40")
    assert code == 0, told
    assert "port 20000, from step 40" in told
