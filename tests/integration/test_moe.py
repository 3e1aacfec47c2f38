"""Blocks that route train whoever's tokens go wherever, and experts are the same however they are computed."""

from __future__ import annotations

import shutil
from pathlib import Path

import moe_jobs
import pytest
import torch
from deepspeed.utils import get_z3_leaf_modules
from ranks import run_ranks
from transformers import OlmoeConfig, OlmoeForCausalLM

from launcher.ask import generate
from launcher.errors import ModelError
from launcher.models.moe import gather_routed_blocks_whole


@pytest.mark.parametrize("kind", ["list", "dict", "stacked"])
@pytest.mark.parametrize("stage", [2, 3])
def test_ranks_that_use_different_experts_do_not_wait_for_each_other(kind: str, stage: int) -> None:
    first, second = run_ranks(moe_jobs.train_apart, 2, kind, stage)
    assert first["experts"] != second["experts"]
    assert first["losses"] == pytest.approx(second["losses"])
    assert first["losses"][2] < first["losses"][0]


@pytest.mark.parametrize("family", moe_jobs.FAMILIES)
def test_families_whose_ranks_use_different_experts_train_at_stage_3_as_at_stage_0(family: str) -> None:
    model = moe_jobs.FAMILIES[family]
    whole, partitioned = (run_ranks(moe_jobs.train_family, 2, model, stage) for stage in (0, 3))
    for first, second in (whole, partitioned):
        layers = list(zip(first["experts"][0], second["experts"][0], strict=True))
        assert any(set(one) - set(other) and set(other) - set(one) for one, other in layers)
    assert partitioned[0]["experts"] == whole[0]["experts"]
    assert partitioned[0]["losses"] == pytest.approx(whole[0]["losses"], abs=1e-5)
    assert whole[0]["losses"][2] < whole[0]["losses"][0]
    # DeepSpeed 0.19.8 itself names Mixtral's and Qwen3-MoE's classes, and not OLMoE's.
    assert partitioned[0]["num_leaves"] == model["num_hidden_layers"]


def test_a_dense_model_has_no_block_to_gather_whole() -> None:
    dense, mixture = moe_jobs.build(moe_jobs.DENSE), moe_jobs.build(moe_jobs.FAMILIES["mixtral"])
    for model in (dense, mixture):
        gather_routed_blocks_whole(model)
    assert get_z3_leaf_modules(dense) == []
    assert get_z3_leaf_modules(mixture) == [layer.mlp for layer in mixture.model.layers]


