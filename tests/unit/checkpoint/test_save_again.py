"""What comes after a save that failed, on a real disk of a few megabytes: the next try, and the next save."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from savers import saver_of

from launcher.checkpoint import folder as layout
from launcher.checkpoint import save
from launcher.checkpoint.background import BackgroundSaver
from launcher.checkpoint.save import Saver
from launcher.drill.disk import SmallDisk

DISK_BYTES = 8 << 20
STATE_BYTES = 5 << 20
KINDS = pytest.mark.parametrize("kind", [Saver, BackgroundSaver])


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    with SmallDisk(tmp_path / "small") as small:
        yield small.path


@pytest.fixture
def state() -> torch.Tensor:
    return torch.arange(STATE_BYTES // 4, dtype=torch.int32)


class Neighbour:
    """Somebody else's file on the same disk, which leaves room for half of the state."""

    def __init__(self, disk: Path) -> None:
        self._file = disk / "somebody-elses"

    def come(self) -> None:
        self._file.write_bytes(bytes(DISK_BYTES - STATE_BYTES // 2))

    def go(self) -> None:
        self._file.unlink(missing_ok=True)


def assert_holds(checkpoints: Path, step: int, state: torch.Tensor) -> None:
    layout.verify(layout.checkpoint_path(checkpoints, step))
    file = layout.checkpoint_path(checkpoints, step) / "rank-00000.safetensors"
    assert torch.equal(load_file(file)["0"], state)
    assert sorted(path.name for path in checkpoints.iterdir()) == ["latest", f"step-{step:08d}"]


@KINDS
def test_a_try_after_the_disk_was_full_for_a_while_has_all_the_room_there_is_and_writes_every_byte_anew(
    kind: type[Saver], disk: Path, state: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints, neighbour = disk / "checkpoints", Neighbour(disk)
    comings = iter([neighbour.come])
    saver = saver_of(
        kind, [state], checkpoints, monkeypatch, retry_s=60.0, before_writing=lambda: next(comings, bool)()
    )
    half_written = []

    def wait(_: float) -> None:
        half_written.append(sum(file.stat().st_size for file in checkpoints.glob(".saving-*/*")))
        neighbour.go()

    monkeypatch.setattr(save.time, "sleep", wait)
    saver.save({"step": 1}, {})
    saver.finish()
    assert half_written == [0]  # one try was enough, and the one before kept no room from anybody
    assert_holds(checkpoints, 1, state)


@KINDS
def test_the_save_after_one_that_failed_finds_its_room_and_takes_nothing_of_it_over(
    kind: type[Saver], disk: Path, state: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints, neighbour = disk / "checkpoints", Neighbour(disk)
    comings = iter([neighbour.come])
    saver = saver_of(kind, [state], checkpoints, monkeypatch, before_writing=lambda: next(comings, bool)())
    saver.save({"step": 1}, {})
    saver.wait()
    (outcome,) = saver.outcomes()
    assert "[Errno 28] No space left on device" in str(outcome.problem)
    assert layout.complete_steps(checkpoints) == []
    neighbour.go()
    state.mul_(-1)
    saver.save({"step": 2}, {})
    saver.finish()
    assert_holds(checkpoints, 2, state)


@KINDS
def test_what_a_killed_process_left_does_not_keep_the_room_from_the_next_save(
    kind: type[Saver], disk: Path, state: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = disk / "checkpoints"
    for left in (layout.saving_path(checkpoints, 1), layout.checkpoint_path(checkpoints, 2)):  # 2: half deleted
        left.mkdir(parents=True)
        (left / "rank-00000.safetensors").write_bytes(bytes(STATE_BYTES // 3))
    saver = saver_of(kind, [state], checkpoints, monkeypatch)
    saver.save({"step": 3}, {})
    saver.finish()
    assert_holds(checkpoints, 3, state)
