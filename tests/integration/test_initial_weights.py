"""The same seed gives the same weights, whatever partitions them."""

from __future__ import annotations

from functools import cache
from typing import Any

import model_jobs
import pytest
import tiny
from ranks import run_ranks

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "modernbert": ("masked", tiny.MODELS["mlm"]),
    "gpt2: rules that reach into child modules, tied head": ("causal", tiny.MODELS["clm"]),
    "t5": ("seq2seq", tiny.MODELS["span"]),
    "bert: padding row of the embedding": (
        "masked",
        {
            "family": "bert",
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 64,
        },
    ),
    "llama: rotary table in fp32": (
        "causal",
        {
            "family": "llama",
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 64,
        },
    ),
    "mistral: weights into the residual stream drawn smaller": (
        "causal",
        {
            "family": "mistral",
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "initialisation": "depth_scaled",
        },
    ),
    "qwen3_moe: experts": (
        "causal",
        {
            "family": "qwen3_moe",
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "config": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 16},
        },
    ),
}


@cache
def drawn(stage: int, ranks: int, precision: str) -> list[dict[str, dict[str, str]]]:
    return run_ranks(model_jobs.initial_weights, ranks, FAMILIES, stage, precision)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_stage_0_on_one_rank_and_stage_3_on_two_begin_alike(family: str, precision: str) -> None:
    (whole,), (first, second) = drawn(0, 1, precision), drawn(3, 2, precision)
    assert first[family] == second[family] == whole[family]
