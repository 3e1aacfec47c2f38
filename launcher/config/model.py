"""The record of a run's model."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from launcher.config.code_names import can_be_named
from launcher.config.record import FolderPath, Record


class ModelConfig(Record):
    """The `transformers` model: from scratch by its numbers, or continued from a folder."""

    family: str | None = None
    """`model_type` of transformers: bert, modernbert, gpt2, llama, qwen3_moe, t5, … Needed from scratch."""
    continue_from: FolderPath | None = None
    """Folder of a `transformers` model whose weights training starts from, in place of `family` and the numbers."""
    trusted_code: tuple[str, ...] = ()
    """Python files in continue_from's folder that may run, by name, where transformers itself does not have the family:
    `[configuration_mine.py, modeling_mine.py]`. Read them first. Without it no code that came with a model is run; what
    lies beside a tokenizer never is."""
    hidden_size: PositiveInt | None = None
    """Width of the residual stream."""
    num_hidden_layers: PositiveInt | None = None
    """Number of layers (of the encoder and of the decoder each, for T5)."""
    num_attention_heads: PositiveInt | None = None
    """Attention heads of a layer."""
    num_key_value_heads: PositiveInt | None = None
    """Key and value heads of a layer (grouped-query attention), where the family has them; as many as attention heads
    unless given."""
    intermediate_size: PositiveInt | None = None
    """Width of the feed-forward layer."""
    max_position_embeddings: PositiveInt | None = None
    """Longest sequence the model can take, where the family has such a limit."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Any other field of the family's transformers configuration, by its own name."""
    attention: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"] = "sdpa"
    """Attention implementation."""
    activation_checkpointing: bool | PositiveInt = False
    """Recompute activations in the backward pass: less memory, about a third more time. `true` for every layer, a
    number k for every k-th."""
    initialisation: Literal["family", "depth_scaled"] = "family"
    """`family`: as its authors prescribe; `depth_scaled`: the matrices that write into the residual stream are drawn
    smaller by the root of twice the number of layers (GPT-2's, Radford et al. 2019, section 2.3)."""
    freeze: tuple[str, ...] = ()
    """Parameters that do not learn, as patterns of their names (`*embeddings*`, `model.layers.[0-3].*`): they take no
    memory for gradients and optimizer. What is tied to one of them does not learn either."""
    compile: bool = False
    """Let torch.compile fuse what it can; the first steps take minutes. At stage 3 it needs torch 2.12."""
    liger: bool = False
    """Replace norms, rotary positions and dense gated feed-forwards by Liger's fused kernels (a GPU, `pip install
    liger-kernel`), where it has them for the family; how experts are computed, `experts` says."""
    chunked_loss: Literal["auto", "on", "off"] = "auto"
    """Compute the loss of a few hundred tokens at a time, so that the scores of a batch never lie in memory together;
    `auto` where they would take more than 256 MiB."""
    experts: Literal["auto", "eager", "batched_mm", "grouped_mm", "megablocks"] = "auto"
    """How a mixture's experts are computed: `auto` is grouped_mm where the family has it, else eager; `megablocks`
    needs CUDA and that package."""
    expert_parallel: PositiveInt = 1
    """Ranks that share the experts of a layer, each computing its part of them for all (DeepSpeed's AutoEP): at ZeRO
    stage 3, mixtral and qwen3_moe."""
    sequence_parallel: PositiveInt = 1
    """Ranks that compute every sequence together, a part each (DeepSpeed's Ulysses): for sequences whose activations do
    not fit on one device. Decoders of llama, qwen3, mistral, olmo and gpt2; data.seq_len and the heads must divide."""
    tensor_parallel: PositiveInt = 1
    """Ranks that share every matrix of the layers and compute the same samples together (DeepSpeed's AutoTP): for
    layers that are too large for one device. Embeddings, norms and the output layer are whole on every rank. llama,
    mistral, olmo and qwen3, whose heads must divide; at any ZeRO stage (0 not in pure bf16 and fp16), but the model is
    built whole in fp32 on every rank first."""
    router_aux_loss: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] | None = None
    """Mixtures of experts: weight of the loss that spreads tokens over the experts (Fedus et al. 2021, equation 4, for
    every layer; their mean). Without it, the family's own, `router_aux_loss_coef` of its configuration."""
    router_z_loss: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.0
    """Mixtures of experts: weight of the routers' mean squared log partition function (ST-MoE's is 1e-3, Zoph et al.
    2022, section 3.3)."""

    @field_validator("trusted_code", mode="before")
    @classmethod
    def _as_names(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _trusts_files_of_the_folder(self) -> ModelConfig:
        if self.trusted_code and self.continue_from is None:
            raise ValueError("trusted_code are files in continue_from's folder, and there is none")
        if odd := [name for name in self.trusted_code if not can_be_named(name)]:
            raise ValueError(f"trusted_code are names of Python files in continue_from's folder, not {odd[0]!r}")
        return self

    @field_validator("freeze", mode="before")
    @classmethod
    def _as_patterns(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value
