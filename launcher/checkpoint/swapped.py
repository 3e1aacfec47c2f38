"""What lies on NVMe between steps: in memory piece by piece, for as long as somebody looks at it.

At stage 3 with `offload_optimizer.device: nvme` DeepSpeed keeps master weights and moments of each group of parameters
in files, with `offload_param.device: nvme` the weights too. What is below 1 MiB, or the aio block, stays in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def is_swapped(optimizer: Any, group: int) -> bool:
    """Whether a group of a stage-3 optimizer lies on NVMe between steps."""
    return bool(optimizer._swappable_optimizer_subgroup(group))


def has_swapped_groups(optimizer: Any) -> bool:
    """Whether some of an optimizer lies on NVMe between steps."""
    return bool(getattr(optimizer, "swap_optimizer", False))


@contextmanager
def group_to_read(optimizer: Any, group: int) -> Iterator[None]:
    """Have a group's master and moments in memory; what is written into them may be lost.

    Args:
        optimizer: DeepSpeed's at stage 3.
        group: Number of the group.
    """
    if not is_swapped(optimizer, group):
        yield
        return
    optimizer._optimizer_states_and_gradient_swap_in(group)
    try:
        yield
    finally:
        optimizer._release_swap_buffers(group)


@contextmanager
def group_to_fill(optimizer: Any, group: int) -> Iterator[None]:
    """Have a group's master and moments in memory; what is written into them stays."""
    if not is_swapped(optimizer, group):
        yield
        return
    optimizer._optimizer_states_and_gradient_swap_in(group)
    try:
        yield
    finally:
        optimizer._optimizer_states_and_gradient_swap_out(group)


@contextmanager
def partition_to_fill(parameter: Any) -> Iterator[torch.Tensor]:
    """This rank's part of a partitioned parameter, flat, padding included; what is written into it stays."""
    if _is_in_memory(parameter):
        yield parameter.ds_tensor.data.view(-1)
        return
    parameter.nvme_swapper.swap_in([parameter], async_op=False)
    try:
        yield parameter.ds_tensor.data.view(-1)
    finally:
        parameter.nvme_swapper.swap_out_and_release([parameter])


def _is_in_memory(parameter: Any) -> bool:
    status = getattr(parameter.ds_tensor, "status", None)
    return status is None or status.name == "AVAILABLE"
