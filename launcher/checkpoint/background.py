"""Saving while training goes on.

The state is copied to host memory, in a buffer that is kept for the next save, and hashed and written from there by a
thread of the lowest priority. Master weights and moments change only when the optimizer steps: on a CPU the copy is
made while the next gradients are computed, in the moments that training leaves idle, and training itself makes what is
left of it when the optimizer is about to step. (It waited for the thread before: 6.5 s for 0.36 s of processor time,
measured where twelve processes shared two cores.) From a device it is made at once.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator

from launcher.checkpoint.part import Part
from launcher.checkpoint.ranks import CopyError
from launcher.checkpoint.save import SaveOutcome, Saver
from launcher.checkpoint.swapped import has_swapped_groups
from launcher.checkpoint.tensor_file import DurableFile, aligned_buffer, copy_bytes
from launcher.cluster import host_memory
from launcher.config.recipe import CheckpointConfig
from launcher.units import size

LOWEST_PRIORITY = 19
PIECE_BYTES = 1 << 26
"""Large enough to be shared by the threads of `copy_bytes`: assumption."""
SHARE_OF_MEMORY = 0.8
"""Of the memory a host has left, what copies may take; the rest is for the steps' own peaks: assumption."""


class Copy:
    """Bytes on their way to host memory, piece by piece, by as many threads as call `go_on`.

    Args:
        tensors: Whose bytes, one after another.
        target: uint8 [N] on the host, filled from its beginning.
    """

    def __init__(self, tensors: Iterable[torch.Tensor], target: torch.Tensor) -> None:
        self._pieces: deque[tuple[torch.Tensor, torch.Tensor]] = deque()
        end = 0
        for tensor in tensors:
            values = tensor.detach().reshape(-1).view(torch.uint8)
            for first in range(0, len(values), PIECE_BYTES):
                part = values[first : first + PIECE_BYTES]
                begin, end = end, end + len(part)
                self._pieces.append((part, target[begin:end]))
        self._num_left = len(self._pieces)
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        self.done = threading.Event()
        """The copy is whole, or never will be: `check` tells."""

    def check(self) -> None:
        """Make sure that it is whole.

        Raises:
            CopyError: A piece could not be copied, by whichever thread.
        """
        if self._error is not None:
            raise CopyError(f"the state could not be copied to the memory of {os.uname().nodename}: {self._error!r}")

    def go_on(self) -> None:
        """Copy what nobody has begun with, then wait for what others have; what fails is the writer's, see `check`."""
        while not self.done.is_set():
            with self._lock:
                piece = self._pieces.popleft() if self._pieces else None
            if piece is None:
                self.done.wait()
                return
            try:
                copy_bytes(*piece)
            except BaseException as error:
                self._error = error
                self.done.set()  # nobody waits for what will never be whole
                if isinstance(error, Exception):
                    return
                raise
            with self._lock:
                self._num_left -= 1
                if not self._num_left:
                    self.done.set()


class Priority:
    """The lowest priority for one thread, while nobody waits for it.

    Who waits lends it their own, where the system lets them: raising one again is root's right, so a thread that is
    waited for from the beginning is not lowered at all.
    """

    def __init__(self) -> None:
        self._thread: int | None = None
        self._lent: int | None = None
        self._lock = threading.Lock()

    @contextmanager
    def lowered(self) -> Iterator[None]:
        """In here the calling thread has the lowest priority; it ends with this."""
        with self._lock:
            self._thread = threading.get_native_id()
            if self._lent is None:
                self._set(LOWEST_PRIORITY)
        try:
            yield
        finally:
            with self._lock:
                self._thread = None  # its number may be given to another

    @contextmanager
    def lent(self) -> Iterator[None]:
        """In here the calling thread, one at a time, waits for the other, and the other has its priority."""
        with self._lock:
            self._lent = os.getpriority(os.PRIO_PROCESS, 0)
            self._set(self._lent)
        try:
            yield
        finally:
            with self._lock:
                self._lent = None
                self._set(LOWEST_PRIORITY)

    def _set(self, priority: int) -> None:
        if self._thread is not None:
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, self._thread, priority)  # on Linux of this thread alone


