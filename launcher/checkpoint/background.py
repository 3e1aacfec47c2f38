"""Saving while training goes on.

The state is copied to host memory, in a buffer that is kept for the next save, and hashed and written from there by a
thread of the lowest priority. Master weights and moments change only when the optimizer steps: on a CPU the copy is
made while the next gradients are computed, in the moments that training leaves idle, and the optimizer waits for what
is left of it. From a device it is made at once.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator

from launcher.checkpoint.part import Part
from launcher.checkpoint.save import SaveOutcome, Saver
from launcher.checkpoint.swapped import has_swapped_groups
from launcher.checkpoint.tensor_file import DurableFile, aligned_buffer, copy_bytes
from launcher.cluster import host_memory
from launcher.config.recipe import CheckpointConfig
from launcher.units import size

LOWEST_PRIORITY = 19
SHARE_OF_MEMORY = 0.8
"""Of the memory a host has left, what copies may take; the rest is for the steps' own peaks: assumption."""


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
        self._copied = threading.Event()
        self._copied.set()
        self._blocked_s = 0.0
        for optimizer in (engine.basic_optimizer, getattr(engine.optimizer, "backup_optimizer", None)):
            if optimizer is not None:  # the second steps what `offload_optimizer.ratio` leaves on the device
                optimizer.register_step_pre_hook(self._let_the_copy_be_made)

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
        tensors = list(part.tensors())  # of what changes with every pass these are copies, of the rest views
        self._copied.clear()
        if get_accelerator().device_name() != "cpu":
            self._copy(part, tensors)

        def write(saving: Path) -> dict[str, Any]:
            buffer = self._buffer
            assert buffer is not None
            with DurableFile(part.path(saving)) as file:
                file.append(buffer, part.layout.num_bytes)
                return file.finish()

        def run() -> None:
            try:
                with suppress(OSError):  # of this thread alone
                    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)
                if not self._copied.is_set():
                    self._copy(part, tensors)
                ended = self._run(job, part, write)
                self._done(ended, job, self._blocked_s)
            except BaseException as error:
                self._bug = error
            finally:
                self._copied.set()

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
        if not self._copied.is_set():
            started = time.perf_counter()
            self._copied.wait()
            self._blocked_s += time.perf_counter() - started

    def _can_copy(self, part: Part) -> bool:
        """Whether every rank's copy fits into what its host has left; asked once, before the first is made."""
        if self._has_room is None:
            needed = part.layout.num_bytes * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
            left = host_memory.available_bytes()
            self._has_room = all(self._ranks.exchange(needed < left * SHARE_OF_MEMORY))
            if not self._has_room:
                told = "no room for a copy of the state (%s of %s on this host): training waits for every save"
                logging.getLogger(__name__).warning(told, size(needed), size(left))
        return self._has_room

    def _copy(self, part: Part, tensors: list[torch.Tensor]) -> None:
        on_device = get_accelerator().device_name() != "cpu"
        if self._buffer is None:
            self._buffer = aligned_buffer(part.layout.num_bytes, pinned=on_device)
        end = len(part.layout.header)
        self._buffer[:end].copy_(torch.frombuffer(bytearray(part.layout.header), dtype=torch.uint8))
        for tensor in tensors:
            values = tensor.detach().reshape(-1).view(torch.uint8)
            begin, end = end, end + len(values)
            copy_bytes(values, self._buffer[begin:end])
        if on_device:
            get_accelerator().synchronize()
        self._copied.set()


def make_saver(engine: Any, folder: Path, keep: CheckpointConfig) -> Saver:
    """The saver `checkpoint.asynchronous` asks for; what lies on NVMe for want of memory is not copied to memory."""
    if keep.asynchronous and not has_swapped_groups(engine.optimizer):
        return BackgroundSaver(engine, folder, keep)
    return Saver(engine, folder, keep)
