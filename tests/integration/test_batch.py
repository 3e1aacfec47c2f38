"""Batches that grow, and micro batches that are measured: the same samples, the same losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jobs
import pytest
import tiny
from ranks import run_ranks

from launcher import tracing
from launcher.engine.metrics import read_metrics

WARMUP = [{"step": 0, "global_batch": 4}, {"step": 2, "global_batch": 8}, {"samples": 30, "global_batch": 12}]
POSITIONS = [4, 8, 16, 24, 32, 44, 56]
"""Samples consumed after each step of WARMUP."""


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [line for line in read_metrics(run / "metrics.jsonl") if "batch_digest" in line]


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
    (expected,) = run_ranks(jobs.plain_losses, 1, str(path))
    assert max(abs(line["loss"] - loss) for line, loss in zip(lines, expected, strict=True)) < 1e-5
    for step in (1, 5, 6, 7):
        sequences, verdict = tracing.trace_step(tmp_path / "tiny", step)
        assert verdict.startswith("the digest is the run's")
        first = POSITIONS[step - 2] if step > 1 else 0
        assert [sequence.position for sequence in sequences] == list(range(first, POSITIONS[step - 1]))
    document = sequences[0].pieces[0].document
    (found,) = tracing.trace_document(tmp_path / "tiny", document)
    assert 7 in found["steps"]
