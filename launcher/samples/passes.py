"""Which positions a rank takes in one pass of one optimizer step.

Shapes: M samples of a micro batch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from launcher.errors import BatchShapeError


def pass_positions(
    first: int, pass_index: int, rank: int, world_size: int, micro_batch: int, global_batch: int
) -> NDArray[np.int64]:
    """The positions one rank computes in one pass: a contiguous run of `micro_batch`.

    A step covers the positions from `first` up to `first + global_batch`, whatever the ranks and passes it is cut
    into: the ranks of pass 0 come first, in rank order, then those of pass 1.

    Args:
        first: Position at which the optimizer step begins: the samples consumed before it.
        pass_index: Forward-backward pass inside the step, from 0.
        rank: Data-parallel rank of this process, from 0.
        world_size: Number of data-parallel ranks.
        micro_batch: Samples per rank and pass.
        global_batch: Samples per step, all ranks and passes together.

    Returns:
        int64 [M].

    Raises:
        BatchShapeError: The global batch is not a whole number of passes.
        IndexError: The position, pass or rank lies outside the run.
    """
    samples_per_pass = world_size * micro_batch
    if samples_per_pass < 1 or global_batch < 1 or global_batch % samples_per_pass:
        raise BatchShapeError(
            f"{global_batch} samples per step cannot be cut into passes of {samples_per_pass} "
            f"({micro_batch} per rank on {world_size} ranks)",
            "batch.global_batch",
            "use a multiple of the micro batch times the number of ranks",
        )
    num_passes = global_batch // samples_per_pass
    if first < 0 or not 0 <= pass_index < num_passes or not 0 <= rank < world_size:
        raise IndexError(f"no position {first}, pass {pass_index} of {num_passes}, rank {rank} of {world_size}")
    start = first + (pass_index * world_size + rank) * micro_batch
    return np.arange(start, start + micro_batch, dtype=np.int64)
