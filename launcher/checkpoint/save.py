"""Saving: every rank its slices, rank 0 the rest, one rename that makes it a checkpoint.

`Saver` streams the state to the disk while training waits, in no more memory than one block. `BackgroundSaver` copies
it to host memory, which is kept for the next save, and writes from there while training goes on.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed
from deepspeed.accelerator import get_accelerator

from launcher.checkpoint import folder as layout
from launcher.checkpoint.loss_scale import loss_scale_state
from launcher.checkpoint.part import Part
from launcher.checkpoint.ranks import LostRankError, Ranks, SaveError, SpaceError
from launcher.checkpoint.retention import prune
from launcher.checkpoint.slices import optimizer_step
from launcher.checkpoint.swapped import has_swapped_groups
from launcher.checkpoint.tensor_file import BLOCK_BYTES, DurableFile, StreamedFile, aligned_buffer, copy_bytes
from launcher.cluster import host_memory
from launcher.config.recipe import CheckpointConfig
from launcher.units import size

RETRIES = 3
LOWEST_PRIORITY = 19
SHARE_OF_MEMORY = 0.8
"""Of the memory a host has left, what copies may take; the rest is for the steps' own peaks: assumption."""
SMALL_FILES_BYTES = 1 << 20
"""Room for the JSON of a rank beside its tensors; assumption."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveOutcome:
    """How a save ended."""

    step: int
    num_bytes: int
    """Of all ranks together."""
    blocked_s: float
    """Time training stood still for it, on this rank."""
    durable_s: float
    """From the beginning until the last byte was on the disk."""
    deleted: tuple[int, ...] = ()
    """Steps of older checkpoints that were deleted, on rank 0."""
    problem: SaveError | None = None
    """Why there is no checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """One checkpoint, all but the tensors."""

    step: int
    texts: dict[str, str]
    """Files of rank 0 by name."""
    started: float


class Saver:
    """Writes checkpoints while training waits; a context manager.

    Args:
        engine: DeepSpeed engine; every rank makes its saver at the same moment.
        folder: The run's `checkpoints/`.
        keep: What to keep, and how long to try.
    """

    def __init__(self, engine: Any, folder: Path, keep: CheckpointConfig) -> None:
        self._engine = engine
        self._folder = folder
        self._keep = keep
        self._ranks = Ranks()
        self._part: Part | None = None
        self._outcomes: list[SaveOutcome] = []
        self._failed: SaveError | None = None

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.wait()

    def save(self, state: Mapping[str, Any], texts: Mapping[str, str]) -> None:
        """Write a checkpoint; every rank calls it at the same step.

        A crash at any instant leaves the previous checkpoint as the newest complete one: a save gets its name only
        when every rank's file is on the disk and the manifest that lists them is written. What cannot be written is
        no error here: `outcomes` tells, `finish` raises.

        Args:
            state: What `state.json` says; must hold `step`.
            texts: Further files, name → content (`recipe.yaml`, `config.json`).
        """
        job = self._job(state, texts)
        part = self._current_part()
        self._done(self._run(job, part, lambda saving: _stream(part, saving)), job, blocked_s=None)

    def outcomes(self) -> list[SaveOutcome]:
        """How the saves ended that have since this was last asked."""
        told, self._outcomes = self._outcomes, []
        return told

    def wait(self) -> None:
        """Wait for the save in flight, if there is one."""

    @property
    def in_flight(self) -> bool:
        """Whether a save is going on."""
        return False

    def finish(self) -> None:
        """Wait for the last save.

        Raises:
            SaveError: On every rank, if it failed.
        """
        self.wait()
        if self._failed is not None:
            raise self._failed

    def _job(self, state: Mapping[str, Any], texts: Mapping[str, str]) -> _Job:
        of_engine = {
            "format_version": layout.FORMAT_VERSION,
            "optimizer_step": optimizer_step(self._engine),
            "loss_scale": loss_scale_state(self._engine),
            "zero_stage": self._engine.zero_optimization_stage(),
            "world_size": self._ranks.world_size,
        }
        text = json.dumps({**of_engine, **state}, indent=1)  # now: the run's own lists go on growing
        return _Job(step=int(state["step"]), texts={**texts, "state.json": text}, started=time.perf_counter())

    def _current_part(self) -> Part:
        if self._part is None:
            self._part = Part(self._engine)
        else:
            self._part.hold()
        return self._part

    def _done(self, ended: tuple[int, SaveError | None, list[int]], job: _Job, blocked_s: float | None) -> None:
        num_bytes, problem, deleted = ended
        elapsed = time.perf_counter() - job.started
        self._failed = problem
        self._outcomes.append(
            SaveOutcome(
                step=job.step,
                num_bytes=num_bytes,
                blocked_s=elapsed if blocked_s is None else blocked_s,
                durable_s=elapsed,
                deleted=tuple(deleted),
                problem=problem,
            )
        )

    def _run(
        self, job: _Job, part: Part, write: Callable[[Path], dict[str, Any]]
    ) -> tuple[int, SaveError | None, list[int]]:
        """Try until it is written, or too often; returns bytes of all ranks, the problem, the steps deleted."""
        num_bytes, problem = 0, None
        for attempt in range(1 + RETRIES if self._keep.retry_s else 1):
            if attempt:
                time.sleep(self._keep.retry_s / RETRIES)
            try:
                num_bytes = sum(self._ranks.exchange(part.layout.num_bytes + SMALL_FILES_BYTES))
                self._write_all(job, part, write, num_bytes)
                return num_bytes, None, self._tidy(job.step)
            except LostRankError as error:
                return num_bytes, error, []
            except SaveError as error:
                problem = error
        return num_bytes, problem, []

    def _write_all(self, job: _Job, part: Part, write: Callable[[Path], dict[str, Any]], num_bytes: int) -> None:
        saving = layout.saving_path(self._folder, job.step)

        def make_place() -> None:
            _check_space(self._folder, num_bytes)
            shutil.rmtree(saving, ignore_errors=True)
            saving.mkdir(parents=True)

        def write_mine() -> None:
            index = part.index(write(saving))
            layout.write_durably(part.path(saving).with_suffix(".json"), index)

        is_first = self._ranks.rank == 0
        self._ranks.together(make_place if is_first else None, self._folder)
        self._ranks.together(write_mine, self._folder)
        self._ranks.together((lambda: _complete(self._folder, job)) if is_first else None, self._folder)

    def _tidy(self, step: int) -> list[int]:
        """Name the new checkpoint in `latest` and delete old ones; returns their steps."""
        if self._ranks.rank != 0:
            return []
        try:
            layout.write_latest(self._folder, step)
            return prune(self._folder, self._keep)
        except OSError as error:  # the new checkpoint stands; the rest is tried again after the next save
            logging.getLogger(__name__).warning("old checkpoints could not be deleted: %s", error)
            return []


