"""The copy of the state that a save is written from."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from savers import saver_of

from launcher.checkpoint import background, folder, save
from launcher.checkpoint.background import BackgroundSaver, Copy
from launcher.checkpoint.ranks import SaveError
from launcher.checkpoint.save import SaveOutcome

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


def no_memory(*_: Any) -> None:
    raise MemoryError


def test_a_copy_that_fails_in_one_thread_is_not_whole_for_another(
    target: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Copy(TENSORS, target)
    copy.check()
    with monkeypatch.context() as patched:
        patched.setattr(background, "copy_bytes", no_memory)
        thread = threading.Thread(target=copy.go_on)
        thread.start()
        thread.join(20)
    copy.go_on()  # nobody is kept waiting
    with pytest.raises(SaveError, match=r"the state could not be copied to the memory of .*: MemoryError\(\)"):
        copy.check()


@pytest.fixture
def saver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BackgroundSaver:
    """Saves a tensor of no engine's."""
    saver = saver_of(BackgroundSaver, TENSORS[:1], tmp_path / "run" / "checkpoints", monkeypatch, retry_s=60.0)
    assert isinstance(saver, BackgroundSaver)
    return saver


def test_a_save_whose_copy_failed_while_training_went_on_is_told_and_the_next_is_made(
    saver: BackgroundSaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = time.monotonic()
    with monkeypatch.context() as patched:
        patched.setattr(background, "copy_bytes", no_memory)
        saver.save({"step": 1}, {})
        saver._let_the_copy_be_made()
        saver.wait()
    (outcome,) = saver.outcomes()
    assert "the state could not be copied to the memory of" in str(outcome.problem)
    assert "fix:   set checkpoint.asynchronous=false; the same command" in str(outcome.problem)
    assert time.monotonic() - began < 10  # what training has overwritten since cannot be copied at another try
    assert folder.complete_steps(saver._folder) == []
    saver.save({"step": 2}, {})
    saver.finish()
    folder.verify(folder.checkpoint_path(saver._folder, 2))
    assert sorted(path.name for path in saver._folder.iterdir()) == ["latest", "step-00000002"]


def test_a_save_that_ends_while_somebody_asks_is_told_all_the_same(
    saver: BackgroundSaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def outcome(**fields: Any) -> SaveOutcome:
        asked.extend(saver.outcomes())  # as training may, at that moment
        return SaveOutcome(**fields)

    monkeypatch.setattr(save, "SaveOutcome", outcome)
    saver.save({"step": 1}, {})
    saver.wait()
    assert [told.step for told in [*asked, *saver.outcomes()]] == [1]


def test_where_the_host_refuses_memory_for_the_copy_training_waits_for_every_save(
    saver: BackgroundSaver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = []

    def refuse(num_bytes: int, **_: Any) -> torch.Tensor:
        asked.append(num_bytes)
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(background, "aligned_buffer", refuse)
    for step in (1, 2):
        saver.save({"step": step}, {})
        assert not saver.in_flight
        folder.verify(folder.checkpoint_path(saver._folder, step))
    assert len(asked) == 1
    assert [record.getMessage() for record in caplog.records] == [
        "no memory for a copy of the state ([Errno 12] Cannot allocate memory): training waits for every save"
    ]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Thread and priority of every call."""
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "setpriority", lambda _, thread, priority: told.append((thread, priority)))
    monkeypatch.setattr(os, "getpriority", lambda *_: 5)
    return told


def test_training_lends_its_priority_while_it_waits_for_the_copy_or_the_save(
    saver: BackgroundSaver, told: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, begun, may_end = background.copy_bytes, threading.Event(), threading.Event()

    def copy_bytes(source: torch.Tensor, there: torch.Tensor) -> None:
        if threading.current_thread() is not threading.main_thread():
            begun.set()
            may_end.wait(20)
        plain(source, there)

    monkeypatch.setattr(background, "copy_bytes", copy_bytes)
    saver.save({"step": 1}, {})
    assert begun.wait(20)
    threading.Timer(0.1, may_end.set).start()
    saver._let_the_copy_be_made()
    assert [priority for _, priority in told[:3]] == [19, 5, 19]
    assert len({thread for thread, _ in told}) == 1
    saver.wait()


def test_a_thread_that_is_waited_for_from_the_beginning_is_not_lowered(told: list[tuple[int, int]]) -> None:
    priority, begin = background.Priority(), threading.Event()

    def work() -> None:
        begin.wait(20)
        with priority.lowered():
            pass

    thread = threading.Thread(target=work)
    thread.start()
    with priority.lent():
        begin.set()
        thread.join()
    assert told == []
