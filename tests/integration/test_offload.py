"""What lies on the host or on NVMe takes the same steps, is saved and comes back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jobs
import pytest
import tiny
import troubled_jobs
from ranks import Life, kill_ranks_when, run_ranks

from launcher.engine.records import read_metrics

HIDDEN = 192
"""Wide enough for groups of more than 1 MiB on each of two ranks: smaller ones stay in memory."""


def losses_of(run: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(run / "metrics.jsonl") if "batch_digest" in line]


def wide_tree(shards: Path, runs: Path, name: str, **changes: Any) -> dict[str, Any]:
    tree = tiny.recipe_tree("clm", shards, runs, name=name, schedule__kind="constant", optim__lr=1e-3, **changes)
    tree["model"]["hidden_size"] = HIDDEN
    return tree


def on_nvme(folder: Path, *, weights: bool = False, pipelined: bool = False) -> Path:
    (folder / "nvme").mkdir(exist_ok=True)
    nvme: dict[str, Any] = {"device": "nvme", "nvme_path": str(folder / "nvme")}
    pipeline = {"pipeline_read": True, "pipeline_write": True, "buffer_count": 12} if pipelined else {}
    zero = {"stage": 3, "offload_optimizer": {**nvme, **pipeline}, "sub_group_size": 270_000}
    if weights:
        zero |= {"offload_param": {**nvme, "buffer_size": 500_000, "max_in_cpu": 0}, "stage3_max_reuse_distance": 0}
    file = folder / "nvme.json"
    file.write_text(json.dumps({"zero_optimization": {**zero, "reduce_bucket_size": 10**6}}))
    return file


def train_in_parts(config: str, ranks: int, tree: dict[str, Any], parts: list[int], folder: Path) -> Path:
    recipe = tiny.write_recipe(folder / "r.yaml", tree)
    for last in parts:
        words = ["--ds_config", config, "--recipe", str(recipe), f"train.num_steps={last}"]
        assert run_ranks(jobs.train, ranks, words) == [0] * ranks
    return folder / str(tree["name"])


@pytest.mark.usefixtures("cpu_adam", "async_io")
@pytest.mark.parametrize(
    ("ranks", "weights", "pipelined", "precision"),
    [
        (2, False, False, "fp32"),
        pytest.param(1, True, False, "fp32", marks=pytest.mark.slow),
        pytest.param(2, True, False, "bf16", marks=pytest.mark.slow),
        pytest.param(1, False, True, "bf16", marks=pytest.mark.slow),
        pytest.param(2, True, True, "bf16_autocast", marks=pytest.mark.slow),
    ],
)
def test_a_run_on_nvme_goes_on_as_one_that_was_not_interrupted(
    ranks: int, weights: bool, pipelined: bool, precision: str, shards: Path, tmp_path: Path
) -> None:
    config = str(on_nvme(tmp_path, weights=weights, pipelined=pipelined))
    runs = {
        name: train_in_parts(
            file, ranks, wide_tree(shards, tmp_path, name, train__precision=precision), parts, tmp_path
        )
        for name, file, parts in (("whole", config, [6]), ("resumed", config, [3, 6]), ("memory", "zero3", [6]))
    }
    losses = {name: losses_of(run) for name, run in runs.items()}
    assert len(losses["whole"]) == 6
    # DeepSpeed's CPU Adam keeps a running product of beta^t, which a resumed run has to the last digits only; bf16 then
    # rounds to other sides now and then (measured: 1.7e-4 with autocast).
    assert difference(losses["whole"], losses["resumed"]) < (1e-5 if precision == "fp32" else 1e-3)
    assert difference(losses["whole"], losses["memory"]) < (1e-5 if precision == "fp32" else 0.03)
    assert list((tmp_path / "nvme").iterdir()) == [], "what was swapped is cleared when the run is done"


@pytest.mark.slow
@pytest.mark.usefixtures("async_io")
def test_a_run_killed_on_nvme_goes_on_bit_for_bit_over_the_files_it_left(shards: Path, tmp_path: Path) -> None:
    config = str(on_nvme(tmp_path))
    changes = {"optim__host_adam": "torch", "train__num_steps": 8, "checkpoint__every_steps": 3}
    whole = train_in_parts(config, 2, wide_tree(shards, tmp_path, "whole", **changes), [8], tmp_path)
    killed = tmp_path / "killed"
    recipe = tiny.write_recipe(tmp_path / "killed.yaml", wide_tree(shards, tmp_path, "killed", **changes))
    words = ["--ds_config", config, "--recipe", str(recipe)]

    def far_enough() -> bool:
        file = killed / "metrics.jsonl"
        return file.exists() and any(line.get("step", 0) >= 5 for line in read_metrics(file))

    kill_ranks_when(far_enough, jobs.train, 2, words)
    assert list((tmp_path / "nvme").iterdir()) != [], "it had no time to clear"
    assert run_ranks(jobs.train, 2, words) == [0, 0]
    assert losses_of(killed) == losses_of(whole)
    assert list((tmp_path / "nvme").iterdir()) == []


@pytest.mark.slow
@pytest.mark.usefixtures("cpu_adam", "async_io")
def test_a_checkpoint_moves_between_nvme_and_memory(shards: Path, tmp_path: Path) -> None:
    nvme = str(on_nvme(tmp_path))
    there = train_in_parts("zero1", 1, wide_tree(shards, tmp_path, "there"), [2], tmp_path)
    train_in_parts(nvme, 2, wide_tree(shards, tmp_path, "there"), [4], tmp_path)
    train_in_parts("zero2", 1, wide_tree(shards, tmp_path, "there"), [6], tmp_path)
    whole = train_in_parts("zero1", 1, wide_tree(shards, tmp_path, "whole"), [6], tmp_path)
    assert difference(losses_of(there), losses_of(whole)) < 1e-5


@pytest.mark.slow
@pytest.mark.usefixtures("async_io")
def test_a_rehearsal_of_the_micro_batch_leaves_nothing_on_nvme(shards: Path, tmp_path: Path) -> None:
    config = str(on_nvme(tmp_path))
    runs = [
        train_in_parts(config, 2, wide_tree(shards, tmp_path, name, batch__micro_batch=micro_batch), [4], tmp_path)
        for name, micro_batch in (("given", 4), ("found", "auto"))
    ]
    assert difference(*(losses_of(run) for run in runs)) < 1e-6


@pytest.mark.usefixtures("async_io")
def test_a_drive_that_is_not_there_is_told_before_the_run_begins(shards: Path, tmp_path: Path) -> None:
    recipe = tiny.write_recipe(tmp_path / "r.yaml", wide_tree(shards, tmp_path, "lost"))
    life = Life(jobs.train, 2, tmp_path / "out", ["--ds_config", "zero3_nvme", "--recipe", str(recipe)])
    assert life.wait() == [2, 2], life.told()
    assert "nothing can be offloaded to NVMe there" in life.told()
    assert "there is no folder /local_nvme" in life.told()
    assert "--nvme-path FOLDER" in life.told()
    assert not (tmp_path / "lost" / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("cpu_adam")  # where there is a compiler
def test_two_ranks_compile_once_and_a_build_that_was_killed_is_mended(tmp_path: Path) -> None:
    ops = tmp_path / "ops"
    lock = ops / "cpu_adam" / "lock"
    kill_ranks_when(lock.exists, jobs.load_cpu_adam, 2, str(ops))
    assert lock.exists(), "the compilers live on without the rank that started them"
    told = run_ranks(jobs.load_cpu_adam, 2, str(ops))
    lines = [line for rank in told for line in rank]
    assert sum("was left by a build that was killed, and is deleted" in line for line in lines) == 1
    assert sum("compiling DeepSpeed's cpu_adam, once a node" in line for line in lines) <= 1
    assert not lock.exists()
    assert run_ranks(jobs.load_cpu_adam, 2, str(ops)) == [[], []], "ready: nothing to tell"


@pytest.mark.parametrize(
    ("host_adam", "code", "told"),
    [
        ("auto", 0, ""),
        ("cpu_adam", 2, "MissingDependencyError: DeepSpeed's cpu_adam cannot be compiled here for want of g++"),
    ],
)
def test_without_a_compiler_torchs_adamw_steps_on_the_host(
    host_adam: str, code: int, told: str, shards: Path, tmp_path: Path
) -> None:
    tree = wide_tree(shards, tmp_path, "bare", train__num_steps=3, optim__host_adam=host_adam)
    recipe = tiny.write_recipe(tmp_path / "r.yaml", tree)
    words = ["--ds_config", "zero2_offload", "--recipe", str(recipe)]
    ((found, error),) = run_ranks(troubled_jobs.train_without_compiler, 1, words, str(tmp_path / "empty"))
    assert (found, told in error) == (code, True), error
    if code == 0:
        whole = train_in_parts("zero2", 1, wide_tree(shards, tmp_path, "whole"), [3], tmp_path)
        assert difference(losses_of(tmp_path / "bare"), losses_of(whole)) < 1e-5
        assert list((tmp_path / "empty").iterdir()) == [], "nothing was compiled"


def difference(one: list[float], other: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))
