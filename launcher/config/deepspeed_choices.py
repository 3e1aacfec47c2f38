"""What the builder of DeepSpeed's JSON is asked for, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from launcher.config.record import Record

Origin = Literal["given", "derived", "default", "file"]
Device = Literal["none", "cpu", "nvme"]
LEAST_SIZE = 1_000_000
"""Values of a bucket or a group that are derived, at least."""


class DsChoices(Record):
    """What a user chooses; None leaves it to the builder."""

    stage: Literal[0, 1, 2, 3] = 2
    offload_optimizer: Device = "none"
    offload_param: Device = "none"
    precision: Literal["fp32", "bf16", "fp16", "bf16_autocast"] | None = None
    global_batch: int | None = None
    micro_batch: int | None = None
    grad_accum_steps: int | None = None
    grad_clip: float | None = None
    num_parameters: int | None = None
    bucket_size: int | None = None
    overlap_comm: bool | None = None
    hpz: int | None = None
    quantized_weights: bool = False
    quantized_gradients: bool = False
    sub_group_size: int | None = None
    pin_memory: bool | None = None
    num_ranks: int | None = None
    nvme_path: str | None = None
    aio_block_size: int | None = None
    aio_queue_depth: int | None = None
    aio_threads: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One value of the file, and why it is there."""

    key: str
    """Dotted, as it lies in the JSON."""
    value: Any
    origin: Origin
    why: str
    """The reason of a derived or default value; who asked for a given one; which file another is of."""
    meaning: str
    memory: str
    """What it does to memory."""
