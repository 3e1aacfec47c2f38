"""Saving: every rank its slices, rank 0 the rest, one rename that makes it a checkpoint.

`Saver` streams the state to the disk while training waits, in no more memory than one block; `background` has the one
that does not let it wait.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from launcher.checkpoint import folder as layout
from launcher.checkpoint.loss_scale import loss_scale_state
from launcher.checkpoint.part import Part
from launcher.checkpoint.ranks import CopyError, LostRankError, Ranks, SaveError, SpaceError
from launcher.checkpoint.retention import prune
from launcher.checkpoint.slices import optimizer_step
from launcher.checkpoint.tensor_file import BLOCK_BYTES, DurableFile, StreamedFile, aligned_buffer
from launcher.config.recipe import CheckpointConfig
from launcher.engine.process import ranks_per_model
from launcher.errors import RequeueError
from launcher.shards import durable
from launcher.units import size

RETRIES = 3
SMALL_FILES_BYTES = 1 << 20
"""Room for the JSON of a rank beside its tensors; assumption."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveOutcome:
    """How a save ended."""

    step: int
    num_bytes: int
    """Tensors of all ranks together."""
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
    """Writes checkpoints while training waits.

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
        self._outcomes: SimpleQueue[SaveOutcome] = SimpleQueue()
        self._failed: SaveError | None = None

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
        return [self._outcomes.get_nowait() for _ in range(self._outcomes.qsize())]

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
            "ranks_per_model": ranks_per_model(self._engine),
        }
        text = json.dumps({**of_engine, **state}, indent=1)  # now: the run's own lists go on growing
        return _Job(
            step=int(state["step"]),
            texts={**texts, "state.json": text},
            started=time.perf_counter(),
        )

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
        self._outcomes.put(
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
                num_bytes = sum(self._ranks.exchange(part.layout.num_bytes))
                self._write_all(job, part, write, num_bytes)
                return num_bytes, None, self._tidy(job.step)
            except LostRankError as error:
                return num_bytes, error, []
            except SaveError as error:
                problem = error
                self._clear_up()
                if isinstance(error, CopyError):
                    break
        return num_bytes, problem, []

    def _write_all(self, job: _Job, part: Part, write: Callable[[Path], dict[str, Any]], num_bytes: int) -> None:
        saving = layout.saving_path(self._folder, job.step)

        def make_place() -> None:
            layout.delete_unfinished(self._folder)  # of a process that was killed: it takes up room
            _check_space(self._folder, num_bytes + self._ranks.world_size * SMALL_FILES_BYTES)
            saving.mkdir()

        def write_mine() -> list[dict[str, Any]]:
            tensors = write(saving)
            return [tensors, layout.write_file(part.path(saving).with_suffix(".json"), part.index(tensors))]

        is_first = self._ranks.rank == 0
        self._ranks.together(make_place if is_first else None, self._folder)
        # The large ones first: ranks that verify them take one each in turn.
        tensors, indices = zip(*self._ranks.together(write_mine, self._folder), strict=True)
        files = [*tensors, *indices]
        self._ranks.together((lambda: _complete(self._folder, job, files)) if is_first else None, self._folder)

    def _clear_up(self) -> None:
        """Keep no room on what may be a full disk; every rank has told how far it came, so nobody writes there."""
        if self._ranks.rank == 0:
            with suppress(OSError):
                layout.delete_unfinished(self._folder)

    def _tidy(self, step: int) -> list[int]:
        """Name the new checkpoint in `latest` and delete old ones; returns their steps."""
        if self._ranks.rank != 0:
            return []
        try:
            layout.write_latest(self._folder, step)
            return prune(self._folder, self._keep)
        except (OSError, RequeueError) as error:  # the new checkpoint stands; the next save tries the rest again
            logging.getLogger(__name__).warning("old checkpoints could not be deleted: %s", error)
            return []


def _stream(part: Part, saving: Path) -> dict[str, Any]:
    with DurableFile(part.path(saving)) as file:
        stream = StreamedFile(file, part.layout, aligned_buffer(BLOCK_BYTES))
        for tensor in part.tensors():
            stream.add(tensor)
        return stream.finish()


def _check_space(folder: Path, num_bytes: int) -> None:
    if not folder.exists():
        folder.mkdir(parents=True)
        durable.sync(folder.parent)
        durable.sync(folder.parent.parent)  # the run's own name
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise SpaceError(f"a checkpoint takes {size(num_bytes)}, {size(free)} are free")


def _complete(folder: Path, job: _Job, of_ranks: list[dict[str, Any]]) -> None:
    """Write what makes the ranks' files a checkpoint, and give it its name.

    Args:
        folder: The run's `checkpoints/`.
        job: What is to be saved.
        of_ranks: The ranks' files, as they have told them: what another host has just made, a network file system may
            not show here yet.
    """
    saving = layout.saving_path(folder, job.step)
    small = [layout.write_file(saving / name, text) for name, text in job.texts.items()]
    layout.publish(folder, job.step, of_ranks + small)
