"""Initial weights as a pure function of the seed and the name of a module, for any ZeRO stage and world size.

transformers draws the weights of a whole model from one stream of random numbers; under ZeRO-3 rank 0 alone draws them,
in another order, and the same seed gives another model. Here each module is drawn from a stream of its own, with its
parameters gathered if they are partitioned.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import deepspeed
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.initialization import guard_torch_init_functions

from launcher.errors import ModelError
from launcher.units import derive

INIT_STREAM = 1


def draw_weights(model: PreTrainedModel, seed: int) -> None:
    """Initialise every parameter and buffer of a model as its family prescribes.

    Args:
        model: A model whose weights hold nothing yet, whole or partitioned by `zero.Init`.
        seed: With a module's name, decides its weights.
    """
    with torch.no_grad(), guard_torch_init_functions():
        for name, module, family in _modules_children_first(model, "", model):
            # transformers' rules touch a module's own parameters or those of its direct children (GPT-2's c_proj).
            children = [child for child in module.children() if not isinstance(child, PreTrainedModel)]
            parameters = [p for owner in (module, *children) for p in owner.parameters(recurse=False)]
            digest = hashlib.sha256(name.encode()).digest()
            with _whole(parameters):
                torch.manual_seed(derive(seed, INIT_STREAM, int.from_bytes(digest[:8], "little")) >> 1)
                family._init_weights(module)


def _modules_children_first(
    module: nn.Module, name: str, family: PreTrainedModel
) -> Iterator[tuple[str, nn.Module, PreTrainedModel]]:
    """Every module after its children, with the innermost `PreTrainedModel` around it, whose rules apply."""
    for child_name, child in module.named_children():
        inner = child if isinstance(child, PreTrainedModel) else family
        yield from _modules_children_first(child, f"{name}.{child_name}" if name else child_name, inner)
    yield name, module, family


@contextmanager
def _whole(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Make parameters whole and fp32 for the time of the block; what the block writes is kept."""
    partitioned = any(hasattr(parameter, "ds_id") for parameter in parameters)
    with deepspeed.zero.GatheredParameters(parameters, modifier_rank=0) if partitioned else nullcontext():
        stored = [(parameter, parameter.data) for parameter in parameters]
        for parameter, data in stored:
            # Drawn in fp32 and rounded after, so that a bf16 partition holds what a rounded fp32 model holds.
            parameter.data = data.float()
        try:
            yield
        finally:
            for parameter, data in stored:
                if parameter.data.data_ptr() != data.data_ptr():
                    data.copy_(parameter.data)
                parameter.data = data


SCALED_BY_THEMSELVES = frozenset(
    (
        "gpt2",
        "gpt_bigcode",
        "modernbert",
        "modernbert-decoder",
        "mamba",
        "mamba2",
        "falcon_mamba",
        "nanochat",
        "nemotron_h",
    )
)
"""Families whose own initialisation knows the depth (`_init_weights` of transformers 5.23)."""
RESIDUAL_WRITERS = (
    # Attention: llama and kin, bert and kin, gpt2, gpt_neox, modernbert, t5, bart.
    "self_attn.o_proj",
    "attention.output.dense",
    "attn.c_proj",
    "attention.dense",
    "attn.Wo",
    "SelfAttention.o",
    "EncDecAttention.o",
    "self_attn.out_proj",
    "encoder_attn.out_proj",
    # Feed-forward, in the same order.
    "mlp.down_proj",
    "shared_expert.down_proj",
    "shared_experts.down_proj",
    "output.dense",
    "mlp.c_proj",
    "mlp.dense_4h_to_h",
    "mlp.Wo",
    "DenseReluDense.wo",
    "fc2",
    "ffn_output",
)
"""Ends of the names of the linear layers whose output is added to the residual stream."""


def scale_residual_writers(model: PreTrainedModel) -> None:
    """Divide the weights that write into a residual stream by the root of how many layers do: attention and
    feed-forward of each block, and a decoder's attention to its encoder.

    Raises:
        ModelError: The family has none under a known name.

    Source: Radford et al. 2019, section 2.3 ("Language models are unsupervised multitask learners").
    """
    if model.config.model_type in SCALED_BY_THEMSELVES:
        raise ModelError(
            f"{model.config.model_type} draws these weights smaller by itself",
            "model.initialisation",
            "use family",
        )
    writers = [
        module.weight
        for name, module in model.named_modules()
        if any(name.endswith(f".{end}") for end in RESIDUAL_WRITERS) and hasattr(module, "weight")
    ]
    stacked = [p for name, p in model.named_parameters() if name.endswith(".experts.down_proj")]
    if not writers:
        raise ModelError(
            f"which matrices of {model.config.model_type} write into the residual stream is not known",
            "model.initialisation",
            "use family",
        )
    config = model.config
    num_layers, decoder = 2 * config.num_hidden_layers, set()
    if config.is_encoder_decoder:
        decoder = {id(parameter) for parameter in model.get_decoder().parameters()}
    of_decoder = 3 * getattr(config, "num_decoder_layers", getattr(config, "decoder_layers", 0))
    with torch.no_grad():
        for parameter in (*writers, *stacked):
            with _whole([parameter]):
                parameter.data /= (of_decoder if id(parameter) in decoder else num_layers) ** 0.5


def grow_vocabulary(model: PreTrainedModel, vocab_size: int) -> None:
    """Add tokens to a trained model: each begins as the mean of those it knows.

    Args:
        model: Whole, or partitioned while its HfDeepSpeedConfig lives.
        vocab_size: Tokens to have, more than it has.

    Source: Hewitt 2021 ("Initializing new word embeddings for pretrained language models"): a new token with random
    weights can take most of the probability from all others.
    """
    known = model.config.vocab_size
    model.resize_token_embeddings(vocab_size, mean_resizing=False)
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    weights = {id(layer.weight): layer.weight for layer in layers if layer is not None}  # tied ones once
    with torch.no_grad():
        for parameter in weights.values():
            with _whole([parameter]):
                parameter.data[known:] = parameter.data[:known].mean(dim=0)
