"""Bytes that training takes on a rank, from the numbers of a model and a DeepSpeed configuration.

Activations are not in it: `batch.micro_batch: auto` measures them.
"""

from __future__ import annotations

from dataclasses import dataclass

REDUCE_BUCKET = 500_000_000
"""Values of a bucket where the configuration names none. Source: DeepSpeed 0.19.8, zero/config.py."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StateBytes:
    """What a rank's tensors take when a backward pass is done and the optimizer has not stepped yet."""

    parameters: int
    """Weights the model computes with."""
    gradients: int
    """That wait for the step."""
    optimizer: int
    """fp32 weights of mixed precision, of stages 1 to 3 always, and AdamW's two moments."""
    buffers: int
    """All else: the buckets of communication, what a model computes with and does not learn."""

    @property
    def total(self) -> int:
        """Of all four."""
        return self.parameters + self.gradients + self.optimizer + self.buffers


def state_bytes(
    num_parameters: int,
    *,
    stage: int,
    world_size: int,
    weight_bytes: int = 4,
    persistent_parameters: int = 0,
    reduce_bucket: int = REDUCE_BUCKET,
) -> StateBytes:
    """What AdamW and ZeRO hold on each of `world_size` ranks.

    Args:
        num_parameters: Of the model.
        stage: Of ZeRO.
        world_size: Data-parallel ranks.
        weight_bytes: 2 for bf16 and fp16, 4 for fp32 and autocast.
        persistent_parameters: Of stage 3: those in tensors below `stage3_param_persistence_threshold`, which every rank
            keeps whole.
        reduce_bucket: `reduce_bucket_size`; of stage 3, which keeps one bucket for good (the others give theirs back
            before the optimizer steps).

    Source: Rajbhandari et al. 2020 (ZeRO), section 3.1; measured: `python -m benchmarks.memory`. DeepSpeed keeps fp32
        weights of its own from stage 1 on even where the model's are fp32 already: 4/N bytes more than the paper's.
    """
    weights, share = weight_bytes * num_parameters, num_parameters / world_size
    if stage == 0:
        state = (8 if weight_bytes == 4 else 12) * num_parameters
        return StateBytes(parameters=weights, gradients=weights, optimizer=state, buffers=0)
    return StateBytes(
        parameters=weights if stage < 3 else round(weight_bytes * (share + persistent_parameters)),
        gradients=round(weight_bytes * share),
        optimizer=round(12 * share),
        buffers=weight_bytes * reduce_bucket if stage == 3 else 0,
    )
