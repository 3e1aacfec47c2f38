"""From a recipe's model section to a `transformers` configuration that fits the objective and the tokenizer."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_PRETRAINING_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    PreTrainedConfig,
)

from launcher.config.model import ModelConfig
from launcher.config.objectives import Head
from launcher.errors import ModelError, did_you_mean
from launcher.models.local import has_own_class, read_config
from launcher.shards.identity import num_renamed, open_tokenizer
from launcher.shards.manifest import TokenizerInfo

# The recipe's numbers carry the names most families use; these are the exceptions that transformers' own
# `attribute_map` does not tell.
FAMILY_NAMES = {
    "gpt2": {"intermediate_size": "n_inner"},
    "t5": {"intermediate_size": "d_ff"},
    "mt5": {"intermediate_size": "d_ff"},
    "bart": {"intermediate_size": "encoder_ffn_dim"},
}
# Encoder-decoders whose decoder has numbers of its own: it follows the encoder unless `model.config` says otherwise.
DECODER_TWINS = {
    "bart": {
        "num_hidden_layers": "decoder_layers",
        "num_attention_heads": "decoder_attention_heads",
        "intermediate_size": "decoder_ffn_dim",
    },
}
# Read by the modelling code of families whose configuration does not declare them (transformers 5.23): Qwen3-MoE, and
# DeBERTa-v2's by getattr.
UNDECLARED = frozenset(
    (
        "head_dim",
        "position_buckets",
        "share_att_key",
        "norm_rel_ebd",
        "conv_kernel_size",
        "conv_act",
        "attention_head_size",
    )
)
# Families that number positions from pad_token_id + 1 on (create_position_ids_from_input_ids), so that so many
# fewer than max_position_embeddings can be used.
POSITIONS_BEGIN_BEHIND_PAD = frozenset(
    (
        "roberta",
        "roberta-prelayernorm",
        "xlm-roberta",
        "xlm-roberta-xl",
        "camembert",
        "data2vec-text",
        "longformer",
        "mpnet",
        "ibert",
        "xmod",
        "esm",
    )
)
POSITION_LIMITS = ("max_position_embeddings", "max_encoder_position_embeddings", "max_decoder_position_embeddings")
NUMBERS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "max_position_embeddings",
)
MAPPINGS: dict[Head, Any] = {
    "masked": MODEL_FOR_MASKED_LM_MAPPING,
    "next_sentence": MODEL_FOR_PRETRAINING_MAPPING,
    "sentence_order": MODEL_FOR_PRETRAINING_MAPPING,
    "causal": MODEL_FOR_CAUSAL_LM_MAPPING,
    "seq2seq": MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
}
AUTO_NAMES: dict[Head, str] = {
    "masked": "AutoModelForMaskedLM",
    "next_sentence": "AutoModelForPreTraining",
    "sentence_order": "AutoModelForPreTraining",
    "causal": "AutoModelForCausalLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
}
TASKS: dict[Head, str] = {
    "masked": "masked language modelling",
    "next_sentence": "masked tokens and the next sentence",
    "sentence_order": "masked tokens and the order of sentences",
    "causal": "next-token prediction",
    "seq2seq": "reading one text and writing another",
}
EXAMPLES: dict[Head, str] = {
    "masked": "bert, roberta, modernbert",
    "next_sentence": "bert, ernie, megatron-bert",
    "sentence_order": "albert",
    "causal": "gpt2, llama, qwen3",
    "seq2seq": "t5, mt5, bart",
}

ENCODERS_BY_DEFAULT = frozenset(("bert-generation", "xlnet"))
"""Families without a masked language model in transformers that see all tokens unless told otherwise."""
PAIR_LABELS: dict[Head, str] = {"next_sentence": "next_sentence_label", "sentence_order": "sentence_order_label"}
"""Heads that tell pairs, and the argument by which a family's model for pretraining shows that it has them."""


