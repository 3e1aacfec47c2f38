"""A DeepSpeed JSON checked before DeepSpeed asserts, or ignores what it does not know."""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Iterator, Mapping
from typing import Any

from launcher.config.deepspeed_keys import Key, keys_of, other_version, removed_keys
from launcher.errors import DsConfigError, did_you_mean

FILE_KEYS = frozenset(
    (
        "zero_optimization",
        "zero_allow_untested_optimizer",
        "zero_force_ds_cpu_optimizer",
        "communication_data_type",
        "prescale_gradients",
        "gradient_predivide_factor",
        "data_types",
        "activation_checkpointing",
        "aio",
        "comms_logger",
        "flops_profiler",
        "wall_clock_breakdown",
        "memory_breakdown",
        "steps_per_print",
        "dump_state",
        "compile",
        "timers",
        "disable_python_gc",
        "log_level",
    )
)
"""What a file may say beside a recipe."""
RECIPE_KEYS = {
    "train_batch_size": "batch.global_batch",
    "train_micro_batch_size_per_gpu": "batch.micro_batch",
    "gradient_accumulation_steps": "batch.global_batch, batch.micro_batch and the number of ranks",
    "gradient_clipping": "optim.grad_clip",
    "bf16": "train.precision",
    "fp16": "train.precision",
    "torch_autocast": "train.precision",
    "optimizer": "optim",
    "scheduler": "schedule",
    "checkpoint": "checkpoint",
    "expert_parallel": "model.expert_parallel",
    "sequence_parallel_size": "model.sequence_parallel",
    "tensor_parallel": "model.tensor_parallel",
}
"""Keys whose value the recipe decides → the recipe's field that does."""
_OWN_METRICS = "a run writes metrics.jsonl and tensorboard/ itself"
_OWN_DATA = "the order of samples is the recipe's"
NOT_HERE = {
    "data_parallel_size": "it follows from the number of ranks, model.sequence_parallel and model.tensor_parallel",
    "pipeline": "a transformers model is no list of stages",
    "use_data_before_expert_parallelism": "groups of ranks stand side by side, so that they are on one node",
    "seq_parallel_communication_data_type": "gradients of ranks that share sequences are added up in fp32",
    "tensorboard": _OWN_METRICS,
    "wandb": _OWN_METRICS,
    "csv_monitor": _OWN_METRICS,
    "comet": _OWN_METRICS,
    "data_efficiency": _OWN_DATA,
    "dataloader_drop_last": _OWN_DATA,
    "vocabulary_size": "the model's vocabulary is the tokenizer's",
    "bfloat16": "DeepSpeed's older name of bf16",
    "hybrid_engine": "it is for generating during RLHF",
    "weight_quantization": "it is for inference",
    "autotuning": "it starts runs of its own",
    "datastates_ckpt": "checkpoints here are the launcher's own",
    "gradient_allreduce_op": "losses here are means over the global batch",
    "managed_gradient_accumulation": "the step loop counts passes itself",
    "disable_allgather": "weights would differ between ranks",
    "zero_optimization.zenflow": "it trains with other losses, and its state is in no checkpoint",
    "zero_optimization.offload_optimizer.super_offload": "its state is in no checkpoint",
    "zero_optimization.compute_grad_norm": "without the norm a gradient that is no number goes into the weights",
}
"""What DeepSpeed knows and a run here does not take, and why."""
LOWEST_STAGE = {
    "offload_optimizer": 1,
    "offload_param": 3,
    "zero_hpz_partition_size": 3,
    "zero_quantized_weights": 3,
    "zero_quantized_nontrainable_weights": 3,
    "zero_quantized_gradients": 3,
}
"""Of what DeepSpeed would ignore below."""
ALIASES = ("prefetch_bucket_size", "param_persistence_threshold", "model_persistence_threshold", "max_live_parameters",
           "max_reuse_distance", "gather_16bit_weights_on_model_save", "module_granularity_threshold",
           "use_all_reduce_for_fetch_params", "allgather_sequential")  # fmt: skip
"""Keys that DeepSpeed takes with `stage3_` before them as well."""
CPU_OPTIMIZERS = ("adam", "adamw", "adagrad", "lion")
"""Types of optimizer of which DeepSpeed has a form for the host's CPU."""
ADAM_BUFFERS = 4
"""Buffers a group of AdamW needs on its way from NVMe: weights, gradients and two moments."""
LEAST_SWAPPED = 1 << 20
"""Bytes below which DeepSpeed leaves a tensor in memory, or `aio.block_size` where that is more. Source: DeepSpeed,
swap_tensor/utils.py, MIN_AIO_BYTES."""
OVERLAP_FACTOR = 4.5
"""Buffers of `overlap_comm` over a bucket. Source: DeepSpeed's documentation of reduce_bucket_size."""


