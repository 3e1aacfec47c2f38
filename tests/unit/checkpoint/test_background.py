"""The copy of the state that a save is written from."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from launcher.checkpoint import background
from launcher.checkpoint.background import Copy

TENSORS = [
    torch.arange(1000, dtype=torch.int64),
    torch.empty(0),
    torch.randn(50, 77, generator=torch.Generator().manual_seed(1)),
    torch.arange(3, dtype=torch.bfloat16),
]


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """Room for all, to be filled in many pieces."""
    monkeypatch.setattr(background, "PIECE_BYTES", 512)
    return torch.zeros(sum(tensor.numel() * tensor.itemsize for tensor in TENSORS), dtype=torch.uint8)


def whole() -> torch.Tensor:
    return torch.cat([tensor.reshape(-1).view(torch.uint8) for tensor in TENSORS])


def test_one_thread_copies_everything(target: torch.Tensor) -> None:
    copy = Copy(TENSORS, target)
    assert not copy.done.is_set()
    copy.go_on()
    copy.go_on()  # nothing is left
    assert torch.equal(target, whole())


def test_training_does_not_wait_for_a_thread_that_gets_no_processor_but_for_its_piece(
    target: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, begun, may_end = background.copy_bytes, threading.Event(), threading.Event()
    by_training: list[int] = []

    def copy_bytes(source: torch.Tensor, there: torch.Tensor) -> None:
        if threading.current_thread() is thread:
            begun.set()
            may_end.wait(20)
        else:
            by_training.append(len(source))
            if len(by_training) == num_pieces - 1:
                may_end.set()
        plain(source, there)

    monkeypatch.setattr(background, "copy_bytes", copy_bytes)
    copy = Copy(TENSORS, target)
    num_pieces = len(copy._pieces)
    thread = threading.Thread(target=copy.go_on)
    thread.start()
    assert begun.wait(20)
    copy.go_on()
    assert torch.equal(target, whole())
    thread.join()


def test_a_copy_that_fails_keeps_nobody_waiting(target: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    def copy_bytes(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(background, "copy_bytes", copy_bytes)
    copy = Copy(TENSORS, target)
    with pytest.raises(MemoryError):
        copy.go_on()
    copy.go_on()
