"""Experts shared among ranks: the same losses, the same checkpoints, and refusals instead of silence."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import engine_jobs
import export_jobs
import jobs
import moe_jobs
import numpy as np
import pytest
import tiny
from ranks import run_ranks

from launcher import cli
from launcher.engine.records import read_metrics
from launcher.errors import ModelError


def write(
    shards: Path,
    folder: Path,
    family: str,
    name: str,
    num_steps: int,
    precision: str = "fp32",
    micro_batch: int = 4,
    **model: Any,
) -> Path:
    """A recipe; runs whose micro batches hold the same samples have the same load-balancing loss."""
    tree = tiny.recipe_tree("clm", shards, folder, name=name, train__num_steps=num_steps, eval__every_steps=3)
    tree["schedule"] = {"kind": "constant"}
    tree["train"]["precision"] = precision
    tree["batch"]["micro_batch"] = micro_batch
    tree["model"] = {**moe_jobs.FAMILIES[family], "router_aux_loss": 0.1, "router_z_loss": 0.01, **model}
    return tiny.write_recipe(folder / f"{name}.yaml", tree)


def steps(run: Path) -> list[dict[str, Any]]:
    return [line for line in read_metrics(run / "metrics.jsonl") if "event" not in line]


def load_of(run: Path) -> dict[str, Any]:
    """How the experts were used in the last step that was told of."""
    return [line for line in read_metrics(run / "metrics.jsonl") if line.get("event") == "routing"][-1]


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_losses_and_checkpoints_equal_those_of_ranks_that_hold_every_expert(
    family: str, shards: Path, tmp_path: Path
) -> None:
    whole = write(shards, tmp_path, family, "whole", 6)
    assert run_ranks(jobs.train, 2, ["--ds_config", "zero3", "--recipe", str(whole)]) == [0, 0]
    for num_steps in (3, 6):  # begins, and goes on from its checkpoint
        shared = write(shards, tmp_path, family, "shared", num_steps, expert_parallel=2)
        assert run_ranks(jobs.train, 2, ["--ds_config", "zero3", "--recipe", str(shared)]) == [0, 0]
    one, other = steps(tmp_path / "whole"), steps(tmp_path / "shared")
    assert len(one) == len(other) == 6
    for a, b in zip(one, other, strict=True):
        assert abs(a["loss"] - b["loss"]) < 1e-5
        assert abs(a["grad_norm"] - b["grad_norm"]) < 1e-4
        assert abs(a["router_aux_loss"] - b["router_aux_loss"]) < 1e-5
        assert abs(a["router_z_loss"] - b["router_z_loss"]) < 1e-5
    loads = [load_of(tmp_path / name) for name in ("whole", "shared")]
    assert loads[0] == loads[1]


def test_a_run_goes_on_without_sharing_its_experts_and_is_exported(shards: Path, tmp_path: Path) -> None:
    whole = write(shards, tmp_path, "mixtral", "whole", 5)
    assert run_ranks(jobs.train, 1, ["--ds_config", "zero1", "--recipe", str(whole)]) == [0]
    shared = write(shards, tmp_path, "mixtral", "shared", 3, expert_parallel=2)
    inputs, logits = run_ranks(engine_jobs.live_logits, 2, ["--ds_config", "zero3", "--recipe", str(shared)])[0]
    assert cli.main(["export", str(tmp_path / "shared"), "--out", str(tmp_path / "out")]) == 0
    (again,) = run_ranks(export_jobs.exported_logits, 1, str(tmp_path / "out"), "causal", inputs)
    np.testing.assert_allclose(again, logits, rtol=0, atol=1e-5)
    write(shards, tmp_path, "mixtral", "shared", 5)
    assert run_ranks(jobs.train, 1, ["--ds_config", "zero1", "--recipe", str(shared)]) == [0]
    one, other = steps(tmp_path / "whole"), steps(tmp_path / "shared")
    assert max(abs(a["loss"] - b["loss"]) for a, b in zip(one, other, strict=True)) < 1e-5


def test_four_ranks_in_two_groups_learn_the_same(shards: Path, tmp_path: Path) -> None:
    whole = write(shards, tmp_path, "mixtral", "whole", 3, micro_batch=2)
    assert run_ranks(jobs.train, 1, ["--ds_config", "zero3", "--recipe", str(whole)]) == [0]
    shared = write(shards, tmp_path, "mixtral", "shared", 3, micro_batch=2, expert_parallel=2)
    assert run_ranks(jobs.train, 4, ["--ds_config", "zero3", "--recipe", str(shared)]) == [0] * 4
    one, other = steps(tmp_path / "whole"), steps(tmp_path / "shared")
    assert max(abs(a["loss"] - b["loss"]) for a, b in zip(one, other, strict=True)) < 1e-5


@pytest.mark.parametrize("precision", ["bf16", "bf16_autocast"])
def test_shared_experts_learn_in_bf16(precision: str, shards: Path, tmp_path: Path) -> None:
    for name, num_ranks in (("whole", 1), ("shared", 2)):
        recipe = write(shards, tmp_path, "qwen3_moe", name, 4, precision, expert_parallel=num_ranks)
        assert run_ranks(jobs.train, 2, ["--ds_config", "zero3", "--recipe", str(recipe)]) == [0, 0]
    one, other = steps(tmp_path / "whole"), steps(tmp_path / "shared")
    assert max(abs(a["loss"] - b["loss"]) for a, b in zip(one, other, strict=True)) < 0.03
    assert max(abs(a["router_aux_loss"] - b["router_aux_loss"]) for a, b in zip(one, other, strict=True)) < 0.1


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("olmoe", {}, "the experts of olmoe cannot be shared among ranks"),
        ("mixtral", {"experts": "eager"}, "use model.experts=auto"),
        ("mixtral", {"config": {"num_local_experts": 5}}, "5 experts cannot be shared among 2 ranks"),
        ("qwen3_moe", {"config": {"norm_topk_prob": False}}, "norm_topk_prob=true"),
        ("mixtral", {"config": {"router_jitter_noise": 0.1}}, "route without noise only"),
    ],
)
def test_what_cannot_be_shared_is_refused(family: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=re.escape(message)):
        moe_jobs.build(moe_jobs.FAMILIES[family], expert_parallel=2, **changes)


def test_a_dense_model_has_no_experts_to_share() -> None:
    with pytest.raises(ModelError, match="the experts of llama cannot be shared"):
        moe_jobs.build(moe_jobs.DENSE, expert_parallel=2)


def test_a_run_that_cannot_share_its_experts_ends_before_it_begins(shards: Path, tmp_path: Path) -> None:
    recipe = write(shards, tmp_path, "mixtral", "refused", 2, expert_parallel=2)
    ((code, told),) = run_ranks(jobs.train_and_tell, 1, ["--ds_config", "zero3", "--recipe", str(recipe)])
    assert (code, "a world size of 1 cannot be cut into groups of 2 ranks" in told) == (2, True)
    assert not (tmp_path / "refused").exists()
