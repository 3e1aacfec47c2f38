"""Where a process finds itself, launcher by launcher."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from launcher.cluster.rank import FIRST_PORT, NUM_PORTS, Place, export, find_place, threads_per_rank, with_master
from launcher.errors import ClusterError, MissingDependencyError

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "29500",
}
STEP = {
    "SLURM_JOB_ID": "12345",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "7",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2",
    "SLURM_STEP_NODELIST": "gpu[01-03],login",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3),1",
}
OPENMPI = {
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_NAMESPACE": "3816161281",
}
HYDRA = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
JOB_PORT = FIRST_PORT + 12345 % NUM_PORTS
# What a rank of mpirun on the second node of a Slurm job inherits from the daemon that srun started there. As seen.
DAEMON_STEP = {
    "SLURM_JOB_ID": "1",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_STEP_NUM_TASKS": "1",
    "SLURM_STEP_NODELIST": "node2",
    "SLURM_STEP_TASKS_PER_NODE": "1",
}


def without(env: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in env.items() if name not in names}


@pytest.mark.parametrize(
    ("env", "found", "reason"),
    [
        (TORCHRUN, (3, 4, 1, 2, "node1", 29500, "environment"), "torchrun"),
        (
            {**TORCHRUN, "LOCAL_SIZE": "2", "CROSS_RANK": "1", "LOCAL_WORLD_SIZE": "2"},
            (3, 4, 1, 2, "node1", 29500, "environment"),
            "DeepSpeed's launcher",
        ),
        (
            {**STEP, **TORCHRUN},
            (3, 4, 1, 2, "node1", 29500, "environment"),
            "torchrun started by srun: the inner one counts",
        ),
        (STEP, (5, 7, 1, 2, "gpu01", JOB_PORT, "slurm"), "srun over four nodes"),
        ({**STEP, "MASTER_PORT": "777"}, (5, 7, 1, 2, "gpu01", 777, "slurm"), "the user chose the port"),
        (
            {"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0"},
            (0, 1, 0, 1, "127.0.0.1", None, "alone"),
            "a batch script is no step",
        ),
        (
            {**STEP, "SLURM_STEP_ID": str(0xFFFFFFFA)},
            (0, 1, 0, 1, "127.0.0.1", None, "alone"),
            "Slurm's number for the shell of salloc: no srun step",
        ),
        (
            {**without(TORCHRUN, "LOCAL_WORLD_SIZE"), "LOCAL_SIZE": "2"},
            (3, 4, 1, 2, "node1", 29500, "environment"),
            "DeepSpeed's name for the ranks of a node",
        ),
        (
            {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "node1", "MASTER_PORT": "29500"},
            (0, 1, 0, 1, "node1", 29500, "environment"),
            "one process alone is local rank 0 of 1",
        ),
        (
            {**DAEMON_STEP, **OPENMPI},
            (2, 4, 0, 2, "", None, "mpi"),
            "mpirun in a Slurm job: the step is its daemon's, not the rank's",
        ),
        (
            {**DAEMON_STEP, **HYDRA},
            (1, 2, 1, 2, "127.0.0.1", None, "mpi"),
            "the same with Intel MPI",
        ),
        (OPENMPI, (2, 4, 0, 2, "", None, "mpi"), "two nodes: rank 0's host has to be asked"),
        ({**OPENMPI, "MASTER_ADDR": "node1"}, (2, 4, 0, 2, "node1", None, "mpi"), "mpirun -x MASTER_ADDR"),
        (HYDRA, (1, 2, 1, 2, "127.0.0.1", FIRST_PORT, "mpi"), "Intel MPI on one node"),
        ({}, (0, 1, 0, 1, "127.0.0.1", None, "alone"), "nothing at all"),
        (
            {"PMI_RANK": "0", "PMI_SIZE": "1"},
            (0, 1, 0, 1, "127.0.0.1", None, "alone"),
            "one process of an MPI that does not tell the rank on the node",
        ),
        (
            {**STEP, "PMI_RANK": "5", "PMI_SIZE": "7"},
            (5, 7, 1, 2, "gpu01", JOB_PORT, "slurm"),
            "srun --mpi=pmi2: Slurm tells what PMI does not",
        ),
    ],
)
def test_every_launcher_is_understood(env: dict[str, str], found: tuple[object, ...], reason: str) -> None:
    place = find_place(env)
    told = (place.rank, place.world_size, place.local_rank, place.local_world_size, place.master_addr)
    assert (*told, place.source) == (*found[:5], found[6]), reason
    if found[5] is not None:
        assert place.master_port == found[5], reason


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"RANK": "0"}, "RANK or WORLD_SIZE is set, but not WORLD_SIZE, MASTER_ADDR, MASTER_PORT"),
        ({**TORCHRUN, "RANK": "4"}, "rank 4 of 4"),
        ({**TORCHRUN, "RANK": "x"}, "RANK is 'x', not a number"),
        ({**TORCHRUN, "LOCAL_RANK": "2"}, "local rank 2 of 2"),
        ({key: value for key, value in STEP.items() if key != "SLURM_LOCALID"}, "a Slurm step without SLURM_LOCALID"),
        (
            without(TORCHRUN, "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
            "RANK or WORLD_SIZE is set, but not LOCAL_RANK, LOCAL_SIZE",
        ),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "5"}, "rank 3 of 4, local rank 1 of 5: this cannot be"),
        ({**TORCHRUN, "RANK": "0"}, "rank 0 of 4, local rank 1 of 2: this cannot be"),
        ({**TORCHRUN, "MASTER_PORT": "70000"}, "MASTER_PORT is 70000, not a port"),
        ({**TORCHRUN, "MASTER_ADDR": ""}, "RANK or WORLD_SIZE is set, but not MASTER_ADDR"),
        (without(STEP, "SLURM_STEP_NUM_TASKS"), "a Slurm step without SLURM_STEP_NUM_TASKS"),
        (
            {**STEP, "SLURM_STEP_NUM_TASKS": "8"},
            "node 2 of gpu[01-03],login, 2(x3),1 tasks on each and 8 in all cannot all be",
        ),
        (
            {**STEP, "SLURM_STEP_TASKS_PER_NODE": "2(x2)"},
            "node 2 of gpu[01-03],login, 2(x2) tasks on each and 7 in all cannot all be",
        ),
        (without(HYDRA, "MPI_LOCALNRANKS"), "PMI_RANK is set, but not MPI_LOCALNRANKS"),
        ({**STEP, "SLURM_STEP_TASKS_PER_NODE": "two"}, "'two' is no list of tasks per node"),
        ({**STEP, "SLURM_STEP_NODELIST": "gpu[01-"}, "'gpu[01-' is no Slurm node list"),
        ({"OMPI_COMM_WORLD_RANK": "0"}, "OMPI_COMM_WORLD_RANK is set, but not OMPI_COMM_WORLD_SIZE"),
        (without(OPENMPI, "OMPI_COMM_WORLD_RANK"), "an MPI launcher set OMPI_COMM_WORLD_SIZE, which does not tell"),
        (without(HYDRA, "MPI_LOCALRANKID"), "an MPI launcher set PMI_RANK, PMI_SIZE, which does not tell"),
        ({"MPI_LOCALRANKID": "1"}, "an MPI launcher set MPI_LOCALRANKID, which does not tell"),
        ({"MV2_COMM_WORLD_RANK": "1"}, "or set RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER"),
    ],
)
def test_what_contradicts_itself_is_refused(env: dict[str, str], message: str) -> None:
    with pytest.raises(ClusterError) as caught:
        find_place(env)
    assert message in str(caught.value)


def test_two_mpi_runs_on_one_node_meet_at_different_ports() -> None:
    ports = {find_place({**OPENMPI, "PMIX_NAMESPACE": name}).master_port for name in ("1262682113", "1262682131")}
    assert len(ports) == 2


def test_without_mpi4py_the_user_is_told_to_name_the_master(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(MissingDependencyError) as caught:
        with_master(find_place(OPENMPI))
    assert "pip install mpi4py, or name it: mpirun -x MASTER_ADDR=HOST" in str(caught.value)


def stand_in_mpi(monkeypatch: pytest.MonkeyPatch, library: str, size: int) -> list[str]:
    """An mpi4py of this library; returns what is called of it that joins the ranks."""
    called: list[str] = []
    world = SimpleNamespace(Get_size=lambda: size, bcast=lambda host, root: "node1")
    mpi = SimpleNamespace(
        COMM_WORLD=world,
        THREAD_FUNNELED=1,
        Get_library_version=lambda: library,
        Is_initialized=lambda: False,
        Init_thread=lambda level: called.append("Init_thread"),
    )
    monkeypatch.setitem(sys.modules, "mpi4py", SimpleNamespace(MPI=mpi, rc=SimpleNamespace()))
    return called


@pytest.mark.parametrize("seen", [1, 4])
def test_an_mpi4py_of_another_mpi_than_mpirun_is_told(seen: int, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_mpi(monkeypatch, "Open MPI v4.1.4, package: Debian OpenMPI", seen)
    place = find_place(OPENMPI)
    if seen == place.world_size:
        assert with_master(place).master_addr == "node1"
        return
    with pytest.raises(ClusterError) as caught:
        with_master(place)
    assert "mpirun started 4 ranks, and mpi4py sees 1: it uses another MPI than mpirun" in str(caught.value)
    assert "--no-binary mpi4py" in str(caught.value)


@pytest.mark.parametrize(
    ("library", "is_refused"),
    [
        ("MPICH Version:\t4.0.2\nMPICH Release date:\tThu Apr  7 12:34:45 CDT 2022\nMPICH Device:\tch4:ucx\n", True),
        ("MPICH Version:      4.1.2\nMPICH Device:       ch4:ucx\n", True),
        ("MPICH Version:      4.2.0\nMPICH Device:       ch4:ucx\n", False),
        ("MPICH Version:      5.0.2\nMPICH Device:       ch4:ucx\n", False),
        ("MPICH Version:\t3.4.1\nMPICH Device:\tch4:ofi\n", False),
        ("Intel(R) MPI Library 2021.19 for Linux* OS", False),
    ],
)
def test_an_mpi_whose_ranks_hang_when_they_end_is_not_joined(
    library: str, is_refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = stand_in_mpi(monkeypatch, library, 4)
    place = find_place({**HYDRA, "PMI_SIZE": "4"})
    if not is_refused:
        assert with_master(place).master_addr == "node1"
        assert called == ["Init_thread"]
        return
    with pytest.raises(ClusterError) as caught:
        with_master(place)
    assert "often never comes out of MPI_Finalize" in str(caught.value)
    assert "mpiexec -genv MASTER_ADDR HOST), or use MPICH 4.2 or later" in str(caught.value)
    assert called == []


def test_a_place_goes_into_the_environment_and_comes_out_again() -> None:
    env: dict[str, str] = {}
    place = find_place(STEP)
    export(place, env)
    again = find_place(env)
    assert (again.rank, again.local_rank, again.master_addr) == (place.rank, place.local_rank, place.master_addr)
    assert with_master(place) is place
    assert env["LOCAL_SIZE"] == env["LOCAL_WORLD_SIZE"]


@pytest.mark.parametrize(
    ("source", "local_world_size", "env", "num_cores", "threads", "reason"),
    [
        ("environment", 2, {}, 16, 8, "two ranks share sixteen cores"),
        ("environment", 32, {}, 16, 1, "never none"),
        ("slurm", 4, {"SLURM_CPUS_PER_TASK": "4"}, 4, 4, "Slurm bound this task to its own four"),
        ("slurm", 4, {"SLURM_CPUS_PER_TASK": "4"}, 16, 4, "asked for, but not bound: sixteen are shared by four"),
    ],
)
def test_ranks_share_the_cores_of_their_node(
    source: str, local_world_size: int, env: dict[str, str], num_cores: int, threads: int, reason: str
) -> None:
    place = Place(
        rank=0,
        world_size=local_world_size,
        local_rank=0,
        local_world_size=local_world_size,
        master_addr="x",
        master_port=1,
        source=source,
    )
    assert threads_per_rank(place, env, num_cores) == threads, reason