class BackgroundSaver(Saver):
    """Copies the state to host memory and writes it while training goes on; one save at a time.

    Args:
        engine: DeepSpeed engine, nothing of whose state lies on NVMe; every rank makes its saver at the same moment.
        folder: The run's `checkpoints/`.
        keep: What to keep, and how long to try.
    """

    def __init__(self, engine: Any, folder: Path, keep: CheckpointConfig) -> None:
        super().__init__(engine, folder, keep)
        self._thread: threading.Thread | None = None
        self._bug: BaseException | None = None
        self._buffer: torch.Tensor | None = None
        self._has_room: bool | None = None
        self._copy: Copy | None = None
        self._priority = Priority()
        self._blocked_s = 0.0
        engine.basic_optimizer.register_step_pre_hook(self._let_the_copy_be_made)

    def save(self, state: Mapping[str, Any], texts: Mapping[str, str]) -> None:
        """Begin to copy and write everything; where the save before is still being written, wait for it first.

        On hosts without room for the copy training waits while it is written.
        """
        started = time.perf_counter()
        self.wait()
        part = self._current_part()
        if not self._can_copy(part):
            super().save(state, texts)
            return
        job = self._job(state, texts)
        copy = self._copy = self._begin_copy(part)
        if get_accelerator().device_name() != "cpu":
            copy.go_on()
            get_accelerator().synchronize()

        def write(saving: Path) -> dict[str, Any]:
            copy.check()
            buffer = self._buffer
            assert buffer is not None
            with DurableFile(part.path(saving)) as file:
                file.append(buffer, part.layout.num_bytes)
                return file.finish()

        def run() -> None:
            try:
                with self._priority.lowered():
                    copy.go_on()
                    ended = self._run(job, part, write)
                self._done(ended, job, self._blocked_s)
            except BaseException as error:
                self._bug = error

        # daemon: an error elsewhere ends the process; what was half written has no name
        self._thread = threading.Thread(target=run, name="save", daemon=True)
        self._blocked_s = time.perf_counter() - started
        self._thread.start()

    def outcomes(self) -> list[SaveOutcome]:
        """How the saves ended that have since this was last asked."""
        if self._bug is not None:
            raise self._bug
        return super().outcomes()

    def wait(self) -> None:
        """Wait for the save in flight, if there is one."""
        if self._thread is not None:
            with self._priority.lent():
                self._thread.join()
            self._thread = None
        if self._bug is not None:
            raise self._bug

    @property
    def in_flight(self) -> bool:
        """Whether a save is going on."""
        return self._thread is not None and self._thread.is_alive()

    def _let_the_copy_be_made(self, *_: Any) -> None:
        """The optimizer is about to step."""
        if self._copy is not None and not self._copy.done.is_set():
            started = time.perf_counter()
            with self._priority.lent():
                self._copy.go_on()
            self._blocked_s += time.perf_counter() - started

    def _can_copy(self, part: Part) -> bool:
        """Whether every rank has a buffer for its copy: settled once, before the first is made."""
        if self._has_room is None:
            # Looked at by all before the first takes any: what one has, the next does not find.
            fits = all(self._ranks.exchange(_fits(part.layout.num_bytes)))
            if fits:
                self._buffer = _buffer_of(part.layout.num_bytes)
                fits = all(self._ranks.exchange(self._buffer is not None))
            if not fits:
                self._buffer = None
            self._has_room = fits
        return self._has_room

    def _begin_copy(self, part: Part) -> Copy:
        assert self._buffer is not None
        header = torch.frombuffer(bytearray(part.layout.header), dtype=torch.uint8)
        # Of what changes with every pass the part's tensors are copies, of the rest views.
        return Copy([header, *part.tensors()], self._buffer)


def _fits(num_bytes: int) -> bool:
    """Whether the copies of all ranks of this host fit into what it has left."""
    needed = num_bytes * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    left = host_memory.available_bytes()
    if needed < left * SHARE_OF_MEMORY:
        return True
    told = "no room for a copy of the state (%s of %s on this host): training waits for every save"
    logging.getLogger(__name__).warning(told, size(needed), size(left))
    return False


def _buffer_of(num_bytes: int) -> torch.Tensor | None:
    """Memory for a copy; None where the system, or the device's driver, gives none."""
    try:
        return aligned_buffer(num_bytes, pinned=get_accelerator().device_name() != "cpu")
    except (OSError, MemoryError, RuntimeError) as error:
        told = "no memory for a copy of the state (%s): training waits for every save"
        logging.getLogger(__name__).warning(told, str(error).partition("\n")[0])
        return None


def make_saver(engine: Any, folder: Path, keep: CheckpointConfig) -> Saver:
    """The saver `checkpoint.asynchronous` asks for; what lies on NVMe for want of memory is not copied to memory."""
    if keep.asynchronous and not has_swapped_groups(engine.optimizer):
        return BackgroundSaver(engine, folder, keep)
    return Saver(engine, folder, keep)
