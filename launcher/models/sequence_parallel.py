"""Sequences shared among ranks by DeepSpeed's Ulysses: each rank computes a part of every sequence.

All layers but attention treat places alike, so a rank computes them on its own part. Before attention the ranks of a
group exchange places for heads: each gets all places of some heads, and its own part of all heads after.

B: rows   S: places of a rank's part   H: heads   D: width of a head
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from launcher.config.model import ModelConfig
from launcher.errors import ModelError

FAMILIES = ("llama", "qwen3", "mistral", "olmo", "gpt2")
"""Tried here: decoders whose layers call the attention function that transformers looks up by name, and take position
ids."""


def share_sequences(model: PreTrainedModel, record: ModelConfig, seq_len: int) -> None:
    """Let the ranks of a group compute one sequence together; every rank calls it.

    The model then takes a rank's part of each sequence (int64 [B, S], with `position_ids`), and looks back over all of
    it. Weights and their names stay as they are.

    Args:
        model: Whole or partitioned.
        record: The recipe's model section.
        seq_len: Tokens of a whole sequence.

    Raises:
        ModelError: The family cannot do it, or its heads cannot be shared so.
    """
    ranks = record.sequence_parallel
    _refuse(model.config, ranks, seq_len)
    import deepspeed.runtime.sequence_parallel.parallel_state_sp as groups

    groups.initialize_sequence_parallel(ranks)
    name = model.config._attn_implementation
    attention = _SharedAttention(model.config, ALL_ATTENTION_FUNCTIONS[name], groups.get_sequence_parallel_group())
    for module in model.modules():
        module.shares_sequences = True
    # transformers finds attention by this name, and looks at the name elsewhere: to be called, one must bear it.
    ALL_ATTENTION_FUNCTIONS[name] = attention
    model.rank_groups = groups


class _SharedAttention:
    """Attention of a model that shares its sequences; that of any other is what it was."""

    def __init__(self, config: Any, plain: Any, group: Any) -> None:
        self._config, self._plain, self._group = config, plain, group
        self._by_rows: dict[int, Any] = {}

    def __call__(
        self,
        module: torch.nn.Module,
        query_BHSD: torch.Tensor,
        key_BHSD: torch.Tensor,
        value_BHSD: torch.Tensor,
        attention_mask: Any,
        **options: Any,
    ) -> Any:
        """What transformers calls for each layer."""
        if not getattr(module, "shares_sequences", False):
            return self._plain(module, query_BHSD, key_BHSD, value_BHSD, attention_mask, **options)
        rows, heads, places, width = query_BHSD.shape
        if "position_ids" not in options:  # Ulysses gathers them for flash attention, which reads documents from them
            first = places * torch.distributed.get_rank(self._group)
            options["position_ids"] = torch.arange(first, first + places, device=query_BHSD.device).expand(rows, -1)
        # The mask is of this rank's part. A decoder's is causal, which the plain function does by itself without one;
        # what stands behind the text of a row is seen by nobody before it.
        output, weights = self._of(rows)(module, query_BHSD, key_BHSD, value_BHSD, None, **options)
        return output.view(rows, places, heads, width), weights

    def _of(self, rows: int) -> Any:
        """Ulysses wants to know how many rows there are; a validation has others than a step."""
        from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF

        if rows not in self._by_rows:
            config, heads = self._config, self._config.num_attention_heads
            self._by_rows[rows] = UlyssesSPAttentionHF(
                attn=self._plain,
                batch_size=rows,
                attn_head_count=heads,
                attn_head_size=getattr(config, "head_dim", None) or config.hidden_size // heads,
                kv_head_count=getattr(config, "num_key_value_heads", None) or heads,
                num_hidden_layers=config.num_hidden_layers,
                process_group=self._group,
                seq_length_is_variable=True,
            )
        return self._by_rows[rows]


def _refuse(config: Any, ranks: int, seq_len: int) -> None:
    where = "model.sequence_parallel"
    if config.model_type not in FAMILIES:
        raise ModelError(
            f"sequences of {config.model_type} cannot be shared among ranks",
            where,
            f"use one of: {', '.join(FAMILIES)}",
        )
    heads = config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    fitting = [n for n in range(1, heads + 1) if heads % n == 0 and (key_heads % n == 0 or n % key_heads == 0)]
    if ranks not in fitting:
        raise ModelError(
            f"{heads} attention heads with {key_heads} of keys and values cannot be shared among {ranks} ranks",
            where,
            f"use one of: {', '.join(map(str, fitting))}",
        )
    window = getattr(config, "sliding_window", None)
    layers = getattr(config, "layer_types", None) or ("sliding_attention" if window else "full_attention",)
    if window and window < seq_len and "sliding_attention" in layers:
        raise ModelError(
            f"Ulysses drops the mask that lets {config.model_type} look back over {window} tokens only",
            where,
            f"use model.config.sliding_window=null, data.seq_len={window} or less, or model.sequence_parallel=1",
        )
