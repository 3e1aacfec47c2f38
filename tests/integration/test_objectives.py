"""Objectives beside the three of test_stages: each trains a model as a plain PyTorch loop does, and is exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jobs
import plain_jobs
import pytest
import tiny
from ranks import run_ranks

from launcher.engine.records import read_metrics
from launcher.shards.manifest import read_manifest

# What its model can do as one of the tiny models, its section of the recipe, ZeRO stage and ranks.
CASES: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "mlm, spans": ("mlm", {"kind": "mlm", "unit": "span"}, 2, 1),
    "prefix": ("span", {"kind": "prefix"}, 3, 2),
    "prefix, causal": ("clm", {"kind": "prefix", "head": "causal"}, 0, 2),
    "ul2": ("span", {"kind": "ul2"}, 3, 2),
    "mixture": (
        "clm",
        {"kind": "mixture", "parts": [{"kind": "clm"}, {"kind": "prefix", "head": "causal", "weight": 2.0}]},
        1,
        2,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_it_trains_as_a_plain_pytorch_loop_does(name: str, shards: Path, tmp_path: Path) -> None:
    model, section, stage, ranks = CASES[name]
    if section["kind"] == "ul2":  # the tokenizer is a wordpiece one, which has no tokens for modes
        section = {**section, "mode_tokens": list(read_manifest(shards).tokenizer.special.sentinels[-3:])}
    recipe = tiny.write_recipe(tmp_path / "r.yaml", tiny.recipe_tree(model, shards, tmp_path, objective=section))
    assert run_ranks(jobs.train, ranks, ["--ds_config", f"zero{stage}", "--recipe", str(recipe)]) == [0] * ranks
    lines = read_metrics(tmp_path / "tiny" / "metrics.jsonl")
    losses = [line["loss"] for line in lines if "loss" in line and "event" not in line]
    (expected,) = run_ranks(plain_jobs.plain_losses, 1, str(recipe))
    assert len(losses) == 20
    assert max(abs(a - b) for a, b in zip(losses, expected, strict=True)) < 1e-5
    assert losses[0] - losses[-1] > 0.2
    assert (tmp_path / "tiny" / "export" / "model.safetensors").is_file()
    validation = [line for line in lines if line.get("event") == "evaluation"][-1]
    parts = validation.get("parts", {})
    assert (len(parts) > 1) == (section["kind"] in ("ul2", "mixture"))
    if parts:  # each of them alone, and together the whole
        assert sum(part["num_targets"] for part in parts.values()) == validation["num_targets"]
        summed = sum(part["num_targets"] * part["loss"] for part in parts.values())
        assert summed / validation["num_targets"] == pytest.approx(validation["loss"])


def test_a_tokenizer_without_modes_is_told_before_anything_is_built(shards: Path, tmp_path: Path) -> None:
    tree = tiny.recipe_tree("span", shards, tmp_path, objective={"kind": "ul2"})
    recipe = tiny.write_recipe(tmp_path / "r.yaml", tree)
    ((code, told),) = run_ranks(jobs.train_and_tell, 1, ["--ds_config", "zero0", "--recipe", str(recipe)])
    assert code == 2
    assert "ObjectiveError: the objective names its denoisers R, S, X" in told
    assert "objective.mode_tokens=[" in told
    assert not (tmp_path / "tiny").exists()
