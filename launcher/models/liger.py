"""Liger's fused kernels in place of a model's norms, rotary positions and dense gated feed-forwards: a GPU only."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from launcher.errors import MissingDependencyError, ModelError
from launcher.models.routing import routed_blocks


def use_liger(model: PreTrainedModel) -> None:
    """Swap in what Liger has for the family; weights and their names stay. Loss and experts are computed elsewhere.

    Liger's experts would take the place of those that `model.experts` names, multiply fp32 in TF32 (gradients of
    Mixtral 0.3 % apart), and search for two minutes how to cut a new shape (measured: H200, Liger 0.8.5).

    Raises:
        MissingDependencyError: `liger-kernel` is not installed, or there is no GPU.
        ModelError: It has nothing for the family.
    """
    if not torch.cuda.is_available():
        raise MissingDependencyError("Liger's kernels need a GPU", "model.liger", "use model.liger=false here")
    try:
        from liger_kernel.transformers.monkey_patch import (  # type: ignore[import-not-found]
            MODEL_TYPE_TO_APPLY_LIGER_FN,
            _apply_liger_kernel_to_instance,
        )
    except ImportError:
        raise MissingDependencyError(
            "liger-kernel is not installed", "model.liger", "pip install liger-kernel"
        ) from None
    family = model.config.model_type
    if family not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        known = ", ".join(sorted(MODEL_TYPE_TO_APPLY_LIGER_FN))
        raise ModelError(f"Liger has no kernels for {family}", "model.liger", f"use false; it has some for {known}")
    left_out = {"swiglu": False} if routed_blocks(model) else {}
    _apply_liger_kernel_to_instance(model, cross_entropy=False, fused_linear_cross_entropy=False, **left_out)
