"""Every launcher's ranks find their place and each other on two machines."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from slurm_cluster import ROOT, Cluster, unavailable

from launcher.cluster.slurm import expand_nodelist

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


def test_mpiexec_of_mpich(cluster: Cluster, tmp_path: Path) -> None:
    """No variable tells the host of rank 0: mpi4py asks for it, with this MPI's library, though another's is there."""
    mpich = os.environ.get("MPICH_FOLDER", "")
    if not mpich or importlib.util.find_spec("mpi4py") is None:
        unavailable("needs mpi4py, and MPICH_FOLDER=FOLDER after pip install --prefix FOLDER mpich")
    words = [f"{mpich}/bin/mpiexec.hydra", "-n", "4", "-ppn", "2", "-hosts", "node1,node2", "-iface", "eth0"]
    words += [word for name, value in GLOO.items() for word in ("-genv", name, value)]
    words += ["-genv", "LD_LIBRARY_PATH", f"{mpich}/lib", sys.executable, PROBE, str(tmp_path)]
    done = cluster.run("node1", *words)
    assert done.returncode == 0, done.stderr
    check_places(tmp_path, "mpi")


def test_an_mpich_that_would_not_end_is_refused_and_does_where_it_is_not_asked(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Debian's. Its ranks are told the host, and never join MPI."""
    library = Path("/usr/lib/x86_64-linux-gnu/libmpich.so.12")
    if shutil.which("mpiexec.hydra") is None or not library.exists() or importlib.util.find_spec("mpi4py") is None:
        unavailable("needs MPICH (apt: mpich) and mpi4py")
    (tmp_path / "libmpi.so.12").symlink_to(library)  # the name it has everywhere but on Debian
    words = ["mpiexec.hydra", "-n", "4", "-ppn", "2", "-hosts", "node1,node2", "-iface", "eth0"]
    words += [word for name, value in GLOO.items() for word in ("-genv", name, value)]
    words += ["-genv", "LD_LIBRARY_PATH", str(tmp_path)]
    pretrain = str(Path(sys.executable).with_name("pretrain"))
    hostfile = cluster.run("node1", *words, pretrain, "hostfile", "--out", str(tmp_path / "out"))
    assert hostfile.returncode == 2
    assert "MPICH 4.0.2 over UCX, which could be asked for it, often never comes out" in hostfile.stderr
    assert "write the hostfile by hand (see hostfiles/), or use MPICH 4.2 or later" in hostfile.stderr
    done = cluster.run("node1", *words, "-genv", "MASTER_ADDR", "node1", sys.executable, PROBE, str(tmp_path))
    assert done.returncode == 0, done.stderr
    check_places(tmp_path, "mpi")


def test_deepspeed_over_pdsh(cluster: Cluster, tmp_path: Path) -> None:
    deepspeed = str(Path(sys.executable).with_name("deepspeed"))
    hostfile = tmp_path / "hostfile"
    hostfile.write_text("node1 slots=2\nnode2 slots=2\n")
    words = [deepspeed, "--hostfile", str(hostfile), "--master_addr", "10.77.0.11", PROBE]
    done = cluster.run("node1", *words, str(tmp_path), **GLOO, PDSH_RCMD_TYPE="ssh")
    assert done.returncode == 0, done.stderr + done.stdout
    check_places(tmp_path, "environment")


def test_a_plain_python_in_a_batch_script_is_alone(cluster: Cluster, tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    code = "import os; from launcher.cluster.rank import *; p = find_place(os.environ); print(p.source, p.world_size)"
    script.write_text(f"#!/bin/bash\n#SBATCH --nodes=2 --ntasks-per-node=2\ncd {ROOT}\n{sys.executable} -c '{code}'\n")
    assert cluster.submit(script, output=tmp_path / "out") == 0
    assert (tmp_path / "out").read_text().strip() == "alone 1"


@pytest.mark.parametrize("text", ["node[1-3,07-09],gpu-a[01-02]", "r[1-2]n[1-2]", "a,b[09-11,3],c"])
def test_node_lists_are_read_as_scontrol_reads_them(text: str, cluster: Cluster) -> None:
    shown = cluster.run("ctl", "scontrol", "show", "hostnames", text)
    assert shown.returncode == 0, shown.stderr
    assert expand_nodelist(text) == shown.stdout.split()
