"""Drawing the weights of a partitioned model: every rank keeps its own part of what all draw."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from launcher.models.initial import _draw_partition

NUMEL, SIZE = 10, 4
"""Of a parameter, and of a rank's part of it: the third rank's ends in padding."""


def parameter(status: str = "AVAILABLE") -> Any:
    """As `zero.Init` leaves one: no values but those of this rank's part."""
    made: Any = torch.nn.Parameter(torch.empty(0, dtype=torch.bfloat16))
    made.ds_shape, made.ds_numel, made.ds_process_group = (2, 5), NUMEL, None
    made.ds_tensor = torch.full((SIZE,), 7.0, dtype=torch.bfloat16)
    made.ds_tensor.ds_numel, made.ds_tensor.status = SIZE, SimpleNamespace(name=status)
    made.ds_secondary_tensor = torch.zeros(5)
    return made


@pytest.fixture(autouse=True, params=[0, 1, 2, 3])
def rank(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(torch.distributed, "get_rank", lambda group: request.param)
    return int(request.param)


@torch.no_grad()
def test_a_rank_keeps_its_part_of_what_is_written_and_what_is_not_stays(rank: int) -> None:
    drawn, left = parameter(), parameter()
    values = torch.arange(NUMEL) + 1 / 512  # fp32, rounded for the partition only
    assert _draw_partition([drawn, left], lambda: drawn.copy_(values.view(2, 5)))
    mine = values[rank * SIZE : (rank + 1) * SIZE].bfloat16()
    assert torch.equal(drawn.ds_tensor[: len(mine)], mine)
    assert (drawn.ds_tensor[len(mine) :] == 7).all()
    assert (left.ds_tensor == 7).all()
    assert (drawn.numel(), left.numel()) == (0, 0)
    assert drawn.ds_secondary_tensor is None, "the node's second copy is of what was there before"
    assert left.ds_secondary_tensor is not None


@torch.no_grad()
@pytest.mark.parametrize("rule", [lambda p: p.mul_(2), lambda p: p[0].zero_()], ids=["scales", "writes a part"])
def test_a_rule_that_builds_upon_what_is_there_is_left_to_a_whole_parameter(rule: Any) -> None:
    there = parameter()
    assert not _draw_partition([there], lambda: rule(there))
    assert (there.ds_tensor == 7).all()
    assert there.numel() == 0


@torch.no_grad()
def test_parts_on_a_drive_are_left_to_deepspeed() -> None:
    there = parameter("NOT_AVAILABLE")
    assert not _draw_partition([there], lambda: there.fill_(1))