class BackgroundSaver(Saver):
    """Copies the state to host memory and writes it while training goes on; one save at a time."""

    def __init__(self, engine: Any, folder: Path, keep: CheckpointConfig) -> None:
        super().__init__(engine, folder, keep)
        self._thread: threading.Thread | None = None
        self._bug: BaseException | None = None
        self._buffer: torch.Tensor | None = None
        self._has_room: bool | None = None

    def save(self, state: Mapping[str, Any], texts: Mapping[str, str]) -> None:
        """Copy everything, and begin to write; where the save before is still being written, wait for it first.

        On hosts without room for the copy training waits while it is written.
        """
        started = time.perf_counter()
        self.wait()
        part = self._current_part()
        if not self._can_copy(part):
            super().save(state, texts)
            return
        job = self._job(state, texts)
        buffer = self._fill(part)
        blocked_s = time.perf_counter() - started

        def write(saving: Path) -> dict[str, Any]:
            with DurableFile(part.path(saving)) as file:
                file.append(buffer, part.layout.num_bytes)
                return file.finish()

        def run() -> None:
            try:
                with suppress(OSError):  # of this thread alone; hashing gives way to training
                    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)
                self._done(self._run(job, part, write), job, blocked_s)
            except BaseException as error:
                self._bug = error

        # daemon: an error elsewhere ends the process; what was half written has no name
        self._thread = threading.Thread(target=run, name="save", daemon=True)
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

    def _fill(self, part: Part) -> torch.Tensor:
        on_device = get_accelerator().device_name() != "cpu"
        if self._buffer is None:
            self._buffer = aligned_buffer(part.layout.num_bytes, pinned=on_device)
        end = len(part.layout.header)
        self._buffer[:end].copy_(torch.frombuffer(bytearray(part.layout.header), dtype=torch.uint8))
        for tensor in part.tensors():
            values = tensor.detach().reshape(-1).view(torch.uint8)
            begin, end = end, end + len(values)
            copy_bytes(values, self._buffer[begin:end])
        if on_device:
            get_accelerator().synchronize()
        return self._buffer


def make_saver(engine: Any, folder: Path, keep: CheckpointConfig) -> Saver:
    """The saver `checkpoint.asynchronous` asks for; what lies on NVMe for want of memory is not copied to memory."""
    if keep.asynchronous and not has_swapped_groups(engine.optimizer):
        return BackgroundSaver(engine, folder, keep)
    return Saver(engine, folder, keep)


def _stream(part: Part, saving: Path) -> dict[str, Any]:
    with DurableFile(part.path(saving)) as file:
        stream = StreamedFile(file, part.layout, aligned_buffer(BLOCK_BYTES))
        for tensor in part.tensors():
            stream.add(tensor)
        return stream.finish()


def _check_space(folder: Path, num_bytes: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise SpaceError(f"a checkpoint takes {size(num_bytes)}, {size(free)} are free")


def _complete(folder: Path, job: _Job) -> None:
    """Write what makes the ranks' files a checkpoint, and give it its name."""
    saving, final = layout.saving_path(folder, job.step), layout.checkpoint_path(folder, job.step)
    for name, text in job.texts.items():
        layout.write_durably(saving / name, text)
    ranks = sorted(saving.glob("rank-*.json"))
    written = [json.loads(path.read_text(encoding="utf-8"))["file"] for path in ranks]
    small = [layout.describe_file(saving / name) for name in job.texts]
    small += [layout.describe_file(path) for path in ranks]
    manifest = {"format_version": layout.FORMAT_VERSION, "step": job.step, "files": written + small}
    layout.write_durably(saving / layout.MANIFEST, json.dumps(manifest, indent=1))
    layout.sync(saving)
    if final.exists():  # of a run that went back behind it
        layout.delete(final)
    os.replace(saving, final)
    layout.sync(folder)
