"""Killed at any step and started again, a run takes the steps it would have taken."""

from __future__ import annotations

import json
from pathlib import Path

import export_jobs
import jobs
import pytest
import tiny
from ranks import kill_ranks_when, run_ranks

from launcher.checkpoint.folder import complete_steps
from launcher.config import places
from launcher.engine.records import read_metrics

DROPOUT = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
CHANGES = {"train__num_steps": 9, "checkpoint__every_steps": 3, "eval__every_steps": 2, "model__config": DROPOUT}


def step_lines(run: Path) -> list[tuple[int, float, float | None, str]]:
    lines = read_metrics(run / "metrics.jsonl")
    return [(x["step"], x["loss"], x["grad_norm"], x["batch_digest"]) for x in lines if "batch_digest" in x]


@pytest.mark.parametrize(
    ("stage", "ranks", "killed_after", "precision"),
    [
        pytest.param(0, 1, 4, "fp32", marks=pytest.mark.slow),
        (0, 2, 5, "bf16"),
        pytest.param(1, 2, 7, "fp32", marks=pytest.mark.slow),  # as stage 2, but for the gradients
        (1, 2, 8, "bf16"),
        (2, 1, 3, "bf16_autocast"),
        (2, 2, 1, "fp32"),  # before the first checkpoint: from the beginning
        (3, 2, 6, "fp32"),
        (3, 2, 4, "bf16"),
    ],
)
def test_a_killed_run_goes_on_bit_for_bit(
    stage: int, ranks: int, killed_after: int, precision: str, shards: Path, tmp_path: Path
) -> None:
    arguments = {}
    for name in ("whole", "killed"):
        tree = tiny.recipe_tree("clm", shards, tmp_path, name=name, train__precision=precision, **CHANGES)
        path = tiny.write_recipe(tmp_path / f"{name}.yaml", tree)
        arguments[name] = ["--ds_config", f"zero{stage}", "--recipe", str(path)]
    run_ranks(jobs.train, ranks, arguments["whole"])
    killed = tmp_path / "killed"

    def far_enough() -> bool:
        file = killed / "metrics.jsonl"
        return file.exists() and any(x.get("step", 0) >= killed_after for x in read_metrics(file))

    kill_ranks_when(far_enough, jobs.train, ranks, arguments["killed"])
    before = complete_steps(killed / "checkpoints")
    assert all(step % 3 == 0 for step in before)
    assert run_ranks(jobs.train, ranks, arguments["killed"]) == [0] * ranks
    assert step_lines(killed) == step_lines(tmp_path / "whole")
    assert export_jobs.weights_file(str(killed / "export")) == export_jobs.weights_file(
        str(tmp_path / "whole" / "export")
    )


def test_weights_held_once_more_inside_of_a_node_go_on(shards: Path, tmp_path: Path) -> None:
    zero = json.loads((places.shipped("ds_configs") / "zero3_hpz.json").read_text())["zero_optimization"]
    file = tmp_path / "hpz.json"
    file.write_text(json.dumps({"zero_optimization": {**zero, "zero_hpz_partition_size": 2}}))
    for name, config, parts in (("whole", "zero3", [6]), ("hpz", str(file), [3, 6])):
        tree = tiny.recipe_tree("clm", shards, tmp_path, name=name, schedule__kind="constant")
        path = tiny.write_recipe(tmp_path / "r.yaml", tree)
        for last in parts:
            words = ["--ds_config", config, "--recipe", str(path), f"train.num_steps={last}"]
            assert run_ranks(jobs.train, 2, words) == [0, 0]
    pairs = list(zip(step_lines(tmp_path / "whole"), step_lines(tmp_path / "hpz"), strict=True))
    assert len(pairs) == 6
    assert max(abs(a[1] - b[1]) for a, b in pairs) < 1e-6


@pytest.mark.slow
@pytest.mark.usefixtures("cpu_adam")
@pytest.mark.parametrize(("config", "ranks"), [("zero2_offload", 2), ("zero3_offload", 1), ("zero3_offload_all", 2)])
def test_an_offloaded_optimizer_goes_on_and_agrees_with_one_that_is_not(
    config: str, ranks: int, shards: Path, tmp_path: Path
) -> None:
    # slow: DeepSpeed's CPU Adam is compiled on first use
    for name, file, parts in (("whole", "zero1", [6]), ("moved", config, [3, 6])):
        tree = tiny.recipe_tree("clm", shards, tmp_path, name=name, schedule__kind="constant")
        path = tiny.write_recipe(tmp_path / "r.yaml", tree)
        for last in parts:
            words = ["--ds_config", file, "--recipe", str(path), f"train.num_steps={last}"]
            assert run_ranks(jobs.train, ranks, words) == [0] * ranks
    pairs = list(zip(step_lines(tmp_path / "whole"), step_lines(tmp_path / "moved"), strict=True))
    assert len(pairs) == 6
    assert max(abs(a[1] - b[1]) for a, b in pairs) < 1e-5


def test_a_complete_run_is_not_trained_again_nor_with_another_recipe_and_goes_on_to_more_steps(
    shards: Path, tmp_path: Path
) -> None:
    path = tiny.write_recipe(tmp_path / "r.yaml", tiny.recipe_tree("mlm", shards, tmp_path, train__num_steps=2))
    arguments = ["--ds_config", "zero1", "--recipe", str(path)]
    run_ranks(jobs.train, 1, arguments)
    before = (tmp_path / "tiny" / "metrics.jsonl").read_bytes()
    assert run_ranks(jobs.train, 1, arguments) == [0]
    assert (tmp_path / "tiny" / "metrics.jsonl").read_bytes() == before

    ((code, told),) = run_ranks(jobs.train_and_tell, 1, [*arguments, "optim.lr=0.1"])
    assert code == 2
    assert "CheckpointError: the run was started with another recipe: optim.lr: 0.003 → 0.1" in told
    assert (tmp_path / "tiny" / "metrics.jsonl").read_bytes() == before

    assert run_ranks(jobs.train, 1, [*arguments, "train.num_steps=4"]) == [0]
    assert [line[0] for line in step_lines(tmp_path / "tiny")] == [1, 2, 3, 4]
