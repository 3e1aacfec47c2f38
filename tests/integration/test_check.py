"""`pretrain check` on real ranks: sockets, torch and gloo as the run will have them."""

from __future__ import annotations

import json
from pathlib import Path

import jobs
import pytest
import ranks
import tiny


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    tree = tiny.recipe_tree("mlm", tiny.make_shards(tmp_path), tmp_path / "runs")
    return tiny.write_recipe(tmp_path / "r.yaml", tree)


# Forked ranks share two cores with whatever else runs: what is slow there says nothing.
TOLERANT = ["--tolerance", "0.01", "--json"]


def test_two_ranks_of_a_host_and_two_hosts_are_fit(tmp_path: Path, recipe: Path) -> None:
    words = [str(recipe), "--ds_config", "zero2", *TOLERANT, "--exclude-to", str(tmp_path / "exclude")]
    codes = ranks.run_ranks(jobs.check, 2, words, str(tmp_path / "out"))
    told = json.loads((tmp_path / "out").read_text())
    assert codes == [0, 0], told
    assert [one["name"] for one in told["rounds"]] == ["roll call", "compute", "all-reduce within hosts"]
    (tmp_path / "hosts").write_text("a slots=1\nb slots=1\n")
    words += ["--hostfile", str(tmp_path / "hosts")]
    codes = ranks.run_ranks(jobs.check, 2, words, str(tmp_path / "out"))
    told = json.loads((tmp_path / "out").read_text())
    assert codes == [0, 0], told
    assert told["hosts"] == {"a": 1, "b": 1}
    names = [finding["name"] for finding in told["findings"]]
    assert {"the same", "clocks", "run's folder", "links", "all-reduce across hosts"} <= set(names)
    assert not list(tmp_path.glob("**/.check-*"))
    assert not (tmp_path / "exclude").exists()
