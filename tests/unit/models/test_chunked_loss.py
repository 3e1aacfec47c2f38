"""The loss of a chunk after another is the loss of the whole, and so are its gradients."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from families import FAMILIES, NUMBERS, ONLY_EAGER

from launcher.config.model import ModelConfig
from launcher.config.objectives import Head
from launcher.engine.loss import IGNORE_INDEX, losses, summed_losses
from launcher.errors import ModelError
from launcher.models import chunked_loss as chunks
from launcher.models.build import build_model
from launcher.models.chunked_loss import chunked_loss, compute_loss_in_output_layer, worth_chunking
from launcher.models.configuration import build_config

V, H = 50, 8


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 4 * 96 * 5)  # five tokens of the tiny models


@pytest.mark.parametrize("num_tokens", [0, 1, 9, 10, 31])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize("with_bias", [False, True])
def test_sums_and_gradients_are_those_of_all_scores(num_tokens: int, z_loss: float, with_bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn((num_tokens, H), generator=generator, requires_grad=True)
    weight = torch.randn((V, H), generator=generator, requires_grad=True)
    bias = torch.randn(V, generator=generator, requires_grad=True) if with_bias else None
    targets = torch.randint(0, V, (num_tokens,), generator=generator)
    inputs = [tensor for tensor in (hidden, weight, bias) if tensor is not None]
    whole = summed_losses(torch.nn.functional.linear(hidden, weight, bias)[None], targets[None], z_loss)
    expected = torch.autograd.grad(3.0 * whole[0], inputs)
    sums = chunked_loss(hidden, weight, bias, targets, z_loss)
    got = torch.autograd.grad(3.0 * sums[0], inputs)
    torch.testing.assert_close(sums[:2], whole[:2], rtol=1e-5, atol=1e-5)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    if z_loss:
        assert sums[2].item() == pytest.approx(whole[2].item(), rel=1e-5)


def build(head: Head, family: str, config: dict[str, Any], chunked: str) -> Any:
    attention = "eager" if family in ONLY_EAGER else "sdpa"
    numbers = {"family": family, "attention": attention, **NUMBERS, "config": config, "chunked_loss": chunked}
    record = ModelConfig.model_validate(numbers)
    return build_model(build_config(record, head, tiny.tokenizer_info(), 16), record, head, seed=3).eval()


def engine_of(model: Any) -> Any:
    """What `losses` asks of an engine."""

    class Engine:
        module = model

        def __call__(self, **inputs: Any) -> Any:
            return model(**inputs)

    return Engine()


@pytest.mark.parametrize(
    ("head", "family", "config"),
    [entry for entry in FAMILIES if entry[1] != "bart"],  # which adds a bias behind its output layer
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_family_gives_the_same_losses_either_way(head: Head, family: str, config: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    ids_BS = torch.randint(15, 96, (3, 16), generator=generator)
    labels_BS = ids_BS.roll(1, 0).masked_fill(torch.rand((3, 16), generator=generator) < 0.4, IGNORE_INDEX)
    tensors = {"input_ids": ids_BS, "labels": labels_BS}
    if head == "seq2seq":
        tensors["decoder_input_ids"] = ids_BS.flip(0)
    plain, chunked = (build(head, family, config, name) for name in ("off", "on"))
    assert torch.equal(plain(**no_labels(tensors)).logits, chunked(**no_labels(tensors)).logits)
    one, other = (losses(engine_of(model), tensors, 1e-3) for model in (plain, chunked))
    torch.testing.assert_close(other[:3], one[:3], rtol=1e-5, atol=1e-4)
    one[0].backward()
    other[0].backward()
    for (name, mine), (_, theirs) in zip(chunked.named_parameters(), plain.named_parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(
                mine.grad, theirs.grad, rtol=1e-3, atol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
            )
    with torch.no_grad():
        one, other = (losses(engine_of(model), tensors) for model in (plain, chunked))
    assert other[3] == one[3]


def no_labels(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name != "labels"}


def test_auto_takes_chunks_where_scores_are_large_and_the_last_word() -> None:
    model = build("causal", "llama", {}, "auto")
    assert not getattr(model, "takes_targets", False)
    large = chunks.WORTH_BYTES // (4 * 96) + 1
    assert worth_chunking(model, large)
    assert not worth_chunking(model, large // 2)
    capped = SimpleNamespace(config=SimpleNamespace(vocab_size=96, final_logit_softcapping=30.0))
    assert not worth_chunking(capped, large)  # type: ignore[arg-type]


def test_fp16_has_its_losses_whole() -> None:
    record = ModelConfig.model_validate({"family": "llama", **NUMBERS, "chunked_loss": "on"})
    config = build_config(record, "causal", tiny.tokenizer_info(), 16)
    with pytest.raises(ModelError, match=r"cannot scale its gradients for fp16[\s\S]*precision=bf16"):
        build_model(config, record, "causal", seed=3, ds_config={"fp16": {"enabled": True}})


def test_a_model_that_changes_its_scores_is_told_so() -> None:
    with pytest.raises(ModelError, match="bart changes its scores behind the output layer"):
        build("seq2seq", "bart", {}, "on")
    model = build("causal", "llama", {}, "off")
    model.register_forward_hook(lambda module, args, output: setattr(output, "logits", output.logits * 2))
    compute_loss_in_output_layer(model)
    ids_BS = torch.full((1, 4), 20)
    with pytest.raises(ModelError, match="changes its scores behind the output layer"):
        losses(engine_of(model), {"input_ids": ids_BS, "labels": ids_BS})
