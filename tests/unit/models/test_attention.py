"""Attention kernels are asked only for what they can do."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import tiny
from families import BERT_LIKE, FAMILIES, NO_DROPOUT, NO_FLEX, NUMBERS

from launcher.config.model import ModelConfig
from launcher.errors import ModelError
from launcher.models.attention import check_attention
from launcher.models.build import build_model
from launcher.models.configuration import build_config


def build(family: str, changes: dict[str, Any]) -> Any:
    head, _, config = next(entry for entry in FAMILIES if entry[1] == family)
    numbers = {"family": family, "attention": "flex_attention", **NUMBERS, "config": {**config, **changes}}
    record = ModelConfig.model_validate(numbers)
    return build_model(build_config(record, head, tiny.tokenizer_info(), 16), record, head, seed=3)


@pytest.mark.parametrize("family", [entry[1] for entry in FAMILIES if entry[1] not in NO_FLEX])
def test_flex_attention_is_given_to_every_family_that_has_it(family: str) -> None:
    built = build(family, NO_DROPOUT if family in BERT_LIKE else {})
    assert built.config._attn_implementation == "flex_attention"


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("bert", {}, r"no dropout, and bert wants some[\s\S]*use model.config.attention_probs_dropout_prob=0.0"),
        ("llama", {"attention_dropout": 0.1}, r"llama wants some[\s\S]*use model.config.attention_dropout=0.0"),
        ("t5", {}, r"reads the position bias of t5 beyond its end[\s\S]*use model.attention=sdpa"),
        ("gpt2", {}, r"(?i)gpt2.*flex[\s\S]*use model.attention=eager, or sdpa"),
    ],
)
def test_what_flex_attention_cannot_do_is_told_before_the_first_step(
    family: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        build(family, changes)


def test_flash_attention_wants_half_precision() -> None:
    model: Any = SimpleNamespace(config=SimpleNamespace(_attn_implementation="flash_attention_2", model_type="llama"))
    check_attention(model, half=True)
    with pytest.raises(ModelError, match=r"computes in bf16 and fp16 only[\s\S]*use bf16, or model.attention=sdpa"):
        check_attention(model, half=False)
