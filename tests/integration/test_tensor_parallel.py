"""Matrices shared among ranks: the same losses, the same checkpoints, and refusals instead of silence."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import engine_jobs
import numpy as np
import pytest
import tiny
from ranks import run_ranks
from sharing import DECODERS, SIZE, assert_a_run_moves, assert_alike_in_bf16, assert_losses_are_alike, write

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
        ("qwen3", 1, 2, 2, {"model": {**QWEN3, "freeze": ["*q_norm*"]}, "optim__grad_clip": 0.05}),
        ("mistral", 1, 4, 4, {"train__z_loss": 1e-3, "model": RECOMPUTED}),
        ("olmo", 3, 4, 2, {"model": {"freeze": ["*embed*", "*down_proj*"]}}),
    ],
)
def test_losses_equal_those_of_ranks_with_a_model_of_their_own(
    family: str, stage: int, ranks: int, group: int, changes: dict[str, Any], shards: Path, tmp_path: Path
) -> None:
    assert_losses_are_alike("model.tensor_parallel", family, stage, ranks, group, changes, shards, tmp_path)


def test_a_run_goes_on_with_other_groups_is_exported_and_traced(shards: Path, tmp_path: Path) -> None:
    assert_a_run_moves("model.tensor_parallel", [(1, 2, 2), (2, 2, 1), (3, 4, 2), (0, 2, 2)], shards, tmp_path)


@pytest.mark.parametrize(
    ("model", "ranks", "message"),
    [
        (DECODERS["llama"], 3, "4 attention heads, 2 of keys and values, and a feed-forward of 64 cannot be shared"),
        (DECODERS["llama"], 4, "use one of: 1, 2"),
        (DECODERS["gpt2"], 2, "the matrices of gpt2 cannot be shared among ranks"),
        ({"family": "gpt_neox", **SIZE}, 2, "use one of: llama, mistral, olmo, qwen3"),
        (
            {**DECODERS["llama"], "config": {"attention_dropout": 0.1}},
            2,
            "ranks of one model draw the same dropout, so that heads of different ranks would drop the same places",
        ),
    ],
)
def test_models_whose_matrices_cannot_be_shared_are_refused(model: dict[str, Any], ranks: int, message: str) -> None:
    record = ModelConfig.model_validate({**model, "tensor_parallel": ranks})
    config = build_config(record, "causal", tiny.tokenizer_info(), 16)
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
    ("world_size", "file", "precision", "message"),
    [
        (3, "zero2", "fp32", "a world size of 3 cannot be cut into groups of 2 ranks"),
        (4, "zero3_offload_all", "fp32", "were not tried with offload_param"),
        (8, "zero3_hpz", "fp32", "were not tried with hpZ"),
        (2, "zero0", "bf16", "at stage 0 in bf16 DeepSpeed leaves most parts of a matrix out of the gradient's norm"),
        (2, "zero0", "fp16", r"zero1, or train\.precision=bf16_autocast"),
    ],
)
def test_a_world_or_a_file_that_cannot_do_it_is_refused(
    world_size: int, file: str, precision: str, message: str, shards: Path, tmp_path: Path
) -> None:
    recipe = load_recipe(str(write(shards, tmp_path, "refused", "llama")), ["model.tensor_parallel=2"]).recipe
    with pytest.raises(RecipeError, match=message):
        resolve_ds_config(load_ds_config(file), recipe, recipe.cut_batch(world_size), precision)


@pytest.mark.parametrize(("stage", "precision"), [(1, "bf16"), (0, "bf16_autocast")])
def test_losses_and_norms_in_bf16_are_those_of_one_rank(
    stage: int, precision: str, shards: Path, tmp_path: Path
) -> None:
    assert_alike_in_bf16("model.tensor_parallel", stage, shards, tmp_path, precision)


@pytest.mark.gpu
def test_matrices_are_shared_on_gpus(shards: Path, tmp_path: Path) -> None:
    assert_alike_in_bf16("model.tensor_parallel", 1, shards, tmp_path)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_rank_draws_its_part_of_the_whole_models_weights_and_never_has_room_for_more(
    family: str, shards: Path, tmp_path: Path
) -> None:
    """Bit for bit those of a rank by itself; in memory its part, tables and norms, and one matrix."""
    sizes = {"num_hidden_layers": 4, "initialisation": "depth_scaled"}
    recipe = write(shards, tmp_path, "parts", family, model={**DECODERS[family], **sizes, "num_key_value_heads": 2})
    words = ["--ds_config", "zero1", "--recipe", str(recipe), "train.precision=fp32"]
    [(whole, _)] = run_ranks(engine_jobs.cut, 1, words)
    for parts, most in run_ranks(engine_jobs.cut, 2, [*words, "model.tensor_parallel=2"]):
        assert parts.keys() == whole.keys()
        num_cut = 0
        for name, (values, shard) in parts.items():
            expected = whole[name][0]
            if shard is not None:
                expected = expected.take(range(shard.first, shard.first + shard.size), axis=shard.dim)
                num_cut += 1
            np.testing.assert_array_equal(values, expected, err_msg=name)
        assert num_cut == 4 * 7
        own = sum(values.nbytes for values, _ in parts.values())
        largest = max(whole[name][0].nbytes for name, (_, shard) in parts.items() if shard is not None)
        assert own <= most <= own + largest
        assert most < sum(values.nbytes for values, _ in whole.values())