@pytest.mark.parametrize("family", moe_jobs.FAMILIES)
def test_every_way_to_compute_experts_gives_the_same(family: str) -> None:
    model, ids = moe_jobs.FAMILIES[family], moe_jobs.tokens()
    loss, logits, grads = moe_jobs.step_of(moe_jobs.build(model, experts="eager"), ids)
    for way in ("auto", "grouped_mm", "batched_mm"):
        other_loss, other_logits, other_grads = moe_jobs.step_of(moe_jobs.build(model, experts=way), ids)
        assert other_loss == pytest.approx(loss, abs=1e-6)
        torch.testing.assert_close(other_logits, logits, rtol=1e-4, atol=1e-5)
        for name, grad in grads.items():
            torch.testing.assert_close(other_grads[name], grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("family", moe_jobs.FAMILIES)
def test_in_bf16_every_way_is_as_near_to_fp32_as_one_expert_after_the_other(family: str) -> None:
    model, ids = moe_jobs.FAMILIES[family], moe_jobs.tokens(4)

    def step(way: str, *, half: bool) -> dict[str, torch.Tensor]:
        built = moe_jobs.build(model, ds_config=moe_jobs.BF16 if half else None, experts=way)
        moe_jobs.set_apart(built)
        loss, logits, grads = moe_jobs.step_of(built.bfloat16() if half else built, ids)
        return {"loss": torch.tensor(loss), "logits": logits, **grads}

    exact, eager = step("eager", half=False), step("eager", half=True)
    for way in ("auto", "grouped_mm", "batched_mm"):
        for name, value in step(way, half=True).items():
            assert value.dtype in (torch.bfloat16, torch.float32)
            scale = float(exact[name].abs().max())
            off = float((value - exact[name]).abs().max()) / scale
            eager_off = float((eager[name] - exact[name]).abs().max()) / scale
            assert off < 2 * eager_off + 0.01, (way, name, off, eager_off)


WIDTHS = [
    (24, 32, False, "grouped_mm"),  # rows of 96 and 128 bytes
    (24, 32, True, "grouped_mm"),
    (12, 32, False, "grouped_mm"),
    (12, 32, True, "eager"),  # 24 bytes
    (13, 32, False, "eager"),
    (24, 36, False, "grouped_mm"),
    (24, 36, True, "eager"),  # 72 bytes
    (24, 30, False, "eager"),
]


@pytest.mark.parametrize(("expert_width", "width", "half", "expected"), WIDTHS)
def test_widths_that_grouped_matmul_does_not_take_are_computed_without_it(
    expert_width: int, width: int, half: bool, expected: str
) -> None:
    olmoe = moe_jobs.FAMILIES["olmoe"]
    model = {**olmoe, "hidden_size": width, "num_attention_heads": 1, "num_key_value_heads": 1}
    model["intermediate_size"] = expert_width
    ds_config = moe_jobs.BF16 if half else None
    built = moe_jobs.build(model, ds_config=ds_config)
    assert built.config._experts_implementation == expected
    loss, _, _ = moe_jobs.step_of(built.bfloat16() if half else built, moe_jobs.tokens())
    assert loss == pytest.approx(4.6, abs=0.2)  # log 96
    if expected == "eager":
        with pytest.raises(ModelError) as caught:
            moe_jobs.build(model, ds_config=ds_config, experts="grouped_mm")
        assert str(caught.value).split("\n") == [
            f"ModelError: grouped matmul takes widths that are multiples of {8 if half else 4} at {2 if half else 4} "
            "bytes a weight, and the experts of this model are of others",
            "  where: model.experts",
            "  fix:   use model.experts=auto, or other widths",
        ]


def test_an_exported_mixture_of_such_widths_answers(shards: Path, tmp_path: Path) -> None:
    shutil.copytree(shards.parent / "tokenizer", tmp_path, dirs_exist_ok=True)
    numbers = {**moe_jobs.NUMBERS, "intermediate_size": 13, "num_experts": 4, "num_experts_per_tok": 2}
    OlmoeForCausalLM(OlmoeConfig(vocab_size=200, **numbers)).save_pretrained(tmp_path)
    (answer,) = generate(tmp_path, ["第1条"], max_tokens=3)
    assert answer.text.startswith("第1条")


def test_experts_are_computed_by_grouped_matmul_where_that_is_possible() -> None:
    assert moe_jobs.build(moe_jobs.FAMILIES["mixtral"]).config._experts_implementation == "grouped_mm"
    assert moe_jobs.build(moe_jobs.FAMILIES["mixtral"], experts="eager").config._experts_implementation == "eager"


def test_a_model_without_experts_has_no_way_to_compute_them() -> None:
    with pytest.raises(ModelError, match="llama has no experts"):
        moe_jobs.build(moe_jobs.DENSE, experts="grouped_mm")


@pytest.mark.parametrize("family", moe_jobs.FAMILIES)
def test_grouped_matmul_follows_autocast(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.integrations import moe

    seen: list[tuple[torch.dtype, torch.dtype]] = []
    grouped = moe._grouped_mm

    def watched(inputs: torch.Tensor, weight: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        seen.append((inputs.dtype, weight.dtype))
        return grouped(inputs, weight, *args, **kwargs)

    monkeypatch.setattr(moe, "_grouped_mm", watched)
    model, ids = moe_jobs.FAMILIES[family], moe_jobs.tokens()
    built = moe_jobs.build(model, experts="grouped_mm")
    loss, _, _ = moe_jobs.step_of(built, ids)
    assert set(seen) == {(torch.float32, torch.float32)}
    seen.clear()
    with torch.autocast("cpu", torch.bfloat16):
        half_loss, _, grads = moe_jobs.step_of(built, ids)
    assert set(seen) == {(torch.bfloat16, torch.bfloat16)}
    assert half_loss == pytest.approx(loss, abs=0.02)
    assert all(grad.dtype == torch.float32 for grad in grads.values())
