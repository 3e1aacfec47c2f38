"""Matrices shared among ranks: the same losses, the same checkpoints, and refusals instead of silence."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jobs
import numpy as np
import pytest
from ranks import run_ranks
from sharing import DECODERS, SIZE, assert_alike, steps, write

from launcher import cli, tracing
from launcher.config.deepspeed import load_ds_config, resolve_ds_config
from launcher.config.loading import load_recipe
from launcher.config.model import ModelConfig
from launcher.errors import ModelError, RecipeError
from launcher.models.build import build_model
from launcher.models.configuration import build_config

QWEN3 = {"num_key_value_heads": 2}  # norms of heads, and an embedding that is the output layer as well
RECOMPUTED = {"activation_checkpointing": True, "chunked_loss": "on"}


@pytest.mark.parametrize(
    ("family", "stage", "ranks", "group", "changes"),
    [
        ("llama", 0, 2, 2, {"optim__grad_clip": 0.05}),  # every step is clipped
        ("llama", 2, 4, 2, {"data__packing": "bestfit", "data__documents": "apart", "batch__micro_batch": 2}),
        ("qwen3", 1, 2, 2, {"model": QWEN3, "optim__grad_clip": 0.05}),
        ("mistral", 1, 4, 4, {"train__z_loss": 1e-3, "model": RECOMPUTED}),
        ("olmo", 3, 4, 2, {"model": {"freeze": ["*embed*", "*down_proj*"]}}),
    ],
)
def test_losses_equal_those_of_ranks_with_a_model_of_their_own(
    family: str, stage: int, ranks: int, group: int, changes: dict[str, Any], shards: Path, tmp_path: Path
) -> None:
    whole = write(shards, tmp_path, "whole", family, **changes)
    assert run_ranks(jobs.train, 1, ["--ds_config", "zero0", "--recipe", str(whole)]) == [0]
    shared = write(shards, tmp_path, "shared", family, **changes)
    arguments = ["--ds_config", f"zero{stage}", "--recipe", str(shared), f"model.tensor_parallel={group}"]
    assert run_ranks(jobs.train, ranks, arguments) == [0] * ranks
    assert_alike(tmp_path / "whole", tmp_path / "shared")


def test_a_run_goes_on_with_other_groups_is_exported_and_traced(shards: Path, tmp_path: Path) -> None:
    whole = write(shards, tmp_path, "whole", "llama", 8)
    assert run_ranks(jobs.train, 1, ["--ds_config", "zero1", "--recipe", str(whole)]) == [0]
    for num_steps, stage, ranks, group in ((2, 1, 2, 2), (4, 2, 2, 1), (6, 3, 4, 2), (8, 0, 2, 2)):
        shared = write(shards, tmp_path, "shared", "llama", num_steps)
        arguments = ["--ds_config", f"zero{stage}", "--recipe", str(shared), f"model.tensor_parallel={group}"]
        assert run_ranks(jobs.train, ranks, arguments) == [0] * ranks
    one, other = steps(tmp_path / "whole"), steps(tmp_path / "shared")
    assert max(abs(a["loss"] - b["loss"]) for a, b in zip(one, other, strict=True)) < 1e-5
    assert tracing.trace_step(tmp_path / "shared", 8)[1].startswith("the digest is the run's")
    inputs = {"input_ids": np.arange(5, 29).reshape(1, 24)}
    logits = []
    for name in ("whole", "shared"):
        assert cli.main(["export", str(tmp_path / name), "--out", str(tmp_path / f"{name}-out")]) == 0
        logits += run_ranks(jobs.exported_logits, 1, str(tmp_path / f"{name}-out"), "causal", inputs)
    np.testing.assert_allclose(logits[0], logits[1], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("model", "ranks", "message"),
    [
        (DECODERS["llama"], 3, "4 attention heads, 2 of keys and values, and a feed-forward of 64 cannot be shared"),
        (DECODERS["llama"], 4, "use one of: 1, 2"),
        (DECODERS["gpt2"], 2, "the matrices of gpt2 cannot be shared among ranks"),
        ({"family": "gpt_neox", **SIZE}, 2, "use one of: llama, mistral, olmo, qwen3"),
    ],
)
def test_models_whose_matrices_cannot_be_shared_are_refused(model: dict[str, Any], ranks: int, message: str) -> None:
    record = ModelConfig.model_validate({**model, "tensor_parallel": ranks})
    config = build_config(record, "causal", jobs.tokenizer_info(), 16)
    with pytest.raises(ModelError, match=re.escape(message)):
        build_model(config, record, "causal", seed=1, seq_len=16)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.sequence_parallel=2"], "ranks share either sequences or matrices"),
        (["model.expert_parallel=2"], "ranks share either experts or matrices"),
        (["model.liger=true"], "Liger's layers do not add up"),
        (["model.compile=true"], "torch.compile was not tried"),
    ],
)
def test_recipes_that_cannot_share_matrices_are_refused(
    words: list[str], message: str, shards: Path, tmp_path: Path
) -> None:
    recipe = write(shards, tmp_path, "refused", "llama")
    with pytest.raises(RecipeError, match=message):
        load_recipe(str(recipe), ["model.tensor_parallel=2", *words])


@pytest.mark.parametrize(
    ("world_size", "file", "message"),
    [
        (3, "zero2", "a world size of 3 cannot be cut into groups of 2 ranks"),
        (4, "zero3_offload_all", "were not tried with offload_param"),
        (8, "zero3_hpz", "were not tried with hpZ"),
    ],
)
def test_a_world_or_a_file_that_cannot_do_it_is_refused(
    world_size: int, file: str, message: str, shards: Path, tmp_path: Path
) -> None:
    recipe = load_recipe(str(write(shards, tmp_path, "refused", "llama")), ["model.tensor_parallel=2"]).recipe
    with pytest.raises(RecipeError, match=message):
        resolve_ds_config(load_ds_config(file), recipe, recipe.cut_batch(world_size), "fp32")


@pytest.mark.gpu
def test_matrices_are_shared_on_gpus(shards: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.device_count() < 2:
        pytest.skip("a group of ranks needs a GPU for each")
    changes = {"train__precision": "bf16", "data__packing": "bestfit"}
    whole = write(shards, tmp_path, "whole", "llama", **changes)
    assert run_ranks(jobs.train, 1, ["--ds_config", "zero1", "--recipe", str(whole)]) == [0]
    shared = write(shards, tmp_path, "shared", "llama", **changes)
    arguments = ["--ds_config", "zero1", "--recipe", str(shared), "model.tensor_parallel=2"]
    assert run_ranks(jobs.train, 2, arguments) == [0, 0]
    pairs = list(zip(steps(tmp_path / "whole"), steps(tmp_path / "shared"), strict=True))
    assert max(abs(a["loss"] - b["loss"]) for a, b in pairs) < 0.03  # bf16 has eight bits
