from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.config.batch import BatchSchedule, BatchStage, plan_batch
from launcher.config.recipe import BatchConfig
from launcher.errors import BatchShapeError, RecipeError


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
        batches, _, ranks = error.fix.partition("a number of ranks that keeps this one:")
        choices = _numbers(batches)
        assert choices
        for choice in choices:
            assert plan_batch(choice, micro_batch, world_size).global_batch == choice
        for choice in _numbers(ranks):
            assert plan_batch(global_batch, micro_batch, choice).global_batch == global_batch
        assert ranks or global_batch % (micro_batch or 1)


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.replace(",", " ").split() if word.isdigit()]


def test_the_message_names_field_shape_and_neighbours() -> None:
    with pytest.raises(BatchShapeError) as caught:
        plan_batch(256, 4, 12)
    assert str(caught.value).splitlines() == [
        "BatchShapeError: 256 samples per step cannot be cut into passes of 48 (4 per rank on 12 ranks)",
        "  where: batch.global_batch",
        "  fix:   use 240 or 288, or another batch.micro_batch, or a number of ranks that keeps this one: "
        "1, 2, 4, 8, 16, 32, 64",
    ]


def test_without_a_micro_batch_a_rank_takes_its_share_at_once() -> None:
    assert plan_batch(16, None, 2).micro_batch == 8
    with pytest.raises(BatchShapeError, match="16 samples per step cannot be cut into 3 equal shares"):
        plan_batch(16, None, 3)


SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=5, unique=True).map(sorted)


@st.composite
def schedules(draw: st.DrawFn) -> BatchSchedule:
    sizes = draw(SIZES)
    stages = [BatchStage(0, 0, sizes[0])]
    for size in sizes[1:]:
        before, num_steps = stages[-1], draw(st.integers(1, 9))
        position = before.first_position + num_steps * before.global_batch
        stages.append(BatchStage(before.first_step + num_steps, position, size))
    return BatchSchedule(tuple(stages))


@given(schedules())
def test_a_growing_batch_takes_every_sample_once(schedule: BatchSchedule) -> None:
    position = 0
    for step in range(60):
        assert schedule.position_at(step) == position
        size = schedule.global_batch_at(step)
        assert {schedule.step_of(position + offset) for offset in range(size)} == {step}
        position += size


@given(schedules(), st.integers(1, 4))
def test_one_micro_batch_cuts_every_step_of_a_growing_batch(schedule: BatchSchedule, world_size: int) -> None:
    whole = BatchSchedule(
        tuple(
            BatchStage(s.first_step, s.first_position * world_size, s.global_batch * world_size)
            for s in schedule.stages
        )
    )
    plan = plan_batch(whole, None, world_size)
    for micro_batch in plan.micro_batches():
        cut = plan.with_micro_batch(micro_batch)
        for step in range(60):
            assert cut.passes_at(step) * micro_batch * world_size == whole.global_batch_at(step)
    assert plan.micro_batches()[-1] == plan.micro_batch


@pytest.mark.parametrize(
    ("warmup", "stages"),
    [
        ([], [(0, 0, 256)]),
        ([{"step": 0, "global_batch": 64}, {"step": 1000, "global_batch": 256}], [(0, 0, 64), (1000, 64000, 256)]),
        (  # 100 samples are no whole number of steps of 8: the 13th begins with 96 and ends with 104
            [{"samples": 0, "global_batch": 8}, {"samples": 100, "global_batch": 256}],
            [(0, 0, 8), (13, 104, 256)],
        ),
        (
            [{"step": 0, "global_batch": 8}, {"samples": 16, "global_batch": 16}, {"step": 5, "global_batch": 256}],
            [(0, 0, 8), (2, 16, 16), (5, 64, 256)],
        ),
    ],
    ids=["without", "over steps", "over samples", "mixed"],
)
def test_a_warm_up_written_out(warmup: list[dict[str, int]], stages: list[tuple[int, int, int]]) -> None:
    config = BatchConfig.model_validate({"global_batch": 256, "warmup": warmup})
    assert config.schedule.stages == tuple(BatchStage(*stage) for stage in stages)


def test_a_stage_of_the_warm_up_that_does_not_divide_names_its_neighbours() -> None:
    schedule = BatchSchedule((BatchStage(0, 0, 10), BatchStage(5, 50, 64)))
    with pytest.raises(BatchShapeError) as caught:
        plan_batch(schedule, 4, 4)
    assert str(caught.value).splitlines() == [
        "BatchShapeError: 10 samples per step cannot be cut into passes of 16 (4 per rank on 4 ranks)",
        "  where: batch.warmup",
        "  fix:   use 16, or another batch.micro_batch",
    ]


def test_a_micro_batch_yet_to_be_measured_is_one_of_those_that_divide() -> None:
    plan = plan_batch(48, "auto", 2)
    assert (plan.micro_batch, plan.micro_batches()) == (1, [1, 2, 3, 4, 6, 8, 12, 24])
    assert plan.with_micro_batch(6).grad_accum_steps == 4
    with pytest.raises(BatchShapeError, match="use 48 or 51"):
        plan_batch(50, "auto", 3)


def test_groups_of_ranks_that_compute_a_sample_together_are_one_rank_to_the_batch() -> None:
    plan = plan_batch(16, 4, 8, 4)
    assert (plan.world_size, plan.ranks_per_sample, plan.grad_accum_steps) == (2, 4, 2)
    with pytest.raises(RecipeError, match=r"a world size of 6 cannot be cut into groups of 4 ranks[\s\S]*1, 2, 3, 6"):
        plan_batch(16, 4, 6, 4)
