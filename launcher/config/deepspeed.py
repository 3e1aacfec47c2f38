"""DeepSpeed's JSON: what the user's file says about ZeRO, joined with what the recipe says about everything else.

The file owns the ZeRO stage, offload, buckets and communication. The recipe owns batch, precision, clipping, optimizer
and schedule: one run has one truth for each, and a file that says otherwise is refused, never silently overruled.
"""

from __future__ import annotations

import json
import zlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from packaging.version import Version

from launcher.config import places
from launcher.config.batch import BatchPlan
from launcher.config.compiled_ops import offload_devices
from launcher.config.deepspeed_check import RECIPE_KEYS, check_ds_config
from launcher.config.recipe import Recipe
from launcher.errors import DsConfigError, RecipeError

_PRECISIONS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"bf16": {"enabled": True}},
    "fp16": {"fp16": {"enabled": True}},
    "bf16_autocast": {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}},
}


SHARED_MATRICES = {
    "q_proj": "column",
    "k_proj": "column",
    "v_proj": "column",
    "gate_proj": "column",
    "up_proj": "column",
    "o_proj": "row",
    "down_proj": "row",
    "q_norm": "skip",
    "k_norm": "skip",
}
"""How AutoTP cuts the layers of `models.tensor_parallel.FAMILIES`; what it calls column are rows of the weight. Of what
every rank has whole, but computes with on its own heads only ("skip": Qwen3's norms), it adds up the gradients."""


def load_ds_config(name_or_path: str) -> dict[str, Any]:
    """Read a DeepSpeed JSON.

    Args:
        name_or_path: A path, or the name of a file in `ds_configs/` (with or without `.json`).

    Raises:
        DsConfigError: The file is missing, not JSON, or has a key twice, or says what DeepSpeed would ignore or refuse.
    """
    path = find_ds_config(name_or_path)
    config = read_ds_config(path)
    check_ds_config(config, str(path))
    return config


def find_ds_config(name_or_path: str) -> Path:
    """The file that a path, or the name of a file in `ds_configs/`, means.

    Raises:
        DsConfigError: There is none.
    """
    path = places.find("ds_configs", name_or_path, ".json")
    if path is None:
        known = places.names("ds_configs", ".json")
        raise DsConfigError(
            f"there is no DeepSpeed configuration {name_or_path!r}",
            "--ds_config",
            f"use a path, or one of: {', '.join(known)}",
        )
    return path


