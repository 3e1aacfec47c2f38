"""Mixtures of experts train alike on any stage and number of ranks, and tell how their experts are used."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jobs
import pytest
import tiny
from ranks import run_ranks

from launcher.engine.records import read_metrics

NUMBERS = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 16},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
}
STEPS = 6


def train(
    folder: Path, shards: Path, *, stage: int, ranks: int, family: str = "qwen3_moe", **changes: Any
) -> list[dict[str, Any]]:
    """The lines of the metrics of a run."""
    tree = tiny.recipe_tree("clm", shards, folder, train__num_steps=STEPS)
    tree["model"] = {
        "family": family,
        **NUMBERS,
        "config": CONFIGS[family],
        "router_aux_loss": 0.05,
        "router_z_loss": 0.01,
    }
    for field, value in changes.items():
        section, _, name = field.partition("__")
        tree[section][name] = value
    recipe = tiny.write_recipe(folder / "r.yaml", tree)
    assert run_ranks(jobs.train, ranks, ["--ds_config", f"zero{stage}", "--recipe", str(recipe)]) == [0] * ranks
    return read_metrics(folder / "tiny" / "metrics.jsonl")


def steps(lines: list[dict[str, Any]], field: str) -> list[float]:
    found = [line[field] for line in lines if "event" not in line]
    assert len(found) == STEPS
    return found


def largest_difference(one: list[dict[str, Any]], other: list[dict[str, Any]], field: str) -> float:
    return max(abs(a - b) for a, b in zip(steps(one, field), steps(other, field), strict=True))


# The load-balancing loss is a product of two means over the tokens of a micro batch: cut otherwise, it is another
# (Qiu et al. 2025, arXiv:2501.11873). Runs are the same only where their micro batches hold the same samples, which
# those of one rank and of two do: pass 0's ranks come first, in rank order, then pass 1's.
@pytest.mark.parametrize(("family", "stage"), [("qwen3_moe", 2), ("qwen3_moe", 3), ("mixtral", 3), ("olmoe", 3)])
def test_two_ranks_take_the_steps_of_one_with_the_same_micro_batches(
    family: str, stage: int, shards: Path, tmp_path: Path
) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one = train(tmp_path / "one", shards, stage=0, ranks=1, family=family, batch__micro_batch=4)
    two = train(tmp_path / "two", shards, stage=stage, ranks=2, family=family, batch__micro_batch=4)
    for field in ("loss", "router_aux_loss", "router_z_loss", "grad_norm"):
        assert largest_difference(one, two, field) < 1e-5, field
    loads = [next(line for line in lines if line.get("event") == "routing") for lines in (one, two)]
    assert loads[0] == loads[1]


def test_the_z_loss_is_the_same_however_the_batch_is_cut(shards: Path, tmp_path: Path) -> None:
    runs = []
    for name, ranks, micro in (("whole", 1, 8), ("passes", 1, 2), ("ranks", 2, 2)):
        (tmp_path / name).mkdir()
        cut = {"batch__micro_batch": micro, "model__router_aux_loss": 0.0, "model__router_z_loss": 0.5}
        runs.append(train(tmp_path / name, shards, stage=2, ranks=ranks, **cut))
    for other in runs[1:]:
        assert largest_difference(runs[0], other, "loss") < 1e-5
        assert largest_difference(runs[0], other, "router_z_loss") < 1e-5


@pytest.mark.parametrize("stage", [2, 3])
def test_recomputing_and_chunks_change_no_loss(stage: int, shards: Path, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "other").mkdir()
    plain = train(tmp_path / "plain", shards, stage=stage, ranks=2)
    change = {"model__activation_checkpointing": True, "model__chunked_loss": "on"}
    other = train(tmp_path / "other", shards, stage=stage, ranks=2, **change)
    for field in ("loss", "router_aux_loss", "router_z_loss"):
        assert largest_difference(plain, other, field) < 1e-5, field


def test_the_loss_spreads_tokens_and_is_no_part_of_the_validation(shards: Path, tmp_path: Path) -> None:
    runs = {}
    for weight in (0.0, 10.0):
        folder = tmp_path / str(weight)
        folder.mkdir()
        runs[weight] = train(folder, shards, stage=0, ranks=1, model__router_aux_loss=weight)
    last = {weight: steps(lines, "router_aux_loss")[-1] for weight, lines in runs.items()}
    assert 2.0 <= last[10.0] + 1e-3 < last[0.0] + 1e-3, "2 is an equal load: two experts for each token"
    first = [next(line for line in lines if line.get("event") == "evaluation") for lines in runs.values()]
    assert first[0]["step"] == 0
    assert first[0]["loss"] == first[1]["loss"] < math.log(200) + 1


@pytest.mark.parametrize(("precision", "stage", "ranks"), [("bf16", 3, 2), ("bf16_autocast", 2, 1)])
def test_routers_work_in_bf16(precision: str, stage: int, ranks: int, shards: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "half").mkdir()
    same = {"batch__micro_batch": 4}
    full = train(tmp_path / "full", shards, stage=0, ranks=1, **same)
    half = train(tmp_path / "half", shards, stage=stage, ranks=ranks, train__precision=precision, **same)
    assert largest_difference(full, half, "loss") < 0.03
    assert largest_difference(full, half, "router_aux_loss") < 0.1


def test_the_load_is_told_at_every_validation_and_at_the_end(shards: Path, tmp_path: Path) -> None:
    lines = train(tmp_path, shards, stage=3, ranks=2, eval__every_steps=4)
    told = [line for line in lines if line.get("event") == "routing"]
    assert [(line["step"], line["num_steps"]) for line in told] == [(4, 4), (6, 2)]
    for line in told:
        assert list(line["layers"]) == ["model.layers.0.mlp.gate", "model.layers.1.mlp.gate"]
        for load in line["layers"].values():
            assert sum(load["share"]) == pytest.approx(1.0, abs=1e-3)
            assert 0.0 < load["entropy"] <= 1.0


def test_a_dense_model_tells_nothing_of_routers(shards: Path, tmp_path: Path) -> None:
    recipe = tiny.write_recipe(tmp_path / "r.yaml", tiny.recipe_tree("clm", shards, tmp_path, train__num_steps=2))
    assert run_ranks(jobs.train, 1, ["--ds_config", "zero0", "--recipe", str(recipe)]) == [0]
    lines = read_metrics(tmp_path / "tiny" / "metrics.jsonl")
    assert not [line for line in lines if line.get("event") == "routing" or "router_aux_loss" in line]
