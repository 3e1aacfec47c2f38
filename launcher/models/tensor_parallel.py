"""Matrices shared among ranks by DeepSpeed's AutoTP: each rank of a group computes some heads and a part of the
feed-forward of the same samples.

Queries, keys, values and the first two matrices of the feed-forward are cut by rows, those behind them by columns, and
what the ranks have of a layer's output is added up twice a layer. Embeddings, norms and the output layer are whole on
every rank. When the engine starts, AutoTP replaces the linear layers; what is drawn before is the whole model, at stage
3 too.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from transformers import PreTrainedModel

from launcher.config.model import ModelConfig
from launcher.errors import ModelError
from launcher.models.attention import DROPOUT_FIELDS

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
