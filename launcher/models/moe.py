"""How a block's experts are computed: transformers' own ways, or MegaBlocks' dropless one on the same parameters.

T: tokens   K: experts of a token   N: T * K   E: experts   H: width   F: width of an expert   G: 2 * F
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from launcher.config.model import ModelConfig
from launcher.errors import MissingDependencyError, ModelError
from launcher.models.routing import routed_blocks, weights_in

MEGABLOCKS_INSTALL = (
    "on a machine with CUDA and its compiler: make megablocks, or with CUDA 12 "
    "pip install --no-deps --no-build-isolation megablocks==0.10.0 grouped_gemm==0.3.0 stanford-stk==0.7.1"
)
"""Its pins exclude torch from 2.7.1 on, hence `--no-deps`; CUDA 13 takes no `debug_synchronous`, hence the Makefile."""


MEGABLOCKS_MLP = ("w1", "v1", "w2")
"""MegaBlocks' names of an expert's gate, up and down projection."""
GROUPED_MM_ALIGNMENT = 16
"""Bytes that every row of its matrices must be a multiple of (torch 2.13: "strides should be multiple of 16 bytes")."""


def gather_routed_blocks_whole(model: PreTrainedModel) -> None:
    """Tell ZeRO-3 to gather the blocks that route as one; a dense model stays as it is.

    DeepSpeed gathers parameters module by module, in the order in which a rank comes to them. Ranks whose tokens go to
    different experts come to different modules, and wait for each other for ever.

    Args:
        model: Partitioned, before DeepSpeed has it.
    """
    from deepspeed.utils import set_z3_leaf_modules  # seconds, which a model that is only asked does without

    leaves = list(dict.fromkeys(type(block) for block in routed_blocks(model)))
    if leaves:
        set_z3_leaf_modules(model, leaves)


def choose_experts(model: PreTrainedModel, record: ModelConfig, *, device: str, half: bool, weight_bytes: int) -> None:
    """Set how the experts of a model are computed; their parameters, names and shapes stay transformers' own.

    Args:
        model: As transformers built it, whole or partitioned.
        record: The recipe's model section.
        device: What it will run on.
        half: Whether it will compute in bf16.
        weight_bytes: Of one weight, as it will be multiplied.

    Raises:
        ModelError: A way is named that the model has no use for, or that cannot compute it.
        MissingDependencyError: MegaBlocks is asked for and not here, or there is no CUDA.
    """
    has_experts = bool(routed_blocks(model))
    can_choose = has_experts and model._can_set_experts_implementation()
    if record.experts == "auto":
        choose_experts_that_fit(model, weight_bytes)
        return
    if not has_experts:
        raise ModelError(f"{model.config.model_type} has no experts", "model.experts", "delete it from the recipe")
    if not can_choose:
        if record.experts == "eager":
            return
        raise ModelError(
            f"transformers computes the experts of {model.config.model_type} one after the other only",
            "model.experts",
            "use model.experts=auto",
        )
    if record.experts == "grouped_mm" and not _fits_grouped_mm(model, weight_bytes):
        raise ModelError(
            f"grouped matmul takes widths that are multiples of {GROUPED_MM_ALIGNMENT // weight_bytes} at "
            f"{weight_bytes} bytes a weight, and the experts of this model are of others",
            "model.experts",
            "use model.experts=auto, or other widths",
        )
    if record.experts == "megablocks":
        _check_megablocks(model, device=device, half=half)
        ALL_EXPERTS_FUNCTIONS.register("megablocks", megablocks_experts)
    model.set_experts_implementation(record.experts)


def follow_autocast(model: PreTrainedModel) -> None:
    """Let grouped matmuls multiply in autocast's type where that is on, as every other matmul of the model does.

    torch's grouped matmul does not know of autocast: fp32 weights would be multiplied in fp32.

    Args:
        model: Dense ones, and those whose experts are computed in another way, stay as they are.
    """
    if getattr(model.config, "_experts_implementation", None) != "grouped_mm":
        return
    for block in routed_blocks(model):
        for child in block.children():
            if any(_is_stacked(weight) for weight in child.parameters(recurse=False)):
                child.forward = types.MethodType(_in_autocast(child.forward), child)


def _in_autocast(inner: Callable[..., Any]) -> Callable[..., Any]:
    def forward(experts: Any, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        device = hidden.device.type
        if not torch.is_autocast_enabled(device):
            return inner(hidden, *args, **kwargs)
        with weights_in(experts, torch.get_autocast_dtype(device)):
            return inner(hidden.to(torch.get_autocast_dtype(device)), *args, **kwargs).to(hidden.dtype)

    return forward


def choose_experts_that_fit(model: PreTrainedModel, weight_bytes: int) -> None:
    """Compute experts by grouped matmul where family and widths allow it, else one after the other.

    Grouped matmul is transformers' own choice where the family has it (measured, `benchmarks.experts`: forward and
    backward 1.1 to 4.6 times as fast as one expert after the other with Mixtral's 8 experts, 7.5 to 21 times with 64:
    each expert's backward writes a gradient of all of them). It does not look at the widths: the first forward pass
    would fail.

    Args:
        model: Dense ones stay as they are.
        weight_bytes: Of one weight, as it is multiplied.
    """
    if model._can_set_experts_implementation() and not _fits_grouped_mm(model, weight_bytes):
        model.set_experts_implementation("eager")


def megablocks_experts(
    experts: Any, hidden_TH: torch.Tensor, chosen_TK: torch.Tensor, weights_TK: torch.Tensor
) -> torch.Tensor:
    """MegaBlocks' dropless computation of a transformers experts module: sort by expert, two grouped matmuls, unsort.

    The same ops in the same order as `megablocks.layers.dmoe` with `mlp_type="glu"`, `mlp_impl="grouped"`, but on the
    module's own parameters (`to_megablocks` tells their names there): gate and up projection are one matrix [E, 2F, H]
    and take one matmul.

    Args:
        experts: With `gate_up_proj` [E, 2F, H], `down_proj` [E, H, F] and `_apply_gate`.
        hidden_TH: What goes to the experts.
        chosen_TK: Which experts, by the model's own router.
        weights_TK: What their outputs are multiplied with.

    Returns:
        [T, H], of the type of `hidden_TH`.

    Source: Gale et al. 2022, "MegaBlocks" (arXiv:2211.15841).
    """
    from megablocks import grouped_gemm_util, ops

    num_chosen = chosen_TK.shape[1]
    dtype = _matmul_dtype(experts.gate_up_proj, hidden_TH)
    with torch.no_grad():
        chosen_N = chosen_TK.flatten().int()
        sort_bits = max((experts.num_experts - 1).bit_length(), 1)
        bin_ids_N, indices_N = ops.sort(chosen_N, sort_bits)
        num_tokens_E = ops.histogram(chosen_N, experts.num_experts)
        bins_E = ops.inclusive_cumsum(num_tokens_E, 0).view(-1)
        counts_E = num_tokens_E.cpu().long()  # grouped_gemm wants them on the host
    with torch.autocast(hidden_TH.device.type, enabled=False):
        sorted_NH = ops.gather(hidden_TH.to(dtype), indices_N, bin_ids_N, bins_E, num_chosen)
        gmm = grouped_gemm_util.ops.gmm
        gate_up_NG = gmm(sorted_NH, experts.gate_up_proj.to(dtype), counts_E, trans_b=True)
        out_NH = gmm(experts._apply_gate(gate_up_NG), experts.down_proj.to(dtype), counts_E, trans_b=True)
        out_TH = ops.scatter(out_NH, indices_N, bin_ids_N, weights_TK.flatten(), bins_E, num_chosen)
    return out_TH.to(hidden_TH.dtype)  # type: ignore[no-any-return]


def to_megablocks(block: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of a transformers block as a `megablocks.layers.dmoe.dMoE` names and shapes them.

    A run does without: it computes on transformers' own parameters. This is for weights that go to, or come from, a
    program built on MegaBlocks.

    Args:
        block: `gate.weight` [E, H], `experts.gate_up_proj` [E, 2F, H], `experts.down_proj` [E, H, F]: the state of a
            Mixtral, Qwen3-MoE or OLMoE block.

    Returns:
        `router.layer.weight` [E, H] and `experts.mlp.w1` (gate), `.v1` (up), `.w2` (down), each [E * F, H]: the state
        of a dMoE with `mlp_type="glu"` and without bias.
    """
    gate_up_EGH, down_EHF = block["experts.gate_up_proj"], block["experts.down_proj"]
    gate_EFH, up_EFH = gate_up_EGH.chunk(2, dim=1)
    return {
        "router.layer.weight": block["gate.weight"],
        "experts.mlp.w1": gate_EFH.flatten(0, 1),
        "experts.mlp.v1": up_EFH.flatten(0, 1),
        "experts.mlp.w2": down_EHF.transpose(1, 2).flatten(0, 1),
    }


