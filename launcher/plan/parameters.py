"""How many parameters a model has, from a recipe's numbers alone: before a queue, and without transformers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from launcher.config.model import ModelConfig

GATED = frozenset(
    ("llama", "mistral", "qwen2", "qwen3", "olmo", "olmo2", "modernbert", "mixtral", "qwen3_moe", "olmoe")
)
"""Families whose feed-forward has a gate: three matrices in place of two."""
UNTIED = frozenset(("llama", "mistral", "gpt_neox", "qwen2", "qwen3", "olmo", "olmo2", "mixtral", "qwen3_moe", "olmoe"))
"""Families whose output layer is a matrix of its own unless `tie_word_embeddings` is set."""
POSITIONED = frozenset(("bert", "roberta", "electra", "albert", "gpt2", "bart", "deberta"))
"""Families with a table of learned positions."""
TWO_STACKS = frozenset(("t5", "mt5", "bart"))
"""Encoder-decoders: as many layers again, with attention to what was read besides."""


def count_parameters(model: ModelConfig, vocab_size: int) -> int | None:
    """Parameters of a model; norms and biases, under a percent together, are left out.

    Args:
        model: The recipe's model section.
        vocab_size: Tokens of the shards' tokenizer.

    Returns:
        The number, or None where the recipe leaves width, layers or feed-forward to the family.
    """
    if model.continue_from is not None:
        return count_stored(model.continue_from)
    family, config = model.family or "", model.config
    width, layers = model.hidden_size, model.num_hidden_layers
    if width is None or layers is None:
        return None
    if model.intermediate_size is None and family != "gpt2":  # GPT-2's is four times the width
        return None
    inner = model.intermediate_size or 4 * width
    per_layer = _attention(model, width) + _feed_forward(family, config, width, inner)
    if family in TWO_STACKS:
        layers = 2 * layers
        per_layer += _attention(model, width) / 2  # of the decoder's layers only
    if family == "albert":
        layers = 1  # its layers share their parameters
    return int(layers * per_layer + _tables(model, width, vocab_size))


def count_tables(model: ModelConfig, vocab_size: int) -> int:
    """Of the parameters that `count_parameters` counts, those outside of layers: embeddings, and an output layer of its
    own.
    """
    if model.continue_from is not None:
        return count_stored(model.continue_from, ("embed", "lm_head")) or 0
    return 0 if model.hidden_size is None else _tables(model, model.hidden_size, vocab_size)


def _tables(model: ModelConfig, width: int, vocab_size: int) -> int:
    family, config = model.family or "", model.config
    is_untied = not config.get("tie_word_embeddings", family not in UNTIED)
    embedding = int(config.get("embedding_size", width))
    tables = vocab_size * embedding * (2 if is_untied else 1)
    if family in POSITIONED:
        tables += (model.max_position_embeddings or 512) * embedding * (2 if family == "bart" else 1)
    return tables


def count_stored(folder: Path, names: tuple[str, ...] = ("",)) -> int | None:
    """Parameters in a folder's safetensors files, from their headers; None where there are none.

    Args:
        folder: Of a transformers model.
        names: Parts of names; what has none of them is not counted.
    """
    total = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        header.pop("__metadata__", None)
        total += sum(math.prod(entry["shape"]) for name, entry in header.items() if any(part in name for part in names))
    return total or None


def _attention(model: ModelConfig, width: int) -> float:
    """Query, key, value and output matrices."""
    heads = model.num_attention_heads or 1
    head = int(model.config.get("head_dim") or model.config.get("d_kv") or width // heads)
    pairs = model.num_key_value_heads or heads
    return float(2 * width * head * (heads + pairs))


def _feed_forward(family: str, config: dict[str, Any], width: int, inner: int) -> float:
    """The matrices of a feed-forward, or of all experts and their router."""
    is_gated = family in GATED or "gated" in str(config.get("feed_forward_proj", "gated" if family == "mt5" else ""))
    matrices = 3 if is_gated else 2
    experts = int(config.get("num_local_experts") or config.get("num_experts") or 0)
    if not experts:
        return float(matrices * width * inner)
    inner = int(config.get("moe_intermediate_size") or inner)
    return float(experts * matrices * width * inner + width * experts)
