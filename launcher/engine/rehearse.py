"""How large a micro batch fits: steps of the run's own engine, as they will be, with their memory watched.

The steps have a learning rate of zero; what they leave in the optimizer is for the caller to undo
(`launcher/checkpoint/rehearsal.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from deepspeed.accelerator import get_accelerator

from launcher.cluster import host_memory
from launcher.cluster.signals import StopRequest
from launcher.config.fitting import MARGIN, MARGIN_OF_KEPT, largest_fitting, next_to_measure
from launcher.config.recipe import Recipe
from launcher.engine.guards import Guard
from launcher.engine.length import FixedLength
from launcher.engine.process import gather
from launcher.engine.records import Health, StepBatch
from launcher.engine.steps import train_steps
from launcher.errors import MemoryShortError
from launcher.units import size as in_bytes

LESS_MEMORY = "a higher ZeRO stage, offload, model.activation_checkpointing=true, more ranks, or a shorter data.seq_len"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What was measured."""

    micro_batch: int
    """The largest that fits."""
    peak_bytes: int
    """Of the rank that needed most."""
    limit_bytes: int
    """Of the rank that has least."""


class _Meter(Protocol):
    """Watches this rank's memory."""

    limit_bytes: int

    def reset(self) -> None: ...

    def peak_bytes(self) -> int: ...


class _DeviceMeter:
    """The accelerator's memory, as torch's allocator takes it from the device."""

    def __init__(self) -> None:
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info()
        self.limit_bytes = free + torch.cuda.memory_reserved()

    def reset(self) -> None:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    def peak_bytes(self) -> int:
        return int(torch.cuda.max_memory_reserved())


class _HostMeter:
    """The host's memory: what this process holds, and its part of what is left for the ranks of the node."""

    def __init__(self, num_processes: int) -> None:
        self.limit_bytes = host_memory.resident_bytes() + host_memory.available_bytes() // num_processes

    def reset(self) -> None:
        host_memory.forget_peak()

    def peak_bytes(self) -> int:
        return host_memory.peak_resident_bytes()


def find_micro_batch(
    engine: Any,
    recipe: Recipe,
    sizes: Sequence[int],
    step_of: Callable[[int], StepBatch],
    local_world_size: int,
    kept: int | None = None,
) -> Fit:
    """Measure which micro batch fits; every rank comes to the same answer.

    Args:
        engine: DeepSpeed engine.
        recipe: The run.
        sizes: That cut every step into whole passes, ascending.
        step_of: A step of passes of so many samples, the longest there are.
        local_world_size: Ranks on this node, which share the host's memory.
        kept: One that the run had before: no larger one is taken.

    Raises:
        MemoryShortError: Not even the smallest one fits, or one did not that should have.
    """
    on_device = get_accelerator().device_name() == "cuda"
    meter: _Meter = _DeviceMeter() if on_device else _HostMeter(local_world_size)
    limit = int(gather(np.array([meter.limit_bytes], dtype=np.int64)).min())
    margin = MARGIN
    if kept is not None and kept in sizes:
        sizes, margin = [size for size in sizes if size <= kept], MARGIN_OF_KEPT
    budget = limit * (1 - margin)
    measured: dict[int, int] = {}
    while (size := next_to_measure(sizes, measured, budget)) is not None:
        measured[size] = _measure(engine, recipe, step_of(size), size, meter, measured)
        _log.info("micro batch %d: a peak of %s of %s", size, in_bytes(measured[size]), in_bytes(limit))
    best = largest_fitting(sizes, measured, budget)
    if best is None:
        raise _short(f"one sample a pass takes {in_bytes(measured[1])} of {in_bytes(limit)}", None)
    engine.set_train_micro_batch_size(best)
    return Fit(micro_batch=best, peak_bytes=measured[best], limit_bytes=limit)


def _measure(
    engine: Any, recipe: Recipe, batch: StepBatch, micro_batch: int, meter: _Meter, measured: dict[int, int]
) -> int:
    """The peak of one step, of the rank that needed most."""
    idle = recipe.model_copy(update={"optim": recipe.optim.model_copy(update={"lr": 0.0})})
    engine.set_train_micro_batch_size(micro_batch)
    meter.reset()
    try:
        with Guard(engine, recipe.guards, Health()) as guard:
            for _ in train_steps(engine, [batch], idle, 1, FixedLength(1), guard, StopRequest()):
                pass
    except torch.OutOfMemoryError:
        # The other ranks may wait for this one inside of a collective: nobody can go on from here.
        what = f"a pass of {micro_batch} samples did not fit into the device"
        raise _short(what, max(measured, default=None)) from None
    return int(gather(np.array([meter.peak_bytes()], dtype=np.int64)).max())


def _short(what: str, fitting: int | None) -> MemoryShortError:
    fix = f"use batch.micro_batch={fitting}" if fitting else f"use {LESS_MEMORY}"
    return MemoryShortError(what, "batch.micro_batch", fix)
