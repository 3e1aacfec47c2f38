"""What partitioning could get wrong without a word: tied weights, decay, clipping, validation, export, and building."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import jobs
import model_jobs
import plain_jobs
import pytest
import tiny
from ranks import run_ranks
from safetensors.torch import load_file

from launcher.engine.metrics import read_metrics

STRONG = {"optim__weight_decay": 5.0, "optim__grad_clip": 0.05, "train__num_steps": 8}
"""A decay that moves a bias or a norm by a percent a step, if it were decayed; a clip that every step runs into."""


def strong_tree(shards: Path, runs: Path) -> dict[str, Any]:
    return tiny.recipe_tree("clm", shards, runs, **STRONG)  # GPT-2: its output layer is its embedding


@cache
def plain(shards: Path, folder: Path) -> dict[str, Any]:
    recipe = tiny.write_recipe(folder / "plain-strong.yaml", strong_tree(shards, folder))
    run: dict[str, Any] = run_ranks(plain_jobs.plain_run, 1, str(recipe))[0]
    assert min(run["norms"]) > 0.05, "no step is clipped"
    return run


@pytest.mark.parametrize(
    ("stage", "ranks"),
    [
        pytest.param(0, 1, marks=pytest.mark.slow),
        pytest.param(1, 2, marks=pytest.mark.slow),
        (2, 2),
        pytest.param(3, 1, marks=pytest.mark.slow),
        (3, 2),
    ],
)
def test_tied_weights_decay_clipping_validation_and_export_are_those_of_a_plain_loop(
    stage: int, ranks: int, shards: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    expected = plain(shards, tmp_path_factory.getbasetemp())
    recipe = tiny.write_recipe(tmp_path / "r.yaml", strong_tree(shards, tmp_path))
    assert run_ranks(jobs.train, ranks, ["--ds_config", f"zero{stage}", "--recipe", str(recipe)]) == [0] * ranks
    lines = read_metrics(tmp_path / "tiny" / "metrics.jsonl")
    steps = [line for line in lines if "batch_digest" in line]
    assert [line["loss"] for line in steps] == pytest.approx(expected["losses"], abs=1e-5)
    assert [line["grad_norm"] for line in steps] == pytest.approx(expected["norms"], rel=1e-4)
    last = [line for line in lines if line.get("event") == "evaluation"][-1]
    assert last["loss"] == pytest.approx(expected["validation"], abs=1e-5)
    weights = load_file(tmp_path / "tiny" / "export" / "model.safetensors")
    assert weights.keys() == expected["weights"].keys() - {"lm_head.weight"}
    for name, values in weights.items():
        assert values.numpy() == pytest.approx(expected["weights"][name], abs=1e-5), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_building_never_holds_more_than_the_partition_and_the_layer_that_is_drawn(precision: str) -> None:
    for held in run_ranks(model_jobs.building_memory, 2, precision):
        # A layer is drawn in fp32. Beyond the two: modules, names, the allocator's leftovers (1.5 MiB, measured).
        assert held["peak"] < held["partition"] + held["largest_layer"] + (4 << 20)
        assert held["peak"] < 0.75 * held["whole"], "a rank that holds all would pass the line above"
