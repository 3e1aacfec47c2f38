"""What the kernels of a GPU compute is what plain PyTorch computes."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import moe_jobs
import pytest
import tiny
import torch
from families import BERT_LIKE, FAMILIES, NO_DROPOUT, NUMBERS, ONLY_EAGER

from launcher.config.model import ModelConfig
from launcher.config.objectives import Head
from launcher.models.build import build_model
from launcher.models.chunked_loss import chunked_loss
from launcher.models.configuration import build_config
from launcher.models.documents import keep_documents_apart
from launcher.models.routing import routed_blocks

pytestmark = pytest.mark.gpu

IN_BF16 = 0.05
"""Of the largest of a tensor: eight bits, rounded in another order."""
LENGTHS = ((37, 1, 20, 6), (33, 31), (64,), (9, 9, 9))
"""Documents of four rows of 64 places, padding behind."""


def needs(package: str) -> Any:
    return pytest.mark.skipif(find_spec(package) is None, reason=f"needs {package}")


def build(head: Head, family: str, config: dict[str, Any], **options: Any) -> Any:
    if family in BERT_LIKE:
        config = {**config, **NO_DROPOUT}
    record = ModelConfig.model_validate({"family": family, **NUMBERS, "config": config, **options})
    ds_config = {"bf16": {"enabled": True}}  # without it flash attention is refused
    made = build_config(record, head, tiny.tokenizer_info(), 64)
    return build_model(made, record, head, seed=3, ds_config=ds_config, device="cuda").eval()


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    ids_BS = torch.randint(15, 96, (len(LENGTHS), 64), generator=torch.Generator().manual_seed(0))
    segments_BS = torch.full_like(ids_BS, -1)
    for row, lengths in enumerate(LENGTHS):
        segments_BS[row, : sum(lengths)] = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return ids_BS.cuda(), segments_BS.cuda()


@pytest.mark.parametrize(
    ("head", "family", "config", "attention", "dtype", "tolerance"),
    [
        *(
            pytest.param(*entry, attention, torch.float32, 1e-4, id=f"{entry[1]}-{attention}")
            for entry in FAMILIES
            for attention in ("sdpa", "eager")
            if attention == "eager" or entry[1] not in ONLY_EAGER
        ),
        *(
            pytest.param(*entry, "flex_attention", torch.float32, 1e-3, id=f"{entry[1]}-flex")
            for entry in FAMILIES
            if entry[1] in ("bert", "modernbert", "llama", "mistral", "bart")  # each is compiled
        ),
        *(
            pytest.param(
                *entry, "flash_attention_2", torch.bfloat16, IN_BF16, id=f"{entry[1]}-flash", marks=needs("flash_attn")
            )
            for entry in FAMILIES
            if entry[0] != "seq2seq" and entry[1] not in (*ONLY_EAGER, "mixtral", "qwen3_moe", "olmoe")
        ),
    ],
)
def test_a_row_of_documents_is_its_documents_one_by_one(
    head: Head, family: str, config: dict[str, Any], attention: str, dtype: torch.dtype, tolerance: float
) -> None:
    packed = build(head, family, config, attention=attention).to(dtype)
    alone = build(head, family, config, attention="eager").to(dtype)
    alone.load_state_dict(packed.state_dict())
    keep_documents_apart(packed)
    ids_BS, segments_BS = rows()
    names = ("input_ids", "decoder_input_ids") if head == "seq2seq" else ("input_ids",)
    numbers = dict.fromkeys((name.replace("input", "segment") for name in names), segments_BS)
    with torch.no_grad():
        packed_BSV = packed(**dict.fromkeys(names, ids_BS), **numbers).logits
        for row, lengths in enumerate(LENGTHS):
            for number in range(len(lengths)):
                here = segments_BS[row] == number
                inputs = dict.fromkeys(names, ids_BS[row, here][None])
                expected = alone(**inputs).logits[0]
                apart = (packed_BSV[row, here] - expected).abs().max() / expected.abs().max()
                assert apart < tolerance, (row, number)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_chunked_loss_is_the_loss_of_all_scores_in_a_fraction_of_the_memory(dtype: torch.dtype) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    shape = {"device": "cuda", "generator": generator}
    hidden_NH = torch.randn((8192, 512), **shape).to(dtype).requires_grad_()
    weight_VH = (torch.randn((64_000, 512), **shape) * 0.02).to(dtype).requires_grad_()
    targets_N = torch.randint(0, 64_000, (8192,), **shape)
    found = []
    for chunked in (True, False):
        hidden_NH.grad = weight_VH.grad = None
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        if chunked:
            loss = chunked_loss(hidden_NH, weight_VH, None, targets_N)[0]
        else:
            scores = torch.nn.functional.linear(hidden_NH, weight_VH).float()
            loss = torch.nn.functional.cross_entropy(scores, targets_N, reduction="sum")
            del scores
        loss.backward()
        found.append((loss.item(), hidden_NH.grad, weight_VH.grad, torch.cuda.max_memory_allocated() - before))
    ours, whole = found
    assert ours[0] == pytest.approx(whole[0], rel=1e-5 if dtype == torch.float32 else 1e-3)
    for one, other in zip(ours[1:3], whole[1:3], strict=True):
        assert (one - other).abs().max() / other.abs().max() < (1e-4 if dtype == torch.float32 else IN_BF16)
    assert ours[3] < whole[3] / 4, (ours[3], whole[3])


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "olmo", "mixtral", "qwen3_moe", "modernbert"])
@needs("liger_kernel")
def test_liger_gives_the_same_logits_and_gradients(family: str) -> None:
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    if family not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        pytest.skip(f"this version of Liger has nothing for {family}")
    head, _, config = next(entry for entry in FAMILIES if entry[1] == family)
    ids_BS, _ = rows()
    found = []
    for liger in (False, True):
        # Drawn anew: Liger changes classes as well as this model, so the plain one comes first.
        model = build(head, family, config, liger=liger)
        logits = model(ids_BS).logits
        logits.square().sum().backward()
        grads = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
        found.append({"logits": logits.detach(), **grads})
    plain, ligers = found
    assert plain.keys() == ligers.keys()
    for block in routed_blocks(model):
        assert "liger" not in block.experts.forward.__func__.__module__, "model.experts says how they are computed"
    for name, value in plain.items():
        assert (ligers[name] - value).abs().max() <= 2e-3 * value.abs().max(), name


@pytest.mark.parametrize("family", moe_jobs.FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_grouped_matmul_equals_one_expert_after_the_other(family: str, dtype: torch.dtype) -> None:
    model = moe_jobs.build(moe_jobs.FAMILIES[family], device="cuda", experts="eager")
    moe_jobs.set_apart(model)
    apart = moe_jobs.block_differences(model, "cuda", dtype, "grouped_mm")
    assert max(apart.values()) < (1e-4 if dtype == torch.float32 else IN_BF16), apart


@pytest.mark.parametrize("family", moe_jobs.FAMILIES)
@needs("megablocks_ops")
def test_megablocks_equals_one_expert_after_the_other(family: str) -> None:
    apart = moe_jobs.megablocks_on_a_gpu(moe_jobs.FAMILIES[family])
    assert max(apart.values()) < IN_BF16, apart
