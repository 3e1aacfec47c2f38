"""AdamW over two groups of parameters: those that decay and those that do not."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from launcher.config.deepspeed import offloads_optimizer
from launcher.config.recipe import OptimConfig
from launcher.errors import MissingDependencyError


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split the trainable parameters: matrices decay; biases, norms and other vectors do not.

    Args:
        model: The model, whole or partitioned (a partitioned parameter tells its true shape in `ds_shape`).
        weight_decay: Of the first group.
    """
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (decayed if len(getattr(parameter, "ds_shape", parameter.shape)) > 1 else kept).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build_optimizer(
    groups: list[dict[str, Any]], optim: OptimConfig, ds_config: dict[str, Any]
) -> torch.optim.Optimizer:
    """AdamW: torch's fused one, or DeepSpeed's CPU Adam where its state is offloaded to the host.

    DeepSpeed's own C++ AdamW for the accelerator is not used: it keeps a running product of beta^t that a resumed run
    cannot rebuild bit by bit (off by up to 9.5e-7 after five steps, measured), and has to be compiled first.

    Raises:
        MissingDependencyError: The optimizer is offloaded and DeepSpeed's CPU Adam cannot be compiled here.
    """
    settings: dict[str, Any] = {"lr": optim.lr, "betas": optim.betas, "eps": optim.eps}
    if not offloads_optimizer(ds_config):
        return torch.optim.AdamW(groups, fused=True, **settings)
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    try:
        return DeepSpeedCPUAdam(groups, adamw_mode=True, **settings)  # type: ignore[no-any-return]
    except (RuntimeError, OSError, ImportError) as error:
        raise MissingDependencyError(
            f"DeepSpeed's CPU Adam cannot be compiled here: {str(error).strip().splitlines()[0]}",
            "zero_optimization.offload_optimizer",
            "install g++ and ninja, or use a --ds_config without offload",
        ) from None
