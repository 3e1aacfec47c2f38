"""Sequences shared among ranks: the same losses, the same checkpoints, and refusals instead of silence."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jobs
import pytest
import tiny
from ranks import run_ranks
from sharing import DECODERS, SIZE, assert_a_run_moves, assert_alike_in_bf16, assert_losses_are_alike, write

from launcher.config.model import ModelConfig
from launcher.errors import ModelError
from launcher.models.build import build_model
from launcher.models.configuration import build_config


@pytest.mark.parametrize(
    ("family", "stage", "ranks", "group", "changes"),
    [
        ("llama", 0, 2, 2, {}),
        ("llama", 2, 4, 2, {"data__packing": "bestfit", "batch__micro_batch": 2}),  # two groups, rows with padding
        ("qwen3", 3, 2, 2, {}),  # one head of keys and values for both ranks
        ("gpt2", 1, 2, 2, {}),  # learned positions
        ("mistral", 2, 4, 4, {"objective": {"kind": "clm", "fim_share": 0.0}}),
        ("olmo", 3, 2, 2, {"train__z_loss": 1e-3, "model": {"activation_checkpointing": True, "chunked_loss": "on"}}),
    ],
)
def test_losses_equal_those_of_ranks_with_sequences_of_their_own(
    family: str, stage: int, ranks: int, group: int, changes: dict[str, Any], shards: Path, tmp_path: Path
) -> None:
    assert_losses_are_alike("model.sequence_parallel", family, stage, ranks, group, changes, shards, tmp_path)


def test_a_run_goes_on_with_other_groups_is_exported_and_traced(shards: Path, tmp_path: Path) -> None:
    assert_a_run_moves("model.sequence_parallel", [(3, 2, 2), (3, 1, 1), (3, 4, 2)], shards, tmp_path)


@pytest.mark.parametrize(
    ("model", "ranks", "message"),
    [
        (DECODERS["llama"], 3, "4 attention heads with 2 of keys and values cannot be shared among 3 ranks"),
        (DECODERS["llama"], 8, "use one of: 1, 2, 4"),
        ({**DECODERS["mistral"], "config": {"sliding_window": 8}}, 2, "look back over 8 tokens only"),
        ({"family": "gpt_neox", **SIZE}, 2, "sequences of gpt_neox cannot be shared among ranks"),
    ],
)
def test_models_that_cannot_share_their_sequences_are_refused(model: dict[str, Any], ranks: int, message: str) -> None:
    record = ModelConfig.model_validate({**model, "sequence_parallel": ranks})
    config = build_config(record, "causal", tiny.tokenizer_info(), 16)
    with pytest.raises(ModelError, match=re.escape(message)):
        build_model(config, record, "causal", seed=1, seq_len=16)


def test_a_world_that_is_no_whole_number_of_groups_ends_before_it_begins(shards: Path, tmp_path: Path) -> None:
    recipe = write(shards, tmp_path, "refused", "llama")
    arguments = ["--ds_config", "zero2", "--recipe", str(recipe), "model.sequence_parallel=2"]
    ((code, told),) = run_ranks(jobs.train_and_tell, 1, arguments)
    assert (code, "a world size of 1 cannot be cut into groups of 2 ranks" in told) == (2, True)
    assert not (tmp_path / "refused").exists()


@pytest.mark.gpu
def test_sequences_are_shared_on_gpus(shards: Path, tmp_path: Path) -> None:
    assert_alike_in_bf16("model.sequence_parallel", 3, shards, tmp_path)
