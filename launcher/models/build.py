"""A `transformers` model ready for DeepSpeed: from scratch or from a folder, partitioned as it is built at stage 3."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import deepspeed
import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.integrations.deepspeed import HfDeepSpeedConfig, prevent_arange_dtype_change

from launcher.config.model import ModelConfig
from launcher.config.objectives import Head
from launcher.errors import ModelError
from launcher.models.attention import check_attention
from launcher.models.chunked_loss import compute_loss_in_output_layer, worth_chunking
from launcher.models.configuration import AUTO_NAMES, num_new_tokens
from launcher.models.documents import keep_documents_apart
from launcher.models.expert_parallel import prepare_expert_parallel
from launcher.models.freezing import freeze
from launcher.models.initial import draw_weights, grow_vocabulary
from launcher.models.liger import use_liger
from launcher.models.local import local, reading_weights, refuse_incomplete
from launcher.models.moe import choose_experts, follow_autocast, gather_routed_blocks_whole
from launcher.models.places import predict_only_places
from launcher.models.routing import watch_routers
from launcher.models.sequence_parallel import share_sequences
from launcher.models.tensor_parallel import (
    drawing_what_is_cut,
    make_room_but_for_shared,
    shard_of,
    share_matrices,
    without_room,
)

ATTENTION_TROUBLE = re.compile(r"attention.implementation|attn_implementation|(flash|flex).?attention", re.IGNORECASE)
AUTO_CLASSES: dict[Head, Any] = {head: getattr(transformers, name) for head, name in AUTO_NAMES.items()}

PAIR_SCORES: dict[Head, str] = {"next_sentence": "seq_relationship_logits", "sentence_order": "sop_logits"}
"""What the models that tell pairs call the scores of that; those of tokens they call `prediction_logits`."""


def build_model(
    config: PreTrainedConfig,
    model: ModelConfig,
    head: Head,
    *,
    seed: int,
    seq_len: int = 0,
    documents_apart: bool = False,
    micro_batch_tokens: int = 0,
    ds_config: dict[str, Any] | None = None,
    device: str = "cpu",
) -> PreTrainedModel:
    """Build the model of a run, its weights drawn or loaded.

    Args:
        config: What `build_config` made.
        model: The recipe's model section: attention, activation checkpointing, folder to continue from.
        head: What the objective needs the model to do.
        seed: Decides the initial weights, which are the same for any ZeRO stage and number of ranks.
        seq_len: Tokens of a sequence; where ranks share it, of the whole.
        documents_apart: Whether the model takes the numbers of documents, and keeps them from each other.
        micro_batch_tokens: Tokens that are predicted at once; decides whether their scores are worth avoiding.
        ds_config: The resolved DeepSpeed configuration; at stage 3 the model is partitioned as it is built, so that no
            rank ever holds it whole.
        device: Where weights are drawn; the accelerator's own generator where there is one.

    Raises:
        ModelError: The attention implementation is not available for this family or on this machine, the numbers do
            not fit together, the folder to continue from lacks weights, or a model without routers is given weights of
            their losses.
    """
    stage = (ds_config or {}).get("zero_optimization", {}).get("stage", 0)
    partitions = stage == 3 and model.tensor_parallel == 1  # AutoTP cuts whole matrices, and ZeRO what is left of them
    try:
        if model.continue_from is not None:
            built = _load(config, model, head, seed, ds_config if partitions else None)
        else:
            is_shared = model.tensor_parallel > 1
            with (
                _empty_weights(ds_config if partitions else None, device),
                without_room() if is_shared else nullcontext(),
            ):
                built = AUTO_CLASSES[head].from_config(config, dtype=torch.float32, attn_implementation=model.attention)
            later = make_room_but_for_shared(built) if is_shared else None
            # Tied after, as transformers does: a shared weight is drawn as the embedding it is, not as an output layer.
            draw_weights(built, seed, depth_scaled=model.initialisation == "depth_scaled", later=later)
            built.tie_weights()
            if later:
                built.while_cut = partial(drawing_what_is_cut, later)
    except (ImportError, ValueError) as error:
        first_sentence = " ".join(str(error).split()).partition(". ")[0]
        if ATTENTION_TROUBLE.search(str(error)):
            fix = "use model.attention=eager, or sdpa where it is supported"
            raise ModelError(first_sentence, "model.attention", fix) from None
        raise ModelError(f"transformers cannot build this model: {first_sentence}", "model") from None
    frozen = [name for name, parameter in built.named_parameters() if not parameter.requires_grad]
    if frozen:
        raise ModelError(
            f"{built.config.model_type} has parameters that do not learn ({frozen[0]}), which nothing here initialises",
            "model.family",
            "choose a family whose positions are learned or rotary",
        )
    freeze(built, model)
    enabled = {key for key in ("bf16", "fp16", "torch_autocast") if (ds_config or {}).get(key, {}).get("enabled")}
    check_attention(built, half=bool(enabled))
    if model.expert_parallel > 1:
        prepare_expert_parallel(built, model)
    else:
        choose_experts(
            built,
            model,
            device=device,
            half=bool(enabled & {"bf16", "torch_autocast"}),
            weight_bytes=2 if enabled else 4,
        )
        follow_autocast(built)
        if stage == 3:
            gather_routed_blocks_whole(built)
    if model.activation_checkpointing:
        built.activation_checkpointing_enable(every_n_layers=int(model.activation_checkpointing))
    if model.liger:
        use_liger(built)
    if documents_apart:
        keep_documents_apart(built)
    if head in PAIR_SCORES:
        built.score_names = ("prediction_logits", PAIR_SCORES[head])
    if head == "masked" or head in PAIR_SCORES:
        predict_only_places(built)
    if _wants_chunks(built, model, micro_batch_tokens, fp16=bool((ds_config or {}).get("fp16", {}).get("enabled"))):
        compute_loss_in_output_layer(built)
    watch_routers(built, model)
    if model.sequence_parallel > 1:
        share_sequences(built, model, seq_len)
    if model.tensor_parallel > 1:
        share_matrices(built, model)
    built.train()
    return built


def _wants_chunks(built: PreTrainedModel, model: ModelConfig, tokens: int, *, fp16: bool) -> bool:
    if fp16 and model.chunked_loss == "on":  # its gradients are made before the loss is scaled
        fix = "use model.chunked_loss=off, or train.precision=bf16"
        raise ModelError("the chunked loss cannot scale its gradients for fp16", "model.chunked_loss", fix)
    return model.chunked_loss == "on" or (model.chunked_loss == "auto" and not fp16 and worth_chunking(built, tokens))


def _load(
    config: PreTrainedConfig, model: ModelConfig, head: Head, seed: int, ds_config: dict[str, Any] | None
) -> PreTrainedModel:
    """Load the weights of a folder; partitioned while they are read where a configuration is given.

    Raises:
        ModelError: The folder holds no weights, or not all that the model needs.
    """
    keep = HfDeepSpeedConfig(ds_config) if ds_config is not None else None  # transformers looks for it while it lives
    torch.manual_seed(seed)
    own = copy.deepcopy(config)
    own.vocab_size -= num_new_tokens(config, model)
    folder = model.continue_from
    assert folder is not None
    with reading_weights(folder):
        built, told = AUTO_CLASSES[head].from_pretrained(
            folder,
            config=own,
            dtype=torch.float32,
            attn_implementation=model.attention,
            output_loading_info=True,
            **local(folder, model.trusted_code),
        )
    refuse_incomplete(told["missing_keys"], folder, f"continue from a model that was saved with its {head} head")
    if config.vocab_size > own.vocab_size:
        grow_vocabulary(built, config.vocab_size)
    del keep
    return built


def count_parameters(model: PreTrainedModel) -> int:
    """Number of weights, tied ones once, whole ones even where partitioned."""
    return sum(_numel(parameter) for parameter in model.parameters())


@contextmanager
def _empty_weights(ds_config: dict[str, Any] | None, device: str) -> Iterator[None]:
    """Build modules without drawing their weights; partition each one as it is made where a configuration is given."""
    with ExitStack() as stack:
        stack.enter_context(no_init_weights())
        if ds_config is None:
            stack.enter_context(torch.device(device))
        else:
            stack.enter_context(prevent_arange_dtype_change())  # zero.Init would cast rotary tables to bf16
            stack.enter_context(deepspeed.zero.Init(config_dict_or_path=ds_config))
        yield


def parameters_per_token(model: PreTrainedModel, predicted_share: float = 1.0) -> float:
    """Number of weights that compute on a token on average: what `flops_per_token` wants.

    Embeddings that are only looked up do not count; tied ones do, as the output layer. Of a mixture of experts only
    the chosen ones count.

    Args:
        model: The model, whole or partitioned.
        predicted_share: Share of the tokens that the output layer computes on.
    """
    total = float(count_parameters(model))
    config = model.config
    output, inputs = model.get_output_embeddings(), model.get_input_embeddings()
    if output is None or output.weight is not inputs.weight:
        total -= _numel(inputs.weight)
    if output is not None:
        total -= (1 - predicted_share) * _numel(output.weight)
    in_experts = sum(_numel(p) for name, p in model.named_parameters() if ".experts." in name)
    elsewhere = (getattr(model, "expert_parallel", 1) - 1) * in_experts  # on the ranks it shares its experts with
    total, in_experts = total + elsewhere, in_experts + elsewhere
    experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None)
    chosen = getattr(config, "num_experts_per_tok", None)
    if experts and chosen:
        total -= in_experts * (experts - chosen) / experts
    return total


def _numel(parameter: Any) -> int:
    shard = shard_of(parameter)
    return math.prod(shard.shape) if shard else int(getattr(parameter, "ds_numel", parameter.numel()))
