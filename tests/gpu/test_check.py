"""`pretrain check` measures a GPU, and adds up over NCCL."""

from __future__ import annotations

import json
from pathlib import Path

import jobs
import pytest
import tiny
from ranks import run_on_gpus

pytestmark = pytest.mark.gpu


def test_a_gpu_is_measured_and_adds_up() -> None:
    import torch

    from launcher.probe.bench import TorchBench

    bench = TorchBench(0)
    told = bench.compute()
    assert told["device"] == torch.cuda.get_device_name()
    assert told["matmul_flops"] > 1e12
    assert told["copy_bytes_per_s"] > 1e10
    assert 0 < told["free_bytes"] <= told["device_bytes"]
    summed = bench.reduce("127.0.0.1", bench.open_store("127.0.0.1"), 0, 1, 60.0)
    assert (summed["backend"], summed["right"]) == ("nccl", True)


def test_two_hosts_play_the_tournament_between_their_accelerators_too(shards: Path, tmp_path: Path) -> None:
    recipe = tiny.write_recipe(tmp_path / "r.yaml", tiny.recipe_tree("mlm", shards, tmp_path / "runs"))
    (tmp_path / "hosts").write_text("a slots=1\nb slots=1\n")
    words = [
        str(recipe),
        "--ds_config",
        "zero2",
        "--tolerance",
        "0.01",
        "--json",
        "--hostfile",
        str(tmp_path / "hosts"),
    ]
    codes = run_on_gpus(jobs.check, 2, words, str(tmp_path / "out"))
    told = json.loads((tmp_path / "out").read_text())
    assert codes == [0, 0], told
    found = {finding["name"]: finding for finding in told["findings"]}
    assert found["link of accelerators"]["state"] == "ok"
    assert "2 ranks (nccl)" in found["all-reduce across hosts"]["found"]
