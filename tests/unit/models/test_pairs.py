"""Every family that tells pairs learns what its own class would have it learn."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from families import NUMBERS

from launcher.config.model import ModelConfig
from launcher.config.objectives import Head
from launcher.engine.loss import IGNORE_INDEX, losses
from launcher.models.build import build_model
from launcher.models.configuration import PAIR_LABELS, build_config

FAMILIES: list[tuple[Head, str, dict[str, Any]]] = [
    ("next_sentence", "bert", {}),
    ("next_sentence", "ernie", {}),
    ("next_sentence", "megatron-bert", {}),
    ("next_sentence", "mobilebert", {"embedding_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32}),
    ("next_sentence", "big_bird", {"attention_type": "original_full"}),
    ("sentence_order", "albert", {"embedding_size": 16}),
]


# MobileBERT multiplies by its output layer's weights without calling it: chunks are refused there.
CASES = [
    (*case, chunked) for case in FAMILIES for chunked in ("off", "on") if (case[1], chunked) != ("mobilebert", "on")
]


@pytest.mark.parametrize(("head", "family", "config", "chunked"), CASES, ids=[f"{case[1]} {case[3]}" for case in CASES])
def test_both_losses_and_their_gradients_are_those_of_the_familys_own_class(
    head: Head, family: str, config: dict[str, Any], chunked: str
) -> None:
    numbers = {"family": family, "attention": "eager", **NUMBERS, "config": config, "chunked_loss": chunked}
    record = ModelConfig.model_validate(numbers)
    model: Any = build_model(build_config(record, head, tiny.tokenizer_info(), 16), record, head, seed=3).eval()
    generator = torch.Generator().manual_seed(0)
    ids_BS = torch.randint(15, 96, (6, 16), generator=generator)
    labels_BS = ids_BS.roll(1, 0).masked_fill(torch.rand((6, 16), generator=generator) < 0.6, IGNORE_INDEX)
    labels_B = torch.tensor([0, 1, 1, IGNORE_INDEX, 0, 1])
    inputs = {"input_ids": ids_BS, "token_type_ids": (torch.arange(16) > 8).long().expand(6, 16)}
    own = model(**inputs, labels=labels_BS, **{PAIR_LABELS[head]: labels_B}).loss
    own.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    class Engine(SimpleNamespace):
        def __call__(self, **inputs: Any) -> Any:
            return self.module(**inputs)

    sums = losses(Engine(module=model), {**inputs, "labels": labels_BS, "pair_labels": labels_B})
    num_targets = int((labels_BS != IGNORE_INDEX).sum())
    ours = sums[0] / num_targets + sums[4] / 5
    torch.testing.assert_close(ours, own, rtol=1e-5, atol=1e-5)
    ours.backward()
    assert expected.keys() == {name for name, p in model.named_parameters() if p.grad is not None}
    for name, parameter in model.named_parameters():
        if name in expected:
            torch.testing.assert_close(
                parameter.grad, expected[name], rtol=1e-3, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
            )
