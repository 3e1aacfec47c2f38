"""Blocks that route train whoever's tokens go wherever, and experts are the same however they are computed."""

from __future__ import annotations

import moe_jobs
import pytest
import torch
from ranks import run_ranks

from launcher.errors import ModelError


@pytest.mark.parametrize("kind", ["list", "dict", "stacked"])
@pytest.mark.parametrize("stage", [2, 3])
def test_ranks_that_use_different_experts_do_not_wait_for_each_other(kind: str, stage: int) -> None:
    first, second = run_ranks(moe_jobs.train_apart, 2, kind, stage)
    assert first["experts"] != second["experts"]
    assert first["losses"] == pytest.approx(second["losses"])
    assert first["losses"][2] < first["losses"][0]


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


def test_experts_are_computed_by_grouped_matmul_where_that_is_possible() -> None:
    assert moe_jobs.build(moe_jobs.FAMILIES["mixtral"]).config._experts_implementation == "grouped_mm"
    assert moe_jobs.build(moe_jobs.FAMILIES["mixtral"], experts="eager").config._experts_implementation == "eager"


def test_a_model_without_experts_has_no_way_to_compute_them() -> None:
    with pytest.raises(ModelError, match="llama has no experts"):
        moe_jobs.build(moe_jobs.DENSE, experts="grouped_mm")
