"""Runs whose ranks share sequences or matrices, and what they are held against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny

from launcher.engine.metrics import read_metrics

SIZE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
DECODERS: dict[str, dict[str, Any]] = {
    "gpt2": {**tiny.MODELS["clm"], "num_attention_heads": 4},
    "llama": {"family": "llama", **SIZE, "num_key_value_heads": 2},
    "qwen3": {"family": "qwen3", **SIZE, "num_key_value_heads": 1, "config": {"head_dim": 8}},
    "mistral": {"family": "mistral", **SIZE, "num_key_value_heads": 4, "config": {"sliding_window": None}},
    "olmo": {"family": "olmo", **SIZE},
}


def write(shards: Path, folder: Path, name: str, family: str, num_steps: int = 5, **changes: Any) -> Path:
    """A recipe; runs of one family learn the same."""
    tree = tiny.recipe_tree("clm", shards, folder, name=name, train__num_steps=num_steps, **changes)
    tree["schedule"] = {"kind": "constant"}
    tree["model"] = {**DECODERS[family], **changes.get("model", {})}
    return tiny.write_recipe(folder / f"{name}.yaml", tree)


def steps(run: Path) -> list[dict[str, Any]]:
    return [line for line in read_metrics(run / "metrics.jsonl") if "event" not in line]


def validations(run: Path) -> list[dict[str, Any]]:
    return [line for line in read_metrics(run / "metrics.jsonl") if line.get("event") == "evaluation"]


def assert_alike(one: Path, other: Path) -> None:
    pairs = list(zip(steps(one), steps(other), strict=True))
    assert pairs
    for a, b in pairs:
        assert abs(a["loss"] - b["loss"]) < 1e-5
        assert abs(a["grad_norm"] - b["grad_norm"]) < 1e-4
        assert [a[key] for key in ("batch_digest", "tokens", "samples")] == [
            b[key] for key in ("batch_digest", "tokens", "samples")
        ]
    for a, b in zip(validations(one), validations(other), strict=True):
        assert abs(a["loss"] - b["loss"]) < 1e-5
        assert (a["num_targets"], round(a["accuracy"], 9)) == (b["num_targets"], round(b["accuracy"], 9))
