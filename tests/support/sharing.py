"""Runs whose ranks share sequences or matrices, and what they are held against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import export_jobs
import jobs
import numpy as np
import tiny
from ranks import run_ranks
from safetensors.torch import load_file

from launcher import cli, tracing
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
LOSS_IN_BF16, NORM_IN_BF16 = 0.03, 0.02
"""What a loss may differ by, and a gradient's norm relatively, in eight bits (measured on CPUs: 2.2e-4 and 1.4e-3)."""


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


def assert_losses_are_alike(
    field: str, family: str, stage: int, ranks: int, group: int, changes: dict[str, Any], shards: Path, folder: Path
) -> None:
    """A run whose ranks share by `field` in groups takes the steps of one rank by itself."""
    whole = write(shards, folder, "whole", family, **changes)
    assert run_ranks(jobs.train, 1, ["--ds_config", "zero0", "--recipe", str(whole)]) == [0]
    shared = write(shards, folder, "shared", family, **changes)
    arguments = ["--ds_config", f"zero{stage}", "--recipe", str(shared), f"{field}={group}"]
    assert run_ranks(jobs.train, ranks, arguments) == [0] * ranks
    assert_alike(folder / "whole", folder / "shared")


def assert_a_run_moves(field: str, lives: list[tuple[int, int, int]], shards: Path, folder: Path) -> None:
    """A run that goes on in other groups is one that was not interrupted, and is exported and traced as that is.

    Args:
        field: By which ranks share.
        lives: Stage, ranks, and ranks of a group, of two steps each.
        shards: To train on.
        folder: For both runs.
    """
    whole = write(shards, folder, "whole", "llama", 2 * len(lives))
    assert run_ranks(jobs.train, 1, ["--ds_config", "zero1", "--recipe", str(whole)]) == [0]
    for number, (stage, ranks, group) in enumerate(lives, start=1):
        shared = write(shards, folder, "shared", "llama", 2 * number)
        arguments = ["--ds_config", f"zero{stage}", "--recipe", str(shared), f"{field}={group}"]
        assert run_ranks(jobs.train, ranks, arguments) == [0] * ranks
        # Ranks of one model draw the same dropout, and no others do.
        files = (folder / "shared" / "checkpoints" / f"step-{2 * number:08d}").glob("*.safetensors")
        streams = {load_file(file)["rng|torch"].numpy().tobytes() for file in files}
        assert len(streams) == (ranks // group if field == "model.tensor_parallel" else ranks)
    one, other = steps(folder / "whole"), steps(folder / "shared")
    assert max(abs(a["loss"] - b["loss"]) for a, b in zip(one, other, strict=True)) < 1e-5
    assert tracing.trace_step(folder / "shared", 2 * len(lives))[1].startswith("the digest is the run's")
    inputs = {"input_ids": np.arange(5, 29).reshape(1, 24)}
    logits = []
    for name in ("whole", "shared"):
        assert cli.main(["export", str(folder / name), "--out", str(folder / f"{name}-out")]) == 0
        logits += run_ranks(export_jobs.exported_logits, 1, str(folder / f"{name}-out"), "causal", inputs)
    np.testing.assert_allclose(logits[0], logits[1], rtol=0, atol=1e-4)


def assert_alike_in_bf16(field: str, stage: int, shards: Path, folder: Path, precision: str = "bf16") -> None:
    """Two ranks that share take the steps of one by itself, each of them clipped; on GPUs where there are some."""
    changes = {"train__precision": precision, "data__packing": "bestfit", "optim__grad_clip": 0.05}
    whole = write(shards, folder, "whole", "llama", **changes)
    assert run_ranks(jobs.train, 1, ["--ds_config", "zero1", "--recipe", str(whole)]) == [0]
    shared = write(shards, folder, "shared", "llama", **changes)
    arguments = ["--ds_config", f"zero{stage}", "--recipe", str(shared), f"{field}=2"]
    assert run_ranks(jobs.train, 2, arguments) == [0, 0]
    pairs = list(zip(steps(folder / "whole"), steps(folder / "shared"), strict=True))
    assert max(abs(a["loss"] - b["loss"]) for a, b in pairs) < LOSS_IN_BF16
    assert max(abs(a["grad_norm"] / b["grad_norm"] - 1) for a, b in pairs) < NORM_IN_BF16