def build_config(model: ModelConfig, head: Head, tokenizer: TokenizerInfo, seq_len: int) -> PreTrainedConfig:
    """The `transformers` configuration of a run.

    Args:
        model: The recipe's model section.
        head: What the objective needs the model to do.
        tokenizer: The tokenizer of the shards; gives the vocabulary and the special ids.
        seq_len: Longest sequence, in tokens.

    Raises:
        ModelError: Unknown family or field, a family that cannot serve the objective, a vocabulary or a number of
            positions that is too small.
    """
    config = _continued(model, tokenizer) if model.continue_from else _from_scratch(model, tokenizer)
    has_class = type(config) in MAPPINGS[head] or (head not in PAIR_LABELS and has_own_class(config, AUTO_NAMES[head]))
    if not has_class or not _takes_pairs(config, head):
        raise ModelError(
            f"{config.model_type} cannot be trained with an objective for {TASKS[head]}",
            "objective.sentence_pairs" if head in PAIR_LABELS else "objective.kind",
            f"choose a family that can, such as {EXAMPLES[head]}, or another objective",
        )
    if head in PAIR_LABELS and getattr(config, "type_vocab_size", 2) < 2:
        raise ModelError(
            "the model knows one type of token only, and a pair has two",
            "model.config.type_vocab_size",
            "use 2, the family's default",
        )
    is_encoder = type(config) in MODEL_FOR_MASKED_LM_MAPPING or config.model_type in ENCODERS_BY_DEFAULT
    if head == "causal" and is_encoder and not getattr(config, "is_decoder", False):
        own_task = "span or prefix" if config.is_encoder_decoder else "mlm"
        raise ModelError(
            f"{config.model_type} sees the tokens on its right: next-token prediction would be trivial",
            "objective.kind",
            f"use {own_task}, or a decoder such as {EXAMPLES['causal']}",
        )
    if head not in ("causal", "seq2seq") and (config.is_encoder_decoder or getattr(config, "is_decoder", False)):
        what = "writes a second text" if config.is_encoder_decoder else "sees the tokens on its left only"
        raise ModelError(
            f"this {config.model_type} {what}: {TASKS[head]} is no task for it",
            "objective.kind",
            "use span or prefix" if config.is_encoder_decoder else "use clm, or delete model.config.is_decoder",
        )
    _check_heads(config, model)
    positions = positions_of(config)
    if positions is not None and seq_len > positions:
        raise ModelError(
            f"sequences of {seq_len} tokens are longer than the model's {positions} positions",
            "data.seq_len",
            f"use data.seq_len={positions} or less (what a decoder writes counts too), or a larger "
            "model.max_position_embeddings",
        )
    return config


def _takes_pairs(config: PreTrainedConfig, head: Head) -> bool:
    """Whether a model of this configuration learns from the labels of pairs that the head needs; True where none."""
    if head not in PAIR_LABELS:
        return True
    arguments = inspect.signature(MAPPINGS[head][type(config)].forward).parameters
    # FNet takes pairs and no attention mask: padding would be read as text.
    return {PAIR_LABELS[head], "token_type_ids", "attention_mask"} <= arguments.keys()


def positions_of(config: PreTrainedConfig) -> int | None:
    """Longest sequence of a model; None where its family sets no limit."""
    limits = [getattr(config, name, None) for name in POSITION_LIMITS]
    positions = [limit for limit in limits if isinstance(limit, int) and limit > 0]
    return min(positions) - first_position(config) if positions else None


def first_position(config: PreTrainedConfig) -> int:
    """The number of a sequence's first position in the table of learned positions."""
    return (config.pad_token_id or 0) + 1 if config.model_type in POSITIONS_BEGIN_BEHIND_PAD else 0


def _check_heads(config: PreTrainedConfig, model: ModelConfig) -> None:
    if model.continue_from:
        return
    heads = getattr(config, "num_attention_heads", None)
    groups = getattr(config, "num_key_value_heads", None)
    if isinstance(heads, int) and isinstance(groups, int) and heads % groups:
        divisors = [number for number in range(1, heads + 1) if heads % number == 0]
        raise ModelError(
            f"{heads} attention heads cannot share {groups} key and value heads",
            "model.num_key_value_heads",
            f"use one of {', '.join(map(str, divisors))}",
        )
    own_size = config.model_type in ("t5", "mt5") or "head_dim" in model.config  # a head's is a number of its own
    if isinstance(heads, int) and not own_size and config.hidden_size % heads:
        raise ModelError(
            f"a width of {config.hidden_size} cannot be cut into {heads} heads",
            "model.hidden_size",
            f"use {config.hidden_size // heads * heads or heads} or {(config.hidden_size // heads + 1) * heads}",
        )


