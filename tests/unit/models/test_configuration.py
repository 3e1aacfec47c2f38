"""From a recipe's numbers to a transformers configuration, family by family."""

from __future__ import annotations

from typing import Any

import pytest
import tiny

from launcher.config import places
from launcher.config.loading import load_recipe
from launcher.config.model import ModelConfig
from launcher.config.objectives import Head
from launcher.errors import ModelError
from launcher.models.configuration import EXAMPLES, build_config

NUMBERS = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
POSITIONS = {"max_position_embeddings": 77}


@pytest.mark.parametrize(
    ("family", "head", "numbers", "expected"),
    [
        (
            "bert",
            "masked",
            NUMBERS | POSITIONS,
            {"hidden_size": 32, "num_hidden_layers": 3, "max_position_embeddings": 77},
        ),
        (
            "modernbert",
            "masked",
            NUMBERS,
            {"intermediate_size": 48, "vocab_size": 96, "pad_token_id": 0, "cls_token_id": 2},
        ),
        (
            "gpt2",
            "causal",
            NUMBERS | POSITIONS,
            {"n_embd": 32, "n_layer": 3, "n_inner": 48, "n_positions": 77, "eos_token_id": 3},
        ),
        ("llama", "causal", NUMBERS | {"num_key_value_heads": 1}, {"num_key_value_heads": 1, "vocab_size": 96}),
        (
            "t5",
            "seq2seq",
            NUMBERS,
            {"d_model": 32, "num_layers": 3, "num_decoder_layers": 3, "d_ff": 48, "decoder_start_token_id": 0},
        ),
        (
            "bart",
            "seq2seq",
            NUMBERS,
            {"encoder_layers": 3, "decoder_layers": 3, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48},
        ),
    ],
)
def test_numbers_reach_the_family_under_its_own_names(
    family: str, head: str, numbers: dict[str, int], expected: dict[str, Any]
) -> None:
    config = build_config(ModelConfig.model_validate({"family": family, **numbers}), head, tiny.tokenizer_info(), 16)
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize("name", places.names("recipes", ".yaml"))
def test_every_shipped_recipe_has_a_model(name: str) -> None:
    recipe = load_recipe(name).recipe
    config = build_config(recipe.model, recipe.objective.head, tiny.tokenizer_info(), recipe.data.seq_len)
    assert config.hidden_size == recipe.model.hidden_size


@pytest.mark.parametrize(
    ("model", "head", "message"),
    [
        ({"family": "brt"}, "masked", "did you mean 'bert'?"),
        ({}, "masked", "set model.family or model.continue_from"),
        ({"family": "t5", "max_position_embeddings": 9}, "seq2seq", "t5 has no max_position_embeddings"),
        ({"family": "t5"}, "causal", "t5 cannot be trained with an objective for next-token prediction"),
        ({"family": "gpt2"}, "masked", "gpt2 cannot be trained with an objective for masked language modelling"),
        ({"family": "bert"}, "causal", "sees the tokens on its right"),
        ({"family": "gpt2", "max_position_embeddings": 8}, "causal", "longer than the model's 8 positions"),
        ({"family": "bert", "config": {"hiden_act": "relu"}}, "masked", "did you mean 'hidden_act'?"),
        ({"family": "roberta", "max_position_embeddings": 16}, "masked", "longer than the model's 15 positions"),
        ({"family": "gpt2", "hidden_size": 130, "num_attention_heads": 4}, "causal", "use 128 or 132"),
        ({"family": "bert", "hidden_size": 130, "num_attention_heads": 4}, "masked", "cannot be cut into 4 heads"),
        ({"continue_from": "/nowhere"}, "masked", "holds no config.json"),
    ],
)
def test_what_cannot_be_is_refused_with_its_fix(model: dict[str, Any], head: str, message: str) -> None:
    with pytest.raises(ModelError) as caught:
        build_config(ModelConfig.model_validate(model), head, tiny.tokenizer_info(), 16)
    assert message in str(caught.value)


@pytest.mark.parametrize("head", ["next_sentence", "sentence_order"])
def test_the_families_named_as_examples_tell_pairs(head: Head) -> None:
    for family in EXAMPLES[head].split(", "):
        record = ModelConfig.model_validate({"family": family, **NUMBERS})
        assert build_config(record, head, tiny.tokenizer_info(), 16).model_type == family


@pytest.mark.parametrize(
    ("family", "head", "config", "expected"),
    [
        ("bert", "sentence_order", {}, "bert cannot be trained with an objective for masked tokens and the order of"),
        ("albert", "next_sentence", {}, "such as bert, ernie, megatron-bert, or another objective"),
        ("roberta", "next_sentence", {}, "roberta cannot be trained with an objective for masked tokens and the next"),
        ("modernbert", "next_sentence", {}, "where: objective.sentence_pairs"),
        ("fnet", "next_sentence", {}, "fnet cannot be trained"),  # takes pairs, and no attention mask
        ("bert", "next_sentence", {"type_vocab_size": 1}, "where: model.config.type_vocab_size"),
    ],
)
def test_a_family_that_tells_no_pairs_is_refused(
    family: str, head: Head, config: dict[str, Any], expected: str
) -> None:
    numbers = {} if family == "fnet" else NUMBERS
    record = ModelConfig.model_validate({"family": family, **numbers, "config": config})
    with pytest.raises(ModelError) as caught:
        build_config(record, head, tiny.tokenizer_info(), 16)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("head", "model", "message"),
    [
        ("masked", {"family": "bart"}, "this bart writes a second text"),
        ("masked", {"family": "bert", "config": {"is_decoder": True}}, "sees the tokens on its left only"),
        ("causal", {"family": "bert-generation"}, "sees the tokens on its right"),
        ("causal", {"family": "xlnet"}, "sees the tokens on its right"),
        ("causal", {"family": "bart"}, "fix:   use span or prefix, or a decoder such as gpt2"),
        ("causal", {"family": "bert"}, "fix:   use mlm, or a decoder such as gpt2"),
        ("causal", {"family": "prophetnet", "num_hidden_layers": 2}, "configuration refuses these values"),
        ("seq2seq", {"family": "led"}, "longer than the model's 1024 positions"),
    ],
)
def test_what_makes_no_sense_is_refused(head: Head, model: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as told:
        build_config(
            ModelConfig.model_validate(model), head, tiny.tokenizer_info(), 20_000 if "led" in str(model) else 16
        )
    assert message in str(told.value)


def test_a_decoder_of_a_family_of_encoders_may_predict_the_next_token() -> None:
    model = ModelConfig.model_validate({"family": "bert", "config": {"is_decoder": True}})
    assert build_config(model, "causal", tiny.tokenizer_info(), 16).is_decoder
