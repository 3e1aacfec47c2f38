"""A run goes on at another number of ranks and another ZeRO stage as if nothing had happened."""

from __future__ import annotations

from pathlib import Path

import jobs
import pytest
import tiny
import torch
from ranks import run_ranks
from safetensors.torch import load_file

from launcher.checkpoint.rng import seed_generators
from launcher.engine.records import read_metrics

Leg = tuple[str, int, int]
"""`--ds_config`, number of ranks, last step."""


def step_lines(run: Path) -> list[tuple[int, float, str]]:
    lines = read_metrics(run / "metrics.jsonl")
    return [(x["step"], x["loss"], x["batch_digest"]) for x in lines if "batch_digest" in x]


@pytest.mark.parametrize(
    "legs",
    [
        pytest.param([("zero1", 2, 2), ("zero3", 1, 4), ("zero2", 3, 6), ("zero0", 2, 8)], id="stages and ranks"),
        pytest.param(
            [("zero2_offload", 2, 2), ("zero3_offload", 1, 4), ("zero1", 3, 6), ("zero3_offload_all", 2, 8)],
            id="offload to the host",
            marks=pytest.mark.slow,  # DeepSpeed's CPU Adam is compiled on first use
        ),
    ],
)
def test_a_chain_of_stages_and_ranks_takes_the_steps_of_one_run(legs: list[Leg], shards: Path, tmp_path: Path) -> None:
    for name, parts in (("whole", [("zero1", 1, legs[-1][2])]), ("moved", legs)):
        tree = tiny.recipe_tree("mlm", shards, tmp_path, name=name, schedule__kind="constant", batch__global_batch=12)
        path = tiny.write_recipe(tmp_path / f"{name}.yaml", tree)
        for config, ranks, last in parts:
            arguments = ["--ds_config", config, "--recipe", str(path), f"train.num_steps={last}"]
            assert run_ranks(jobs.train, ranks, arguments) == [0] * ranks
    whole, moved = step_lines(tmp_path / "whole"), step_lines(tmp_path / "moved")
    assert [line[0] for line in whole] == list(range(1, legs[-1][2] + 1))
    assert [line[2] for line in whole] == [line[2] for line in moved]
    assert max(abs(a[1] - b[1]) for a, b in zip(whole, moved, strict=True)) < 1e-5
    # No rank of the last leg draws again what some rank drew before: dropout has streams of the step it began with.
    last = tmp_path / "moved" / "checkpoints" / f"step-{legs[-1][2]:08d}"
    begun_with = [
        load_file(file)["rng|torch"][:8].view(torch.int64).item() for file in sorted(last.glob("*.safetensors"))
    ]
    for rank, seed in enumerate(begun_with):
        seed_generators(1, rank, legs[-2][2])
        assert seed == torch.initial_seed()


def test_where_the_batch_cannot_be_kept_the_error_lists_the_numbers_of_ranks_that_can(
    shards: Path, tmp_path: Path
) -> None:
    tree = tiny.recipe_tree("mlm", shards, tmp_path, train__num_steps=1)
    path = tiny.write_recipe(tmp_path / "r.yaml", tree)
    results = run_ranks(jobs.train_and_tell, 3, ["--ds_config", "zero1", "--recipe", str(path)])
    assert [code for code, _ in results] == [2, 2, 2]
    assert "8 samples per step cannot be cut into 3 equal shares" in results[0][1]
    assert "a number of ranks that keeps this one: 1, 2, 4, 8" in results[0][1]