def check_ds_config(config: dict[str, Any], where: str, *, device_bytes: int | None = None) -> list[str]:
    """Check a DeepSpeed configuration, without DeepSpeed.

    Args:
        config: As read from JSON.
        where: The file, for messages.
        device_bytes: Memory of one accelerator, where that is known: whether the buffers fit.

    Returns:
        Warnings: settings that are likely not what was meant, but can run.

    Raises:
        DsConfigError: DeepSpeed would ignore, refuse or misunderstand something in it.
    """
    _check_block("", config, where)
    zero = config.get("zero_optimization", {})
    stage = zero.get("stage", 0)
    _check_stage(zero, stage, where)
    _check_nvme(zero, stage, where)
    _check_precision(config, where)
    _check_batch(config, where)
    _check_optimizer(config, zero, where)
    _check_buffers(zero, stage, device_bytes, where)
    return list(_warnings(config, zero, stage))


def _check_block(name: str, block: Any, where: str) -> None:
    if not isinstance(block, dict):
        raise DsConfigError(f"{name or 'a DeepSpeed configuration'} is an object", where, 'write {"…": …}')
    known, removed = keys_of(name), removed_keys(name)
    for key, value in block.items():
        full = f"{name}.{key}" if name else key
        if key in removed:
            raise DsConfigError(removed[key], where, f"delete {full!r}")
        if full in NOT_HERE:
            raise DsConfigError(f"{full!r} is not supported: {NOT_HERE[full]}", where, f"delete {full!r}")
        if key not in known:
            choices = known if name else FILE_KEYS | RECIPE_KEYS.keys()
            raise DsConfigError(f"unknown key {full!r}", where, did_you_mean(key, choices))
        _check_value(full, known[key], value, where)
        if keys_of(full) and value is not None:
            _check_block(full, value, where)


def _check_value(name: str, key: Key, value: Any, where: str) -> None:
    shown = json.dumps(value)
    if key.deprecated is not None:
        fix = f"use {key.deprecated}" if key.deprecated else "delete it"
        raise DsConfigError(f"{name!r} is deprecated", where, fix)
    if value == "auto" and name.partition(".")[0] in RECIPE_KEYS:
        return  # transformers' Trainer's files say so of what the recipe fills in
    if value == "auto" and key.default != "auto":
        fix = "write a value, or delete it: what the recipe decides is filled in"
        raise DsConfigError(f'{name} is "auto", which DeepSpeed drops without a word', where, fix)
    if value is None and (key.null or key.type == "any"):
        return
    if key.type == "one of":
        if isinstance(value, bool) or value not in key.values:
            choices = ", ".join(json.dumps(choice) for choice in key.values)
            raise DsConfigError(f"{name} is {shown}", where, f"use one of: {choices}")
    elif not _is_a(key.type, value):
        raise DsConfigError(f"{name} is {shown}", where, f"write {_KINDS[key.type]}")
    for bound, holds, words in (
        (key.ge, operator.ge, "at least"),
        (key.gt, operator.gt, "more than"),
        (key.le, operator.le, "at most"),
        (key.lt, operator.lt, "less than"),
    ):
        if bound is not None and not holds(value, bound):
            raise DsConfigError(f"{name} is {shown}", where, f"use {words} {bound:g}")


_KINDS = {
    "bool": "true or false",
    "int": "a whole number",
    "number": "a number",
    "string": "a text in quotes",
    "object": 'an object, {"…": …}',
}


def _is_a(kind: str, value: Any) -> bool:
    if kind == "any":
        return True
    if isinstance(value, bool):
        return kind == "bool"
    if kind == "int":  # 5e8 is a float to JSON
        return isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return isinstance(value, {"bool": bool, "number": int | float, "string": str, "object": dict}[kind])


def _check_stage(zero: Mapping[str, Any], stage: int, where: str) -> None:
    for name in ALIASES:
        both = [key for key in (name, f"stage3_{name}") if key in zero]
        if len(both) == 2 and zero[both[0]] != zero[both[1]]:
            raise DsConfigError(f"{both[0]} and {both[1]} are one setting with two values", where, f"delete {both[0]}")
    for name, lowest in LOWEST_STAGE.items():
        value = zero.get(name)
        is_on = value.get("device", "none") != "none" if isinstance(value, dict) else value not in (None, False, 0, 1)
        if (value is True or is_on) and stage < lowest:
            higher = " or higher" if lowest < 3 else ""
            fix = f"set a higher stage, or delete {name}"
            raise DsConfigError(f"{name} needs stage {lowest}{higher}, this is stage {stage}", where, fix)
    block = zero.get("offload_optimizer") or {}
    if block.get("ratio", 1) != 1:
        # DeepSpeed then splits the state over two optimizers; a checkpoint here is of one.
        raise DsConfigError("offload_optimizer.ratio other than 1 cannot be saved and resumed", where, "delete ratio")