def read_ds_config(path: Path) -> dict[str, Any]:
    """Read a JSON object in which no key stands twice; what the keys are is not looked at.

    Raises:
        DsConfigError: It is missing, or something else.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_refuse_duplicates)
    except json.JSONDecodeError as error:
        raise DsConfigError(f"this is not JSON: {error.msg}", f"{path}:{error.lineno}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DsConfigError(f"the file cannot be read: {error}", str(path)) from None
    except _DuplicateKeyError as error:
        raise DsConfigError(f"the key {error} stands twice", str(path), "keep one of them") from None
    if not isinstance(config, dict):
        raise DsConfigError("a DeepSpeed configuration is a JSON object", str(path))
    return config


def resolve_ds_config(file: dict[str, Any], recipe: Recipe, batch: BatchPlan, precision: str) -> dict[str, Any]:
    """What DeepSpeed gets: the file's ZeRO settings and the recipe's batch, precision and clipping.

    Args:
        file: As `load_ds_config` returned it.
        recipe: The run.
        batch: How its global batch is cut on this world size.
        precision: `train.precision`, with `auto` settled for this hardware.

    Raises:
        DsConfigError: The file contradicts the recipe.
        RecipeError: Its experts or matrices cannot be shared among so many ranks, or at this stage.
    """
    from_recipe: dict[str, Any] = {
        **batch_keys(batch),
        "gradient_clipping": recipe.optim.grad_clip,
        **_PRECISIONS[precision],
        **({"sequence_parallel_size": batch.sequence_parallel} if batch.sequence_parallel > 1 else {}),
        **_tensor_parallel(batch.tensor_parallel, file.get("zero_optimization", {}), precision),
        **_expert_parallel(recipe.model.expert_parallel, batch.world_size, zero_stage(file)),
    }
    for key, field in RECIPE_KEYS.items():
        if key not in file or _agrees(file[key], from_recipe.get(key)):
            continue
        raise DsConfigError(
            f"{key!r} is {json.dumps(file[key])} here, but the recipe decides it ({json.dumps(from_recipe.get(key))})",
            "--ds_config",
            f"delete {key!r} from the file and set {field} in the recipe",
        )
    nodes_share = int(file.get("zero_optimization", {}).get("zero_hpz_partition_size", 1))
    if nodes_share > 1 and batch.world_size % nodes_share:
        raise DsConfigError(
            f"zero_hpz_partition_size {nodes_share} does not divide the world size of {batch.world_size}",
            "--ds_config",
            "set it to the number of ranks on a node",
        )
    if recipe.model.freeze and offload_devices(file)[1] == "nvme":
        raise DsConfigError(
            "weights that do not learn cannot lie on NVMe: DeepSpeed does not give back their buffers, and stops when "
            "all are taken",
            "--ds_config",
            "offload_param to cpu, or no model.freeze",
        )
    if recipe.model.compile and zero_stage(file) == 3:
        _refuse_torch_that_loses_gradients()
    ours: dict[str, Any] = {
        # Our optimizer is torch's fused AdamW: DeepSpeed's C++ Adam keeps a running product of beta^t that a resumed
        # run cannot rebuild bit by bit, and it has to be compiled first (both measured).
        "zero_allow_untested_optimizer": True,
        # Where its CPU Adam cannot be compiled, torch's AdamW steps on the host; DeepSpeed refuses it unless told so.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1_000_000_000,
        "wall_clock_breakdown": False,
    }
    zero = {"stage": 0, **_with_own_folders(file.get("zero_optimization", {}), recipe.run_folder)}
    return {**ours, **{k: v for k, v in file.items() if k not in RECIPE_KEYS}, **from_recipe, "zero_optimization": zero}


def _refuse_torch_that_loses_gradients() -> None:
    try:
        installed = version("torch")
    except PackageNotFoundError:  # on a login node, perhaps: the run looks again
        return
    if Version(installed).release < (2, 12):
        raise DsConfigError(
            f"torch {installed} compiles DeepSpeed's hooks of stage 3 so that gradients are lost: of ModernBERT no "
            "weight learns anything (measured; 2.12 and 2.13 keep them)",
            "model.compile",
            "install torch 2.12 or newer, or use model.compile=false or a lower stage",
        )


def batch_keys(batch: BatchPlan) -> dict[str, int]:
    """How DeepSpeed is told the cut of a step."""
    return {
        "train_batch_size": batch.global_batch,
        "train_micro_batch_size_per_gpu": batch.micro_batch,
        "gradient_accumulation_steps": batch.grad_accum_steps,
    }


def _expert_parallel(ranks: int, world_size: int, stage: int) -> dict[str, Any]:
    if ranks == 1:
        return {}
    where = "model.expert_parallel"
    if world_size % ranks:
        fitting = [str(n) for n in range(1, world_size + 1) if world_size % n == 0]
        raise RecipeError(
            f"a world size of {world_size} cannot be cut into groups of {ranks} ranks",
            where,
            f"use one of: {', '.join(fitting)}",
        )
    if stage != 3:
        raise RecipeError(
            f"experts are shared among ranks at ZeRO stage 3 only, this is stage {stage}",
            where,
            "use --ds_config zero3, or model.expert_parallel=1",
        )
    return {"expert_parallel": {"enabled": True, "autoep_size": ranks}}


def _tensor_parallel(ranks: int, zero: dict[str, Any], precision: str) -> dict[str, Any]:
    if ranks == 1:
        return {}
    if zero.get("stage", 0) == 0 and precision in ("bf16", "fp16"):
        # 0.19.8's FP16_UnfusedOptimizer.step takes the norm of gradients, which do not say that they are of a part.
        raise RecipeError(
            f"at stage 0 in {precision} DeepSpeed leaves most parts of a matrix out of the gradient's norm, and clips "
            "by what is left",
            "model.tensor_parallel",
            "use --ds_config zero1, or train.precision=bf16_autocast",
        )
    offloads = (zero.get("offload_param") or {}).get("device", "none") != "none"
    if offloads or zero.get("zero_hpz_partition_size", 1) > 1:
        raise RecipeError(
            f"matrices that ranks share were not tried with {'offload_param' if offloads else 'hpZ'}",
            "model.tensor_parallel",
            "use --ds_config zero3 or zero3_offload, or model.tensor_parallel=1",
        )
    specs = [
        {"patterns": [rf".*\.{name}\.weight$"], "partition_type": how, "grad_allreduce": how == "skip"}
        for name, how in SHARED_MATRICES.items()
    ]
    return {
        "tensor_parallel": {
            "autotp_size": ranks,
            "vocab_parallel_lm_head": False,
            "partition_config": {"use_default_specs": False, "layer_specs": specs},
        }
    }


def _with_own_folders(zero: dict[str, Any], run: Path) -> dict[str, Any]:
    """Runs that share a drive get folders of their own there: DeepSpeed names files by rank alone."""
    path = str(run.absolute())
    own = f"{run.name}-{zlib.crc32(path.encode()):08x}"
    blocks = {name: zero[name] for name in ("offload_optimizer", "offload_param") if zero.get(name)}
    on_nvme = {name: block for name, block in blocks.items() if block.get("device") == "nvme"}
    moved = {name: {**block, "nvme_path": str(Path(block["nvme_path"]) / own)} for name, block in on_nvme.items()}
    return {**zero, **moved}


def swap_folders(config: dict[str, Any]) -> list[Path]:
    """The folders on NVMe that a resolved configuration swaps to; empty where it does not."""
    zero = config.get("zero_optimization", {})
    blocks = [zero.get(name) or {} for name in ("offload_optimizer", "offload_param")]
    return sorted({Path(block["nvme_path"]) for block in blocks if block.get("device") == "nvme"})


def zero_stage(config: dict[str, Any]) -> int:
    """The ZeRO stage a configuration asks for; 0 when it says nothing."""
    return int(config.get("zero_optimization", {}).get("stage", 0))


def offloads_optimizer(config: dict[str, Any]) -> bool:
    """Whether the optimizer's state lives in host memory."""
    block = config.get("zero_optimization", {}).get("offload_optimizer") or {}
    return str(block.get("device", "none")) != "none"


class _DuplicateKeyError(ValueError):
    """A JSON object names a key twice."""


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise _DuplicateKeyError(repr(twice))
    return dict(pairs)


def _agrees(in_file: Any, in_recipe: Any) -> bool:
    if in_file == "auto" or in_file == in_recipe:
        return True
    if isinstance(in_file, dict):  # {"enabled": "auto"}, or a precision that is switched off both here and there
        enabled = in_file.get("enabled", False)
        return set(in_file) <= {"enabled"} and (enabled == "auto" or (enabled is False and in_recipe is None))
    return False
