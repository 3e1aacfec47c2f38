"""What attention kernels cannot do, told before the first step: most fail in the middle of it, one reads at random."""

from __future__ import annotations

from transformers import PreTrainedModel

from launcher.errors import ModelError

DROPOUT_FIELDS = ("attention_dropout", "attention_probs_dropout_prob", "attn_pdrop")
"""What families call the dropout of attention's weights."""
FIX = "use model.attention=sdpa"


def check_attention(model: PreTrainedModel, *, half: bool) -> None:
    """See that the model's attention implementation can train it.

    Args:
        model: As built.
        half: Whether queries will be in bf16 or fp16.

    Raises:
        ModelError: It cannot.
    """
    config = model.config
    way, family = config._attn_implementation, config.model_type
    if way.startswith("flash") and not half:
        raise ModelError("flash attention computes in bf16 and fp16 only", "train.precision", f"use bf16, or {FIX[4:]}")
    if way != "flex_attention":
        return
    # transformers 5.23 reads T5's position bias, one for all rows, by the number of the row: beyond its end.
    if hasattr(config, "relative_attention_num_buckets"):
        raise ModelError(f"flex attention reads the position bias of {family} beyond its end", "model.attention", FIX)
    for field in DROPOUT_FIELDS:
        if getattr(config, field, 0.0):
            fix = f"use model.config.{field}=0.0, or {FIX[4:]}"
            raise ModelError(f"flex attention has no dropout, and {family} wants some", "model.attention", fix)
