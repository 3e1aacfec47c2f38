"""Which checkpoints stay."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from checkpoints import make_checkpoint

from launcher.checkpoint import folder as layout
from launcher.checkpoint.retention import prune, to_delete, validation_losses
from launcher.config.recipe import CheckpointConfig

LOSSES = {10: 3.0, 20: 1.0, 30: None, 40: 2.0, 50: 2.5, 60: 2.6}


@pytest.mark.parametrize(
    ("keep", "deleted", "reason"),
    [
        ({"keep_last": 9}, [], "fewer than may stay"),
        ({"keep_last": 2}, [10, 20, 30, 40], "the newest"),
        ({"keep_last": 1, "keep_every": 20}, [10, 30, 50], "and every twentieth step's"),
        ({"keep_last": 1, "keep_best": 2}, [10, 30, 50], "and the two with the lowest loss"),
        ({"keep_last": 1, "keep_best": 9}, [30], "one without a validation is not among the best"),
        ({"keep_last": 1, "keep_every": 30, "keep_best": 1}, [10, 40, 50], "all three"),
    ],
)
def test_what_nothing_keeps_is_deleted(keep: dict[str, int], deleted: list[int], reason: str) -> None:
    assert to_delete(LOSSES, CheckpointConfig(**keep)) == deleted, reason


def test_a_loss_that_is_no_number_is_never_the_best_and_of_equal_ones_the_earlier_step_is() -> None:
    best = CheckpointConfig(keep_last=1, keep_best=1)
    for odd in (math.nan, math.inf, -math.inf):
        assert to_delete({10: odd, 20: 1.0, 30: odd, 40: 2.0, 50: 3.0}, best) == [10, 30, 40]
    assert to_delete({10: 1.0, 20: 1.0, 30: 3.0}, best) == [20]


def test_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        make_checkpoint(tmp_path, step, loss=float(step))
    (tmp_path / "damaged-00000001").mkdir()
    assert validation_losses(tmp_path) == {1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0}
    assert prune(tmp_path, CheckpointConfig(keep_last=1, keep_best=1)) == [2, 3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged-00000001", "step-00000001", "step-00000004"]


def test_a_loss_of_another_step_is_not_the_checkpoints(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 7)
    assert validation_losses(tmp_path) == {7: None}


def test_one_whose_state_cannot_be_read_may_be_the_best_and_stays(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        path = make_checkpoint(tmp_path, step, loss=float(step))
    (layout.checkpoint_path(tmp_path, 1) / "state.json").write_text("{")
    (path / "state.json").unlink()
    assert validation_losses(tmp_path) == {2: 2.0}
    assert prune(tmp_path, CheckpointConfig(keep_last=1)) == []
    make_checkpoint(tmp_path, 4)
    assert prune(tmp_path, CheckpointConfig(keep_last=1)) == [2]
    assert layout.complete_steps(tmp_path) == [1, 3, 4]
