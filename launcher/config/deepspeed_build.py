"""A DeepSpeed JSON from a few choices, every value with its reason.

Sizes of buckets and groups are counted in values, not in bytes, as DeepSpeed counts them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from launcher.config.deepspeed_check import overlap_bytes
from launcher.config.deepspeed_choices import LEAST_SIZE, DsChoices, Origin, Setting
from launcher.config.deepspeed_offload import offload_settings
from launcher.errors import DsConfigError

BUCKET = 50_000_000
"""Values of a bucket unless derived or given: 100 MB in bf16, a tenth of DeepSpeed's own, of which one alone holds all
gradients of a small model, so that nothing overlaps (110M parameters: 35 % slower, measured)."""
LARGEST_BUCKET = 200_000_000
BUCKETS_OF_A_STEP = 16
"""Buckets that the gradients of a rank should fill, so that sending one overlaps with computing the next."""


def build_ds_config(choices: DsChoices) -> list[Setting]:
    """The settings of a DeepSpeed JSON.

    Raises:
        DsConfigError: The choices exclude each other.
    """
    _check_choices(choices)
    return [*_zero(choices), *_recipes_part(choices)]


def as_json(settings: list[Setting], base: dict[str, Any] | None = None) -> dict[str, Any]:
    """The settings as DeepSpeed reads them, laid over what a file said before.

    Args:
        settings: What `build_ds_config` returned.
        base: A configuration whose other keys are kept; it is not changed.
    """
    config = _copy(base or {})
    for setting in settings:
        block = config
        *outer, last = setting.key.split(".")
        for name in outer:
            block = block.setdefault(name, {})
        block[last] = setting.value
    return config


def _copy(block: dict[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, dict) else value for key, value in block.items()}


def _check_choices(choices: DsChoices) -> None:
    lowest = {
        "offload_optimizer": (choices.offload_optimizer != "none", 3 if choices.offload_optimizer == "nvme" else 1),
        "offload_param": (choices.offload_param != "none", 3),
        "hpz": (choices.hpz is not None, 3),
        "quantized_weights": (choices.quantized_weights, 3),
        "quantized_gradients": (choices.quantized_gradients, 3),
    }
    for name, (is_on, stage) in lowest.items():
        if is_on and choices.stage < stage:
            option = f"--{name.replace('_', '-')}"
            raise DsConfigError(
                f"{option} needs --stage {stage}{'' if stage == 3 else ' or higher'}", option, "see --help"
            )
    offloads = choices.offload_optimizer != "none" or choices.offload_param != "none"
    for name, has_effect, wanted in (
        ("bucket_size", choices.stage > 0, "--stage 1 or higher"),
        ("overlap_comm", choices.stage > 0, "--stage 1 or higher"),
        ("sub_group_size", choices.stage == 3, "--stage 3"),
        ("pin_memory", offloads, "--offload-optimizer or --offload-param"),
    ):
        if getattr(choices, name) is not None and not has_effect:
            option = f"--{name.replace('_', '-')}"
            raise DsConfigError(f"{option} has no effect here", option, f"add {wanted}, or leave it out")
    on_nvme = "nvme" in (choices.offload_optimizer, choices.offload_param)
    if on_nvme and choices.nvme_path is None:
        raise DsConfigError(
            "offload to NVMe needs a folder there", "--nvme-path", "give a folder on a local NVMe drive"
        )
    for name in ("nvme_path", "aio_block_size", "aio_queue_depth", "aio_threads"):
        if getattr(choices, name) is not None and not on_nvme:
            option = f"--{name.replace('_', '-')}"
            raise DsConfigError(f"{option} is for offload to NVMe", option, "add --offload-optimizer nvme")


def _zero(choices: DsChoices) -> Iterator[Setting]:
    zero, stage = "zero_optimization", choices.stage
    parts = ("nothing", "the optimizer's state", "the optimizer's state and gradients", "state, gradients and weights")
    saved = (
        "16 bytes a parameter on every rank (fp32 or mixed precision with AdamW)",
        "4 + 12/N bytes a parameter with bf16 weights on N ranks",
        "2 + 14/N bytes a parameter with bf16 weights on N ranks",
        "16/N bytes a parameter, and the layers being computed",
    )
    yield Setting(
        key=f"{zero}.stage",
        value=stage,
        origin="given",
        why="--stage",
        meaning=f"ranks share {parts[stage]}",
        memory=saved[stage],
    )
    if stage == 0:
        return
    bucket, origin, why = _bucket(choices)
    yield Setting(
        key=f"{zero}.reduce_bucket_size",
        value=bucket,
        origin=origin,
        why=why,
        meaning="gradients sent at once: larger ones cost fewer calls, smaller ones overlap earlier",
        memory=f"{overlap_bytes(bucket) / 1e6:.0f} MB with overlap_comm, {bucket * 2 / 1e6:.0f} without (bf16)",
    )
    if stage < 3:
        yield Setting(
            key=f"{zero}.allgather_bucket_size",
            value=bucket,
            origin=origin,
            why="as reduce_bucket_size",
            meaning="updated weights sent at once",
            memory=f"{bucket * 2 / 1e6:.0f} MB (bf16)",
        )
    overlap = True if choices.overlap_comm is None else choices.overlap_comm
    yield Setting(
        key=f"{zero}.overlap_comm",
        value=overlap,
        origin="default" if choices.overlap_comm is None else "given",
        why="sending gradients while others are computed hides it"
        if choices.overlap_comm is None
        else "--overlap-comm",
        meaning="reduce gradients while the backward pass goes on",
        memory="several buckets live at once",
    )
    if stage > 1:
        yield Setting(
            key=f"{zero}.contiguous_gradients",
            value=True,
            origin="default",
            why="gradients copied into one buffer do not fragment memory",
            meaning="gradients of a bucket lie side by side",
            memory="none beyond the bucket",
        )
    if stage == 3:
        yield from _stage_3(choices, bucket, origin)
    yield from offload_settings(choices)


def _bucket(choices: DsChoices) -> tuple[int, Origin, str]:
    if choices.bucket_size is not None:
        return choices.bucket_size, "given", "--bucket-size"
    if choices.num_parameters is None:
        return BUCKET, "default", "a tenth of DeepSpeed's, which leaves small models nothing to overlap"
    size = min(max(choices.num_parameters // BUCKETS_OF_A_STEP, LEAST_SIZE), LARGEST_BUCKET)
    return size, "derived", f"{BUCKETS_OF_A_STEP} buckets of {choices.num_parameters} parameters"


def _stage_3(choices: DsChoices, bucket: int, origin: Origin) -> Iterator[Setting]:
    zero = "zero_optimization"
    yield Setting(
        key=f"{zero}.stage3_prefetch_bucket_size",
        value=bucket,
        origin=origin,
        why="as reduce_bucket_size",
        meaning="weights gathered ahead of the layer that needs them",
        memory=f"{bucket * 2 / 1e6:.0f} MB (bf16)",
    )
    yield Setting(
        key=f"{zero}.stage3_param_persistence_threshold",
        value=100_000,
        origin="default",
        why="DeepSpeed's: gathering a norm or a bias costs more than keeping it",
        meaning="parameters below this size stay whole on every rank",
        memory="those parameters once more on every rank",
    )
    yield Setting(
        key=f"{zero}.stage3_max_live_parameters",
        value=1_000_000_000,
        origin="default",
        why="DeepSpeed's",
        meaning="whole parameters on a rank at once, at most",
        memory="2 GB (bf16) at most; lower where a rank runs out",
    )
    on_nvme = choices.offload_param == "nvme"
    yield Setting(
        key=f"{zero}.stage3_max_reuse_distance",
        value=0 if on_nvme else 1_000_000_000,
        origin="derived" if on_nvme else "default",
        why="weights kept for their next use take up all buffers of NVMe, and DeepSpeed stops"
        if on_nvme
        else "DeepSpeed's",
        meaning="a parameter needed again within so many values is not given back",
        memory="none" if on_nvme else "2 GB (bf16) at most; lower where a rank runs out",
    )
    if choices.hpz is not None:
        yield Setting(
            key=f"{zero}.zero_hpz_partition_size",
            value=choices.hpz,
            origin="given",
            why="--hpz",
            meaning="each group of so many ranks (those of a node) holds all weights once more: the backward pass "
            "gathers inside of the node (ZeRO++, Wang et al. 2023, arXiv:2306.10209)",
            memory=f"2/{choices.hpz} bytes a parameter more on every rank",
        )
    for name, is_on, what in (
        ("zero_quantized_weights", choices.quantized_weights, "weights are gathered in 8 bits"),
        ("zero_quantized_gradients", choices.quantized_gradients, "gradients are reduced in 4 bits, node by node"),
    ):
        if is_on:
            yield Setting(
                key=f"{zero}.{name}",
                value=True,
                origin="given",
                why=f"--{name.removeprefix('zero_').replace('_', '-')}",
                meaning=f"{what} (ZeRO++); losses differ a little; needs GPUs",
                memory="buffers of the quantized values",
            )


def _recipes_part(choices: DsChoices) -> Iterator[Setting]:
    """What the recipe decides: only where it was asked for, and then the recipe must agree."""
    by_precision: dict[str, dict[str, Any]] = {
        "bf16": {"bf16": {"enabled": True}},
        "fp16": {"fp16": {"enabled": True}},
        "bf16_autocast": {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}},
    }
    precision = by_precision.get(choices.precision or "fp32", {})
    asked: list[tuple[str, Any, str, str]] = [
        ("train_batch_size", choices.global_batch, "samples of a step over all ranks", "none by itself"),
        ("train_micro_batch_size_per_gpu", choices.micro_batch, "samples of a pass on a rank", "activations"),
        ("gradient_accumulation_steps", choices.grad_accum_steps, "passes of a step", "none: gradients are summed up"),
        ("gradient_clipping", choices.grad_clip, "largest norm of the gradient", "none"),
        *((key, value, "what weights and activations are computed in", "2 bytes a weight in place of 4")
          for key, value in precision.items()),
    ]  # fmt: skip
    for key, value, meaning, memory in asked:
        if value is not None:
            yield Setting(
                key=key,
                value=value,
                origin="given",
                why="a recipe that says otherwise is refused",
                meaning=meaning,
                memory=memory,
            )
