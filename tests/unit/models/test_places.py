"""Scores for the predicted places only are those of the whole, row for row."""

from __future__ import annotations

import pytest
import tiny
import torch

from launcher.config.model import ModelConfig
from launcher.errors import ModelError
from launcher.models.build import build_model
from launcher.models.configuration import build_config

BERT = {"family": "bert", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}


@pytest.mark.parametrize(
    "numbers",
    [tiny.MODELS["mlm"], BERT, {**BERT, "family": "roberta"}, {**BERT, "family": "deberta-v2", "attention": "eager"}],
)
def test_logits_at_predicted_places_are_unchanged(numbers: dict[str, object]) -> None:
    record = ModelConfig.model_validate(numbers)
    config = build_config(record, "masked", tiny.tokenizer_info(), 12)
    model = build_model(config, record, "masked", seed=0).eval()
    generator = torch.Generator().manual_seed(0)
    ids_BS = torch.randint(15, 96, (3, 12), generator=generator)
    predicted_BS = torch.rand((3, 12), generator=generator) < 0.3
    with torch.no_grad():
        whole_BSV = model(input_ids=ids_BS).logits
        cut_1NV = model(input_ids=ids_BS, predicted=predicted_BS).logits
        again_BSV = model(input_ids=ids_BS).logits
    torch.testing.assert_close(cut_1NV[0], whole_BSV[predicted_BS], rtol=1e-5, atol=1e-6)
    assert torch.equal(whole_BSV, again_BSV)


def test_an_attention_that_a_family_lacks_is_told() -> None:
    record = ModelConfig.model_validate({**BERT, "family": "deberta-v2"})
    config = build_config(record, "masked", tiny.tokenizer_info(), 12)
    with pytest.raises(ModelError, match=r"use model\.attention=eager"):
        build_model(config, record, "masked", seed=0)
