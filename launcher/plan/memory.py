"""Bytes that training takes on a rank, from the numbers of a model and a DeepSpeed configuration.

Activations are not in it: `batch.micro_batch: auto` measures them.
"""

from __future__ import annotations

from dataclasses import replace

from launcher.units import StateBytes

REDUCE_BUCKET = 500_000_000
"""Values of a bucket where the configuration names none. Source: DeepSpeed 0.19.8, zero/config.py."""

OFFLOADED_BYTES = 16
"""Of a parameter whose optimizer is offloaded, on the host or on NVMe: master, two moments, a gradient. Source:
Rajbhandari et al. 2021 (ZeRO-Infinity, arXiv:2104.07857), section 3."""


def state_bytes(
    num_parameters: int,
    *,
    stage: int,
    world_size: int,
    weight_bytes: int = 4,
    persistent_parameters: int = 0,
    reduce_bucket: int = REDUCE_BUCKET,
    ranks_of_second_copy: int = 1,
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
        ranks_of_second_copy: `zero_hpz_partition_size`: ranks that hold all weights once more together; 1 for none.

    Source: Rajbhandari et al. 2020 (ZeRO), section 3.1; measured: `python -m benchmarks.memory`. DeepSpeed keeps fp32
        weights of its own from stage 1 on even where the model's are fp32 already: 4/N bytes more than the paper's.
    """
    weights, share = weight_bytes * num_parameters, num_parameters / world_size
    if stage == 0:
        state = (8 if weight_bytes == 4 else 12) * num_parameters
        return StateBytes(parameters=weights, gradients=weights, optimizer=state, buffers=0)
    again = num_parameters / ranks_of_second_copy if ranks_of_second_copy > 1 else 0
    return StateBytes(
        parameters=weights if stage < 3 else round(weight_bytes * (share + again + persistent_parameters)),
        gradients=round(weight_bytes * share),
        optimizer=round(12 * share),
        buffers=weight_bytes * reduce_bucket if stage == 3 else 0,
    )


def left_on_device(state: StateBytes, *, offloads_optimizer: bool, offloads_parameters: bool) -> StateBytes:
    """What of a rank's state stays on its device where the rest is offloaded: gradients go with the optimizer."""
    if offloads_optimizer:
        state = replace(state, gradients=0, optimizer=0)
    return replace(state, parameters=0) if offloads_parameters else state


def parameters_of_rank(num_parameters: int, num_whole: int, tensor_parallel: int) -> int:
    """Parameters of the model of one rank, which ZeRO shares with the ranks that have the same part of it.

    Args:
        num_parameters: Of the whole model.
        num_whole: Those that every rank has whole: embeddings, an output layer (norms are left out).
        tensor_parallel: Ranks among which the others are cut.
    """
    return num_whole + (num_parameters - num_whole) // tensor_parallel


def offloaded_bytes(num_parameters: int, num_ranks: int, num_sharing: int, gradient_bytes: int = 0) -> int:
    """What an offloaded optimizer takes for `num_ranks` ranks of a node.

    Args:
        num_parameters: Of one rank's model: `parameters_of_rank`.
        num_ranks: Of the node.
        num_sharing: Ranks that share the state of one model: of the whole run, over `model.tensor_parallel`.
        gradient_bytes: Of a parameter whose gradient lies on the host once more: `kept_gradient_bytes`.
    """
    return (OFFLOADED_BYTES + gradient_bytes) * num_parameters * num_ranks // num_sharing


def kept_gradient_bytes(stage: int, weight_bytes: int, grad_accum_steps: int) -> int:
    """Of a parameter's gradient, as the passes add it up on the host before it becomes the optimizer's in fp32.

    Source: DeepSpeed 0.19.8, `grad_partitions_flat_buffer` in zero/stage3.py, and `accumulated_grads_in_cpu` in
        zero/stage_1_and_2.py, which is there only where a step has several passes.
    """
    return weight_bytes if stage == 3 or grad_accum_steps > 1 else 0
