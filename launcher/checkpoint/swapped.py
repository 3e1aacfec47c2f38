"""Groups of optimizer state that lie on NVMe: in memory one at a time, for as long as somebody looks at them.

At stage 3 with `offload_optimizer.device: nvme` DeepSpeed keeps master weights and moments of each group of parameters
in files, and none of it in memory between steps. Groups below its least size (1 MiB, or the aio block) stay in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


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
    """Have a group's master and moments in memory; what is written into them stays, and so do the weights on NVMe."""
    swapped = is_swapped(optimizer, group)
    if swapped:
        optimizer._optimizer_states_and_gradient_swap_in(group)
    try:
        yield
        if optimizer.fp16_partitioned_groups_flat[group] is None:  # the working weights are on NVMe as well
            optimizer._partitioned_params_swap_out(group)
    finally:
        if swapped:
            optimizer._optimizer_states_and_gradient_swap_out(group)


def is_in_memory(parameter: Any) -> bool:
    """Whether a partitioned parameter's own part can be touched, and does not lie on NVMe."""
    status = getattr(parameter.ds_tensor, "status", None)
    return status is None or status.name == "AVAILABLE"
