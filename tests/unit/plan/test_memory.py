"""Bytes of ZeRO's stages from numbers."""

from __future__ import annotations

import pytest

from launcher.plan.memory import (
    kept_gradient_bytes,
    left_on_device,
    offloaded_bytes,
    parameters_of_rank,
    state_bytes,
)


@pytest.mark.parametrize(
    ("stage", "weight_bytes", "bytes_per_parameter"),
    [
        (0, 4, 16.0),
        (0, 2, 16.0),
        (1, 4, 4 + 16 / 4),
        (1, 2, 2 + 14 / 4),
        (2, 2, 2 + 14 / 4),
        (3, 4, 20 / 4),
        (3, 2, 16 / 4),
    ],
)
def test_a_stage_shares_what_it_says(stage: int, weight_bytes: int, bytes_per_parameter: float) -> None:
    held = state_bytes(1_000_000, stage=stage, world_size=4, weight_bytes=weight_bytes, reduce_bucket=0)
    assert held.total == bytes_per_parameter * 1_000_000


def test_stage_3_keeps_small_parameters_whole_and_a_bucket() -> None:
    held = state_bytes(1000, stage=3, world_size=10, weight_bytes=2, persistent_parameters=50, reduce_bucket=300)
    assert (held.parameters, held.gradients, held.optimizer, held.buffers) == (300, 200, 1200, 600)


def test_weights_held_once_more_in_a_node_are_counted() -> None:
    held = state_bytes(1600, stage=3, world_size=16, weight_bytes=2, reduce_bucket=0, ranks_of_second_copy=8)
    assert held.parameters == 2 * (1600 / 16 + 1600 / 8)


def test_what_is_offloaded_is_not_on_the_device() -> None:
    whole = state_bytes(1000, stage=3, world_size=2, reduce_bucket=10)
    held = left_on_device(whole, offloads_optimizer=True, offloads_parameters=False)
    assert held.total == whole.parameters + whole.buffers
    assert left_on_device(whole, offloads_optimizer=True, offloads_parameters=True).total == whole.buffers


def test_an_offloaded_optimizer_is_that_of_what_each_rank_has_of_the_model() -> None:
    """Of two ranks that share matrices each steps the tables, and half of the rest."""
    of_rank = parameters_of_rank(1000, num_whole=200, tensor_parallel=2)
    assert of_rank == 600
    assert offloaded_bytes(of_rank, num_ranks=4, num_sharing=2) == 16 * 600 * 4 // 2
    assert offloaded_bytes(1000, num_ranks=4, num_sharing=8) == 16 * 1000 // 2
    assert parameters_of_rank(1000, num_whole=200, tensor_parallel=1) == 1000


@pytest.mark.parametrize(
    ("stage", "passes", "besides", "reason"),
    [
        (2, 1, 0, "a pass's gradients become the optimizer's at once"),
        (1, 4, 2, "the passes before are kept"),
        (3, 1, 2, "its flat buffer is there in any case"),
    ],
)
def test_gradients_lie_on_the_host_once_more_while_passes_add_them_up(
    stage: int, passes: int, besides: int, reason: str
) -> None:
    assert kept_gradient_bytes(stage, 2, passes) == besides, reason
    assert offloaded_bytes(100, 1, 1, besides) == (16 + besides) * 100
