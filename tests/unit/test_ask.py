"""Asking a folder: what is wrong with it, or with the question, is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from launcher.ask import fill, generate
from launcher.errors import ModelError, UsageError


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its mask token is `<mask>`, and its letters are bytes: `[MASK]` as text is six tokens."""
    folder = tmp_path_factory.mktemp("asked")
    tiny.make_shards(folder, "bpe")
    return folder / "tokenizer"


def saved(model: PreTrainedModel, folder: Path, tokenizer: Path) -> Path:
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return folder


def bert(tokenizer: Path, positions: int = 16) -> BertConfig:
    size = len(AutoTokenizer.from_pretrained(tokenizer))
    numbers = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return BertConfig(vocab_size=size, max_position_embeddings=positions, **numbers)


def test_a_blank_is_one_token_whatever_the_tokenizer_calls_it(tokenizer: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    folder = saved(BertForMaskedLM(bert(tokenizer)), tmp_path / "bert", tokenizer)
    (answer,) = fill(folder, ["[MASK]" * 14], top=10_000)  # 16 positions, of which two are for the ends
    assert len(answer.blanks) == 14
    assert len(answer.blanks[0].words) == len(AutoTokenizer.from_pretrained(tokenizer))  # no more words than there are
    with pytest.raises(UsageError, match="a text of 15 tokens is too long for a model of 16 positions"):
        fill(folder, ["[MASK]" * 15])


def test_weights_that_are_missing_or_damaged_are_told(tokenizer: Path, tmp_path: Path) -> None:
    size = len(AutoTokenizer.from_pretrained(tokenizer))
    config = GPT2Config(vocab_size=size, n_embd=16, n_layer=1, n_head=2, n_positions=16)
    folder = saved(GPT2LMHeadModel(config), tmp_path / "gpt2", tokenizer)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for kept in (500, len(whole) - 100):
        weights.write_bytes(whole[:kept])
        with pytest.raises(ModelError, match=r"the weights cannot be read[\s\S]*where: .*gpt2"):
            generate(folder, ["人民"])
    weights.unlink()
    with pytest.raises(ModelError, match=r"the weights cannot be read: .*no file named model.safetensors"):
        generate(folder, ["人民"])


def test_a_model_without_its_head_does_not_answer_with_drawn_weights(tokenizer: Path, tmp_path: Path) -> None:
    folder = saved(BertModel(bert(tokenizer)), tmp_path / "headless", tokenizer)
    with pytest.raises(ModelError, match=r"lacks \d+ of the model's weights[\s\S]*fix: .*saved with its head"):
        fill(folder, ["人民[MASK]院"])


def test_an_encoder_reads_the_end_token_of_its_tokenizer(tokenizer: Path, tmp_path: Path) -> None:
    size = len(AutoTokenizer.from_pretrained(tokenizer))
    config = T5Config(
        vocab_size=size, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0,
        eos_token_id=None,
    )  # fmt: skip
    folder = saved(T5ForConditionalGeneration(config), tmp_path / "t5", tokenizer)
    (answer,) = generate(folder, ["人民<extra_id_0>院"], max_new_tokens=3)
    assert answer.prompt == "人民<extra_id_0>院"