def from_megablocks(block: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of a MegaBlocks dMoE as a transformers block names and shapes them: the inverse of `to_megablocks`.

    Args:
        block: What `to_megablocks` returns.
    """
    num_experts, hidden = block["router.layer.weight"].shape
    gate_EFH, up_EFH, down_EFH = (block[f"experts.mlp.{name}"].view(num_experts, -1, hidden) for name in MEGABLOCKS_MLP)
    return {
        "gate.weight": block["router.layer.weight"],
        "experts.gate_up_proj": torch.cat([gate_EFH, up_EFH], dim=1),
        "experts.down_proj": down_EFH.transpose(1, 2).contiguous(),
    }


def _fits_grouped_mm(model: PreTrainedModel, weight_bytes: int) -> bool:
    """Whether torch's grouped matmul takes the experts' matrices, either way up (the backward pass turns them)."""
    widths = {
        width
        for block in routed_blocks(model)
        for weight in block.parameters()
        if _is_stacked(weight)
        for width in getattr(weight, "ds_shape", weight.shape)[1:]
    }
    return all(width * weight_bytes % GROUPED_MM_ALIGNMENT == 0 for width in widths)


def _is_stacked(weight: Any) -> bool:
    """Whether a parameter, whole or partitioned, holds a matrix for each expert."""
    return len(getattr(weight, "ds_shape", weight.shape)) == 3


def _matmul_dtype(parameter: torch.Tensor, hidden: torch.Tensor) -> torch.dtype:
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else parameter.dtype


def _check_megablocks(model: PreTrainedModel, *, device: str, half: bool) -> None:
    for block in routed_blocks(model):
        _check_layout(block, model.config.model_type)
    try:
        from megablocks import grouped_gemm_util, ops  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f"MegaBlocks is not installed: {error}", "model.experts", MEGABLOCKS_INSTALL
        ) from None
    if not grouped_gemm_util.grouped_gemm_is_available():
        raise MissingDependencyError(
            "MegaBlocks lacks grouped_gemm, its grouped matmul", "model.experts", MEGABLOCKS_INSTALL
        )
    if torch.device(device).type != "cuda":
        raise MissingDependencyError(
            "MegaBlocks needs CUDA, and there is none here", "model.experts", "use model.experts=auto"
        )
    if not half:
        raise ModelError(
            "MegaBlocks multiplies in bf16 only", "model.experts", "use train.precision=bf16, or model.experts=auto"
        )


def _check_layout(block: nn.Module, family: str) -> None:
    fits = any(
        hasattr(experts, "gate_up_proj")
        and hasattr(experts, "down_proj")
        and not getattr(experts, "has_bias", True)
        and not getattr(experts, "is_transposed", True)
        and not getattr(experts, "has_post_expert_norm", False)
        for experts in block.children()
    )
    if not fits:
        raise ModelError(
            f"the experts of {family} are not laid out as MegaBlocks computes them (gated, without bias)",
            "model.experts",
            "use model.experts=auto",
        )
