"""Batches that grow, and micro batches that are measured: the same samples, the same losses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import export_jobs
import jobs
import plain_jobs
import pytest
import tiny
import troubled_jobs
from ranks import run_ranks

from launcher import tracing
from launcher.checkpoint.folder import read_json
from launcher.engine.records import read_metrics

WARMUP = [{"step": 0, "global_batch": 4}, {"step": 2, "global_batch": 8}, {"samples": 30, "global_batch": 12}]
POSITIONS = [4, 8, 16, 24, 32, 44, 56]
"""Samples consumed after each step of WARMUP."""


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [line for line in read_metrics(run / "metrics.jsonl") if "batch_digest" in line]


def cut_of(run: Path) -> list[int]:
    """Global batch, micro batch and passes, as the run's folder records them."""
    config = json.loads((run / "ds_config.json").read_text())
    keys = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    return [config[key] for key in keys]


def growing(shards: Path, runs: Path, num_steps: int, **changes: Any) -> Path:
    batch = {"global_batch": 12, "warmup": WARMUP}
    tree = tiny.recipe_tree("clm", shards, runs, train__num_steps=num_steps, batch=batch, **changes)
    tree["schedule"] = {"kind": "constant"}  # others depend on the length of the run
    return tiny.write_recipe(runs / "recipe.yaml", tree)


@pytest.mark.parametrize(("stage", "ranks"), [(0, 2), (2, 1), (3, 2)])
def test_a_growing_batch_takes_the_steps_of_a_plain_loop_and_is_traced(
    stage: int, ranks: int, shards: Path, tmp_path: Path
) -> None:
    ds_config = ["--ds_config", f"zero{stage}", "--recipe"]
    for num_steps in (3, 7):  # stopped amid a stage
        path = growing(shards, tmp_path, num_steps)
        assert run_ranks(jobs.train, ranks, [*ds_config, str(path)]) == [0] * ranks
    lines = lines_of(tmp_path / "tiny")
    assert [line["samples"] for line in lines] == POSITIONS
    assert [line["tokens"] for line in lines] == [24 * position for position in POSITIONS]
    (expected,) = run_ranks(plain_jobs.plain_losses, 1, str(path))
    assert max(abs(line["loss"] - loss) for line, loss in zip(lines, expected, strict=True)) < 1e-5
    for step in (1, 5, 6, 7):
        sequences, verdict = tracing.trace_step(tmp_path / "tiny", step)
        assert verdict.startswith("the digest is the run's")
        first = POSITIONS[step - 2] if step > 1 else 0
        assert [sequence.position for sequence in sequences] == list(range(first, POSITIONS[step - 1]))
    document = sequences[0].pieces[0].document
    (found,) = tracing.trace_document(tmp_path / "tiny", document)
    assert 7 in found["steps"]


def recipe_of(shards: Path, runs: Path, name: str, micro_batch: int | str, num_steps: int, **changes: Any) -> list[str]:
    dropout = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
    batch = {"global_batch": 16, "micro_batch": micro_batch}
    tree = tiny.recipe_tree("clm", shards, runs, name=name, batch=batch, train__num_steps=num_steps, **changes)
    tree["schedule"], tree["model"]["config"] = {"kind": "constant"}, dropout
    return ["--recipe", str(tiny.write_recipe(runs / f"{name}.yaml", tree))]


@pytest.mark.parametrize(("stage", "ranks"), [(0, 1), (2, 2), (3, 2)])
def test_a_measured_micro_batch_leaves_no_trace_and_is_kept(
    stage: int, ranks: int, shards: Path, tmp_path: Path
) -> None:
    ds_config = ["--ds_config", f"zero{stage}"]
    share = 16 // ranks
    runs = {"given": share, "measured": "auto"}
    for name, micro_batch in runs.items():
        arguments = ds_config + recipe_of(shards, tmp_path, name, micro_batch, 3)
        assert run_ranks(jobs.train, ranks, arguments) == [0] * ranks
    state = tmp_path / "measured" / "checkpoints" / "step-00000003" / "state.json"
    assert read_json(state)["micro_batch"] == share
    given, measured = ([(x["loss"], x["grad_norm"], x["batch_digest"]) for x in lines_of(tmp_path / n)] for n in runs)
    assert given == measured
    assert export_jobs.weights_file(str(tmp_path / "given/export")) == export_jobs.weights_file(
        str(tmp_path / "measured/export")
    )


def test_a_micro_batch_is_as_large_as_memory_lets_it_be(shards: Path, tmp_path: Path) -> None:
    """Memory is what the kernel would tell if there were less of it."""
    arguments = ["--ds_config", "zero2", *recipe_of(shards, tmp_path, "short", "auto", 2)]
    for available, code, message in (
        (0, 2, "use a higher ZeRO stage, offload, model.activation_checkpointing=true"),
        (1 << 40, 0, ""),
    ):
        ((got, told),) = run_ranks(troubled_jobs.train_with_memory, 1, arguments, available)
        assert got == code
        assert message in told
    assert cut_of(tmp_path / "short") == [16, 16, 1]


def test_a_run_that_goes_on_keeps_the_micro_batch_it_had(shards: Path, tmp_path: Path) -> None:
    for micro_batch, num_steps in ((4, 2), ("auto", 4)):
        arguments = ["--ds_config", "zero2", *recipe_of(shards, tmp_path, "on", micro_batch, num_steps)]
        assert run_ranks(jobs.train, 2, arguments) == [0, 0]
        assert cut_of(tmp_path / "on") == [16, 4, 2]
    assert run_ranks(jobs.train, 1, [*arguments, "train.num_steps=5"]) == [0]
    assert cut_of(tmp_path / "on") == [16, 4, 4]


@pytest.mark.gpu
def test_a_micro_batch_is_measured_on_a_gpu(shards: Path, tmp_path: Path) -> None:
    size = {"hidden_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 16, "max_position_embeddings": 1024}
    tree = tiny.recipe_tree("clm", shards, tmp_path, train__num_steps=2, train__precision="bf16", data__seq_len=1024)
    tree["model"] |= size | {"chunked_loss": "off"}
    tree["batch"] = {"global_batch": 512, "micro_batch": "auto"}
    recipe = tiny.write_recipe(tmp_path / "r.yaml", tree)
    for memory_share in (0.1, 0.3):
        arguments = ["--ds_config", "zero2", "--recipe", str(recipe), f"name=share-{memory_share}"]
        assert run_ranks(troubled_jobs.train_on_part_of_a_gpu, 1, arguments, memory_share) == [0]
    sizes = [cut_of(tmp_path / f"share-{memory_share}")[1] for memory_share in (0.1, 0.3)]
    assert 1 < sizes[0] < sizes[1] < 512
