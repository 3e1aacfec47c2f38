"""Sequences shared among ranks: the same losses, the same checkpoints, and refusals instead of silence."""

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
    whole = write(shards, tmp_path, "whole", family, **changes)
    assert run_ranks(jobs.train, 1, ["--ds_config", "zero0", "--recipe", str(whole)]) == [0]
    shared = write(shards, tmp_path, "shared", family, **changes)
    arguments = ["--ds_config", f"zero{stage}", "--recipe", str(shared), f"model.sequence_parallel={group}"]
    assert run_ranks(jobs.train, ranks, arguments) == [0] * ranks
    assert_alike(tmp_path / "whole", tmp_path / "shared")


def test_a_run_goes_on_with_other_groups_is_exported_and_traced(shards: Path, tmp_path: Path) -> None:
    whole = write(shards, tmp_path, "whole", "llama", 6)
    assert run_ranks(jobs.train, 1, ["--ds_config", "zero1", "--recipe", str(whole)]) == [0]
    for num_steps, ranks, group in ((2, 2, 2), (4, 1, 1), (6, 4, 2)):
        shared = write(shards, tmp_path, "shared", "llama", num_steps)
        arguments = ["--ds_config", "zero3", "--recipe", str(shared), f"model.sequence_parallel={group}"]
        assert run_ranks(jobs.train, ranks, arguments) == [0] * ranks
    one, other = steps(tmp_path / "whole"), steps(tmp_path / "shared")
    assert max(abs(a["loss"] - b["loss"]) for a, b in zip(one, other, strict=True)) < 1e-5
    assert tracing.trace_step(tmp_path / "shared", 6)[1].startswith("the digest is the run's")
    inputs = {"input_ids": np.arange(5, 29).reshape(1, 24)}
    logits = []
    for name in ("whole", "shared"):
        assert cli.main(["export", str(tmp_path / name), "--out", str(tmp_path / f"{name}-out")]) == 0
        logits += run_ranks(jobs.exported_logits, 1, str(tmp_path / f"{name}-out"), "causal", inputs)
    np.testing.assert_allclose(logits[0], logits[1], rtol=0, atol=1e-4)


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
    config = build_config(record, "causal", jobs.tokenizer_info(), 16)
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
    torch = pytest.importorskip("torch")
    if torch.cuda.device_count() < 2:
        pytest.skip("a group of ranks needs a GPU for each")
    changes = {"train__precision": "bf16", "data__packing": "bestfit"}
    whole = write(shards, tmp_path, "whole", "llama", **changes)
    assert run_ranks(jobs.train, 1, ["--ds_config", "zero1", "--recipe", str(whole)]) == [0]
    shared = write(shards, tmp_path, "shared", "llama", **changes)
    arguments = ["--ds_config", "zero3", "--recipe", str(shared), "model.sequence_parallel=2"]
    assert run_ranks(jobs.train, 2, arguments) == [0, 0]
    pairs = list(zip(steps(tmp_path / "whole"), steps(tmp_path / "shared"), strict=True))
    assert max(abs(a["loss"] - b["loss"]) for a, b in pairs) < 0.03  # bf16 has eight bits