def _from_scratch(model: ModelConfig, tokenizer: TokenizerInfo) -> PreTrainedConfig:
    if model.family is None:
        raise ModelError("neither a family nor a folder is given", "model", "set model.family or model.continue_from")
    if model.family not in CONFIG_MAPPING:
        raise ModelError(
            f"transformers has no model family {model.family!r}",
            "model.family",
            did_you_mean(model.family, CONFIG_MAPPING.keys()),
        )
    config_class = CONFIG_MAPPING[model.family]
    defaults = config_class()
    values = {**_token_ids(tokenizer, defaults), **_numbers(model, defaults)}
    for key, value in model.config.items():
        if not hasattr(defaults, key) and key not in UNDECLARED:
            known = [name for name in vars(defaults) if not name.startswith("_")]
            raise ModelError(
                f"{model.family} has no configuration field {key!r}", "model.config", did_you_mean(key, known)
            )
        values[key] = value
    try:
        return config_class(**values)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ModelError(
            f"{model.family}'s configuration refuses these values: {' '.join(str(error).split())}", "model"
        ) from None
    except Exception as error:  # huggingface_hub's strict dataclasses raise their own, unrelated types
        if type(error).__module__.startswith("huggingface_hub"):
            raise ModelError(
                f"{model.family}'s configuration refuses these values: {' '.join(str(error).split())}", "model"
            ) from None
        raise


def _continued(model: ModelConfig, tokenizer: TokenizerInfo) -> PreTrainedConfig:
    folder = model.continue_from
    if folder is None or not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} holds no config.json", "model.continue_from", "give the folder of a transformers model"
        )
    given = [name for name in ("family", *NUMBERS) if getattr(model, name) is not None]
    if model.initialisation != "family":
        given.append("initialisation")
    if given or model.config:
        raise ModelError(
            f"a continued model keeps its shape, but the recipe sets {', '.join(given or model.config)}",
            "model",
            "delete these fields, or model.continue_from to train from scratch",
        )
    config = read_config(folder, model.trusted_code)
    # A smaller vocabulary grows: `build_model` adds the rows.
    config.vocab_size = max(config.vocab_size, tokenizer.vocab_size)
    return config


def num_new_tokens(config: PreTrainedConfig, model: ModelConfig) -> int:
    """Tokens that the model to continue from does not know; 0 from scratch."""
    if model.continue_from is None:
        return 0
    return int(config.vocab_size - read_config(model.continue_from, model.trusted_code).vocab_size)


def told_of_tokens(config: PreTrainedConfig, model: ModelConfig, tokenizer_folder: Path) -> list[str]:
    """How far a continued model's vocabulary grows, and how many of its tokens are others to the shards, as lines.

    Args:
        config: As `build_config` made it.
        model: The recipe's model section.
        tokenizer_folder: The tokenizer of the shards.
    """
    folder, lines = model.continue_from, []
    if folder is None:
        return []
    files = [tokenizer_folder / "tokenizer.json", folder / "tokenizer.json"]
    if all(file.is_file() for file in files) and (renamed := num_renamed(*map(open_tokenizer, files))):
        lines.append(
            f"warning: {renamed} tokens of the shards are others in {folder}, and begin with the embeddings of those: "
            "prepare the shards with the tokenizer of that folder, unless this is meant"
        )
    if new := num_new_tokens(config, model):
        lines.append(
            f"note: the tokenizer has {new} tokens that {folder} does not know: its embeddings grow to "
            f"{config.vocab_size}; each new one begins as the mean of all"
        )
    return lines


def _numbers(model: ModelConfig, defaults: PreTrainedConfig) -> dict[str, Any]:
    family = defaults.model_type
    values = {}
    for name in NUMBERS:
        value = getattr(model, name)
        if value is None:
            continue
        # By the family's own name: T5 given `num_hidden_layers` keeps its default number of decoder layers.
        own = FAMILY_NAMES.get(family, {}).get(name) or defaults.attribute_map.get(name, name)
        if not hasattr(defaults, own):
            raise ModelError(f"{family} has no {name}", f"model.{name}", "delete it from the recipe")
        values[own] = value
        if name == "num_attention_heads" and hasattr(defaults, "num_key_value_heads"):
            # Not the family's default, which belongs to its own number of heads (Qwen3's is 32).
            values.setdefault("num_key_value_heads", value)
        twin = DECODER_TWINS.get(family, {}).get(name)
        if twin:
            values[twin] = value
    return values


def _token_ids(tokenizer: TokenizerInfo, defaults: PreTrainedConfig) -> dict[str, Any]:
    special = tokenizer.special
    bos = special.bos if special.bos is not None else special.cls
    eos = special.eos if special.eos is not None else special.document_end
    ids = {
        "pad_token_id": special.pad,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "cls_token_id": special.cls,
        "sep_token_id": special.sep,
    }
    # A family's default ids belong to its own vocabulary (ModernBERT's pad is 50283): every one is replaced.
    known = {key: value for key, value in ids.items() if hasattr(defaults, key)}
    if defaults.is_encoder_decoder:  # what `generate` begins with; T5's class takes it without declaring it
        known["decoder_start_token_id"] = special.pad
    return {"vocab_size": tokenizer.vocab_size, **known}
