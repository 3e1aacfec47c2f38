"""AdamW over two groups of parameters: those that decay and those that do not."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

from launcher.config.compiled_ops import missing_packages
from launcher.config.deepspeed import offloads_optimizer
from launcher.config.recipe import OptimConfig
from launcher.engine.compiled_ops import load_op
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
        MissingDependencyError: The recipe asks for DeepSpeed's CPU Adam, and it cannot be compiled here.
    """
    # No rate yet: at stage 0 with half-precision weights DeepSpeed takes a step as it starts, to make the state, which
    # would decay the weights. Every step of the run sets its own.
    settings: dict[str, Any] = {"lr": 0.0, "betas": optim.betas, "eps": optim.eps}
    if not offloads_optimizer(ds_config) or not _has_cpu_adam(optim):
        return torch.optim.AdamW(groups, fused=True, **settings)
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    return DeepSpeedCPUAdam(groups, adamw_mode=True, **settings)  # type: ignore[no-any-return]


def _has_cpu_adam(optim: OptimConfig) -> bool:
    if optim.host_adam == "torch" or (optim.host_adam == "auto" and missing_packages("cpu_adam")):
        return False
    try:
        load_op("cpu_adam")
    except MissingDependencyError as error:
        if optim.host_adam == "cpu_adam":
            raise
        logging.getLogger(__name__).warning("%s: torch's AdamW takes its place on the host", error.what)
        return False
    return True
