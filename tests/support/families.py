"""A tiny model of every family the tests train."""

from __future__ import annotations

from typing import Any

from launcher.config.objectives import Head

NUMBERS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
FAMILIES: list[tuple[Head, str, dict[str, Any]]] = [
    ("masked", "bert", {}),
    ("masked", "roberta", {}),
    ("masked", "albert", {"embedding_size": 16}),
    ("masked", "electra", {"embedding_size": 16}),
    ("masked", "deberta", {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 16}),
    ("masked", "deberta-v2", {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 4}),
    ("masked", "modernbert", {"local_attention": 4, "layer_types": ["full_attention", "sliding_attention"]}),
    ("causal", "gpt2", {}),
    ("causal", "gpt_neox", {}),
    ("causal", "llama", {}),
    ("causal", "qwen3", {"head_dim": 16}),
    ("causal", "mistral", {"sliding_window": 3, "head_dim": 16}),
    ("causal", "olmo", {}),
    ("causal", "mixtral", {"num_local_experts": 4, "head_dim": 16}),
    ("causal", "qwen3_moe", {**EXPERTS, "head_dim": 16}),
    ("causal", "olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    ("seq2seq", "t5", {"d_kv": 16}),
    ("seq2seq", "mt5", {"d_kv": 16}),
    ("seq2seq", "bart", {}),
]
"""What the model must do, `model_type`, and the fields of its configuration that `NUMBERS` does not name."""
ONLY_EAGER = ("deberta", "deberta-v2")
"""Families without sdpa."""
NO_FLEX = (*ONLY_EAGER, "gpt2", "olmoe", "t5", "mt5")
"""Families without flex attention, or with one that is wrong (T5's reads its position bias beyond its end)."""
NO_DROPOUT = {"attention_probs_dropout_prob": 0.0}
"""For families whose attention would drop weights, which flex attention cannot."""
BERT_LIKE = ("bert", "roberta", "albert", "electra")
