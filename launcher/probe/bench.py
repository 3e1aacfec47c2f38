"""What an accelerator and its links can do: measured with torch, by the back end the run will use."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from launcher.probe.wire import Message

MEASURE_S = 1.0
"""For each test; an accelerator that throttles when warm shows it within a second or so (assumption)."""
MATMUL_WIDTH = {"cpu": 256, "other": 8192}
"""A product of two square matrices: some milliseconds (33 MFLOP on a core, 1.1 TFLOP on an accelerator)."""
COPY_BYTES = {"cpu": 1 << 26, "other": 1 << 30}
"""Beyond every cache."""
REDUCE_BYTES = {"cpu": 1 << 22, "other": 1 << 28}
REDUCE_TIMES = 5


@dataclass(slots=True)
class TorchBench:
    """Tests on this rank's device.

    Args:
        local_rank: Which device of the host is this rank's.
    """

    local_rank: int
    _device: torch.device = field(init=False)
    _store: Any = None

    def __post_init__(self) -> None:
        # With several, ranks that share cores wait for each other's threads (one hundredth of the speed, measured).
        torch.set_num_threads(1)
        if torch.cuda.is_available():
            # Where each task sees its own device only, the local rank counts others as well.
            self._device = torch.device("cuda", self.local_rank % torch.cuda.device_count())
            torch.cuda.set_device(self._device)
        else:
            self._device = torch.device("cpu")

    def compute(self) -> Message:
        """Arithmetic, memory, and how much of it is free."""
        kind = self._kind()
        width = MATMUL_WIDTH[kind]
        dtype = torch.float32 if kind == "cpu" else torch.bfloat16
        left, right = (torch.randn(width, width, device=self._device).to(dtype) for _ in range(2))
        out = torch.empty_like(left)
        matmul_s = self._time(lambda: torch.matmul(left, right, out=out))
        source = torch.zeros(COPY_BYTES[kind] // 4, device=self._device)
        target = torch.empty_like(source)
        copy_s = self._time(lambda: target.copy_(source))
        told: Message = {
            "device": kind if kind == "cpu" else torch.cuda.get_device_name(self._device),
            "matmul_flops": 2.0 * width**3 / matmul_s,
            "copy_bytes_per_s": 2.0 * COPY_BYTES[kind] / copy_s,
        }
        if kind != "cpu":
            del left, right, out, source, target
            torch.cuda.empty_cache()
            told["free_bytes"], told["device_bytes"] = torch.cuda.mem_get_info(self._device)
        return told

    def open_store(self, address: str) -> int:
        """Let ranks meet here; returns the port."""
        self._store = TCPStore(address, 0, is_master=True, wait_for_workers=False)
        return int(self._store.port)

    def reduce(self, address: str, port: int, rank: int, world_size: int, seconds: float) -> Message:
        """Add up a vector over ranks, some times.

        Args:
            address: Where the ranks meet.
            port: There.
            rank: Of this process among them.
            world_size: How many they are.
            seconds: When to give up.
        """
        timeout = timedelta(seconds=seconds)
        own, self._store = self._store, None
        store = own if rank == 0 and own is not None else TCPStore(address, port, is_master=False, timeout=timeout)
        backend = "gloo" if self._kind() == "cpu" else "nccl"
        # What takes too long is an error to be told, in place of a process that torch's watchdog ends.
        os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
        try:
            num_bytes = REDUCE_BYTES[self._kind()]
            vector = torch.empty(num_bytes // 4, device=self._device)
            times = []
            for _ in range(REDUCE_TIMES + 1):
                vector.fill_(float(rank + 1))
                self._synchronize()
                began = time.perf_counter()
                dist.all_reduce(vector)
                self._synchronize()
                times.append(time.perf_counter() - began)
            expected = world_size * (world_size + 1) / 2
            is_right = bool((vector == expected).all())
        finally:
            dist.destroy_process_group()
        # What each link carries of a ring: 2 (n - 1) / n of the vector. Source: NCCL tests, doc/PERFORMANCE.md.
        moved = 2.0 * (world_size - 1) / world_size * num_bytes
        return {"backend": backend, "bytes_per_s": moved / median(times[1:]), "right": is_right}

    def _kind(self) -> str:
        return "cpu" if self._device.type == "cpu" else "other"

    def _synchronize(self) -> None:
        if self._kind() != "cpu":
            torch.cuda.synchronize(self._device)

    def _time(self, work: Callable[[], object]) -> float:
        """Seconds of one call: on an accelerator the median; on a CPU the best, without what others took away of it."""
        times = []
        clock = time.thread_time if self._kind() == "cpu" else time.perf_counter
        for _ in range(3):
            work()
        self._synchronize()
        until = time.perf_counter() + MEASURE_S
        while time.perf_counter() < until:
            began = clock()
            work()
            self._synchronize()
            times.append(clock() - began)
        return min(times) if self._kind() == "cpu" else median(times)