def _check_nvme(zero: Mapping[str, Any], stage: int, where: str) -> None:
    for name in ("offload_optimizer", "offload_param"):
        block = zero.get(name) or {}
        if block.get("device") != "nvme":
            continue
        if stage < 3:
            raise DsConfigError(
                f"{name}.device nvme needs stage 3: at stage {stage} DeepSpeed keeps the state in the host's memory",
                where,
                "use cpu, or stage 3",
            )
        if not isinstance(block.get("nvme_path"), str) or not block["nvme_path"]:
            raise DsConfigError(
                f"{name}.device nvme needs a nvme_path",
                where,
                "name a folder on a local NVMe drive: pretrain ds-config --nvme-path FOLDER",
            )
    kept = zero.get("stage3_max_reuse_distance", zero.get("max_reuse_distance"))
    if (zero.get("offload_param") or {}).get("device") == "nvme" and kept != 0:
        raise DsConfigError(
            "offload_param.device nvme needs stage3_max_reuse_distance 0: DeepSpeed stops in the middle of a pass when "
            "weights that it keeps for their next use have taken all buffers",
            where,
            'set "stage3_max_reuse_distance" to 0',
        )
    block = zero.get("offload_optimizer") or {}
    # A group on its way takes a buffer for weights, gradients and both moments; with pipelining, so does its neighbour.
    pipelined = sum(bool(block.get(key)) for key in ("pipeline_read", "pipeline_write"))
    least = ADAM_BUFFERS * (1 + pipelined)
    if block.get("device") == "nvme" and block.get("buffer_count", ADAM_BUFFERS) < least:
        raise DsConfigError(
            f"offload_optimizer.buffer_count is {block.get('buffer_count', ADAM_BUFFERS)}, AdamW needs {least}"
            f"{' with pipelining' if pipelined else ''}",
            where,
            f"set it to {least}",
        )


def _check_precision(config: Mapping[str, Any], where: str) -> None:
    on = [name for name in ("bf16", "fp16", "torch_autocast") if config.get(name, {}).get("enabled") is True]
    if len(on) > 1:
        raise DsConfigError(f"{' and '.join(on)} are both enabled", where, "enable one of them")


def _check_batch(config: Mapping[str, Any], where: str) -> None:
    names = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    sizes = {name: config[name] for name in names if config.get(name) not in (None, "auto")}
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise DsConfigError(f"{name} is {json.dumps(value)}", where, "use a whole number from 1 on")
    clip = config.get("gradient_clipping")
    if isinstance(clip, int | float) and not 0 <= clip < math.inf:
        raise DsConfigError(f"gradient_clipping is {json.dumps(clip)}", where, "use at least 0, which clips nothing")
    batch, micro, passes = (sizes.get(name) for name in names)
    if batch and batch % ((micro or 1) * (passes or 1)):
        raise DsConfigError(
            f"train_batch_size {batch} is no multiple of {micro or 1} samples a pass x {passes or 1} passes",
            where,
            "train_batch_size = train_micro_batch_size_per_gpu x gradient_accumulation_steps x ranks",
        )


def _check_optimizer(config: Mapping[str, Any], zero: Mapping[str, Any], where: str) -> None:
    kind = config.get("optimizer", {}).get("type")
    offloads = (zero.get("offload_optimizer") or {}).get("device", "none") != "none"
    if kind is not None and offloads and str(kind).lower() not in CPU_OPTIMIZERS:
        choices = ", ".join(CPU_OPTIMIZERS)
        raise DsConfigError(f"the optimizer {kind} cannot be offloaded", where, f"use one of: {choices}")


def _check_buffers(zero: Mapping[str, Any], stage: int, device_bytes: int | None, where: str) -> None:
    told = _buffers_too_large(zero, stage, device_bytes)
    if told is not None:
        raise DsConfigError(told[0], where, told[1])


def buffer_doubts(config: Mapping[str, Any], device_bytes: int | None) -> Iterator[str]:
    """What a run says before it takes its buffers, where the file was written for larger devices.

    Args:
        config: DeepSpeed's, as resolved.
        device_bytes: Memory of this rank's accelerator; None on a CPU.
    """
    zero = config.get("zero_optimization", {})
    told = _buffers_too_large(zero, zero.get("stage", 0), device_bytes)
    if told is not None:
        yield f"{told[0]}; {told[1]}"


