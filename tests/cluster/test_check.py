"""`pretrain check` on a real Slurm names the node whose link was slowed, and the one whose shards differ."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
from slurm_cluster import Cluster

pytestmark = pytest.mark.cluster

# Private to every machine of the test cluster, as a local disk is.
LOCAL = Path("/var/tmp/check")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, cluster: Cluster) -> Iterator[Path]:
    """A run whose shards lie on each machine's own disk."""
    folder = tmp_path_factory.mktemp("check")
    tiny.make_shards(folder)
    for node in ("node1", "node2", "node3"):
        copied = cluster.run(node, "cp", "-r", str(folder), str(LOCAL))
        assert copied.returncode == 0, copied.stderr
    yield tiny.write_recipe(folder / "r.yaml", tiny.recipe_tree("mlm", LOCAL / "shards", folder / "runs"))
    for node in ("node1", "node2", "node3"):
        cluster.run(node, "rm", "-rf", str(LOCAL))


def check(cluster: Cluster, recipe: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """A rank a machine; its link is judged, not how busy this machine is."""
    words = ["srun", "--nodes=3", "--ntasks-per-node=1", sys.executable, "-m", "launcher.probe"]
    words += ["--recipe", str(recipe), "--ds_config", "zero2", "--tolerance", "0.1", "--wait", "60"]
    words += ["--exclude-to", str(out / "unfit"), "--hostfile-to", str(out / "fit")]
    return cluster.run("ctl", *words, OMP_NUM_THREADS="1")


def test_three_good_nodes_are_fit(cluster: Cluster, recipe: Path, tmp_path: Path) -> None:
    done = check(cluster, recipe, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "check: 3 hosts, 3 ranks" in done.stdout
    assert "all-reduce across hosts" in done.stdout
    assert not (tmp_path / "unfit").exists()


def test_a_node_that_sends_slowly_is_left_out(cluster: Cluster, recipe: Path, tmp_path: Path) -> None:
    cluster.do("slow", "node2", "20mbit")
    try:
        done = check(cluster, recipe, tmp_path)
    finally:
        cluster.do("heal", "node2")
    assert done.returncode == 75, done.stdout + done.stderr
    assert (tmp_path / "unfit").read_text() == "node2\n"
    assert (tmp_path / "fit").read_text() == "node1 slots=1\nnode3 slots=1\n"
    assert "node2: " in done.stdout


def test_a_node_with_other_shards_is_named(cluster: Cluster, recipe: Path, tmp_path: Path) -> None:
    tiny.make_shards(tmp_path, words=True)
    cluster.run("node3", "rm", "-rf", str(LOCAL / "shards"))
    cluster.run("node3", "cp", "-r", str(tmp_path / "shards"), str(LOCAL / "shards"))
    try:
        done = check(cluster, recipe, tmp_path)
    finally:
        cluster.run("node3", "rm", "-rf", str(LOCAL / "shards"))
        cluster.run("node3", "cp", "-r", str(recipe.parent / "shards"), str(LOCAL / "shards"))
    assert done.returncode == 2, done.stdout + done.stderr
    assert "wrong shards node3: " in " ".join(done.stdout.split())
    assert not (tmp_path / "unfit").exists()
