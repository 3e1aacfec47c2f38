"""From a model and a recipe to a DeepSpeed engine."""

from __future__ import annotations

import logging
import os
from contextlib import nullcontext
from typing import Any

import deepspeed
import torch
from transformers import PreTrainedModel

from launcher.cluster.rank import find_place
from launcher.config.recipe import OptimConfig
from launcher.engine.optimizer import build_optimizer, parameter_groups
from launcher.engine.process import ranks_per_model
from launcher.engine.swap_files import check_room


def start_engine(model: PreTrainedModel, optim: OptimConfig, ds_config: dict[str, Any]) -> Any:
    """Hand a model over to DeepSpeed.

    Args:
        model: Whole or, at stage 3, partitioned.
        optim: Optimizer settings; the learning rate is set anew before each step.
        ds_config: The resolved configuration.

    Returns:
        A `deepspeed.DeepSpeedEngine` (its types are not published, hence `Any`).

    Raises:
        DsConfigError: A drive that the optimizer is offloaded to is too small.
        MissingDependencyError: The recipe asks for an optimizer that cannot be compiled here.
    """
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    check_room(ds_config, model, find_place(os.environ))
    optimizer = build_optimizer(parameter_groups(model, optim.weight_decay), optim, ds_config)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers() if buffer.is_floating_point()}
    groups = getattr(model, "rank_groups", None)
    with getattr(model, "while_cut", nullcontext)():
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=ds_config, mpu=groups)
    if engine.dp_world_size is None:  # DeepSpeed 0.19.8 knows no groups of data-parallel ranks beside Ulysses'
        engine.dp_world_size = engine.seq_dp_world_size // engine.sequence_parallel_size
    if ranks_per_model(engine) > 1:  # the feed gives the ranks of a group the same samples; this would pickle them
        engine.first_dataloader_check.remove()
    _put_back(engine.module, buffers)
    _count_from_zero(engine.basic_optimizer)
    return engine


def _count_from_zero(optimizer: torch.optim.Optimizer) -> None:
    """Let AdamW's first step be its first.

    At stage 0 with half-precision weights DeepSpeed steps once with zero gradients to make the state. Counted, it made
    the first steps a quarter smaller (bias correction of the second step): losses off by up to 0.11, measured.
    """
    for state in optimizer.state.values():
        if isinstance(state.get("step"), torch.Tensor):
            state["step"].zero_()
        elif "step" in state:
            state["step"] = 0


def _put_back(model: PreTrainedModel, buffers: dict[str, torch.Tensor]) -> None:
    """Restore buffers that DeepSpeed rounded together with the weights.

    Rotary frequencies in bf16 have three significant digits: positions beyond a few hundred turn by wrong angles. (At
    stage 3 DeepSpeed leaves them alone, so the stages would also differ from each other.)
    """
    for name, kept in buffers.items():
        owner, _, attribute = name.rpartition(".")
        module = model.get_submodule(owner)
        now = getattr(module, attribute)
        if now.dtype != kept.dtype:
            setattr(module, attribute, kept.to(now.device))
