"""Initial weights as a pure function of the seed and the name of a module, for any ZeRO stage and world size.

transformers draws the weights of a whole model from one stream of random numbers; under ZeRO-3 rank 0 alone draws them,
in another order, and the same seed gives another model. Here each module is drawn from a stream of its own, by every
rank, which keeps its own part.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import deepspeed
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.initialization import guard_torch_init_functions

from launcher.errors import ModelError
from launcher.units import derive

INIT_STREAM = 1


Later = dict[nn.Module, Callable[[], None]]
"""How to draw the modules whose weights are not there yet."""


def draw_weights(model: PreTrainedModel, seed: int, depth_scaled: bool = False, later: Later | None = None) -> None:
    """Initialise every parameter and buffer of a model as its family prescribes.

    Of a partitioned model a rank never holds more than its partition and the layer that is drawn.

    Args:
        model: A model whose weights hold nothing yet, whole or partitioned by `zero.Init`.
        seed: With a module's name, decides its weights.
        depth_scaled: Divide the weights that write into a residual stream by the root of their number.
        later: Modules whose weights have no room yet are not drawn; each gets what draws it once it has.

    Raises:
        ModelError: Which weights write into the residual stream is not known of this family, or it scales them itself.
    """
    divisors = _residual_writers(model) if depth_scaled else {}
    with torch.no_grad(), guard_torch_init_functions():
        for name, module, family in _modules_children_first(model, "", model):
            # transformers' rules touch a module's own parameters or those of its direct children (GPT-2's c_proj).
            children = [child for child in module.children() if not isinstance(child, PreTrainedModel)]
            parameters = list({p: None for owner in (module, *children) for p in owner.parameters(recurse=False)})
            digest = hashlib.sha256(name.encode()).digest()

            def rule(
                module: nn.Module = module,
                family: PreTrainedModel = family,
                digest: bytes = digest,
                scaled: tuple[nn.Parameter, ...] = tuple(p for p in parameters if id(p) in divisors),
            ) -> None:
                versions = [parameter._version for parameter in scaled]
                torch.manual_seed(derive(seed, INIT_STREAM, int.from_bytes(digest[:8], "little")) >> 1)
                family._init_weights(module)
                for parameter, version in zip(scaled, versions, strict=True):
                    if parameter._version != version:  # T5's attention draws again what its linear layers drew
                        parameter.div_(divisors[id(parameter)])

            if later is not None and module in later:
                later[module] = _guarded(rule)
            elif not any(hasattr(parameter, "ds_id") for parameter in parameters):
                rule()
            elif not _draw_partition(parameters, rule):
                with _whole(parameters):
                    rule()


def _guarded(rule: Callable[[], None]) -> Callable[[], None]:
    def draw() -> None:
        with torch.no_grad(), guard_torch_init_functions():
            rule()

    return draw


def _draw_partition(parameters: list[Any], rule: Callable[[], None]) -> bool:
    """Let every rank draw partitioned parameters whole, without asking the others, and keep its own part of them.

    Args:
        parameters: What the rule may write; those it does not write stay as they are.
        rule: Writes them in fp32; draws the same values on every rank.

    Returns:
        False, and nothing is changed, where that does not do: the rule builds upon values that are there already, or a
        part lies on NVMe.
    """
    if any(parameter.ds_tensor.status.name != "AVAILABLE" for parameter in parameters):
        return False
    stored = [(parameter, parameter.data) for parameter in parameters]
    try:
        for parameter, data in stored:
            # What no rule has written can be told by it; and drawn in fp32, a bf16 partition holds what a rounded fp32
            # model holds.
            parameter.data = torch.full(parameter.ds_shape, torch.nan, dtype=torch.float32, device=data.device)
        versions = [parameter._version for parameter in parameters]
        rule()
        written = [p for p, version in zip(parameters, versions, strict=True) if p._version != version]
        if any(bool(parameter.sum().isnan()) for parameter in written):
            return False
        for parameter in written:
            size = parameter.ds_tensor.ds_numel
            start = size * torch.distributed.get_rank(parameter.ds_process_group)
            numel = max(min(size, parameter.ds_numel - start), 0)  # the last ranks' parts end in padding
            part = parameter.data.view(-1).narrow(0, start, numel) if numel else parameter.data.new_empty(0)
            parameter.ds_tensor.data.view(-1)[:numel].copy_(part)
            parameter.ds_secondary_tensor = None  # a node's second copy (hpZ) is of what was there before
        return True
    finally:
        for parameter, data in stored:
            parameter.data = data


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
    # Attention: llama and kin, bert and kin, gpt2, gpt_neox, modernbert, t5, bart, phi and persimmon, falcon and bloom.
    "self_attn.o_proj",
    "attention.output.dense",
    "attn.c_proj",
    "attention.dense",
    "attn.Wo",
    "SelfAttention.o",
    "EncDecAttention.o",
    "self_attn.out_proj",
    "encoder_attn.out_proj",
    "self_attn.dense",
    "self_attention.dense",
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
    "experts.down_proj",
)
"""Ends of the names of the layers whose output is added to the residual stream; experts' matrices may lie in one."""
BLOCK = re.compile(r".*?\.\d+(?=\.)")
"""The name of a block at the beginning of the names in it."""


def _residual_writers(model: PreTrainedModel) -> dict[int, float]:
    """Id of each weight that writes into a residual stream → the root of how many layers do: attention and feed-forward
    of each block, and a decoder's attention to its encoder.

    Raises:
        ModelError: In a block fewer are known by their names than write, or the family scales them itself.

    Source: Radford et al. 2019, section 2.3 ("Language models are unsupervised multitask learners").
    """
    config = model.config
    if config.model_type in SCALED_BY_THEMSELVES:
        raise ModelError(
            f"{config.model_type} draws these weights smaller by itself",
            "model.initialisation",
            "use family",
        )
    decoder: set[int] = set()
    if getattr(config, "is_encoder_decoder", False):
        decoder = {id(parameter) for parameter in model.get_decoder().parameters()}
    decoder_layers = getattr(config, "num_decoder_layers", getattr(config, "decoder_layers", 0)) if decoder else 0
    divisors: dict[int, float] = {}
    found: dict[str, set[str]] = {}
    least: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        end = next((end for end in RESIDUAL_WRITERS if name.removesuffix(".weight").endswith(f".{end}")), None)
        block = BLOCK.match(name)
        if end is None or block is None:
            continue
        in_decoder = id(parameter) in decoder
        divisors[id(parameter)] = (3 * decoder_layers if in_decoder else 2 * config.num_hidden_layers) ** 0.5
        found.setdefault(block[0], set()).add(end)
        least[block[0]] = 3 if in_decoder else 2
    # ALBERT's layers are groups that share their weights.
    num_blocks = getattr(config, "num_hidden_groups", config.num_hidden_layers) + decoder_layers
    lacking = next((block for block, ends in found.items() if len(ends) < least[block]), None)
    if lacking is not None or len(found) < num_blocks:
        known = "" if lacking is None else f": in {lacking} of {', '.join(sorted(found[lacking]))} only"
        raise ModelError(
            f"which matrices of {config.model_type} write into the residual stream is not known{known}",
            "model.initialisation",
            "use family",
        )
    return divisors


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
