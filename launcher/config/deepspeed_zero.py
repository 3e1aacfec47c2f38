"""The `zero_optimization` block of a DeepSpeed JSON, checked before DeepSpeed asserts or ignores."""

from __future__ import annotations

import json
from typing import Any

from launcher.errors import DsConfigError, did_you_mean

# The fields and aliases of DeepSpeed 0.19.8's DeepSpeedZeroConfig, DeepSpeedZeroOffloadOptimizerConfig and
# DeepSpeedZeroOffloadParamConfig (deepspeed/runtime/zero/config.py, offload_config.py), less its deprecated ones; a
# test holds them against the installed version.
ZERO_KEYS = frozenset(
    (
        "stage",
        "contiguous_gradients",
        "reduce_scatter",
        "reduce_bucket_size",
        "use_multi_rank_bucket_allreduce",
        "allgather_partitions",
        "allgather_bucket_size",
        "allgather_sequential",
        "overlap_comm",
        "load_from_fp32_weights",
        "elastic_checkpoint",
        "offload_param",
        "offload_optimizer",
        "sub_group_size",
        "prefetch_bucket_size",
        "stage3_prefetch_bucket_size",
        "param_persistence_threshold",
        "stage3_param_persistence_threshold",
        "model_persistence_threshold",
        "stage3_model_persistence_threshold",
        "max_live_parameters",
        "stage3_max_live_parameters",
        "max_reuse_distance",
        "stage3_max_reuse_distance",
        "gather_16bit_weights_on_model_save",
        "stage3_gather_16bit_weights_on_model_save",
        "module_granularity_threshold",
        "stage3_module_granularity_threshold",
        "use_all_reduce_for_fetch_params",
        "stage3_use_all_reduce_for_fetch_params",
        "stage3_allgather_sequential",
        "ignore_unused_parameters",
        "round_robin_gradients",
        "zero_hpz_partition_size",
        "zero_quantized_weights",
        "zero_quantized_nontrainable_weights",
        "zero_quantized_gradients",
        "memory_efficient_linear",
        "override_module_apply",
        "log_trace_cache_warnings",
        "enable_sanity_checks",
        "compute_grad_norm",
        "parameter_alignment",
        "leaf_module",
    )
)
OFFLOAD_KEYS = {
    "offload_optimizer": frozenset(
        ("device", "pin_memory", "buffer_count", "nvme_path", "pipeline_read", "pipeline_write", "fast_init", "ratio")
    ),
    "offload_param": frozenset(("device", "pin_memory", "buffer_count", "buffer_size", "max_in_cpu", "nvme_path")),
}
LOWEST_STAGE = {"offload_optimizer": 1, "offload_param": 3}


def check_zero(zero: Any, where: str) -> None:
    """Check a `zero_optimization` block.

    Args:
        zero: The block.
        where: The file.

    Raises:
        DsConfigError: It is no object, has an unknown key, a stage that does not exist, or an offload that cannot be.
    """
    if not isinstance(zero, dict):
        raise DsConfigError("zero_optimization is an object", where, 'write {"stage": 0 to 3, …}')
    _refuse_unknown(zero, ZERO_KEYS, "zero_optimization", where)
    stage = zero.get("stage", 0)
    if isinstance(stage, bool) or not isinstance(stage, int) or stage not in (0, 1, 2, 3):
        raise DsConfigError(f"zero_optimization.stage is {json.dumps(stage)}", where, "use 0, 1, 2 or 3")
    for name in OFFLOAD_KEYS:
        if zero.get(name) is not None:
            _check_offload(name, zero[name], stage, where)


def _check_offload(name: str, block: Any, stage: int, where: str) -> None:
    if not isinstance(block, dict):
        raise DsConfigError(f"{name} is an object", where, 'write {"device": "cpu", "pin_memory": true}')
    _refuse_unknown(block, OFFLOAD_KEYS[name], name, where)
    device = block.get("device", "none")
    if device == "nvme":
        raise DsConfigError(
            f"{name}.device nvme cannot be saved and resumed yet",
            where,
            "use cpu: what DeepSpeed restores from NVMe is wrong, without a word (measured)",
        )
    if device not in ("none", "cpu"):
        raise DsConfigError(f"{name}.device is {json.dumps(device)}", where, "use none or cpu")
    if device == "none":
        return
    if stage < LOWEST_STAGE[name]:
        needed = LOWEST_STAGE[name]
        higher = " or higher" if needed < 3 else ""
        fix = f"set a higher stage, or delete {name}"
        raise DsConfigError(f"{name} needs stage {needed}{higher}, this is stage {stage}", where, fix)
    if block.get("ratio", 1) != 1:
        # DeepSpeed then splits the state over two optimizers; a checkpoint here is of one.
        raise DsConfigError(f"{name}.ratio other than 1 cannot be saved and resumed", where, "delete ratio")


def _refuse_unknown(block: dict[str, Any], known: frozenset[str], name: str, where: str) -> None:
    for key in block:
        if key not in known:
            raise DsConfigError(f"unknown key {name}.{key}", where, did_you_mean(key, known))
