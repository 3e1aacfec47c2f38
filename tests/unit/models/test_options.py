"""What a recipe may choose about its model: how weights begin, what is recomputed, which tokens are new."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from families import FAMILIES, NUMBERS, ONLY_EAGER
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers.modeling_layers import GradientCheckpointingLayer

from launcher.config.model import ModelConfig
from launcher.config.objectives import Head
from launcher.errors import MissingDependencyError, ModelError
from launcher.models.build import AUTO_CLASSES, build_model
from launcher.models.configuration import build_config, num_new_tokens, told_of_tokens
from launcher.models.initial import SCALED_BY_THEMSELVES, draw_weights

OF_ONE_WIDTH = ("falcon", "bloom")
"""Families whose feed-forward is four times the width."""


def build(head: Head, family: str, config: dict[str, Any], **options: Any) -> Any:
    attention = "eager" if family in (*ONLY_EAGER, "bloom") else "sdpa"
    numbers = {"family": family, "attention": attention, **NUMBERS, "config": config, **options}
    if family in OF_ONE_WIDTH:
        del numbers["intermediate_size"]
    record = ModelConfig.model_validate(numbers)
    return build_model(build_config(record, head, tiny.tokenizer_info(), 16), record, head, seed=3)


@pytest.mark.parametrize(
    ("head", "family", "config"),
    [*FAMILIES, ("causal", "llama", {"tie_word_embeddings": True})],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_weights_begin_as_transformers_draws_them(head: Head, family: str, config: dict[str, Any]) -> None:
    ours = build(head, family, config)
    torch.manual_seed(3)
    theirs = dict(AUTO_CLASSES[head].from_config(ours.config).named_parameters())
    assert theirs.keys() == dict(ours.named_parameters()).keys()
    for name, parameter in ours.named_parameters():
        one, other = ((weights == 0).view(len(weights), -1).all(1) for weights in (parameter, theirs[name]))
        assert torch.equal(one, other), f"rows of zeros (padding) of {name}"
        if parameter.numel() >= 2048:  # of fewer, chance moves the deviation by more than these per cents
            assert parameter.std().item() == pytest.approx(theirs[name].std().item(), rel=0.07), name


@pytest.mark.parametrize(
    ("head", "family", "config"),
    [
        *(entry for entry in FAMILIES if entry[1] not in ("albert", *SCALED_BY_THEMSELVES)),  # albert's layers are one
        ("causal", "phi", {}),
        ("causal", "persimmon", {}),
        ("causal", "falcon", {}),
        ("causal", "bloom", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_depth_scaled_weights_are_smaller_where_they_are_added_to_the_residual_stream(
    head: Head, family: str, config: dict[str, Any]
) -> None:
    plain = dict(build(head, family, config).named_parameters())
    scaled = dict(build(head, family, config, initialisation="depth_scaled").named_parameters())
    changed = {name for name in plain if not torch.equal(plain[name], scaled[name])}
    for name in changed:  # of two layers, each with two that write, and three of an encoder-decoder's decoder
        num_writers = 6 if head == "seq2seq" and "decoder." in name else 4
        torch.testing.assert_close(scaled[name], plain[name] / num_writers**0.5)
    stacks = 2 if head == "seq2seq" else 1
    writers = 2 + (head == "seq2seq") / 2  # attention and feed-forward; a decoder's attention to the encoder besides
    assert len(changed) == NUMBERS["num_hidden_layers"] * stacks * writers


def test_a_family_that_scales_them_itself_is_not_scaled_twice() -> None:
    plain = build("causal", "gpt2", {}, num_hidden_layers=8, hidden_size=128, num_attention_heads=2)
    writer = dict(plain.named_parameters())["transformer.h.0.mlp.c_proj.weight"]
    assert writer.std().item() == pytest.approx(0.02 / 16**0.5, rel=0.05)
    with pytest.raises(ModelError, match="gpt2 draws these weights smaller by itself"):
        build("causal", "gpt2", {}, initialisation="depth_scaled")


def test_a_family_whose_writers_are_not_known_is_told() -> None:
    model: Any = torch.nn.Sequential(torch.nn.Linear(2, 2))
    model.config = SimpleNamespace(model_type="toy", num_hidden_layers=1)
    with pytest.raises(ModelError, match="which matrices of toy write into the residual stream is not known"):
        draw_weights(model, 1, depth_scaled=True)


def test_a_family_of_whose_writers_some_are_not_known_is_told() -> None:
    known = "in model.layers.0 of mlp.down_proj only"
    with pytest.raises(ModelError, match=f"qwen3_5_text write into the residual stream is not known: {known}"):
        build("causal", "qwen3_5_text", {}, initialisation="depth_scaled")


@pytest.mark.parametrize(("every", "expected"), [(False, []), (True, [0, 1, 2, 3]), (1, [0, 1, 2, 3]), (2, [0, 2])])
def test_every_kth_layer_is_recomputed(every: bool | int, expected: list[int]) -> None:
    model = build("causal", "llama", {}, num_hidden_layers=4, activation_checkpointing=every)
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    assert [number for number, layer in enumerate(layers) if layer.gradient_checkpointing] == expected


@pytest.mark.parametrize(("head", "family"), [("masked", "bert"), ("causal", "llama"), ("seq2seq", "t5")])
def test_a_vocabulary_grows_to_the_tokenizers_and_the_rest_stays(head: Head, family: str, tmp_path: Path) -> None:
    entry = next(entry for entry in FAMILIES if entry[1] == family)
    old = build(head, family, entry[2])
    old.save_pretrained(tmp_path)
    larger = replace(tiny.tokenizer_info(), vocab_size=103)
    record = ModelConfig.model_validate({"continue_from": str(tmp_path)})
    config = build_config(record, head, larger, 16)
    assert num_new_tokens(config, record) == 7
    grown = build_model(config, record, head, seed=3)
    assert grown.config.vocab_size == 103
    before, after = old.get_input_embeddings().weight, grown.get_input_embeddings().weight
    assert torch.equal(after[:96], before)
    torch.testing.assert_close(after[96:], before.mean(0).expand(7, -1))
    ids_BS = torch.randint(15, 96, (2, 8), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids_BS, **({"decoder_input_ids": ids_BS} if head == "seq2seq" else {})}
    with torch.no_grad():
        old.eval(), grown.eval()
        torch.testing.assert_close(grown(**inputs).logits[..., :96], old(**inputs).logits)
        assert grown(**inputs).logits.shape[-1] == 103


def test_a_model_that_was_trained_with_another_tokenizer_is_told(tmp_path: Path) -> None:
    info = tiny.tokenizer_info()
    first = ModelConfig.model_validate({"family": "bert", **NUMBERS})
    build_config(first, "masked", info, 16).save_pretrained(tmp_path / "model")
    record = ModelConfig.model_validate({"continue_from": str(tmp_path / "model")})

    def told(theirs: list[str], ours: list[str], vocab_size: int = info.vocab_size) -> list[str]:
        for name, tokens in (("model", theirs), ("shards", ours)):
            vocabulary = {token: number for number, token in enumerate(tokens)}
            (tmp_path / name).mkdir(exist_ok=True)
            Tokenizer(WordLevel(vocabulary, unk_token="?")).save(str(tmp_path / name / "tokenizer.json"))
        config = build_config(record, "masked", replace(info, vocab_size=vocab_size), 16)
        return told_of_tokens(config, record, tmp_path / "shards")

    assert told(["?", "人", "民"], ["?", "人", "民"]) == []
    (warning, note) = told(["?", "人", "民", "法"], ["?", "民", "人", "法", "院"], vocab_size=info.vocab_size + 1)
    assert "warning: 2 tokens of the shards are others in" in warning
    assert "prepare the shards with the tokenizer of that folder" in warning
    assert f"has 1 tokens that {tmp_path / 'model'} does not know" in note
    (tmp_path / "model" / "tokenizer.json").unlink()  # nothing is known of it
    assert told_of_tokens(build_config(record, "masked", info, 16), record, tmp_path / "shards") == []
    assert told_of_tokens(build_config(first, "masked", info, 16), first, tmp_path / "shards") == []


def test_ligers_kernels_need_a_gpu() -> None:
    with pytest.raises(MissingDependencyError, match=r"Liger's kernels need a GPU[\s\S]*model\.liger=false"):
        build("causal", "llama", {}, liger=True)


def test_a_family_with_parameters_that_do_not_learn_is_refused() -> None:
    with pytest.raises(ModelError, match="roformer has parameters that do not learn"):
        build("masked", "roformer", {}, attention="eager")
