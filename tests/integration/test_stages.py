"""Every objective on every ZeRO stage and number of ranks takes the steps a plain PyTorch loop takes.

`make test` runs half of the table, in which every two of an objective, a stage and a number of ranks meet; `make
test-all` runs all of it and writes tests/golden/stages.json.
"""

from __future__ import annotations

import json
import os
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import jobs
import plain_jobs
import pytest
import tiny
from ranks import run_ranks

from launcher.engine.records import read_metrics

RECORD = Path(__file__).parents[1] / "golden" / "stages.json"
OBJECTIVES = ("mlm", "clm", "span")
TABLE = list(product(OBJECTIVES, range(4), (1, 2)))


@cache
def plain_losses(objective: str, shards: Path, folder: Path) -> list[float]:
    path = tiny.write_recipe(folder / f"plain-{objective}.yaml", tiny.recipe_tree(objective, shards, folder))
    return run_ranks(plain_jobs.plain_losses, 1, str(path))[0]


def losses_of(run: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(run / "metrics.jsonl") if "loss" in line and "event" not in line]


def write_record(cell: str, difference: float, fall: float) -> None:
    """`make test-all` keeps what it measured."""
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    record[cell] = {"largest_loss_difference": float(f"{difference:.1e}"), "loss_fell_by": round(fall, 2)}
    RECORD.write_text(json.dumps(dict(sorted(record.items())), indent=1) + "\n")


def test_the_record_holds_every_cell() -> None:
    record = json.loads(RECORD.read_text())
    assert len(record) == len(TABLE) == 24
    assert max(cell["largest_loss_difference"] for cell in record.values()) < 1e-5


def rows() -> list[Any]:
    """The table, every other cell marked slow."""
    return [
        pytest.param(*cell, marks=() if (OBJECTIVES.index(cell[0]) + cell[1] + cell[2]) % 2 else pytest.mark.slow)
        for cell in TABLE
    ]


@pytest.mark.parametrize(("objective", "stage", "ranks"), rows())
def test_losses_equal_a_plain_pytorch_loop(
    objective: str, stage: int, ranks: int, shards: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    recipe = tiny.write_recipe(tmp_path / "r.yaml", tiny.recipe_tree(objective, shards, tmp_path))
    codes = run_ranks(jobs.train, ranks, ["--ds_config", f"zero{stage}", "--recipe", str(recipe)])
    assert codes == [0] * ranks
    losses = losses_of(tmp_path / "tiny")
    expected = plain_losses(objective, shards, tmp_path_factory.getbasetemp())
    assert len(losses) == 20
    difference = max(abs(a - b) for a, b in zip(losses, expected, strict=True))
    if "WRITE_RECORD" in os.environ:
        write_record(f"{objective}, stage {stage}, ranks {ranks}", difference, losses[0] - losses[-1])
    assert difference < 1e-5
    assert losses[0] - losses[-1] > 0.2, "a frozen model would agree with a frozen model"


def test_accumulation_changes_neither_losses_nor_samples(shards: Path, tmp_path: Path) -> None:
    runs = [tmp_path / name for name in ("8", "2", "1")]
    for folder in runs:
        tree = tiny.recipe_tree("mlm", shards, folder, train__num_steps=4, batch__micro_batch=int(folder.name))
        recipe = tiny.write_recipe(tmp_path / "r.yaml", tree)
        run_ranks(jobs.train, 1, ["--ds_config", "zero2", "--recipe", str(recipe)])
    whole, *cut = ([line.get("batch_digest") for line in read_metrics(run / "tiny" / "metrics.jsonl")] for run in runs)
    assert len([digest for digest in whole if digest]) == 4
    assert cut == [whole, whole]
    losses, *others = (losses_of(run / "tiny") for run in runs)
    for other in others:
        assert max(abs(a - b) for a, b in zip(losses, other, strict=True)) < 1e-5


@pytest.mark.parametrize("stage", [2, 3])
def test_recomputed_activations_change_no_loss(stage: int, shards: Path, tmp_path: Path) -> None:
    for name, recompute in (("kept", False), ("recomputed", True)):
        tree = tiny.recipe_tree("clm", shards, tmp_path, name=name, train__num_steps=4)
        tree["model"]["activation_checkpointing"] = recompute
        recipe = tiny.write_recipe(tmp_path / "r.yaml", tree)
        assert run_ranks(jobs.train, 2, ["--ds_config", f"zero{stage}", "--recipe", str(recipe)]) == [0, 0]
    pairs = list(zip(losses_of(tmp_path / "kept"), losses_of(tmp_path / "recomputed"), strict=True))
    assert len(pairs) == 4
    assert max(abs(a - b) for a, b in pairs) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "ranks"), [(0, 1), (2, 2), (3, 2)])
def test_a_compiled_model_learns_the_same(stage: int, ranks: int, shards: Path, tmp_path: Path) -> None:
    # slow: torch compiles every graph of the model, half a minute
    for name, compiled in (("plain", False), ("compiled", True)):
        tree = tiny.recipe_tree("clm", shards, tmp_path, name=name, train__num_steps=4)
        tree["model"]["compile"] = compiled
        recipe = tiny.write_recipe(tmp_path / "r.yaml", tree)
        assert run_ranks(jobs.train, ranks, ["--ds_config", f"zero{stage}", "--recipe", str(recipe)]) == [0] * ranks
    pairs = list(zip(losses_of(tmp_path / "plain"), losses_of(tmp_path / "compiled"), strict=True))
    assert len(pairs) == 4
    assert max(abs(a - b) for a, b in pairs) < 1e-5
