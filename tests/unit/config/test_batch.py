from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.config.batch import plan_batch
from launcher.errors import BatchShapeError


@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 64))
def test_what_divides_is_cut_whole(micro_batch: int, world_size: int, passes: int) -> None:
    plan = plan_batch(micro_batch * world_size * passes, micro_batch, world_size)
    assert plan.grad_accum_steps == passes
    assert plan.micro_batch * plan.world_size * plan.grad_accum_steps == plan.global_batch


@given(st.integers(1, 1000), st.one_of(st.none(), st.integers(1, 32)), st.integers(1, 32))
def test_what_does_not_divide_names_batches_that_do(
    global_batch: int, micro_batch: int | None, world_size: int
) -> None:
    try:
        plan = plan_batch(global_batch, micro_batch, world_size)
        assert plan.global_batch == global_batch
    except BatchShapeError as error:
        choices = [int(word) for word in error.fix.replace(",", " ").split() if word.isdigit()]
        assert choices
        for choice in choices:
            assert plan_batch(choice, micro_batch, world_size).global_batch == choice


def test_the_message_names_field_shape_and_neighbours() -> None:
    with pytest.raises(BatchShapeError) as caught:
        plan_batch(256, 4, 12)
    assert str(caught.value).splitlines() == [
        "BatchShapeError: 256 samples per step cannot be cut into passes of 48 (4 per rank on 12 ranks)",
        "  where: batch.global_batch",
        "  fix:   use 240 or 288, or another batch.micro_batch",
    ]


def test_without_a_micro_batch_a_rank_takes_its_share_at_once() -> None:
    assert plan_batch(16, None, 2).micro_batch == 8
    with pytest.raises(BatchShapeError, match="16 samples per step cannot be cut into 3 equal shares"):
        plan_batch(16, None, 3)
