"""Matrices shared among ranks by DeepSpeed's AutoTP: each rank of a group computes some heads and a part of the
feed-forward of the same samples.

Queries, keys, values and the first two matrices of the feed-forward are cut by rows, those behind them by columns, and
what the ranks have of a layer's output is added up twice a layer. Embeddings, norms and the output layer are whole on
every rank. When the engine starts, AutoTP replaces the linear layers, one after another: only then is each of them
drawn, whole, and cut, so that a rank never holds more than its part of the matrices and one of them. What is loaded
from a folder is whole before, at stage 3 too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from launcher.config.deepspeed import SHARED_MATRICES
from launcher.config.model import ModelConfig
from launcher.errors import ModelError
from launcher.models.attention import DROPOUT_FIELDS
from launcher.models.initial import Later

FAMILIES = ("llama", "mistral", "olmo", "qwen3")
"""Tried here: decoders whose layers have the matrices that `config.deepspeed.SHARED_MATRICES` names."""
HOOKED = "_ds_grad_allreduce_registered"
"""Set on a parameter whose gradients AutoTP adds up already. Source: deepspeed/module_inject/auto_tp.py."""
META = "ds_autotp_universal_checkpoint_meta"
"""What AutoTP leaves on a parameter it has cut. Source: deepspeed/checkpoint/constants.py."""


class Shard(NamedTuple):
    """This rank's part of a matrix."""

    shape: tuple[int, ...]
    """Of the whole."""
    dim: int
    """It is cut along: 0 for rows, 1 for columns."""
    first: int
    """Row or column."""
    size: int
    """Rows or columns."""


def share_matrices(model: PreTrainedModel, record: ModelConfig) -> None:
    """See that the ranks of a group can compute one model together; every rank calls it, before the engine starts.

    Raises:
        ModelError: The family cannot do it, its numbers do not divide, or it drops weights of attention.
    """
    _refuse(model.config, record.tensor_parallel)
    from deepspeed.utils import groups

    for parameter in model.parameters():
        if not parameter.requires_grad:  # 0.19.8 would hook a frozen norm of heads, which torch refuses
            setattr(parameter, HOOKED, True)
    groups._init_tp_mesh_device(record.tensor_parallel)
    model.rank_groups = groups


@contextmanager
def without_room() -> Iterator[None]:
    """Give the linear layers that are made in the block weights of the right shape, and of one value's memory."""
    register = nn.Module.register_parameter

    def registered(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if isinstance(module, nn.Linear) and name == "weight" and parameter is not None:
            parameter = nn.Parameter(parameter.detach().new_empty(1).expand(parameter.shape))
        register(module, name, parameter)

    nn.Module.register_parameter = registered  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def make_room_but_for_shared(model: PreTrainedModel) -> Later:
    """Let linear layers that AutoTP leaves whole have their memory; returns those it cuts, to be drawn then."""
    later: Later = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        if SHARED_MATRICES.get(name.rpartition(".")[2], "skip") == "skip":
            _make_room(module)
        else:
            later[module] = partial(_make_room, module)
    return later


@contextmanager
def drawing_what_is_cut(later: Later) -> Iterator[None]:
    """While AutoTP goes through the model, draw each layer right before it takes a part of it.

    Raises:
        ModelError: It left one out, which would have no weights.
    """
    from deepspeed.module_inject.auto_tp import AutoTP

    replace = AutoTP._replace_with_config

    def drawn(self: Any, child: nn.Module, name: str) -> Any:
        draw = later.pop(child, None)
        if draw is not None:
            _make_room(child)
            draw()
        return replace(self, child, name)

    AutoTP._replace_with_config = drawn
    try:
        yield
    finally:
        AutoTP._replace_with_config = replace
    if later:
        raise ModelError(f"AutoTP did not cut {len(later)} layers that it was to cut", "model.tensor_parallel")


def _make_room(module: Any) -> None:
    module.weight.data = torch.empty(module.weight.shape, dtype=module.weight.dtype, device=module.weight.device)


def shard_of(parameter: Any) -> Shard | None:
    """Which part of a matrix a parameter is; None for a whole one."""
    meta = getattr(parameter, META, None)
    if not meta or meta.get("partition_dim") is None:
        return None
    from deepspeed.utils import groups

    sizes, rank = meta["partition_sizes"], groups.get_tensor_model_parallel_rank()
    return Shard(tuple(meta["original_shape"]), int(meta["partition_dim"]), sum(sizes[:rank]), sizes[rank])


def _refuse(config: Any, ranks: int) -> None:
    where = "model.tensor_parallel"
    if config.model_type not in FAMILIES:
        raise ModelError(
            f"the matrices of {config.model_type} cannot be shared among ranks",
            where,
            f"use one of: {', '.join(FAMILIES)}",
        )
    for field in DROPOUT_FIELDS:
        if getattr(config, field, 0.0):
            raise ModelError(
                "ranks of one model draw the same dropout, so that heads of different ranks would drop the same places",
                f"model.config.{field}",
                f"use model.config.{field}=0.0, or {where}=1",
            )
    heads = config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    numbers = (heads, key_heads, config.intermediate_size)
    if any(number % ranks for number in numbers):
        fitting = [str(n) for n in range(1, key_heads + 1) if not any(number % n for number in numbers)]
        raise ModelError(
            f"{heads} attention heads, {key_heads} of keys and values, and a feed-forward of "
            f"{config.intermediate_size} cannot be shared among {ranks} ranks",
            where,
            f"use one of: {', '.join(fitting)}",
        )
