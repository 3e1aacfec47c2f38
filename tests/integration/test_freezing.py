"""Parameters that do not learn stay as they are at every stage, and cost no optimizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import engine_jobs
import jobs
import model_jobs
import plain_jobs
import pytest
import tiny
from ranks import run_ranks

from launcher.engine.metrics import read_metrics

FROZEN = ["transformer.wpe.*", "transformer.h.0.*"]


def frozen_tree(shards: Path, runs: Path, name: str, **changes: Any) -> dict[str, Any]:
    tree = tiny.recipe_tree("clm", shards, runs, name=name, schedule__kind="constant", train__num_steps=6, **changes)
    tree["model"]["freeze"] = FROZEN
    return tree


def losses_of(run: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(run / "metrics.jsonl") if "batch_digest" in line]


def exported(run: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(run / "export" / "model.safetensors")


def test_a_step_whose_batch_tells_nothing_to_what_is_left_to_learn_is_no_fault(tmp_path: Path) -> None:
    """Rows this short hold pairs that nobody can label: whole batches, of tokens to predict all the same."""
    shards = tiny.make_shards(tmp_path, sentences=True)
    data = {"shards": str(shards), "seq_len": 8}
    tree = tiny.pair_tree("nsp", shards, tmp_path, data=data, batch={"global_batch": 2}, train__num_steps=14)
    tree["model"]["freeze"] = ["bert.*", "cls.predictions.*"]
    recipe = tiny.write_recipe(tmp_path / "r.yaml", tree)
    assert run_ranks(jobs.train, 2, ["--ds_config", "zero2", "--recipe", str(recipe)]) == [0, 0]
    steps = [line for line in read_metrics(tmp_path / "tiny" / "metrics.jsonl") if "batch_digest" in line]
    idle = [line for line in steps if line["grad_norm"] == 0.0]
    assert any(line["loss"] > 1.0 for line in idle)
    assert all("pair_loss" not in line for line in idle)
    assert len(idle) < len(steps) / 2


@pytest.mark.parametrize(
    ("stage", "ranks", "precision"),
    [
        pytest.param(0, 1, "fp32", marks=pytest.mark.slow),
        (2, 2, "fp32"),
        (3, 2, "fp32"),
        pytest.param(0, 2, "bf16", marks=pytest.mark.slow),
        pytest.param(1, 2, "bf16", marks=pytest.mark.slow),
        pytest.param(3, 2, "bf16", marks=pytest.mark.slow),
    ],
)
def test_a_run_with_frozen_parameters_takes_plain_steps_and_goes_on_after_a_stop(
    stage: int, ranks: int, precision: str, shards: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for name, parts in (("whole", [6]), ("stopped", [3, 6])):
        recipe = tiny.write_recipe(tmp_path / "r.yaml", frozen_tree(shards, tmp_path, name, train__precision=precision))
        for last in parts:
            words = ["--ds_config", f"zero{stage}", "--recipe", str(recipe), f"train.num_steps={last}"]
            assert run_ranks(jobs.train, ranks, words) == [0] * ranks
    whole, stopped = losses_of(tmp_path / "whole"), losses_of(tmp_path / "stopped")
    assert whole == stopped
    recipe = tiny.write_recipe(tmp_path / "plain.yaml", frozen_tree(shards, tmp_path, "plain"))
    (plain,) = run_ranks(plain_jobs.plain_losses, 1, str(recipe))
    assert max(abs(a - b) for a, b in zip(whole, plain, strict=True)) < (1e-5 if precision == "fp32" else 0.03)

    # The exported model has all of it, and what is frozen is what the seed drew.
    (drawn,) = run_ranks(model_jobs.drawn_weights, 1, str(recipe))
    weights = exported(tmp_path / "stopped")
    assert weights.keys() == drawn.keys() - {"lm_head.weight"}  # tied
    for name, values in weights.items():
        still = name.startswith(("transformer.wpe.", "transformer.h.0."))
        assert (abs(values.numpy() - drawn[name]).max() < (1e-9 if precision == "fp32" else 1e-3)) == still, name


@pytest.mark.parametrize(("stage", "ranks"), [(0, 1), (1, 2), (2, 1), (3, 2)])
def test_frozen_parameters_take_no_memory_of_the_optimizer(
    stage: int, ranks: int, shards: Path, tmp_path: Path
) -> None:
    recipe = tiny.write_recipe(tmp_path / "r.yaml", frozen_tree(shards, tmp_path, "x", train__precision="bf16"))
    held = run_ranks(engine_jobs.optimizer_values, ranks, ["--ds_config", f"zero{stage}", "--recipe", str(recipe)])
    learning, total = held[0]["learning"], held[0]["total"]
    assert learning < 0.7 * total
    copies = ranks if stage == 0 else 1
    padding = 64 * ranks  # the last rank's part of a group is filled up
    for key in ("master", "exp_avg", "exp_avg_sq"):
        assert learning * copies <= sum(rank[key] for rank in held) <= learning * copies + padding, key


@pytest.mark.parametrize("setting", [{"activation_checkpointing": True}, {"chunked_loss": "on"}])
def test_what_saves_memory_learns_the_same_beside_frozen_embeddings(
    setting: dict[str, Any], shards: Path, tmp_path: Path
) -> None:
    for name, changed in (("plain", {}), ("changed", setting)):
        tree = frozen_tree(shards, tmp_path, name)
        tree["model"] |= {"freeze": ["*wte*"], **changed}
        recipe = tiny.write_recipe(tmp_path / "r.yaml", tree)
        assert run_ranks(jobs.train, 1, ["--ds_config", "zero2", "--recipe", str(recipe)]) == [0]
    one, other = losses_of(tmp_path / "plain"), losses_of(tmp_path / "changed")
    assert max(abs(a - b) for a, b in zip(one, other, strict=True)) < 1e-5
    assert one[0] - one[-1] > 0.05


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["transformer.wpe.wieght"], "no parameter is called transformer.wpe.wieght"),
        (["transformer.wpe.wieght"], "did you mean 'transformer.wpe.weight'?"),
        (["*"], "all parameters are frozen: nothing learns"),
    ],
)
def test_patterns_that_cannot_be_meant_are_refused(
    patterns: list[str], message: str, shards: Path, tmp_path: Path
) -> None:
    tree = frozen_tree(shards, tmp_path, "odd")
    tree["model"]["freeze"] = patterns
    recipe = tiny.write_recipe(tmp_path / "r.yaml", tree)
    ((code, told),) = run_ranks(jobs.train_and_tell, 1, ["--ds_config", "zero2", "--recipe", str(recipe)])
    assert code == 2
    assert message in told
    assert "where: model.freeze" in told
    assert not (tmp_path / "odd" / "checkpoints").exists()