def _buffers_too_large(zero: Mapping[str, Any], stage: int, device_bytes: int | None) -> tuple[str, str] | None:
    """What takes too much, and what to do; None where nothing does."""
    if device_bytes is None or stage == 0 or not overlaps(zero, stage):
        return None
    bucket = int(zero.get("reduce_bucket_size", keys_of("zero_optimization")["reduce_bucket_size"].default or 0))
    buffers = overlap_bytes(bucket)
    if buffers <= device_bytes / 2:
        return None
    smaller = int(device_bytes / 8 / OVERLAP_FACTOR / 2)
    return (
        f"the buffers of overlap_comm take {buffers / 1e9:.1f} GB of the device's {device_bytes / 1e9:.1f}",
        f'set "reduce_bucket_size" to {smaller} or less, or "overlap_comm" to false',
    )


def overlaps(zero: Mapping[str, Any], stage: int) -> bool:
    """Whether communication overlaps the backward pass; without the key, DeepSpeed does it at stage 3."""
    given = zero.get("overlap_comm")
    return stage == 3 if given is None else bool(given)


def overlap_bytes(bucket: int) -> int:
    """Bytes of the buffers of `overlap_comm`, for buckets of so many values of two bytes."""
    return int(OVERLAP_FACTOR * bucket * 2)


def _nvme_warnings(config: Mapping[str, Any], zero: Mapping[str, Any]) -> Iterator[str]:
    devices = {name: (zero.get(name) or {}).get("device", "none") for name in ("offload_optimizer", "offload_param")}
    for name, device in devices.items():
        if device != "nvme" and "nvme_path" in (zero.get(name) or {}):
            yield f"zero_optimization.{name}.nvme_path: without effect, the device is {device}"
    if "nvme" not in devices.values() and "aio" in config:
        yield "aio: without effect, nothing is offloaded to NVMe"
    if devices["offload_optimizer"] != "nvme":
        return
    group = zero.get("sub_group_size")
    least = max(LEAST_SWAPPED, int((config.get("aio") or {}).get("block_size", 0)))
    if group is None:
        yield (
            "zero_optimization.sub_group_size is not set: DeepSpeed's 1000000000 makes one group of most models, and a "
            "step holds four copies of it in memory; pretrain ds-config writes one that fits"
        )
    elif group * 4 < least:
        yield (
            f"zero_optimization.sub_group_size {int(group)}: groups below {least} bytes (4 a value) stay in memory; "
            f"{-(-least // 4)} or more reach NVMe"
        )


def _without_effect(zero: Mapping[str, Any], stage: int) -> Iterator[str]:
    """Keys that DeepSpeed does not read at this stage; of those it would ignore with harm, see LOWEST_STAGE."""
    for key in zero.keys() - LOWEST_STAGE.keys() - {"stage"}:
        of_stage_3 = key.startswith("stage3_") or key in (*ALIASES, "sub_group_size")
        if stage == 0 or (of_stage_3 and stage < 3) or (key == "allgather_bucket_size" and stage == 3):
            yield key


def _warnings(config: Mapping[str, Any], zero: Mapping[str, Any], stage: int) -> Iterator[str]:
    other = other_version()
    if other is not None:
        yield other
    if stage > 0 and "reduce_bucket_size" not in zero:
        yield (
            "zero_optimization.reduce_bucket_size is not set: DeepSpeed's 500000000 costs a model of 110M parameters a "
            "third of its speed (measured); pretrain ds-config writes one that fits"
        )
    if "activation_checkpointing" in config:
        yield (
            "activation_checkpointing in DeepSpeed's JSON is for models that call deepspeed.checkpointing; those of "
            "transformers recompute by the recipe's model.activation_checkpointing"
        )
    for key in ("optimizer", "scheduler", "checkpoint"):
        if config.get(key) not in (None, "auto"):
            yield f"{key}: the recipe decides it ({RECIPE_KEYS[key]}); a run refuses a file that has it"
    yield from _nvme_warnings(config, zero)
    unused = sorted(_without_effect(zero, stage))
    if unused:
        yield f"{', '.join(unused)}: without effect at stage {stage}"
    if zero.get("zero_quantized_gradients"):
        yield "zero_optimization.zero_quantized_gradients: gradients in 4 bits give other losses than unquantized ones"
    if zero.get("zero_quantized_weights"):
        yield "zero_optimization.zero_quantized_weights: weights gathered in 8 bits give other losses"
