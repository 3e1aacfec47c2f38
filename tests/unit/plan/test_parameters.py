"""Parameters counted from a recipe's numbers are those of the model that transformers builds, to a few per cent."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.config.loading import load_recipe
from launcher.config.model import ModelConfig
from launcher.plan.parameters import count_parameters, count_stored, count_tables

WIDE = {"hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8, "intermediate_size": 2048}
PLACES = {**WIDE, "max_position_embeddings": 512}


@pytest.mark.parametrize(
    "model",
    [
        {"family": "bert", **PLACES},
        {"family": "roberta", **PLACES},
        {"family": "albert", **PLACES, "config": {"embedding_size": 128}},
        {"family": "modernbert", **PLACES},
        {"family": "gpt2", **PLACES},
        {"family": "gpt_neox", **PLACES},
        {"family": "llama", **PLACES, "num_key_value_heads": 2},
        {"family": "qwen3", **PLACES, "num_key_value_heads": 2, "config": {"head_dim": 64}},
        {"family": "t5", **WIDE, "config": {"d_kv": 64}},
        {"family": "mt5", **WIDE, "config": {"d_kv": 64}},
        {"family": "bart", **PLACES},
        {"family": "mixtral", **PLACES, "num_key_value_heads": 4, "config": {"num_local_experts": 4}},
        {"family": "olmoe", **PLACES, "config": {"num_experts": 4}},
    ],
    ids=lambda model: str(model["family"]),
)
def test_of_families(model: dict[str, object]) -> None:
    import torch
    from tiny import tokenizer_info
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_MASKED_LM_MAPPING,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    )

    from launcher.models.configuration import _from_scratch

    record = ModelConfig.model_validate(model)
    config = _from_scratch(record, tokenizer_info())
    config.vocab_size = 8000
    mappings = (MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING)
    built = next(mapping[type(config)] for mapping in mappings if type(config) in mapping)
    with torch.device("meta"):
        true = sum(parameter.numel() for parameter in built(config).parameters())
    counted = count_parameters(record, 8000)
    assert counted == pytest.approx(true, rel=0.05)


@pytest.mark.parametrize(
    ("recipe", "vocab_size", "published"),
    [("gpt2", 50257, 124e6), ("llama-8b", 128256, 8.03e9), ("mixtral", 32000, 46.7e9), ("olmoe", 50304, 6.9e9)],
)
def test_of_published_models(recipe: str, vocab_size: int, published: float) -> None:
    assert count_parameters(load_recipe(recipe).recipe.model, vocab_size) == pytest.approx(published, rel=0.01)


def test_numbers_that_are_the_familys_are_not_guessed() -> None:
    assert count_parameters(ModelConfig(family="llama", hidden_size=64), 100) is None


def test_of_a_model_to_continue_from(tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    assert count_stored(tmp_path) is None
    save_file({"a": np.zeros((3, 4), np.float32), "b": np.zeros(5, np.float32)}, tmp_path / "model.safetensors")
    assert count_parameters(ModelConfig(continue_from=tmp_path), 100) == 17


def test_of_a_folder_tables_are_counted_by_their_names(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    names = ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "lm_head.weight")
    save_file(
        {name: torch.zeros(3, number) for number, name in enumerate(names, start=1)}, tmp_path / "model.safetensors"
    )
    record = ModelConfig.model_validate({"continue_from": str(tmp_path)})
    assert (count_parameters(record, 9), count_tables(record, 9)) == (18, 12)
