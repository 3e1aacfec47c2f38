"""What the ranks of the integration tests do; functions of plain values, run by `ranks.run_ranks`."""

from __future__ import annotations

import hashlib
from typing import Any


def initial_weights(model: dict[str, Any], objective: str, stage: int, precision: str) -> dict[str, str]:
    """Parameter → hash of its initial values, whole and in fp32."""
    import os

    import deepspeed
    import torch

    from launcher.cluster.rank import find_place
    from launcher.config.recipe import ModelConfig
    from launcher.engine.process import join_ranks
    from launcher.models.build import build_model
    from launcher.models.configuration import build_config

    join_ranks(find_place(os.environ), 1)
    record = ModelConfig.model_validate(model)
    config = build_config(record, objective, tokenizer_info(), 16)
    ds_config = {"train_batch_size": 4, "zero_optimization": {"stage": stage}, precision: {"enabled": True}}
    built = build_model(config, record, objective, seed=3, ds_config=ds_config)
    if precision == "bf16" and stage < 3:
        built = built.bfloat16()
    hashes = {}
    for name, parameter in built.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=stage == 3):
            hashes[name] = hashlib.sha256(parameter.data.float().numpy().tobytes()).hexdigest()
    for name, buffer in built.named_buffers():
        hashes[f"buffer {name}"] = hashlib.sha256(buffer.float().numpy().tobytes()).hexdigest()
    assert torch.is_grad_enabled()
    return hashes


def tokenizer_info() -> Any:
    from launcher.shards.manifest import SpecialTokens, TokenizerInfo

    special = SpecialTokens(
        pad=0,
        unk=1,
        cls=2,
        sep=3,
        mask=4,
        bos=None,
        eos=None,
        sentinels=tuple(range(5, 15)),
        all_ids=tuple(range(15)),
        document_end=3,
    )
    return TokenizerInfo(sha256="0" * 64, vocab_size=96, name="tiny", special=special)
